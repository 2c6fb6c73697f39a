"""Tokens chosen to stand for the others.

B crops, L tokens, C width.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from tokensieve.functional.cosine import crops_at_once


@torch.no_grad()
def salient_coverage(
    tokens_BLC: Float[Tensor, "B L C"],
    saliency_BL: Float[Tensor, "B L"],
    counts_B: Int[Tensor, "B"],
    valid_BL: Bool[Tensor, "B L"],
) -> Bool[Tensor, "B L"]:
    """`counts_B[b]` tokens, each the one of most coverage gained times its saliency.

    The coverage of a set is the sum, over all tokens, of the highest cosine with one of the set, 0
    at least; what a token gains is what the sum grows by. The earlier token wins a tie. O(n L^2)
    and L x L numbers of a crop; nothing waits for the device between two choices.
    """
    kept_BL = counts_B[:, None].expand_as(valid_BL) >= valid_BL.sum(-1, keepdim=True)
    if bool(kept_BL.all()):
        return valid_BL.clone()
    kept_BL = torch.zeros_like(valid_BL)
    L = valid_BL.shape[1]
    for part in crops_at_once(tokens_BLC, 2 * L * L):
        counts, valid, kept = counts_B[part], valid_BL[part], kept_BL[part]
        unit = normalize(tokens_BLC[part].float().masked_fill(~valid[..., None], 0), dim=-1)
        cosine = unit @ unit.mT
        saliency = saliency_BL[part].float()
        covered, spare = torch.zeros_like(saliency), torch.empty_like(cosine)
        closed = torch.zeros_like(saliency).masked_fill_(~valid, -torch.inf)
        crop = torch.arange(len(counts), device=counts.device)
        for step in range(int(counts.max())):
            torch.sub(cosine, covered[..., None], out=spare)
            gain = torch.addcmul(closed, spare.clamp_min_(0).sum(1), saliency)
            pick = gain.argmax(-1)
            kept[crop, pick] |= step < counts
            closed[crop, pick] = -torch.inf
            covered = torch.maximum(covered, cosine[crop, pick])
    return kept_BL & valid_BL
