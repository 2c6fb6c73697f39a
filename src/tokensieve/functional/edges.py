"""Pairs of tokens that may be joined, and joining them down to a count.

B crops, L tokens, K width of what is compared, A tokens that may go, D tokens they may join.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from tokensieve.functional.topk import topk_mask

# what each token has joined so far (-1: nothing), tokens left, how many should go -> what each
# token left joins: itself if it stays
Match = Callable[[Tensor, Tensor, Tensor], Tensor]


def deal(valid_BL: Bool[Tensor, "B L"]) -> tuple[Bool[Tensor, "B L"], Bool[Tensor, "B L"]]:
    """Real tokens dealt in turn to two halves."""
    odd_BL = (valid_BL.cumsum(-1) - 1) % 2 == 1
    return valid_BL & ~odd_BL, valid_BL & odd_BL


def best_edges(
    keys_BLK: Float[Tensor, "B L K"],
    from_BL: Bool[Tensor, "B L"],
    to_BL: Bool[Tensor, "B L"],
    bias_BL: Float[Tensor, "B L"] | None = None,
) -> tuple[Float[Tensor, "B L"], Int[Tensor, "B L"]]:
    """For each token of `from` its best of `to`: how good the pair is, and which token that is.

    A pair is as good as its cosine; with a bias, as log((1 + cosine) / 2) plus the biases of both.
    -inf, and the token itself, for all others and where `to` is empty. The earlier wins a tie.
    """
    B, L, _ = keys_BLK.shape
    own_BL = torch.arange(L, device=keys_BLK.device).expand(B, L)
    none_BL = torch.full((B, L), -torch.inf, device=keys_BLK.device)
    first_BA, second_BD = _front(from_BL), _front(to_BL)
    if not first_BA.numel() or not second_BD.numel():
        return none_BL, own_BL
    crop_B1 = torch.arange(B, device=keys_BLK.device)[:, None]
    first_BAK = normalize(keys_BLK[crop_B1, first_BA].float(), dim=-1)
    second_BDK = normalize(keys_BLK[crop_B1, second_BD].float(), dim=-1)
    good_BAD = first_BAK @ second_BDK.mT
    if bias_BL is not None:
        good_BAD = good_BAD.add_(1).div_(2).clamp_min_(1e-6).log_()
        good_BAD += bias_BL.gather(1, first_BA)[..., None] + bias_BL.gather(1, second_BD)[:, None]
    # NaN: what padding is compared to
    good_BAD.masked_fill_(~to_BL.gather(1, second_BD)[:, None], -torch.inf)
    good_BA, at_BA = good_BAD.max(-1)
    real_BA = from_BL.gather(1, first_BA) & to_BL.any(-1, keepdim=True)
    into_BA = second_BD.gather(1, at_BA).where(real_BA, first_BA)
    good_BA = good_BA.masked_fill(~real_BA, -torch.inf)
    return none_BL.scatter(1, first_BA, good_BA), own_BL.scatter(1, first_BA, into_BA)


def _front(mask_BL: Bool[Tensor, "B L"]) -> Int[Tensor, "B A"]:
    """Places of the tokens in the mask before all others, as many as the fullest crop has."""
    most = int(mask_BL.sum(-1).max()) if mask_BL.numel() else 0
    return (~mask_BL).to(torch.uint8).argsort(dim=-1, stable=True)[:, :most]


def join(
    good_BL: Float[Tensor, "B L"],
    into_BL: Int[Tensor, "B L"],
    remove_B: Int[Tensor, "B"],
    valid_BL: Bool[Tensor, "B L"],
) -> Int[Tensor, "B L"]:
    """What each token joins when the best `remove_B[b]` pairs do; -1 in padding."""
    L = good_BL.shape[1]
    own_BL = torch.arange(L, device=good_BL.device).expand_as(into_BL)
    goes_BL = topk_mask(good_BL, remove_B, good_BL > -torch.inf)
    return into_BL.where(goes_BL, own_BL).masked_fill(~valid_BL, -1)


def follow(assign_BL: Int[Tensor, "B L"], target_BL: Int[Tensor, "B L"]) -> Int[Tensor, "B L"]:
    """Where tokens end that joined `assign` when those join `target`; -1 stays -1."""
    return target_BL.gather(1, assign_BL.clamp_min(0)).masked_fill(assign_BL < 0, -1)


def join_down(
    counts_B: Int[Tensor, "B"],
    valid_BL: Bool[Tensor, "B L"],
    match: Match,
    assign_BL: Int[Tensor, "B L"] | None = None,
) -> tuple[Bool[Tensor, "B L"], Int[Tensor, "B L"]]:
    """Join tokens, in as many rounds as it takes, until `counts_B[b]` of crop b are left.

    match: a round; it must take one token or more where asked to, and no more than asked.
    assign: what has joined before. Returns what is left and what each token has joined. A crop
    asked for no token keeps none, and none of its tokens joins another.
    """
    own_BL = torch.arange(valid_BL.shape[1], device=valid_BL.device).expand(valid_BL.shape)
    assign_BL = own_BL.masked_fill(~valid_BL, -1) if assign_BL is None else assign_BL
    alive_BL = valid_BL & (assign_BL == own_BL)
    while bool(((excess_B := alive_BL.sum(-1) - counts_B.clamp_min(1)) > 0).any()):
        target_BL = match(assign_BL, alive_BL, excess_B.clamp_min(0))
        assign_BL = follow(assign_BL, target_BL)
        alive_BL = valid_BL & (assign_BL == own_BL)
    empty_B1 = (counts_B == 0)[:, None]
    return alive_BL & ~empty_B1, assign_BL.masked_fill(empty_B1, -1)
