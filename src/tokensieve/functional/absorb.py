"""Which tokens take in which others, and pruned tokens gathered into few.

B crops, L tokens, C width, K width of keys, T tokens of a mask.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag, normalize

from tokensieve.functional.merge import sum_of
from tokensieve.functional.places import own_places, positions
from tokensieve.functional.topk import topk_mask

_PART = 512  # tokens compared with others at a time
_TINY = torch.finfo(torch.float32).tiny


def absorb_nearest(
    tokens_BLC: Float[Tensor, "B L C"],
    keys_BLK: Float[Tensor, "B L K"],
    weight_BL: Float[Tensor, "B L"],
    kept_BL: Bool[Tensor, "B L"],
    valid_BL: Bool[Tensor, "B L"],
    neighbours: int,
    *,
    averaged: bool = False,
) -> Float[Tensor, "B L C"]:
    """Each kept token plus the weighted sum of the `neighbours` other real tokens, kept or not,
    whose keys are most alike in cosine. Many to many: a token may be taken in twice.

    averaged: the weighted mean of itself and those instead. Where all stay, or nothing weighs,
    tokens stay bit for bit. weight: not negative. Compared in parts; neighbours are summed without
    being gathered.
    """
    B, L, C = tokens_BLC.shape
    index_BT, there_BT = positions(kept_BL)
    unit_BLK = normalize(keys_BLK.float(), dim=-1)
    whole_B11 = (kept_BL == valid_BL).all(-1)[:, None, None]
    weight_BL = weight_BL.float().masked_fill(~valid_BL, 0)
    padded = not bool(valid_BL.all())
    source_BLC = tokens_BLC.float()
    if padded:
        source_BLC = source_BLC.masked_fill(~valid_BL[..., None], 0)
    source_NC = source_BLC.flatten(0, 1)
    first_B = torch.arange(B, device=index_BT.device)[:, None, None] * L
    means = []
    for part_BP in torch.split(index_BT, _PART, dim=1) if index_BT.shape[1] else ():
        own_BPK = unit_BLK.gather(1, part_BP[..., None].expand(-1, -1, unit_BLK.shape[-1]))
        alike_BPL = own_BPK @ unit_BLK.mT
        if padded:
            alike_BPL.masked_fill_(~valid_BL[:, None], -torch.inf)
        alike_BPL.scatter_(2, part_BP[..., None], -torch.inf)
        best_BPN, near_BPN = alike_BPL.topk(min(neighbours, L), dim=-1)
        near_BPN = torch.cat([part_BP[..., None], near_BPN], -1)
        mass_BPN = weight_BL.gather(1, near_BPN.flatten(1)).view_as(near_BPN)
        mass_BPN[..., 1:].masked_fill_(best_BPN == -torch.inf, 0)
        took_BP1 = (mass_BPN[..., 1:] > 0).any(-1, keepdim=True) & ~whole_B11
        if averaged:
            mass_BPN = mass_BPN / mass_BPN.sum(-1, keepdim=True).clamp_min(_TINY)
        else:
            mass_BPN[..., 0] = 1
        mean_PC = embedding_bag(
            (near_BPN + first_B).flatten(0, 1), source_NC, mode="sum",
            per_sample_weights=mass_BPN.flatten(0, 1),
        )  # fmt: skip
        old_BPC = tokens_BLC.gather(1, part_BP[..., None].expand(-1, -1, C))
        means.append(mean_PC.view(B, -1, C).to(tokens_BLC.dtype).where(took_BP1, old_BPC))
    if not means:
        return tokens_BLC
    mean_BTC = torch.cat(means, dim=1)
    crop_BT = torch.arange(B, device=index_BT.device)[:, None].expand_as(index_BT)
    out_BLC = tokens_BLC.clone()
    out_BLC[crop_BT[there_BT], index_BT[there_BT]] = mean_BTC[there_BT]
    return out_BLC


def rest_as_one(
    tokens_BLC: Float[Tensor, "B L C"],
    new_BLC: Float[Tensor, "B L C"],
    weight_BL: Float[Tensor, "B L"],
    kept_BL: Bool[Tensor, "B L"],
    valid_BL: Bool[Tensor, "B L"],
    more_B: Int[Tensor, "B"],
) -> tuple[Bool[Tensor, "B L"], Float[Tensor, "B L C"]]:
    """Where `more_B[b]` is 1, one more token of the crop is kept, the heaviest of the others: the
    weighted sum of all others, written into `new`. Where it is 0, nothing."""
    rest_BL = valid_BL & ~kept_BL
    at_BL = topk_mask(weight_BL, more_B, rest_BL)
    sum_B1C = sum_of(tokens_BLC, weight_BL.masked_fill(~rest_BL, 0), valid_BL)[:, None]
    return kept_BL | at_BL, sum_B1C.to(new_BLC.dtype).where(at_BL[..., None], new_BLC)


def best_of_cells(
    scores_BL: Float[Tensor, "B L"], cell_BL: Int[Tensor, "B L"], mask_BL: Bool[Tensor, "B L"]
) -> Int[Tensor, "B L"]:
    """For each token of the mask the one of highest score among those of its cell, the earlier on
    a tie; -1 for all others.

    cell: any token of the crop that stands for the cell, the same one for all of it.
    """
    mask_BL = mask_BL & (cell_BL >= 0)
    cell_BL = cell_BL.clamp_min(0)
    scores_BL = scores_BL.float().masked_fill(~mask_BL, -torch.inf)
    most_BL = torch.full_like(scores_BL, -torch.inf)
    most_BL = most_BL.scatter_reduce(1, cell_BL, scores_BL, "amax").gather(1, cell_BL)
    L = scores_BL.shape[1]
    place_BL = own_places(mask_BL).masked_fill(~mask_BL | (scores_BL < most_BL), L)
    first_BL = torch.full_like(place_BL, L).scatter_reduce(1, cell_BL, place_BL, "amin")
    return first_BL.gather(1, cell_BL).masked_fill(~mask_BL, -1)
