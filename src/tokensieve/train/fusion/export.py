"""What a training leaves: a model's folder, the projector on its own, LoRA's adapter."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokensieve.files import written_folder
from tokensieve.nn.pretrained import write_weights
from tokensieve.train.fusion.model import PROJECTOR, base_of, is_of_projector, plain_state
from tokensieve.train.fusion.recipe import Recipe, uses_bf16
from tokensieve.train.fusion.trainer import FusionTrainer

MODEL, ADAPTER = "model", "adapter"


def export(trainer: FusionTrainer, processor: Any, recipe: Recipe, out: Path) -> None:
    """Write `out`/model, `out`/projector.safetensors and, after LoRA, `out`/adapter.

    Every process has to call it, the first one writes. Folders get their names when they are whole.
    Raises `ConfigError` where the disk refuses.
    """
    state = full_state(trainer)
    if not trainer.args.should_save:
        return
    wrapped = trainer.accelerator.unwrap_model(trainer.model)
    base, scaling = base_of(wrapped), None
    if recipe.train.parts == "lora":
        scaling = recipe.lora.alpha / recipe.lora.rank
        with written_folder(out / ADAPTER, replace=True) as part:
            # False: no look-up of the base model's name on the hub
            wrapped.save_pretrained(part, state_dict=dict(state), save_embedding_layers=False)
    dtype = _dtype(recipe)
    state = plain_state(state, scaling)
    state = {n: v.to(dtype) if v.is_floating_point() else v for n, v in state.items()}
    write_weights(
        out / PROJECTOR,
        {
            n.partition("multi_modal_projector.")[2]: v
            for n, v in state.items()
            if is_of_projector(n)
        },
    )
    with written_folder(out / MODEL, replace=True) as part:
        _clean(base, dtype).save_pretrained(part, state_dict=state)
        processor.save_pretrained(part)


def full_state(trainer: FusionTrainer) -> dict[str, Tensor]:
    """All weights on the first process, by the names of the model as it is trained."""
    if not trainer.sharded:
        state: dict[str, Tensor] = trainer.model.state_dict()
        return state
    model = trainer.deepspeed if trainer.is_deepspeed_enabled else trainer.model
    gathered: dict[str, Tensor] = trainer.accelerator.get_state_dict(model)
    return gathered or {}


def _clean(base: Any, dtype: torch.dtype) -> Any:
    """A model of the same class and config without weights, to save others' through it.

    The modules of `base` itself may be PEFT's, or sharded.
    """
    from transformers.integrations import deepspeed

    untyped: Any = deepspeed
    untyped.unset_hf_deepspeed_config()  # ZeRO-3 would have all processes make it together
    config = deepcopy(base.config)
    config.dtype = dtype
    with torch.device("meta"):
        clean = type(base)(config).to(dtype)
    clean.generation_config = base.generation_config
    return clean


def _dtype(recipe: Recipe) -> torch.dtype:
    chosen = recipe.run.dtype
    if chosen == "auto":
        return torch.bfloat16 if uses_bf16(recipe) else torch.float32
    dtype: torch.dtype = getattr(torch, chosen)
    return dtype
