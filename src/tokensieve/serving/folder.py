"""A model's folder as vLLM reads it: weights under the names of published checkpoints.

Transformers 5 names the weights of CLIP and SigLIP towers without `vision_model`; vLLM 0.32 knows
only the names with it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

_TOWERS = ("clip_vision_model", "siglip_vision_model")


def write_folder(model: Any, processor: Any, folder: str | Path) -> Path:
    """Write model and processor into `folder`, ready for `vllm serve`; gives the folder.

    Files of the same names are replaced.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    processor.save_pretrained(folder)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
    vision = getattr(model.config, "vision_config", None)
    added = "vision_model." if getattr(vision, "model_type", None) in _TOWERS else ""
    tower = "model.vision_tower."
    weights = {
        name.replace(tower, tower + added, 1): value.contiguous()
        for name, value in model.state_dict().items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["architectures"] = [type(model).__name__]
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    return folder
