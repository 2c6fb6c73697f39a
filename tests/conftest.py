"""Shape checks on every public tensor signature, and one thread: tests must not fight for cores.
No deadlines: how long a test takes says how busy the machine is."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

from jaxtyping import install_import_hook

install_import_hook("tokensieve", "beartype.beartype")

import hypothesis  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)
hypothesis.settings.register_profile("busy", deadline=None)
hypothesis.settings.load_profile("busy")
