"""Which token joins which: bipartite soft matching.

B crops, L tokens, K width of what is compared, A tokens of the first half, D of the second.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from tokensieve.functional.topk import topk_mask

_PART = 1024  # tokens compared with the other half at a time


def bipartite_match(
    keys_BLK: Float[Tensor, "B L K"],
    remove_B: Int[Tensor, "B"],
    valid_BL: Bool[Tensor, "B L"],
) -> Int[Tensor, "B L"]:
    """The token each one joins: its own place if kept, -1 in padding [1].

    Real tokens are dealt in turn to two halves. Each of the first half finds the one of the second
    with the highest cosine of keys; the `remove_B[b]` pairs with the highest cosines are joined,
    the second token staying. At most half of the tokens (rounded down) can go in one call. How
    heavy tokens are does not matter here: give sizes to `functional.merge.mean_at`.

    [1] Token Merging, arXiv 2210.09461.
    """
    B, L, _ = keys_BLK.shape
    own_BL = torch.arange(L, device=keys_BLK.device).expand(B, L)
    target_BL = own_BL.masked_fill(~valid_BL, -1)
    most_B = torch.minimum(remove_B, valid_BL.sum(-1) // 2).clamp_min(0)
    if L < 2 or not bool((most_B > 0).any()):
        return target_BL
    real_first_BL = (~valid_BL).to(torch.uint8).argsort(dim=-1, stable=True)
    first_BA, second_BD = real_first_BL[:, 0::2], real_first_BL[:, 1::2]
    cosine_BA, best_BA = _nearest(keys_BLK, first_BA, second_BD, valid_BL)
    real_BA = valid_BL.gather(1, first_BA)
    joined_BA = topk_mask(cosine_BA, most_B, real_BA)
    into_BA = second_BD.gather(1, best_BA)
    stays_BA = target_BL.gather(1, first_BA)
    return target_BL.scatter(1, first_BA, into_BA.where(joined_BA, stays_BA))


def _nearest(
    keys_BLK: Float[Tensor, "B L K"],
    first_BA: Int[Tensor, "B A"],
    second_BD: Int[Tensor, "B D"],
    valid_BL: Bool[Tensor, "B L"],
) -> tuple[Float[Tensor, "B A"], Int[Tensor, "B A"]]:
    """The highest cosine of each first token with a real second one, and which that is."""
    second_BDK = _unit(keys_BLK, second_BD)
    padding_BD = ~valid_BL.gather(1, second_BD)
    found = []
    for part_BP in torch.split(first_BA, _PART, dim=1):
        cosine_BPD = _unit(keys_BLK, part_BP) @ second_BDK.mT
        found.append(cosine_BPD.masked_fill_(padding_BD[:, None], -torch.inf).max(-1))
    return torch.cat([f.values for f in found], 1), torch.cat([f.indices for f in found], 1)


def _unit(keys_BLK: Float[Tensor, "B L K"], index_BN: Int[Tensor, "B N"]) -> Float[Tensor, "B N K"]:
    """Those keys at length 1."""
    crop_B1 = torch.arange(len(keys_BLK), device=keys_BLK.device)[:, None]
    return normalize(keys_BLK[crop_B1, index_BN].float(), dim=-1)
