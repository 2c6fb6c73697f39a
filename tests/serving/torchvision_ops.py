"""Make torchvision import beside a CPU torch where the index has only its CUDA build.

That build's operators do not load, and its Python part stops at the first that is missing. Nothing
that processors use needs them: naming them is enough. Run by the environment's own Python.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

NAMED = """# named here, as the compiled part did not load
import torch as _torch
_named = _torch.library.Library("torchvision", "DEF")
for _name in ("nms", "qnms"):
    _named.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


def imports() -> bool:
    """Whether torchvision imports as it is."""
    done = subprocess.run(
        [sys.executable, "-c", "import torchvision"], capture_output=True, check=False
    )
    return done.returncode == 0


if __name__ == "__main__" and not imports():
    found = find_spec("torchvision")
    if found is None or found.origin is None:
        sys.exit("Expected torchvision. Got an environment without. Run: make serve-env")
    file = Path(found.origin).with_name("_meta_registrations.py")
    if not (text := file.read_text()).startswith(NAMED):
        file.write_text(NAMED + text)
    sys.exit(None if imports() else "Expected torchvision to import. Got an error: import it.")
