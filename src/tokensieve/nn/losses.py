"""Losses of the selector's training.

B crops, L tokens, C width. The norm's reduction is unstated in the papers; all readings are here.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import cosine_similarity

from tokensieve.nn.config import ObjectiveConfig

_EPS = 1e-12  # the square root has no gradient at zero
SURPRISE_FLOOR = 1e-3  # of a cosine distance or a standardised square: below it, tokens are alike


def reconstruction_loss(
    output_BLC: Float[Tensor, "B L C"],
    target_BLC: Float[Tensor, "B L C"],
    reduction: str,
    valid_BL: Bool[Tensor, "B L"] | None = None,
) -> Float[Tensor, ""]:
    """The norm of the error over real tokens.

    "rms": mean over tokens of the root mean square over C; "l2": of the L2 norm over C;
    "mse": mean square; "sample-l2": L2 norm of all of a crop's numbers, mean over crops. The last
    grows with L and C until no mask term matters: the mask goes to all ones.
    """
    weight_BL = (
        output_BLC.new_ones(output_BLC.shape[:2]) if valid_BL is None else valid_BL.to(output_BLC)
    )
    square_BL = (output_BLC - target_BLC).square().sum(-1) * weight_BL
    C = output_BLC.shape[-1]
    if reduction == "sample-l2":
        return (square_BL.sum(-1) + _EPS).sqrt().mean()
    if reduction == "mse":
        per_token = square_BL / C
    else:
        per_token = (square_BL / (C if reduction == "rms" else 1) + _EPS).sqrt() * weight_BL
    return per_token.sum() / weight_BL.sum().clamp_min(1)


def mask_loss(
    mask_BL: Float[Tensor, "B L"],
    config: ObjectiveConfig,
    valid_BL: Bool[Tensor, "B L"] | None = None,
) -> Float[Tensor, ""]:
    """What keeping tokens costs, by `config.objective`; L is the mean of the mask.

    "when-less-is-enough": a1 max(L, p) [1]; "adaptive": a1 max(L, p) - a2 min(L, q) [2];
    "plain": a1 L.

    [1] When Less is Enough, arXiv 2503.16660. [2] Adaptive Vision Token Selection (follow-up).
    """
    weight_BL = torch.ones_like(mask_BL) if valid_BL is None else valid_BL.to(mask_BL)
    kept, real = mask_BL * weight_BL, weight_BL
    if config.budget == "picture":
        share = kept.sum(-1) / real.sum(-1).clamp_min(1)
    else:
        share = (kept.sum() / real.sum().clamp_min(1))[None]
    if config.objective == "plain":
        return config.a1 * share.mean()
    loss = config.a1 * share.clamp_min(config.p)
    if config.objective == "adaptive":
        loss = loss - config.a2 * share.clamp_max(config.q)
    return loss.mean()


def surprise_losses(
    output_BLC: Float[Tensor, "B L C"],
    target_BLC: Float[Tensor, "B L C"],
    scores_BL: Float[Tensor, "B L"],
    dropped_BL: Float[Tensor, "B L"],
    raw: tuple[Float[Tensor, "B L C"], Float[Tensor, "B L C"]] | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """(error of dropped tokens, squared error of the score as the logarithm of a token's error).

    A token's error is its mean square or, where they are given, the cosine distance of `raw` output
    and target, not standardised; the reconstruction then minimises both. Every dropped token
    teaches the score directly what dropping it cost, where a sampled mask has to find out by trial.
    That target carries no gradient.
    """
    error_BL = lost_BL = (output_BLC - target_BLC).square().mean(-1)
    if raw is not None:
        error_BL = 1 - cosine_similarity(*raw, dim=-1)
        lost_BL = lost_BL + error_BL
    total = dropped_BL.sum().clamp_min(1)
    wanted_BL = (error_BL.detach().clamp_min(0) + SURPRISE_FLOOR).log()
    guess = ((scores_BL - wanted_BL).square() * dropped_BL).sum() / total
    return (lost_BL * dropped_BL).sum() / total, guess
