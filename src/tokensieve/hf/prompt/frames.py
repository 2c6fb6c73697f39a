"""A video's budget spent over some of its frames at a time.

F frames, L tokens of a frame.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokensieve.budget import split_evenly
from tokensieve.methods.base import Method
from tokensieve.types import Reduction, TextContext, VisionTokens


def reduce_windows(
    method: Method, video: VisionTokens, keep: float | int, frames: int,
    text: TextContext | None, whole_FL: Tensor,
) -> Reduction:  # fmt: skip
    """Every `frames` frames of a video compete for a budget of their own."""
    parts = [slice(at, at + frames) for at in range(0, len(video.tokens), frames)]
    sizes = [int(whole_FL[part].sum()) for part in parts]
    budgets = iter(split_evenly(keep, [size for size in sizes if size]))
    made = []
    for part, size in zip(parts, sizes, strict=True):
        vision = _frames(video, part)
        budget = min(next(budgets) if size else 0, int(vision.valid_BL.sum()))
        if not budget:
            made.append(Reduction(torch.zeros_like(vision.valid_BL)))
            continue
        made += method.reduce_pool([vision], budget, text)
    values = [
        video.tokens[part] if one.tokens is None else one.tokens
        for one, part in zip(made, parts, strict=True)
    ]
    new = any(one.tokens is not None for one in made)
    assigns = [one.assign for one in made if one.assign is not None]
    return Reduction(
        torch.cat([one.kept for one in made]),
        torch.cat(values) if new else None,
        torch.cat(assigns) if len(assigns) == len(made) else None,
    )


def _frames(video: VisionTokens, part: slice) -> VisionTokens:
    """Some frames of a video."""
    return VisionTokens(
        video.tokens[part],
        grid=video.grid,
        valid=video.valid_BL[part],
        patches=None if video.patches is None else video.patches[part],
        keys=None if video.keys is None else video.keys[part],
        signals={name: signal[part] for name, signal in video.signals.items()},
        frames=True,
    )
