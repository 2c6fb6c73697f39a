"""A model's folder as vLLM reads it: weights under the names of published checkpoints.

Transformers 5 names the weights of CLIP and SigLIP towers without `vision_model`; vLLM 0.32 knows
only the names with it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from tokensieve.files import write_text, written_folder

_TOWERS = ("clip_vision_model", "siglip_vision_model")


def write_folder(model: Any, processor: Any, folder: str | Path) -> Path:
    """Write model and processor into `folder`, ready for `vllm serve`; gives the folder.

    Files of the same names are replaced. Raises `ConfigError` where the disk refuses.
    """
    folder = Path(folder)
    vision = getattr(model.config, "vision_config", None)
    added = "vision_model." if getattr(vision, "model_type", None) in _TOWERS else ""
    tower = "model.vision_tower."
    weights = {
        name.replace(tower, tower + added, 1): value.contiguous()
        for name, value in model.state_dict().items()
    }
    with written_folder(folder) as part:
        model.config.save_pretrained(part)
        processor.save_pretrained(part)
        if model.generation_config is not None:
            model.generation_config.save_pretrained(part)
        save_file(weights, part / "model.safetensors", metadata={"format": "pt"})
        config = json.loads((part / "config.json").read_text(encoding="utf-8"))
        config["architectures"] = [type(model).__name__]
        write_text(part / "config.json", json.dumps(config, indent=2))
    return folder
