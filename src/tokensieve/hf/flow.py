"""A search for a method's options by what they leave of the flow to the prompt's last token.

B prompts, S prompt length, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity

from tokensieve.errors import ConfigError
from tokensieve.functional.bayes import bayesian_search
from tokensieve.hf.families.positions import mask_of
from tokensieve.hf.families.table import decoder_of
from tokensieve.hf.runtime.hooks import Point, When, acting
from tokensieve.hf.search import require_evaluations, require_prompts
from tokensieve.hf.sieve import sieve
from tokensieve.methods.base import Method
from tokensieve.methods.registry import get_method

BOUNDS = {"alpha": (0.0, 1.0), "above": (0.0, 50.0), "recycled": (0.0, 0.5)}  # of "vflowopt"


def search_flow(
    model: Any,
    prompts: Sequence[Mapping[str, Any]],
    keep: float | int,
    *,
    method: str = "vflowopt",
    bounds: Mapping[str, tuple[float, float]] = BOUNDS,
    evaluations: int = 60,
    seed: int = 0,
) -> Method:
    """The method with those options, within `bounds`, that change the last token least [1].

    The score is `kept_flow`, asked of `evaluations` choices by a Bayesian search. prompts: inputs
    as `model` takes them, padded on the left or one at a time; the paper takes 30.

    Differs from the released code: that searches the shares of three stages as well, asks 300
    times, and lets `alpha` be negative.

    Raises `ConfigError` without prompts or evaluations, for prompts padded on the right and for
    options the method does not have.

    [1] VFlowOpt: A Token Pruning Framework for LMMs with Visual Information Flow-Guided
    Optimization, arXiv 2508.05211.
    """
    require_evaluations(evaluations)
    wanted = _whole(model, prompts)

    def made(point: tuple[float, ...]) -> Method:
        return get_method(method, **dict(zip(bounds, point, strict=True)))

    def worth(point: tuple[float, ...]) -> float:
        return _kept(model, made(point), prompts, keep, wanted)

    best, _ = bayesian_search(worth, list(bounds.values()), evaluations, seed)
    return made(best)


def kept_flow(
    model: Any, method: str | Method, prompts: Sequence[Mapping[str, Any]], keep: float | int
) -> float:
    """Mean cosine of the prompts' last hidden states behind the LLM's last norm, under a sieve and
    without. Raises `ConfigError` as `search_flow` does."""
    return _kept(model, method, prompts, keep, _whole(model, prompts))


def _whole(model: Any, prompts: Sequence[Mapping[str, Any]]) -> list[Tensor]:
    require_prompts(prompts)
    for inputs in prompts:
        if not bool(mask_of(model, inputs)[:, -1].all()):
            raise ConfigError(
                "Expected prompts padded on the left, or one at a time. Got one padded on the "
                "right. Set the tokenizer's padding_side to 'left'."
            )
    return [_last_states(model, inputs) for inputs in prompts]


def _kept(
    model: Any, method: str | Method, prompts: Sequence[Mapping[str, Any]], keep: float | int,
    wanted: Sequence[Tensor],
) -> float:  # fmt: skip
    with sieve(model, method, keep):
        pairs = zip(prompts, wanted, strict=True)
        found = [cosine_similarity(_last_states(model, p), whole, dim=-1) for p, whole in pairs]
    return float(torch.cat(found).mean())


@torch.no_grad()
def _last_states(model: Any, inputs: Mapping[str, Any]) -> Float[Tensor, "B D"]:
    """Hidden states of the last token, as the LLM's decoder gives them."""
    seen: list[Tensor] = []

    def after(_module: Any, _args: Any, output: Any) -> None:
        hidden_BSD = output[0] if isinstance(output, tuple) else output.last_hidden_state
        seen.append(hidden_BSD[:, -1].float())

    with acting({Point(decoder_of(model), When.AFTER): after}):
        model(**inputs)
    return seen[-1]
