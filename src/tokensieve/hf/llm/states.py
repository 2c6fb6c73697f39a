"""Hidden states of visual tokens as they enter a decoder layer: what the site "llm" is trained on.

B prompts, S prompt length, N rows of a picture, n crops of it, L tokens of a crop, D width.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from tokensieve.hf.encoder.encode import PIXELS, Encoded
from tokensieve.hf.families.positions import mask_of, original_positions
from tokensieve.hf.families.table import decoder_of
from tokensieve.hf.prompt.reduce import scatter_rows
from tokensieve.hf.prompt.text import without_text_mask
from tokensieve.hf.runtime.hooks import Point, When, acting


class _EnoughError(Exception):
    """The layer is reached: nothing behind it need run."""


@torch.no_grad()
def hidden_states(model: Any, encoded: Encoded, layer: int) -> list[Tensor]:
    """(n, L, D) of each picture's tokens as a cut at decoder layer `layer` would see them; zeros
    where a token has no row. Layers from there on are not run.

    Raises `UnsupportedError` for a family whose LLM cannot be cut.
    """
    entered = decoder_of(model).layers[layer]
    inputs = without_text_mask(encoded.inputs)
    mask_BS = mask_of(model, inputs)
    arguments = {k: v for k, v in inputs.items() if k not in (*PIXELS, "mm_encoder_outputs")}
    arguments |= {
        "attention_mask": mask_BS,
        "position_ids": original_positions(model, inputs, mask_BS),
        "mm_encoder_outputs": {"image": encoded.output},
        "use_cache": False,
    }
    found: list[Tensor] = []

    def take(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append(args[0] if args else kwargs["hidden_states"])
        raise _EnoughError

    with acting({Point(entered, When.BEFORE): take}), suppress(_EnoughError):
        model(**arguments)
    place_BS = inputs["input_ids"] == encoded.placeholder
    rows = found[0].to(place_BS.device)[place_BS]
    return [
        scatter_rows(part, packing.origin_N, packing.crops * packing.length).view(
            packing.crops, packing.length, -1
        )
        for part, packing in zip(
            torch.split(rows, encoded.image_rows), encoded.packings, strict=True
        )
    ]
