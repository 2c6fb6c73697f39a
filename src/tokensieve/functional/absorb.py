"""Which tokens take in which others, and pruned tokens gathered into few.

B crops, L tokens, C width, K width of keys, T tokens of a mask.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag, normalize

from tokensieve.functional.places import positions

_PART = 512  # tokens compared with others at a time
_TINY = torch.finfo(torch.float32).tiny


def absorb_nearest(
    tokens_BLC: Float[Tensor, "B L C"],
    keys_BLK: Float[Tensor, "B L K"],
    weight_BL: Float[Tensor, "B L"],
    kept_BL: Bool[Tensor, "B L"],
    valid_BL: Bool[Tensor, "B L"],
    neighbours: int,
) -> Float[Tensor, "B L C"]:
    """Each kept token as the weighted mean of itself and the `neighbours` real tokens that are not
    kept and whose keys are most alike in cosine. Many to many: a token may be taken in twice.

    Where nothing is pruned, or nothing weighs, tokens stay bit for bit. weight: not negative.
    Compared in parts; neighbours are summed without being gathered.
    """
    B, L, C = tokens_BLC.shape
    index_BT, there_BT = positions(kept_BL)
    unit_BLK = normalize(keys_BLK.float(), dim=-1)
    pruned_BL = valid_BL & ~kept_BL
    weight_BL = weight_BL.float().masked_fill(~valid_BL, 0)
    source_NC = tokens_BLC.float().masked_fill(~valid_BL[..., None], 0).flatten(0, 1)
    first_B = torch.arange(B, device=index_BT.device)[:, None, None] * L
    means = []
    for part_BP in torch.split(index_BT, _PART, dim=1) if index_BT.shape[1] else ():
        own_BPK = unit_BLK.gather(1, part_BP[..., None].expand(-1, -1, unit_BLK.shape[-1]))
        alike_BPL = (own_BPK @ unit_BLK.mT).masked_fill(~pruned_BL[:, None], -torch.inf)
        best_BPN, near_BPN = alike_BPL.topk(min(neighbours, L), dim=-1)
        near_BPN = torch.cat([part_BP[..., None], near_BPN], -1)
        mass_BPN = weight_BL.gather(1, near_BPN.flatten(1)).view_as(near_BPN)
        mass_BPN[..., 1:].masked_fill_(best_BPN == -torch.inf, 0)
        share_BPN = mass_BPN / mass_BPN.sum(-1, keepdim=True).clamp_min(_TINY)
        mean_PC = embedding_bag(
            (near_BPN + first_B).flatten(0, 1), source_NC, mode="sum",
            per_sample_weights=share_BPN.flatten(0, 1),
        )  # fmt: skip
        old_BPC = tokens_BLC.gather(1, part_BP[..., None].expand(-1, -1, C))
        took_BP = (mass_BPN[..., 1:] > 0).any(-1, keepdim=True)
        means.append(mean_PC.view(B, -1, C).to(tokens_BLC.dtype).where(took_BP, old_BPC))
    if not means:
        return tokens_BLC
    mean_BTC = torch.cat(means, dim=1)
    crop_BT = torch.arange(B, device=index_BT.device)[:, None].expand_as(index_BT)
    out_BLC = tokens_BLC.clone()
    out_BLC[crop_BT[there_BT], index_BT[there_BT]] = mean_BTC[there_BT]
    return out_BLC


def runs_of(rest_BL: Bool[Tensor, "B L"], runs_B: Int[Tensor, "B"]) -> Int[Tensor, "B L"]:
    """The rest of each crop, in order, cut into `runs_B[b]` near-equal runs: for each of its tokens
    the one in the middle of its run; -1 elsewhere and where there are no runs."""
    index_BT, _ = positions(rest_BL)
    if index_BT.shape[1] == 0:
        return torch.full_like(rest_BL, -1, dtype=torch.long)
    m_B1 = rest_BL.sum(-1, keepdim=True).clamp_min(1)
    r_B1 = runs_B[:, None].clamp_min(1)
    rank_BL = rest_BL.long().cumsum(-1) - 1
    run_BL = rank_BL * r_B1 // m_B1
    start_BL = (run_BL * m_B1 + r_B1 - 1) // r_B1
    stop_BL = ((run_BL + 1) * m_B1 + r_B1 - 1) // r_B1
    middle_BL = ((start_BL + stop_BL - 1) // 2).clamp(0, index_BT.shape[1] - 1)
    return index_BT.gather(1, middle_BL).masked_fill(~rest_BL | (runs_B[:, None] == 0), -1)
