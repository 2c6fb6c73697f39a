"""A batch scored once for all its keeps gives what scoring it anew gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tokensieve.evaluate.remember import remembered_scores
from tokensieve.methods.base import Method
from tokensieve.types import Site


class _Selector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def scores(self, tokens: Tensor, *_: object) -> Tensor:
        self.calls += 1
        return tokens.sum(-1)


@dataclass(frozen=True, eq=False)
class _Method(Method):
    site: ClassVar[Site] = Site.FEATURES
    weights: nn.Module | None = None

    def reduce(self, vision: Any, counts: Any, text: Any = None) -> Any:
        raise NotImplementedError


def test_same_tokens_are_scored_once_and_others_anew() -> None:
    selector = _Selector()
    method = _Method(selector)
    a, b = torch.rand(2, 3, 4), torch.rand(2, 3, 4)
    with remembered_scores(method) as saved_ms:
        first = selector.scores(a, None)
        first.zero_()  # a caller that changes what it got must not change the memory
        torch.testing.assert_close(selector.scores(a.clone(), None), a.sum(-1))
        torch.testing.assert_close(selector.scores(b), b.sum(-1))
        assert (selector.calls, len(saved_ms)) == (2, 1)
    torch.testing.assert_close(selector.scores(b), b.sum(-1))
    assert selector.calls == 3  # restored


def test_methods_without_a_selector_are_left_alone() -> None:
    with remembered_scores(_Method()) as saved_ms:
        assert saved_ms == []
