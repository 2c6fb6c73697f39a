"""Which token joins which: best partners, bipartite soft matching, joining down to a count.

B crops, L tokens, K width of what is compared, A tokens that may go, P of them at a time, D tokens
they may join.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from tokensieve.functional.merge import mean_at, rows
from tokensieve.functional.places import own_places, positions
from tokensieve.functional.topk import topk_mask

_PART = 1024  # tokens compared with all they may join at a time

# what each token has joined so far (-1: nothing), tokens left, how many should go -> what each
# token left joins: itself if it stays
Match = Callable[[Tensor, Tensor, Tensor], Tensor]


def deal(
    valid_BL: Bool[Tensor, "B L"], cls: bool = False
) -> tuple[Bool[Tensor, "B L"], Bool[Tensor, "B L"]]:
    """Real tokens dealt in turn to two halves. cls: a CLS token, which is not among them, is dealt
    first, to the first half, so that the first of them goes to the second."""
    odd_BL = (valid_BL.cumsum(-1) - 1 + cls) % 2 == 1
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
    own_BL = own_places(from_BL)
    none_BL = torch.full(own_BL.shape, -torch.inf, device=keys_BLK.device)
    (first_BA, here_BA), (second_BD, there_BD) = positions(from_BL), positions(to_BL)
    if not first_BA.numel() or not second_BD.numel():
        return none_BL, own_BL
    second_BDK = _unit(keys_BLK, second_BD)
    found = []
    for part_BP in torch.split(first_BA, _PART, dim=1):
        good_BPD = _unit(keys_BLK, part_BP) @ second_BDK.mT
        if bias_BL is not None:
            good_BPD.add_(1).div_(2).clamp_min_(1e-6).log_()
            good_BPD += bias_BL.gather(1, part_BP)[..., None]
            good_BPD += bias_BL.gather(1, second_BD)[:, None]
        found.append(good_BPD.masked_fill_(~there_BD[:, None], -torch.inf).max(-1))
    good_BA = torch.cat([best.values for best in found], 1)
    at_BA = torch.cat([best.indices for best in found], 1)
    real_BA = here_BA & there_BD.any(-1, keepdim=True)
    into_BA = second_BD.gather(1, at_BA).where(real_BA, first_BA)
    good_BA = good_BA.masked_fill(~real_BA, -torch.inf)
    return none_BL.scatter(1, first_BA, good_BA), own_BL.scatter(1, first_BA, into_BA)


def nearest_target(
    keys_BLK: Float[Tensor, "B L K"], from_BL: Bool[Tensor, "B L"], to_BL: Bool[Tensor, "B L"]
) -> Int[Tensor, "B L"]:
    """For each token of `from` the one of `to` whose key is most alike in cosine, -1 where there is
    none; the token itself for all others."""
    good_BL, into_BL = best_edges(keys_BLK, from_BL, to_BL)
    return into_BL.masked_fill(from_BL & (good_BL == -torch.inf), -1)


def join(
    good_BL: Float[Tensor, "B L"],
    into_BL: Int[Tensor, "B L"],
    remove_B: Int[Tensor, "B"],
    valid_BL: Bool[Tensor, "B L"],
) -> Int[Tensor, "B L"]:
    """What each token joins when the best `remove_B[b]` pairs do; -1 in padding."""
    goes_BL = topk_mask(good_BL, remove_B, good_BL > -torch.inf)
    return into_BL.where(goes_BL, own_places(valid_BL)).masked_fill(~valid_BL, -1)


def bipartite_match(
    keys_BLK: Float[Tensor, "B L K"],
    remove_B: Int[Tensor, "B"],
    valid_BL: Bool[Tensor, "B L"],
    cls: bool = False,
) -> Int[Tensor, "B L"]:
    """The token each one joins: its own place if kept, -1 in padding [1].

    Real tokens are dealt in turn to two halves (`deal`). Each of the first half finds the one of
    the second with the highest cosine of keys; the `remove_B[b]` pairs with the highest cosines are
    joined, the second token staying. At most half of the tokens (rounded down) can go in one call.

    [1] Token Merging, arXiv 2210.09461.
    """
    most_B = torch.minimum(remove_B, valid_BL.sum(-1) // 2)
    return join(*best_edges(keys_BLK, *deal(valid_BL, cls)), most_B, valid_BL)


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
    own_BL = own_places(valid_BL)
    assign_BL = own_BL.masked_fill(~valid_BL, -1) if assign_BL is None else assign_BL
    alive_BL = valid_BL & (assign_BL == own_BL)
    while bool(((excess_B := alive_BL.sum(-1) - counts_B.clamp_min(1)) > 0).any()):
        target_BL = match(assign_BL, alive_BL, excess_B.clamp_min(0))
        assign_BL = follow(assign_BL, target_BL)
        alive_BL = valid_BL & (assign_BL == own_BL)
    empty_B1 = (counts_B == 0)[:, None]
    return alive_BL & ~empty_B1, assign_BL.masked_fill(empty_B1, -1)


def match_down(
    keys_BLK: Float[Tensor, "B L K"],
    counts_B: Int[Tensor, "B"],
    valid_BL: Bool[Tensor, "B L"],
    sizes_BL: Float[Tensor, "B L"] | None = None,
    assign_BL: Int[Tensor, "B L"] | None = None,
    cls: bool = False,
) -> tuple[Bool[Tensor, "B L"], Int[Tensor, "B L"]]:
    """`join_down` by rounds of `bipartite_match`; joined tokens are compared by their mean key.

    sizes: how much each token counts in that mean; None: all alike. cls: as of `deal`.
    """

    def match(assign_BL: Tensor, alive_BL: Tensor, remove_B: Tensor) -> Tensor:
        if torch.equal(alive_BL, valid_BL):  # nothing has joined: no need of another L x K
            return bipartite_match(keys_BLK, remove_B, alive_BL, cls)
        return bipartite_match(mean_at(keys_BLK, assign_BL, sizes_BL), remove_B, alive_BL, cls)

    return join_down(counts_B, valid_BL, match, assign_BL)


def _unit(keys_BLK: Float[Tensor, "B L K"], index_BN: Int[Tensor, "B N"]) -> Float[Tensor, "B N K"]:
    """Those keys at length 1."""
    return normalize(rows(keys_BLK, index_BN).float(), dim=-1)
