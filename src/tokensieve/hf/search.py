"""A search, on prompts of one's own, for how many visual tokens each layer of an LLM needs.

B prompts, S prompt length, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tokensieve.errors import ConfigError
from tokensieve.fields import check_names, shown
from tokensieve.functional.bayes import bayesian_search
from tokensieve.functional.blocks import blocks_run
from tokensieve.hf.families.fingerprint import llm_info
from tokensieve.hf.families.positions import mask_of
from tokensieve.hf.families.table import decoder_of
from tokensieve.hf.runtime.arguments import require_inputs
from tokensieve.hf.sieve import sieve
from tokensieve.methods.base import Method
from tokensieve.schedules import PSigmoid, Searched, greedy_search
from tokensieve.schedules.searched import steps_of

Score = Callable[[tuple[float, ...]], float]
_STEEPNESS = (0.0, 60.0)


def search_schedule(
    model: Any,
    method: str | Method,
    prompts: Sequence[Mapping[str, Any]],
    keep: float,
    *,
    score: Score | None = None,
    **options: Any,
) -> Searched:
    """Lower the share of tokens layer by layer, where it costs least, until its mean is `keep`.

    method: of the site "llm"; it chooses the tokens. prompts: inputs as `model` takes them, each a
        batch; some tens of prompts do. score: how good a schedule (the shares of all layers) is,
        higher is better; None: `first_token_score`. options: `levels` and `layers` of
        `greedy_search`.

    Every step asks for a score per layer: hours on a large model, once.

    Raises `ConfigError` without prompts, and what `greedy_search` raises.
    """
    info = llm_info(model, 1)
    check_names("option of the search", options, ("levels", "layers"))
    asked = first_token_score(model, method, prompts) if score is None else score
    return Searched(info, greedy_search(asked, info.depth, keep, **options))


def fit_p_sigmoid(
    model: Any,
    method: str | Method,
    prompts: Sequence[Mapping[str, Any]],
    keep: float,
    *,
    score: Score | None = None,
    evaluations: int = 20,
    seed: int = 0,
) -> PSigmoid:
    """The `PSigmoid` by which most is kept of the answers when its mean share is `keep` [1].

    Arguments as of `search_schedule`. A Bayesian search asks for the score of so many values of
    `steepness`, from 0 to 60; where the sigmoid stands follows from the budget.

    Differs from the paper: it searches both numbers, with the budget as a bound.

    Raises `ConfigError` without prompts or evaluations, `BudgetError` for a `keep` below what the
    first layer holds.

    [1] Accelerating Multimodal Large Language Models by Searching Optimal Vision Token Reduction,
    arXiv 2412.00556.
    """
    require_evaluations(evaluations)
    info = llm_info(model, 1)
    asked = first_token_score(model, method, prompts) if score is None else score

    def worth(point: tuple[float, ...]) -> float:
        stages = PSigmoid(point[0]).stages(info, keep)
        return asked((1.0, *(float(stages[layer]) for layer in range(1, info.depth))))

    (steepness,), _ = bayesian_search(worth, [_STEEPNESS], evaluations, seed)
    return PSigmoid(steepness)


def require_evaluations(evaluations: object) -> None:
    """Raise `ConfigError` for what is no number of questions to ask."""
    if isinstance(evaluations, bool) or not isinstance(evaluations, int) or evaluations < 1:
        raise ConfigError(
            f"Expected `evaluations` as a whole number from 1. Got {shown(evaluations)}. Pass some "
            "tens."
        )


def first_token_score(
    model: Any, method: str | Method, prompts: Sequence[Mapping[str, Any]]
) -> Score:
    """Minus the mean divergence (KL, in nats) of the first answer token's distribution from the
    one of the whole model."""
    decoder_of(model)
    require_prompts(prompts)
    wanted = [_first_token(model, inputs) for inputs in prompts]

    def score(shares: tuple[float, ...]) -> float:
        total, count = 0.0, 0
        with sieve(model, method, layer=steps_of(shares)):
            for inputs, full_BV in zip(prompts, wanted, strict=True):
                cut_BV = _first_token(model, inputs)
                total += float(divergence(full_BV, cut_BV).sum())
                count += len(full_BV)
        return -total / count

    return score


def withdrawal_layer(
    model: Any,
    prompts: Sequence[Mapping[str, Any]],
    *,
    threshold: float = 0.003,
    first: int | None = None,
) -> int | None:
    """The layer of the method "vtw" [1]: the first from which all visual tokens may leave.

    Tried in order from `first` on (None: where 5 of 32 layers have run, as in the released code);
    taken is the first at which the mean divergence of the first answer token is below
    `threshold`: KL in nats of the distribution without visual tokens from the one with them. None
    where it never is. prompts: as of `search_schedule`; the paper takes 20.

    Raises `ConfigError` without prompts, for a threshold below 0 or a layer that is not there.

    [1] Boosting Multimodal Large Language Models with Visual Tokens Withdrawal, arXiv 2405.05803.
    """
    depth = len(decoder_of(model).layers)
    first = blocks_run(5 / 32, depth, most=depth - 1) if first is None else first
    if not threshold >= 0 or not 0 < first < depth:
        raise ConfigError(
            f"Expected a threshold of 0 or more and a first layer from 1 to {depth - 1}. Got "
            f"{threshold} and {first}."
        )
    require_prompts(prompts)
    wanted = [_first_token(model, inputs) for inputs in prompts]
    for layer in range(first, depth):
        with sieve(model, "vtw", 0.5, layer=layer):
            lost = [divergence(_first_token(model, inputs), full)
                    for inputs, full in zip(prompts, wanted, strict=True)]  # fmt: skip
        if float(torch.cat(lost).mean()) < threshold:
            return layer
    return None


def divergence(log_p_BV: Float[Tensor, "B V"], log_q_BV: Float[Tensor, "B V"]) -> Tensor:
    """(B,) KL(p || q) in nats, from logarithms of probabilities."""
    return (log_p_BV.exp() * (log_p_BV - log_q_BV)).sum(-1)


def require_prompts(prompts: object) -> None:
    """Raise `ConfigError` for what is no list of prompts, `PromptError` for one that is none."""
    if not isinstance(prompts, Sequence) or isinstance(prompts, str) or not prompts:
        raise ConfigError(
            f"Expected a list of prompts to search on. Got {shown(prompts)}. Pass a few tens, each "
            "as the model's processor returns it."
        )
    for inputs in prompts:
        require_inputs(inputs)


@torch.no_grad()
def _first_token(model: Any, inputs: Mapping[str, Any]) -> Float[Tensor, "B V"]:
    """Log-probabilities behind each prompt's last token."""
    logits_BSV = model(**inputs).logits
    mask_BS = mask_of(model, inputs).bool()
    places = torch.arange(mask_BS.shape[1], device=mask_BS.device)
    last_B = torch.where(mask_BS, places, -1).amax(-1)
    rows = torch.arange(len(last_B), device=last_B.device)
    return torch.as_tensor(logits_BSV[rows, last_B].float().log_softmax(-1))
