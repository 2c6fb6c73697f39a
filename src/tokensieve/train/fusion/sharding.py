"""Settings that shard a model over processes: those that ship, or a file of the user's."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from tokensieve.data.extras import need
from tokensieve.errors import ConfigError, UnknownNameError

_KEYS = {"fsdp", "fsdp_config", "deepspeed"}


def shipped() -> list[str]:
    """Names `--parallel` takes besides files."""
    folder = resources.files("tokensieve.train.fusion.parallel")
    return sorted(f.name.removesuffix(".json") for f in folder.iterdir() if f.name.endswith("json"))


def read_parallel(name: str | None) -> dict[str, Any]:
    """Arguments of `TrainingArguments` for a shipped name or a JSON file; none for None.

    A file holds "fsdp" and "fsdp_config", or "deepspeed", or is a config of DeepSpeed itself.

    Raises `UnknownNameError` for neither, `ConfigError` for other JSON, `MissingPackageError`
    where DeepSpeed is asked for and missing.
    """
    if name is None:
        return {}
    if name in shipped():
        text = resources.files("tokensieve.train.fusion.parallel").joinpath(f"{name}.json")
        content = text.read_text("utf-8")
    elif Path(name).is_file():
        content = Path(name).read_text("utf-8")
    else:
        raise UnknownNameError.of("way to share a model (or JSON file)", name, shipped())
    try:
        values = json.loads(content)
    except ValueError as error:
        raise ConfigError(f"Expected JSON in {name}. Got: {error}. Correct it.") from error
    if isinstance(values, dict) and "zero_optimization" in values:
        values = {"deepspeed": values}
    if not isinstance(values, dict) or not values or not values.keys() <= _KEYS:
        raise ConfigError(
            f"Expected {', '.join(sorted(_KEYS))} in {name}, or a config of DeepSpeed. Got other "
            "JSON. See docs/guides/train-fusion.md."
        )
    if "deepspeed" in values:
        need("deepspeed", "deepspeed", "to share a model by ZeRO")
    return values


def wrapping(parallel: Mapping[str, Any], model: Any) -> dict[str, Any]:
    """`parallel` with the layers of `model` that FSDP is to share one by one, unless it names some.

    Transformers' own list for LLaVA names layers of CLIP's text side, which FSDP then misses.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    found = dict(parallel)
    settings = dict(found.get("fsdp_config") or {})
    if "fsdp" not in found or "transformer_layer_cls_to_wrap" in settings:
        return found
    layers = {
        type(m).__name__ for m in model.modules() if isinstance(m, GradientCheckpointingLayer)
    }
    return {**found, "fsdp_config": {**settings, "transformer_layer_cls_to_wrap": sorted(layers)}}


def processes() -> int:
    """Processes of this run, as launchers set them. Raises `ConfigError` for what is no number."""
    value = os.environ.get("WORLD_SIZE", "1")
    if not value.isdecimal() or value == "0":
        raise ConfigError(f"Expected a number in the environment's WORLD_SIZE. Got '{value}'.")
    return int(value)
