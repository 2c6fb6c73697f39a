"""DyMU's thresholds, measured on pictures: which cosines of keys merge the tokens asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from tokensieve.errors import BudgetError
from tokensieve.hf.encoder.inside import encode_inside
from tokensieve.hf.encoder.places import require_rows
from tokensieve.hf.families.fingerprint import encoder_info
from tokensieve.methods.dymu import Calibration
from tokensieve.nn.thresholds import Thresholds

SHARES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@torch.no_grad()
def calibrate_dymu(
    model: Any,
    batches: Sequence[Mapping[str, Any]],
    shares: Sequence[float] = SHARES,
    *,
    proportional: bool = True,
) -> Thresholds:
    """Thresholds for the encoder of `model` by which pictures like those in `batches` are left with
    `shares` of their tokens on average.

    batches: what the processor returns for some pictures each, placeholders included. At each layer
    the best pairs of a batch merge, as many as the schedule says; the threshold is the mean over
    batches of what lies between those that did and those that did not. Shares that halving at every
    layer does not reach are left out.

    Raises `UnsupportedError` for an encoder in which tokens cannot be dropped, `BudgetError` where
    no share is reached.
    """
    require_rows(model)
    info = encoder_info(model)
    known: list[float] = []
    values: list[tuple[float, ...]] = []
    refused: BudgetError | None = None
    for share in sorted(set(shares)):
        method = Calibration({}, proportional)
        try:
            for inputs in batches:
                encode_inside(model, method, share, inputs)
        except BudgetError as error:
            refused = error
            continue
        found = [method.found[block] for block in range(info.block + 1)]
        known.append(share)
        values.append(tuple(round(sum(part) / len(part), 5) for part in found))
    if not known:
        raise refused or BudgetError("Expected shares to calibrate for. Got none.")
    return Thresholds(info, tuple(known), tuple(values))
