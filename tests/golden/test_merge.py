"""Means and concatenations at targets against slow loops, some tokens at a time."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from tokensieve.functional import merge
from tokensieve.functional.merge import concat_at, mean_at

B, L, C = 3, 17, 6


def drawn(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    target = torch.randint(-1, L, (B, L), generator=g)
    tokens = torch.randn(B, L, C, generator=g).to(dtype)
    weight = torch.rand(B, L, generator=g) * torch.randint(0, 2, (B, L), generator=g)
    tokens[target < 0] = torch.nan
    weight[target < 0] = torch.nan
    return tokens, target, weight


def sources(target: torch.Tensor, b: int, place: int) -> list[int]:
    return [i for i in range(L) if target[b, i] == place]


@pytest.mark.parametrize("part", [4, 1024])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weighted", [False, True])
def test_mean(
    monkeypatch: pytest.MonkeyPatch, part: int, dtype: torch.dtype, weighted: bool
) -> None:
    monkeypatch.setattr(merge, "_PART", part)
    tokens, target, weight = drawn(dtype)
    before = tokens.clone()
    got = mean_at(tokens, target, weight if weighted else None)
    changed = 0
    for b in range(B):
        for place in range(L):
            of = sources(target, b, place)
            mass = weight[b, of] if weighted else torch.ones(len(of))
            if len(of) < 2 or mass.sum() == 0:
                assert_close(got[b, place], tokens[b, place], rtol=0, atol=0, equal_nan=True)
                continue
            want = (tokens[b, of].float() * mass[:, None]).sum(0) / mass.sum()
            assert_close(got[b, place], want.to(dtype))
            changed += 1
    assert changed > B
    assert_close(tokens, before, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("part", [4, 1024])
def test_concat(monkeypatch: pytest.MonkeyPatch, part: int) -> None:
    monkeypatch.setattr(merge, "_PART", part)
    tokens, target, _ = drawn(torch.float32)
    got = concat_at(tokens, target)
    for b in range(B):
        for place in range(L):
            of = sources(target, b, place)
            want = tokens[b, place]
            if len(of) > 1:
                want = torch.stack([tokens[b, of[c * len(of) // C], c] for c in range(C)])
            assert_close(got[b, place], want, rtol=0, atol=0, equal_nan=True)


def test_gradients_reach_every_source() -> None:
    tokens = torch.randn(1, 4, 2, requires_grad=True)
    mean_at(tokens, torch.tensor([[0, 0, 0, 3]]))[0, 0].sum().backward()
    assert tokens.grad is not None
    assert_close(tokens.grad[0, :3], torch.full((3, 2), 1 / 3))
    assert not tokens.grad[0, 3].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_no_target_need_not_be_copied(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """Large outputs hold what is kept and zeros; small ones are copies. Kept tokens are alike."""
    tokens, weight = torch.randn(B, L, C).to(dtype), torch.rand(B, L)
    target = (torch.arange(L) // 3 * 3).repeat(B, 1)
    target[1, 6:9] = -1
    own = target == torch.arange(L)
    for given in (None, weight):
        want = mean_at(tokens, target, given)
        monkeypatch.setattr(merge, "_LARGE", 0)
        got = mean_at(tokens, target, given, rest=False)
        assert_close(got[own], want[own], rtol=0, atol=0)
        assert not got[~own].any()
        monkeypatch.undo()
        assert torch.equal(mean_at(tokens, target, given, rest=False)[own], got[own])
