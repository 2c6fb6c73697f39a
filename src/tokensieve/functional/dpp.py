"""Subsets that a determinantal point process finds most probable.

B crops, L tokens, C width, n tokens chosen. All crops advance together, one token a step.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import threshold

from tokensieve.functional.cosine import Cosines, crops_at_once, fits_whole
from tokensieve.functional.topk import topk_mask

_AHEAD = 64  # rows computed at a time, of the tokens likely to be chosen next
_EXPLAINED = 1e-5  # a token of which no more is new is a copy of those chosen


@torch.no_grad()  # a choice has no gradient
def greedy_dpp(
    tokens_BLC: Float[Tensor, "B L C"],
    quality_BL: Float[Tensor, "B L"],
    counts_B: Int[Tensor, "B"],
    valid_BL: Bool[Tensor, "B L"],
    *,
    ahead: bool | None = None,
) -> Bool[Tensor, "B L"]:
    """`counts_B[b]` tokens, each the one that most raises the determinant of the kernel [1].

    The kernel is quality_i * cosine(i, j) * quality_j, quality not negative. A step adds a row to
    the Cholesky factor of the cosines between the chosen tokens and all; what it leaves of each
    token, times its squared quality, is what the determinant would grow by. Quality scales rows of
    the factor and nothing else, so it is kept out of it: a small one costs no precision. Past
    the rank of the tokens, where none adds anything new, those of highest quality fill the budget.
    O(n L C + n^2 L) and n x L numbers; there is no L x L kernel unless it is small.

    ahead: begin rows of tokens likely to be chosen, many at a time, which looks at numbers as it
    goes: a CPU's way. Else nothing is looked at between two picks, so that a GPU is not waited for.
    None: as the device is.

    [1] Fast Greedy MAP Inference for Determinantal Point Process, arXiv 1709.05135.
    """
    if bool((counts_B >= valid_BL.sum(-1)).all()):
        return valid_BL.clone()
    kept_BL = torch.zeros_like(valid_BL)
    ahead = tokens_BLC.device.type == "cpu" if ahead is None else ahead
    floats = (int(counts_B.max()) + _AHEAD) * valid_BL.shape[1]
    for part in crops_at_once(tokens_BLC, floats):
        if bool((counts_B[part] > 0).any()):
            kept_BL[part] = _greedy_map(
                tokens_BLC[part], quality_BL[part], counts_B[part], valid_BL[part], ahead
            )
    return kept_BL & valid_BL


def _greedy_map(
    tokens_BLC: Float[Tensor, "B L C"],
    quality_BL: Float[Tensor, "B L"],
    counts_B: Int[Tensor, "B"],
    valid_BL: Bool[Tensor, "B L"],
    ahead: bool,
) -> Bool[Tensor, "B L"]:
    (B, L), steps = valid_BL.shape, int(counts_B.max())
    rows = 0 if ahead or not fits_whole(B, L) else steps
    factor = (_Ahead if ahead else _Factor)(Cosines(tokens_BLC, valid_BL, rows=rows), B, steps, L)
    worth_BL = quality_BL.float().masked_fill(~valid_BL, 0).square()
    new_BL = torch.ones_like(worth_BL)  # share of each token not explained by those chosen
    closed_BL = torch.zeros_like(worth_BL).masked_fill(~valid_BL, -torch.inf)
    kept_BL = torch.zeros_like(valid_BL)
    crop_B = torch.arange(B, device=counts_B.device)
    for step in range(steps):
        gain_BL = torch.addcmul(closed_BL, worth_BL, new_BL)
        most_B, pick_B = gain_BL.max(-1)
        more_B = (step < counts_B) & (most_B > 0)
        if ahead and not bool(more_B.any()):
            break
        kept_BL[crop_B, pick_B] |= more_B
        closed_BL.scatter_(1, pick_B[:, None], -torch.inf)
        left_B1 = new_BL[crop_B, pick_B][:, None]
        inverse_B1 = left_B1.rsqrt().masked_fill(left_B1 == 0, 0)
        row_BL = factor.append(pick_B, inverse_B1, gain_BL, more_B)
        new_BL = threshold(torch.addcmul(new_BL, row_BL, row_BL, value=-1), _EXPLAINED, 0)
    return kept_BL | topk_mask(quality_BL, counts_B - kept_BL.sum(-1), valid_BL & ~kept_BL)


class _Factor:
    """Rows of the Cholesky factor of the cosines, one more per token chosen."""

    def __init__(self, cosines: Cosines, B: int, steps: int, L: int) -> None:
        self._cosines = cosines
        self._rows_BNL = cosines.scale_BL.new_empty(B, steps, L)
        self._crop_B = torch.arange(B, device=self._rows_BNL.device)
        self._length = 0

    def append(
        self,
        pick_B: Int[Tensor, "B"],
        scale_B1: Float[Tensor, "B 1"],
        gain_BL: Float[Tensor, "B L"],
        matters_B: Bool[Tensor, "B"],
    ) -> Float[Tensor, "B L"]:
        """The next row, of the token of highest gain. matters: False for a crop that is done."""
        return self._put(self._less(self._cosines.row(pick_B), pick_B, 0), scale_B1)

    def _less(self, row_BL: Tensor, pick_B: Tensor, since: int) -> Tensor:
        """A row less its part along the rows from `since` on."""
        if since == self._length:
            return row_BL
        since_BNL = self._rows_BNL[:, since : self._length]
        return row_BL - (since_BNL[self._crop_B, :, pick_B][:, None] @ since_BNL)[:, 0]

    def _put(self, row_BL: Tensor, scale_B1: Tensor) -> Tensor:
        torch.mul(row_BL, scale_B1, out=self._rows_BNL[:, self._length])
        self._length += 1
        return self._rows_BNL[:, self._length - 1]


class _Ahead(_Factor):
    """The same, with rows begun before they are asked for.

    A row needs the cosines of the chosen token with all and a product with all rows before it.
    One by one that is bound by memory; so it is begun for the `_AHEAD` tokens of highest gain at
    once, as two products of matrices, and finished for one of them when it is chosen.
    """

    def __init__(self, cosines: Cosines, B: int, steps: int, L: int) -> None:
        super().__init__(cosines, B, steps, L)
        self._begun_at = 0
        self._ahead_BN = self._crop_B.new_full((B, 1), -1)
        self._begun_BNL = self._rows_BNL.new_empty(0)

    def append(
        self,
        pick_B: Int[Tensor, "B"],
        scale_B1: Float[Tensor, "B 1"],
        gain_BL: Float[Tensor, "B L"],
        matters_B: Bool[Tensor, "B"],
    ) -> Float[Tensor, "B L"]:
        found_BN = self._ahead_BN == pick_B[:, None]
        if not bool((found_BN.any(-1) | ~matters_B).all()):
            self._look_ahead(gain_BL)
            found_BN = self._ahead_BN == pick_B[:, None]
        row_BL = self._begun_BNL[self._crop_B, found_BN.byte().argmax(-1)]
        return self._put(self._less(row_BL, pick_B, self._begun_at), scale_B1)

    def _look_ahead(self, gain_BL: Float[Tensor, "B L"]) -> None:
        left = self._rows_BNL.shape[1] - self._length
        self._begun_at = self._length
        self._ahead_BN = gain_BL.topk(min(_AHEAD, 2 * left, gain_BL.shape[1]), -1).indices
        self._begun_BNL = self._cosines.compute(self._ahead_BN)
        if self._length:
            past_BML = self._rows_BNL[:, : self._length]
            index_BMN = self._ahead_BN[:, None].expand(-1, self._length, -1)
            self._begun_BNL.baddbmm_(past_BML.gather(2, index_BMN).mT, past_BML, alpha=-1)
