"""The order in which a selector's rule takes tokens, and what it takes for thresholds to cut it.

B crops, L tokens, C width, K steps, N crops of a calibration.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokensieve.budget import count
from tokensieve.errors import InputError, NonFiniteError
from tokensieve.functional.counts import SHARES, adaptive_counts
from tokensieve.functional.gate import gated_mask
from tokensieve.functional.grid import beside
from tokensieve.functional.topk import topk_mask
from tokensieve.functional.worth import Crowd, diverse_order, weighted_diversity
from tokensieve.nn.selector import Selector
from tokensieve.types import Grid


def _diverse(
    selector: Selector, tokens_BLC: Float[Tensor, "B L C"], scores_BL: Float[Tensor, "B L"]
) -> tuple[Float[Tensor, "B L C"], Float[Tensor, "B L"], Crowd]:
    """What the rule "diverse" compares: tokens of even spread, the logarithm of their weight
    error^trust, and who counts for a crowd."""
    config = selector.config
    even_BLC = tokens_BLC / selector.std
    return even_BLC, config.trust * scores_BL, Crowd(config.crowd, config.radius, config.words)


def ranked(
    selector: Selector,
    tokens_BLC: Float[Tensor, "B L C"],
    scores_BL: Float[Tensor, "B L"],
    valid_BL: Bool[Tensor, "B L"],
    rule: str,
    steps: int,
    beside_BL2: Int[Tensor, "B L 2"] | None = None,
) -> tuple[Int[Tensor, "B K"], Float[Tensor, "B K"]]:
    """The first K = `steps` tokens by `rule`, and what each was worth when it was taken.

    "diverse": the logarithm of what its loss would cost given those before it. Other rules: the
    score, by rank.

    beside: see `choose`.
    """
    if rule == "diverse":
        even_BLC, weight_BL, crowd = _diverse(selector, tokens_BLC, scores_BL)
        return diverse_order(even_BLC, weight_BL, valid_BL, steps, crowd, beside_BL2)
    free_BL = scores_BL.float().masked_fill(~valid_BL, -torch.inf)
    worth_BL, order_BL = free_BL.sort(dim=-1, descending=True, stable=True)
    return order_BL[:, :steps], worth_BL[:, :steps]


def choose(
    selector: Selector,
    tokens_BLC: Float[Tensor, "B L C"],
    scores_BL: Float[Tensor, "B L"],
    counts_B: Int[Tensor, "B"],
    valid_BL: Bool[Tensor, "B L"],
    rule: str | None = None,
    beside_BL2: Int[Tensor, "B L 2"] | None = None,
) -> Bool[Tensor, "B L"]:
    """Which `counts` tokens stay, by `rule` (None: the config's; see `SelectorConfig.rule`).

    beside: the tokens left and right of each one, -1 for none, by which "diverse" knows words;
    None: no token has any.
    """
    rule = rule or selector.config.rule
    if rule == "top":
        return topk_mask(scores_BL, counts_B, valid_BL)
    if rule == "gated":
        return gated_mask(scores_BL, selector.standardise(tokens_BLC), counts_B, valid_BL)
    even_BLC, weight_BL, crowd = _diverse(selector, tokens_BLC, scores_BL)
    return weighted_diversity(even_BLC, weight_BL, counts_B, valid_BL, crowd, beside_BL2)


def neighbours(
    grid: Grid | None, tokens_BLC: Float[Tensor, "B L C"]
) -> Int[Tensor, "B L 2"] | None:
    """Left and right of each token of crops of a grid, each crop for itself; None without one."""
    if grid is None:
        return None
    return beside(grid, 1).to(tokens_BLC.device).expand(len(tokens_BLC), -1, -1)


@torch.no_grad()
def calibrate(selector: Selector, batches: Iterable[Float[Tensor, "_ L C"]]) -> tuple[float, ...]:
    """Measure and store `selector.config.thresholds`, for `counts="adaptive"`.

    batches: (B, L, C) raw tokens of whole crops of one length, as the selector reads them; some
        hundreds of crops of the training pictures, never of those it is tested on.

    For each of SHARES the threshold at which these crops keep that share on average, each from half
    to twice of it, by the rule in the config. Returns the thresholds; they are saved with the
    weights. Calibrate anew after changing `rule`, `trust`, `crowd`,
    `radius` or `words`.

    Raises `InputError` without crops, `NonFiniteError` for NaN or Inf among them.
    """
    parts: list[Tensor] = []
    for tokens_BLC in batches:
        if not bool(torch.isfinite(tokens_BLC).all()):
            raise NonFiniteError("Expected finite tokens to calibrate on. Got NaN or Inf.")
        valid_BL = torch.ones(tokens_BLC.shape[:2], dtype=torch.bool, device=tokens_BLC.device)
        tokens_BLC, L = tokens_BLC.to(selector.mean.dtype), tokens_BLC.shape[1]
        scores_BL = selector.scores(tokens_BLC, None, selector.config.encoder.grid)
        beside_BL2 = neighbours(selector.config.encoder.grid, tokens_BLC)
        rule = selector.config.rule
        parts.append(ranked(selector, tokens_BLC, scores_BL, valid_BL, rule, L, beside_BL2)[1])
    if not parts:
        raise InputError("Expected at least one batch of tokens to calibrate on. Got none.")
    worth_NL = torch.cat(parts)
    thresholds = tuple(_threshold(worth_NL, share) for share in SHARES)
    selector.config = replace(selector.config, thresholds=thresholds)
    return thresholds


def _threshold(worth_NL: Float[Tensor, "N L"], share: float) -> float:
    """By halving: the mean count falls as the threshold rises."""
    N, L = worth_NL.shape
    valid_NL = torch.ones_like(worth_NL, dtype=torch.bool)
    counts_N = torch.full((N,), count(share, L), device=worth_NL.device)
    low, high = float(worth_NL.min()) - 1, float(worth_NL.max()) + 1
    for _ in range(40):
        middle = (low + high) / 2
        threshold_N = worth_NL.new_full((N,), middle)
        mean = adaptive_counts(worth_NL, threshold_N, counts_N, valid_NL).float().mean()
        low, high = (middle, high) if float(mean) > float(counts_N[0]) else (low, middle)
    return round((low + high) / 2, 5)
