"""Patches predicted from their neighbours, as pixels are in lossless coding.

L patches of a crop, row by row, P values of a patch, n patches of a wave.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def prediction_error(
    patches_LP: Float[Tensor, "L P"], grid: tuple[int, int], real_L: Bool[Tensor, "L"], tau: float
) -> tuple[Float[Tensor, "L"], Bool[Tensor, "L"]]:
    """How far each patch is from its prediction, in any of its values, and which is predicted.

    A is the patch on the left, B the one above, C the one above A. Where C is A, B is predicted;
    where C is B, A; else nothing (the rule of LOCO-I for values that are names, not numbers). With
    one of A and B missing the other is predicted. A patch within `tau` of its prediction is
    predicted; its neighbours see the prediction in its place, so that no value of a decoded
    picture is further off than `tau`. What is not predicted has its distance to the nearer of A and
    B, inf without either.

    grid: rows and columns, L of them. real_L: False for what is no patch and nobody's neighbour.
    """
    h, w = grid
    padded = patches_LP.new_zeros(h + 1, w + 1, patches_LP.shape[-1])
    padded[1:, 1:] = patches_LP.view(h, w, -1)
    there = torch.zeros(h + 1, w + 1, dtype=torch.bool, device=real_L.device)
    there[1:, 1:] = real_L.view(h, w)
    seen, there = padded.flatten(0, 1), there.flatten()
    error = seen.new_full(there.shape, torch.inf)
    across, down, predicted = error.clone(), error.clone(), torch.zeros_like(there)

    def apart(one: Tensor, other: Tensor) -> Tensor:
        worst = (seen[one] - seen[other]).abs_().amax(-1)
        return worst.masked_fill(~there[other], torch.inf)

    for wave in _waves(h, w, tau, there.device):
        at = wave[there[wave]]
        left, above = at - 1, at - w - 1
        across[at], down[at] = apart(at, left), apart(at, above)
        # from the corner to the one above is one step across, to the one on the left one down
        take_above = there[above] & (~there[left] | (down[left] <= tau))
        take_left = there[left] & (~there[above] | (across[above] <= tau)) & ~take_above
        guessed = torch.where(take_above, down[at], across[at])
        told = take_above | take_left
        error[at] = torch.where(told, guessed, torch.minimum(across[at], down[at]))
        predicted[at] = told & (guessed <= tau)
        if tau > 0:
            near = torch.where(take_above, above, left)
            seen[at] = torch.where(predicted[at, None], seen[near], seen[at])
            across[at], down[at] = apart(at, left), apart(at, above)
    inner = [part.view(h + 1, w + 1)[1:, 1:].flatten() for part in (error, predicted)]
    return inner[0], inner[1]


def _waves(h: int, w: int, tau: float, device: torch.device) -> list[Int[Tensor, "n"]]:
    """Places in a grid with one more row and column in front, no earlier than what they see. With
    nothing lost a prediction is the patch itself, so that all may be looked at together."""
    rows, columns = torch.meshgrid(
        torch.arange(h, device=device), torch.arange(w, device=device), indexing="ij"
    )
    place = ((rows + 1) * (w + 1) + columns + 1).flatten()
    if tau == 0:
        return [place]
    order = (rows + columns).flatten()
    return [place[order == step] for step in range(h + w - 1)]
