"""Comparisons that fail in words of the product: what does not hold, of what, and by how much."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.testing import assert_close


def require_same(
    got: Tensor, wanted: Tensor, claim: str, *, rtol: float = 0.0, atol: float = 0.0
) -> None:
    """Bit for bit unless told how close; else "CLAIM: 3 of 800 numbers differ, by up to 2.0e-03".

    claim: the sentence that does not hold, such as "keep=1 is not the identity for fastv on llava".
    """

    def said(found: str) -> str:
        if got.shape != wanted.shape:
            return f"{claim}: got {list(got.shape)} numbers. Expected {list(wanted.shape)}."
        if got.dtype != wanted.dtype or got.device != wanted.device:
            return f"{claim}: {found}"
        apart = ~torch.isclose(got, wanted, rtol=rtol, atol=atol)
        far = float((got - wanted)[apart].abs().max())
        return f"{claim}: {int(apart.sum())} of {got.numel()} numbers differ, by up to {far:.1e}"

    assert_close(got, wanted, rtol=rtol, atol=atol, msg=said)


def require_tokens(got: Tensor, wanted: Tensor, claim: str) -> None:
    """The same ids; else what the first answer that differs says."""
    if torch.equal(got, wanted):
        return
    if got.shape == wanted.shape:
        row = int((got != wanted).any(-1).nonzero()[0, 0])
        got, wanted = got[row], wanted[row]
    raise AssertionError(f"{claim}: answered {got.tolist()}. Expected {wanted.tolist()}.")
