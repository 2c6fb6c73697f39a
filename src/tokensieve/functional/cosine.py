"""Cosines between the tokens of a crop, as little of them in memory as is needed.

B crops, L tokens, C width, P tokens of a part, Q tokens of another.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_PART = 512  # rows and columns of a product computed at a time
_FLOATS = 80_000_000  # kept at a time: 320 MB, whatever L
_ROWS_OF_A_PRODUCT = 24  # one row by itself costs as much as so many of a whole product
_EPS = 1e-12  # as torch.nn.functional.normalize: a token of zeros has cosine 0 with all


class Cosines:
    """Rows of the L x L cosines of B crops, in float32.

    Three ways to hold them, chosen by size: the whole B x L x L where it fits in 320 MB; for one
    crop of more tokens (up to about 12 000) only what is on or above the diagonal, in strips; else
    nothing, and each row is computed when asked for. Products are computed for one half and
    mirrored, so that the first two cost about half of a full L x L product. Rows asked for so
    seldom that the product would cost more are computed one by one, too.

    rows: how many will be asked for.
    nearest: also find `nearest_BL`, the highest cosine of each token with another real one (-inf
        if there is none).
    radius: also find `crowd_BL`, how many real tokens each one stands for: 1 for itself, less for
        others up to a cosine distance of `radius`, where it is 0.
    """

    def __init__(
        self,
        tokens_BLC: Float[Tensor, "B L C"],
        valid_BL: Bool[Tensor, "B L"],
        rows: int,
        *,
        nearest: bool = False,
        radius: float | None = None,
    ) -> None:
        B, L, _ = tokens_BLC.shape
        self._tokens_BLC = tokens_BLC
        self._padding_BL = None if bool(valid_BL.all()) else ~valid_BL
        parts = (self._part(start) for start in range(0, L, _PART))
        norms = [torch.linalg.vector_norm(part, dim=-1) for part in parts]
        norms.append(tokens_BLC.new_empty(B, 0, dtype=torch.float32))  # L may be 0
        self.scale_BL = 1 / torch.cat(norms, 1).clamp_min(_EPS)
        self.nearest_BL = tokens_BLC.new_full((B, L), -torch.inf, dtype=torch.float32)
        self.crowd_BL = torch.zeros_like(self.nearest_BL)
        self.whole_BLL: Tensor | None = None
        self._first_B = torch.arange(B, device=tokens_BLC.device) * L
        self._strips: list[Tensor] = []
        asked = nearest or radius is not None
        if not asked and rows * _ROWS_OF_A_PRODUCT < L:
            return
        self._hold = fits_whole(B, L)
        if self._hold:
            if L > _PART:  # else the only block is the whole
                self.whole_BLL = torch.empty(B, L, L, device=tokens_BLC.device)
        elif B == 1 and L * (L + _PART) // 2 <= _FLOATS:
            starts = range(0, L, _PART)
            self._strips = [
                torch.empty(min(_PART, L - s), L - s, device=tokens_BLC.device) for s in starts
            ]
        elif not asked:
            return
        for top, start, cosine_BPQ in self._blocks():
            self._keep(top, start, cosine_BPQ)
            if radius is not None:
                self._crowd(top, start, cosine_BPQ, radius)
            if nearest:
                self._near(top, start, cosine_BPQ)
        self.crowd_BL.clamp_min_(1)

    def row(self, pick_B: Int[Tensor, "B"]) -> Float[Tensor, "B L"]:
        """The cosines of all tokens of crop b with token `pick_B[b]`."""
        if self.whole_BLL is not None:
            flat_B = pick_B if len(pick_B) == 1 else pick_B + self._first_B
            return self.whole_BLL.flatten(0, 1).index_select(0, flat_B)
        if self._strips:
            pick = int(pick_B)
            strip, offset = divmod(pick, _PART)
            above = [s[:, pick - i * _PART] for i, s in enumerate(self._strips[:strip])]
            return torch.cat([*above, self._strips[strip][offset]])[None]
        return self.compute(pick_B[:, None])[:, 0]

    def compute(self, pick_BN: Int[Tensor, "B N"]) -> Float[Tensor, "B N L"]:
        """The cosines of all tokens with those, computed now."""
        crop_B1 = torch.arange(len(pick_BN), device=pick_BN.device)[:, None]
        picked_BNC = self._tokens_BLC[crop_B1, pick_BN].float()
        if self._padding_BL is not None:  # a crop without real tokens left picks padding
            picked_BNC = picked_BNC.masked_fill(self._padding_BL[crop_B1, pick_BN, None], 0)
        picked_BNC = picked_BNC * self.scale_BL[crop_B1, pick_BN, None]
        starts = range(0, self._tokens_BLC.shape[1], _PART)
        rows_BNL = torch.cat([picked_BNC @ self._part(start).mT for start in starts], 2)
        rows_BNL *= self.scale_BL[:, None]
        return rows_BNL

    def _part(self, start: int) -> Float[Tensor, "B P C"]:
        """Tokens from `start` on in float32, padding zero."""
        part_BPC = self._tokens_BLC[:, start : start + _PART].float()
        if self._padding_BL is None:
            return part_BPC
        return part_BPC.masked_fill(self._padding_BL[:, start : start + _PART, None], 0)

    def _blocks(self) -> Iterator[tuple[int, int, Float[Tensor, "B P Q"]]]:
        """First row, first column and cosines of each block on or above the diagonal."""
        L = self._tokens_BLC.shape[1]
        for top in range(0, L, _PART):
            # one side at length 1 before the product, or large tokens overflow in it
            rows_BPC = self._part(top) * self.scale_BL[:, top : top + _PART, None]
            for left in range(top, L, _PART):
                block_BPQ = rows_BPC @ self._part(left).mT
                block_BPQ *= self.scale_BL[:, None, left : left + _PART]
                yield top, left, block_BPQ

    def _keep(self, top: int, left: int, block_BPQ: Float[Tensor, "B P Q"]) -> None:
        _, P, Q = block_BPQ.shape
        if self._hold and P == Q == self._tokens_BLC.shape[1]:
            self.whole_BLL = block_BPQ.mT.contiguous()
        elif self.whole_BLL is not None:
            self.whole_BLL[:, top : top + P, left : left + Q] = block_BPQ
            self.whole_BLL[:, left : left + Q, top : top + P] = block_BPQ.mT
        elif self._strips:
            self._strips[top // _PART][:, left - top : left - top + Q] = block_BPQ[0]

    def _crowd(self, top: int, left: int, block_BPQ: Float[Tensor, "B P Q"], radius: float) -> None:
        _, P, Q = block_BPQ.shape
        rows, columns = slice(top, top + P), slice(left, left + Q)
        near_BPQ = (block_BPQ - (1 - radius)).clamp_(0, radius)
        if self._padding_BL is not None:
            near_BPQ.masked_fill_(self._padding_BL[:, rows, None], 0)
            near_BPQ.masked_fill_(self._padding_BL[:, None, columns], 0)
        self.crowd_BL[:, rows] += near_BPQ.sum(2) / radius
        if top != left:
            self.crowd_BL[:, columns] += near_BPQ.sum(1) / radius

    def _near(self, top: int, left: int, block_BPQ: Float[Tensor, "B P Q"]) -> None:
        """Spoils the block."""
        _, P, Q = block_BPQ.shape
        rows, columns = slice(top, top + P), slice(left, left + Q)
        if top == left:
            block_BPQ.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
        if self._padding_BL is not None:
            block_BPQ.masked_fill_(self._padding_BL[:, rows, None], -torch.inf)
            block_BPQ.masked_fill_(self._padding_BL[:, None, columns], -torch.inf)
        for at, found in ((rows, block_BPQ.amax(2)), (columns, block_BPQ.amax(1))):
            self.nearest_BL[:, at] = torch.maximum(self.nearest_BL[:, at], found)


def fits_whole(crops: int, length: int) -> bool:
    """Whether all cosines of so many crops are held at a time."""
    return crops * length * length <= _FLOATS


def crops_at_once(tokens_BLC: Float[Tensor, "B L C"], floats: int | None = None) -> list[slice]:
    """The crops in groups that fit in 320 MB with `floats` numbers a crop; None: its `Cosines`."""
    B, L, C = tokens_BLC.shape
    each = (L * L if floats is None else floats) + 2 * min(L, _PART) * C
    size = max(1, _FLOATS // max(each, 1))
    return [slice(start, start + size) for start in range(0, B, size)]


def cosine_along(
    tokens_BLC: Float[Tensor, "B L C"],
    direction_BC: Float[Tensor, "B C"],
    valid_BL: Bool[Tensor, "B L"],
) -> Float[Tensor, "B L"]:
    """Each token at length 1 times a direction of its crop; 0 in padding."""
    direction_BC1 = direction_BC.float()[..., None]
    found = []
    for part_BPC in torch.split(tokens_BLC, _PART, dim=1):
        part_BPC = part_BPC.float()
        length_BP = torch.linalg.vector_norm(part_BPC, dim=-1).clamp_min(_EPS)
        found.append((part_BPC @ direction_BC1)[..., 0] / length_BP)
    return torch.cat(found, 1).masked_fill(~valid_BL, 0)


def mean_token(
    tokens_BLC: Float[Tensor, "B L C"], valid_BL: Bool[Tensor, "B L"]
) -> Float[Tensor, "B C"]:
    """The mean of a crop's real tokens; zeros where there is none."""
    total_BC = tokens_BLC.new_zeros(len(tokens_BLC), tokens_BLC.shape[2], dtype=torch.float32)
    parts = zip(
        torch.split(tokens_BLC, _PART, dim=1), torch.split(valid_BL, _PART, dim=1), strict=True
    )
    for part_BPC, real_BP in parts:
        total_BC += part_BPC.float().masked_fill(~real_BP[..., None], 0).sum(1)
    return total_BC / valid_BL.sum(-1, keepdim=True).clamp_min(1)
