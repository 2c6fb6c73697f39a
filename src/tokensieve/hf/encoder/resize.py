"""The site "pixels": pictures made smaller before the encoder.

n crops of a picture, L tokens of a crop, k tokens of a smaller crop, D LLM width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tokensieve.errors import UnsupportedError
from tokensieve.functional.grid import grid_centres
from tokensieve.hf.encoder.encode import Encoded
from tokensieve.hf.encoder.pixels import shrink
from tokensieve.hf.families.layout import Packing
from tokensieve.hf.runtime.devices import at_hand
from tokensieve.methods.base import Method
from tokensieve.types import VisionTokens


def blank_rows(model: Any, encoded: Encoded) -> Encoded:
    """`encoded`, whose encoder was not run, with rows to be filled: zeros and newlines."""
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    words, device = model.get_input_embeddings().weight, encoded.inputs["input_ids"].device
    rows: Any = [
        torch.zeros(count, words.shape[-1], dtype=words.dtype, device=device)
        for count in encoded.image_rows
    ]
    base = model.base_model
    if getattr(base, "image_newline", None) is not None:
        with at_hand([base]):
            newline = base.image_newline.detach().to(rows[0])
        for row, packing in zip(rows, encoded.packings, strict=True):
            row[packing.origin_N < 0] = newline
    return replace(encoded, output=BaseModelOutputWithPooling(pooler_output=rows), blank=True)


def resize_images(
    model: Any, method: Method, encoded: Encoded, counts: list[list[int]]
) -> list[tuple[Tensor, Tensor | None]]:
    """Per picture: kept (n, L), the centres of the smaller crop's cells, and rows (n, L, D).

    counts: tokens allowed of each crop; a picture's crops share one smaller grid.
    Raises `UnsupportedError` for tokens without a grid or an encoder that takes no other size,
    `NonFiniteError` for NaN or Inf in what it gives.
    """
    grids = [
        _target(method, packing, sum(budget))
        for packing, budget in zip(encoded.packings, counts, strict=True)
    ]
    if all(grid == packing.grid for grid, packing in zip(grids, encoded.packings, strict=True)):
        return [(packing.valid_nL, None) for packing in encoded.packings]
    small = shrink(model, encoded.family, encoded.inputs, encoded.packings, grids)
    done: list[tuple[Tensor, Tensor | None]] = []
    for i, (packing, grid, rows) in enumerate(zip(encoded.packings, grids, small, strict=True)):
        VisionTokens(rows).require_finite(f"the site '{method.site}' of picture {i + 1}")
        place = grid_centres(packing.grid or grid, grid).to(rows.device)
        kept = torch.zeros(packing.crops, packing.length, dtype=torch.bool, device=rows.device)
        kept[:, place] = True
        spread = rows.new_zeros(packing.crops, packing.length, rows.shape[-1])
        spread[:, place] = rows
        done.append((kept & packing.valid_nL.to(kept.device), spread))
    return done


def _target(method: Method, packing: Packing, budget: int) -> tuple[int, int]:
    """The largest grid the method names whose cells in the picture are at most `budget`."""
    if packing.grid is None:
        raise UnsupportedError(
            "Expected visual tokens on a grid, to make the picture smaller. Got tokens without "
            "one. Let the processor make the picture smaller instead."
        )
    valid = packing.valid_nL
    if budget >= int(valid.sum()):
        return packing.grid
    first = min(packing.length, -(-budget * packing.length // max(1, int(valid.sum()))))
    for asked in range(first, 0, -1):
        grid = method.target_grid(packing.grid, asked)
        if grid is None:
            break
        if int(valid[:, grid_centres(packing.grid, grid)].sum()) <= budget:
            return grid
    raise UnsupportedError(
        f"Expected {type(method).__name__} to name a grid of at most {budget} of "
        f"{packing.length} tokens. Got none. Keep more tokens."
    )
