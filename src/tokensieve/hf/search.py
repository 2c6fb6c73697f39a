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
from tokensieve.hf.families.fingerprint import llm_info
from tokensieve.hf.families.positions import mask_of
from tokensieve.hf.families.table import decoder_of
from tokensieve.hf.runtime.arguments import require_inputs
from tokensieve.hf.sieve import sieve
from tokensieve.methods.base import Method
from tokensieve.schedules import Searched, greedy_search
from tokensieve.schedules.searched import steps_of

Score = Callable[[tuple[float, ...]], float]


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


def first_token_score(
    model: Any, method: str | Method, prompts: Sequence[Mapping[str, Any]]
) -> Score:
    """Minus the mean divergence (KL, in nats) of the first answer token's distribution from the
    one of the whole model."""
    decoder_of(model)
    _require_prompts(prompts)
    wanted = [_first_token(model, inputs) for inputs in prompts]

    def score(shares: tuple[float, ...]) -> float:
        total, count = 0.0, 0
        with sieve(model, method, layer=steps_of(shares)):
            for inputs, full_BV in zip(prompts, wanted, strict=True):
                cut_BV = _first_token(model, inputs)
                total += float((full_BV.exp() * (full_BV - cut_BV)).sum())
                count += len(full_BV)
        return -total / count

    return score


def _require_prompts(prompts: object) -> None:
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
