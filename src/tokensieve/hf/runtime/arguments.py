"""What callers hand in, looked at before any work is done: models and their inputs.

B prompts, S prompt length.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from tokensieve.errors import (
    ConfigError,
    InputError,
    PictureError,
    PromptError,
    TokensieveError,
    UnsupportedError,
)
from tokensieve.fields import shown

VIDEO = "pixel_values_videos"
PIXELS = ("pixel_values", "pixel_values_images", "image_patches", VIDEO)


def require_model(model: Any) -> None:
    """Raise `UnsupportedError` for what is no loaded model of Transformers."""
    inner = _wrapped(model)
    if inner is None and isinstance(model, torch.nn.Module) and hasattr(model, "config"):
        return
    advice = "Pass the model itself, as AutoModelForImageTextToText.from_pretrained(...) gives it."
    if inner is not None:
        advice = f"It is around another model; pass that one: {inner}."
    elif not isinstance(model, type) and hasattr(model, "image_processor"):
        advice = f"That is a processor. {advice}"
    got = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
    raise UnsupportedError(
        f"Expected a loaded vision-language model of Transformers. Got {got}. {advice}"
    )


def _wrapped(model: Any) -> str | None:
    """How to reach the model inside PEFT's, torch.compile's, DataParallel and its like, or a
    pipeline; None for what is around no other."""
    if isinstance(model, type):
        return None
    if not isinstance(model, torch.nn.Module):
        return (
            "what its `.model` is" if isinstance(_part(model, "model"), torch.nn.Module) else None
        )
    if "_orig_mod" in model._modules:
        return "model._orig_mod"
    if hasattr(type(model), "get_base_model"):
        return "model.get_base_model(), whose adapters stay at work"
    return "model.module" if isinstance(_part(model, "module"), torch.nn.Module) else None


def _part(owner: Any, name: str) -> Any:
    try:
        return getattr(owner, name, None)
    except Exception:
        return None


def require_head(model: Any) -> None:
    """Raise `UnsupportedError` for a model that gives hidden states and no text."""
    if not callable(getattr(model, "generate", None)):
        raise UnsupportedError(
            "Expected a model that generates text (...ForConditionalGeneration). Got "
            f"{type(model).__name__}, which has no output layer. Pass the model it is part of."
        )


def require_processor(processor: Any) -> None:
    """Raise `UnsupportedError` for what does not make a prompt of pictures and text."""
    for part in ("tokenizer", "image_processor"):
        if getattr(processor, part, None) is None:
            raise UnsupportedError(
                f"Expected the model's processor, of pictures and text. Got {shown(processor)}, "
                f"without `{part}`. Pass AutoProcessor.from_pretrained(...)."
            )


def require_inputs(inputs: Any) -> None:
    """What a model's processor returns, by types and shapes.

    Raises `InputError` for what is no mapping of names, `PromptError` for ids, mask or labels that
    are no tensors (B, S), `PictureError` for pictures that are none.
    """
    if not isinstance(inputs, Mapping) or not all(isinstance(name, str) for name in inputs):
        raise InputError(
            "Expected inputs as a mapping of names to tensors, as the model's processor returns "
            f"them. Got {shown(inputs)}. Pass processor(images=..., text=..., return_tensors='pt')."
        )
    if (ids := inputs.get("input_ids")) is not None:
        _require_along(ids, inputs)
    for name in PIXELS:
        if inputs.get(name) is not None:
            _require_picture(name, inputs[name])
    outputs = inputs.get("mm_encoder_outputs")
    if outputs is None:
        return
    if not isinstance(outputs, Mapping) or any(
        (given := outputs.get(kind)) is not None and not hasattr(given, "pooler_output")
        for kind in ("image", "video")
    ):
        raise InputError(
            "Expected `mm_encoder_outputs` as {'image': what get_image_features(..., "
            "return_dict=True) returns}, 'video' likewise. Got "
            f"{_told(outputs)}. Pass pixels instead."
        )


def _require_along(ids: Any, inputs: Mapping[str, Any]) -> None:
    """Ids (B, S), and what runs along them."""
    whole = isinstance(ids, Tensor) and not (ids.is_floating_point() or ids.dtype is torch.bool)
    if not whole or ids.ndim != 2:
        raise PromptError(
            f"Expected `input_ids` as a tensor of whole numbers (B, S). Got {_told(ids)}. Call the "
            "processor with return_tensors='pt'."
        )
    for name in ("attention_mask", "labels"):
        value = inputs.get(name)
        if value is not None and not (isinstance(value, Tensor) and value.shape == ids.shape):
            raise PromptError(
                f"Expected `{name}` as a tensor of the shape {tuple(ids.shape)} of `input_ids`. "
                f"Got {_told(value)}. Pass what the processor returns."
            )


def _require_picture(name: str, pixels: Any) -> None:
    if not isinstance(pixels, Tensor) or pixels.numel() == 0 or pixels.ndim < 2:
        raise PictureError(
            f"Expected `{name}` as a tensor that holds a picture. Got {_told(pixels)}. Pass what "
            "the model's processor makes of it."
        )


@contextmanager
def encoding(inputs: Mapping[str, Any], vision: Any) -> Iterator[None]:
    """Pixels the vision encoder of config `vision` does not take are a `PictureError`."""
    colours = getattr(vision, "num_channels", None)
    for name in PIXELS:
        pixels = inputs.get(name)
        if pixels is not None and pixels.ndim > 3 and colours and pixels.shape[-3] != colours:
            raise PictureError(
                f"Expected `{name}` of {colours} colour channels. Got {_told(pixels)}. Pass what "
                "the model's processor makes of a picture."
            )
    try:
        yield
    except ValueError as error:  # what Transformers raises for shapes
        if isinstance(error, TokensieveError):
            raise
        got = ", ".join(_told(inputs[name]) for name in PIXELS if inputs.get(name) is not None)
        raise PictureError(
            f"Expected pixels as the model's processor makes them. Got {got}: {error}. Do not "
            "resize or stack them by hand."
        ) from error


def require_keys(keys: Any, prompts: int) -> None:
    """Raise `ConfigError` unless `keys` holds one whole number per prompt."""
    if keys is None:
        return
    if not isinstance(keys, Sequence) or isinstance(keys, str):
        raise ConfigError(f"Expected `keys` as a list of whole numbers. Got {shown(keys)}.")
    if len(keys) != prompts:
        raise ConfigError(f"Expected {prompts} keys, one per prompt. Got {len(keys)}.")
    if not all(isinstance(key, int) and not isinstance(key, bool) for key in keys):
        raise ConfigError(f"Expected `keys` as whole numbers. Got {shown(list(keys))}.")


def require_cache(cache: Any) -> None:
    """Raise `UnsupportedError` for what is no cache of Transformers."""
    if cache is not None and not callable(getattr(cache, "get_seq_length", None)):
        raise UnsupportedError(
            "Expected `past_key_values` as a Cache of Transformers. Got "
            f"{_told(cache)}. Leave it out, or pass a DynamicCache."
        )


def _told(value: Any) -> str:
    """A value by its kind; tensors and arrays by their shape."""
    if getattr(value, "shape", None) is not None:
        dtype = str(getattr(value, "dtype", "")).removeprefix("torch.")
        return f"a {type(value).__name__} of {dtype}, shape {tuple(value.shape)}"
    return shown(value)


def require_pixels(model: Any, encoder: Any, arguments: Mapping[str, Any]) -> None:
    """Raise `UnsupportedError` where the encoder wants what the model's processor does not give."""
    missing = [
        name
        for name, parameter in inspect.signature(encoder).parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        and name not in arguments
    ]
    if missing:
        raise UnsupportedError(
            f"Expected `{missing[0]}` for the vision encoder of {type(model).__name__}. Got none. "
            "Pass all that its processor returns; where it gives none, this model cannot be served."
        )


def require_both(place_BS: Bool[Tensor, "B S"], pictures: bool, kind: str = "image") -> None:
    """Raise `PromptError` for placeholders without pictures, or the other way round."""
    what = "picture" if kind == "image" else "video"
    if not pictures:
        raise PromptError(
            f"Expected a {what} for the {int(place_BS.sum())} {kind} placeholders in the prompt. "
            f"Got none. Pass the {what} to the processor together with the text."
        )
    if not bool(place_BS.any()):
        raise PromptError(
            f"Expected {'an' if kind == 'image' else 'a'} {kind} placeholder in the prompt, such "
            f"as '<{kind}>'. Got a {what} but no placeholder. Build the prompt with the "
            "processor's chat template."
        )
