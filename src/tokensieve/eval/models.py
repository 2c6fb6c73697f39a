"""A model and its processor, by name: the embedded nano, a directory, or a name on the hub.

"nano+FILE" is nano with the projector and LLM of a safetensors file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from tokensieve.errors import UnsupportedError, WeightsError

NANO = {"nano": "llava", "nano-next": "llava-next", "nano-control": "control"}


@dataclass(frozen=True)
class Loaded:
    """A model ready to generate, and the processor that feeds it."""

    name: str
    model: Any
    processor: Any


def load_model(name: str) -> Loaded:
    """The model called `name`: a key of `NANO`, a directory, or a repository of the hub.

    Never runs code that comes with a model. Raises `WeightsError` if there is no such model, its
    files are damaged, or the hub cannot be reached; `UnsupportedError` if it reads no pictures.
    """
    if name.startswith("nano+"):
        return _other_reader(name)
    if name in NANO:
        from tokensieve.hf.nano import load_nano

        model, processor = load_nano(NANO[name])
        return Loaded(name, model, processor)
    if name.startswith((".", "/", "~")) or Path(name).exists():
        path = Path(name).expanduser()
        if not (path / "config.json").is_file():
            got = "a directory without it" if path.is_dir() else "no such directory"
            raise WeightsError(f"Expected a model directory with config.json. Got {got}: {name}.")
        return _from_pretrained(str(path), name)
    return _from_pretrained(name, name)


def _other_reader(name: str) -> Loaded:
    from tokensieve.hf.nano import load_nano, load_reader

    model, processor = load_nano()
    path = Path(name.partition("+")[2]).expanduser()
    try:
        load_reader(model, path)  # type: ignore[arg-type]
    except (OSError, RuntimeError, KeyError, SafetensorError) as error:
        raise WeightsError(
            f"Expected projector and LLM of nano in {path}. Got: {_first_sentence(error)}"
        ) from error
    return Loaded(name, model, processor)


def hush() -> None:
    """Keep Transformers' progress bars and advice out of what a command prints."""
    from transformers.utils import logging

    quiet: Any = logging  # untyped in Transformers
    quiet.set_verbosity_error()
    quiet.disable_progress_bar()


def _from_pretrained(source: str, name: str) -> Loaded:
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    processors: Any = AutoProcessor  # untyped in Transformers
    models: Any = AutoModelForImageTextToText
    try:
        config = AutoConfig.from_pretrained(source)
        if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
            raise UnsupportedError(
                f"Expected a vision-language model. Got '{config.model_type}' in {name}, which has "
                "no visual tokens."
            )
        processor = processors.from_pretrained(source)
        model, info = models.from_pretrained(
            source, config=config, dtype="auto", output_loading_info=True
        )
    except UnsupportedError:
        raise
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        raise WeightsError(
            f"Expected a model that Transformers can load in '{name}', or 'nano', which needs no "
            f"download. Got: {_first_sentence(error)}"
        ) from error
    if info["missing_keys"]:
        raise WeightsError(
            f"Expected all weights of {name}. Got none for {len(info['missing_keys'])} tensors, "
            f"such as {min(info['missing_keys'])}. Fetch the model again."
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Loaded(name, model.eval().to(device), processor)


def _first_sentence(error: Exception) -> str:
    """The first line of a message that may be a page long."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
