"""Greedy choices do not wait for the device between two picks: on a GPU every number that Python
looks at, and every size that depends on data, would wait. Counted on the CPU, by operations."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tokensieve.functional.coverage import salient_coverage
from tokensieve.functional.diversity import max_min_diversity
from tokensieve.functional.dpp import greedy_dpp
from tokensieve.functional.pivots import unlike_pivots
from tokensieve.functional.suppression import suppressed_top

WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "equal")


class Counted(TorchDispatchMode):
    """How often something waited."""

    waits = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.waits += func.overloadpacket.__name__ in WAITS
        return func(*args, **(kwargs or {}))


Choice = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
TEXT = torch.eye(8)[:2]
CHOICES: dict[str, Choice] = {
    "coverage": lambda x, n, valid: salient_coverage(x, x[..., 0].abs(), n, valid),
    "diversity": max_min_diversity,
    "dpp": lambda x, n, valid: greedy_dpp(x, x[..., 0].abs(), n, valid, ahead=False),
    "suppression": lambda x, n, valid: suppressed_top(x, x[..., 0], n, valid, 0.8),
    "pivots": lambda x, n, valid: unlike_pivots(x, x[..., 0], TEXT, n, valid, int(n[0]) // 2),
}


def waits(choose: Choice, count: int) -> int:
    x = torch.randn(2, 40, 8, generator=torch.Generator().manual_seed(0))
    counts, valid = torch.full((2,), count), torch.ones(2, 40, dtype=torch.bool)
    with Counted() as seen:
        choose(x, counts, valid)
    return seen.waits


@pytest.mark.parametrize("name", CHOICES)
def test_more_picks_wait_no_more(name: str) -> None:
    assert waits(CHOICES[name], 30) == waits(CHOICES[name], 4)


def test_a_dpp_is_the_same_ahead_or_not() -> None:
    """On a CPU it looks ahead, so waits; the tokens are the same, past the rank too."""
    g = torch.Generator().manual_seed(1)
    x, quality = torch.randn(3, 40, 8, generator=g), torch.rand(3, 40, generator=g)
    valid, counts = torch.ones(3, 40, dtype=torch.bool), torch.tensor([3, 8, 20])
    valid[1, 30:] = False
    found = [greedy_dpp(x, quality, counts, valid, ahead=ahead) for ahead in (True, False)]
    assert torch.equal(*found)
    assert found[0].sum(-1).tolist() == counts.tolist()
    looking = [waits(lambda x, n, v: greedy_dpp(x, x[..., 0].abs(), n, v), n) for n in (4, 8)]
    assert looking[1] > looking[0]


def test_waiting_is_seen() -> None:
    def waiting(x: torch.Tensor, n: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        return torch.stack([valid[0] for _ in range(int(n[0])) if bool(x.sum() < 1e9)])

    assert waits(waiting, 30) - waits(waiting, 4) == 26


@pytest.mark.parametrize("choose", [greedy_dpp, salient_coverage])
def test_a_choice_takes_tokens_in_training(choose) -> None:
    """Embeddings of a model in training carry a gradient; what is kept has none."""
    tokens = torch.eye(4)[None].requires_grad_()
    weights = torch.tensor([[1.0, 4.0, 2.0, 3.0]]).requires_grad_()
    kept = choose(tokens, weights, torch.tensor([2]), torch.ones(1, 4, dtype=torch.bool))
    assert kept.tolist() == [[False, True, False, True]]
