"""The model that is trained: what of it learns, LoRA, and the projector's weights on their own."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tokensieve.data.extras import need
from tokensieve.errors import ConfigError, UnsupportedError, WeightsError
from tokensieve.nn.pretrained import load_weights
from tokensieve.train.fusion.recipe import LoraConfig, Recipe

PROJECTOR = "projector.safetensors"
_PICKLES = {".bin", ".pt", ".pth", ".ckpt"}
_NAME = "multi_modal_projector"  # in the names of a model's parameters
_ROUTERS = "model.routers"


def projector_of(model: Any) -> nn.Module:
    """The projector of a LLaVA kind of model. Raises `UnsupportedError` where there is none."""
    projector = getattr(getattr(model, "model", None), _NAME, None)
    if not isinstance(projector, nn.Module):
        raise UnsupportedError(
            "Expected a model of LLaVA's kind, with `model.multi_modal_projector`. Got "
            f"{type(model).__name__}. Fuse it first: tokensieve.hf.fused.fuse."
        )
    return projector


def load_projector(model: Any, source: str | Path) -> None:
    """Fill the projector of `model` from an earlier stage: its --out folder, or a file of it.

    Raises `WeightsError` for a file that is missing, is a pickle, or is of another projector.
    """
    path = Path(source)
    if path.is_dir():
        path = path / PROJECTOR
    if path.suffix in _PICKLES:
        raise WeightsError(
            f"Expected a projector as safetensors. Got {path}, a pickle, which may run code when "
            "read. Convert it with safetensors.torch.save_file where you trust it."
        )
    if not path.is_file():
        raise WeightsError(
            f"Expected a projector at {path}. It is not there. Name the --out folder of stage 1."
        )
    load_weights(projector_of(model), path)


def choose_parts(model: Any, recipe: Recipe, seed: int) -> Any:
    """`model` with gradients for what the recipe trains; wrapped by PEFT where that is LoRA.

    The encoder never learns, routers always do. Raises `MissingPackageError` where PEFT is asked
    for and missing, `ConfigError` where layers that tokens skip would run twice.
    """
    projector = projector_of(model)
    model.requires_grad_(False)
    llm = model.model.language_model
    if recipe.train.checkpointing:
        if _has_routers(model):
            raise ConfigError(
                "Expected train.checkpointing=false for a model whose tokens skip layers: they "
                "would run a second time without that. Got true."
            )
        _checkpoint(llm)
    if recipe.train.parts == "lora":
        return _with_lora(model, recipe.lora, seed)
    projector.requires_grad_(True)
    if _has_routers(model):
        model.model.routers.requires_grad_(True)
    if recipe.train.parts == "llm":
        llm.requires_grad_(True)
        model.get_output_embeddings().requires_grad_(True)
    return model


def frozen_to(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast what does not learn: it needs no more digits than it is computed with."""
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)


def is_of_projector(name: str) -> bool:
    """Whether a parameter of that name is the projector's, also within PEFT's or FSDP's names."""
    return _NAME in name


def is_new(name: str) -> bool:
    """Whether a parameter of that name is the projector's or a router's."""
    return is_of_projector(name) or _ROUTERS in name


def base_of(model: Any) -> Any:
    """The model itself, within PEFT's wrapper where there is one."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def plain_state(state: dict[str, Tensor], scaling: float | None = None) -> dict[str, Tensor]:
    """A state dict by the names of the model alone, LoRA's updates added to its weights.

    scaling: of LoRA, alpha / rank; None: `state` is of a model without.
    """
    if scaling is None:
        return state
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        name = key.removeprefix("base_model.model.")
        if ".lora_" in name or ".original_module." in name:
            continue
        name = name.replace(".modules_to_save.default.", ".")
        if ".base_layer." in name:
            if name.endswith(".weight"):
                layer = key.removesuffix("base_layer.weight")
                up, down = (state[f"{layer}lora_{part}.default.weight"] for part in "BA")
                value = (value.float() + scaling * (up.float() @ down.float())).to(value.dtype)
            name = name.replace(".base_layer.", ".")
        found[name] = value
    return found


def _checkpoint(llm: Any) -> None:
    """Compute activations again in the backward pass; the encoder has none to keep."""
    enable = getattr(llm, "activation_checkpointing_enable", None)  # Transformers before 5.23
    (enable or llm.gradient_checkpointing_enable)({"use_reentrant": False})


def _has_routers(model: Any) -> bool:
    return getattr(model.model, "routers", None) is not None


def _with_lora(model: Any, config: LoraConfig, seed: int) -> Any:
    peft = need("peft", "fusion", "to train with LoRA")
    lora = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=[
            f"model.language_model.{name}"
            for name, module in model.model.language_model.named_modules()
            if isinstance(module, nn.Linear)
        ],
        modules_to_save=[_NAME, *(["routers"] if _has_routers(model) else [])],
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT asks Transformers by an old name
        torch.manual_seed(seed)
        return peft.get_peft_model(model, lora)
