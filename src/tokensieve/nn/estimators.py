"""Hard masks with a gradient: three ways to sample which tokens stay.

B crops, L tokens. `scores` are keep logit minus drop logit; masks hold 0 and 1 exactly.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokensieve.functional.topk import topk_mask


def _straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """The value of `hard`, the gradient of `soft`."""
    return hard.to(soft.dtype) + (soft - soft.detach())


def logistic_noise(
    like: Float[Tensor, "B L"], generator: torch.Generator | None = None
) -> Float[Tensor, "B L"]:
    """The difference of two Gumbel variables, of the shape, dtype and device of `like`."""
    uniform = torch.rand(like.shape, generator=generator).clamp(1e-6, 1 - 1e-6)
    return torch.logit(uniform).to(like)


def gumbel_mask(
    scores_BL: Float[Tensor, "B L"], tau: float, generator: torch.Generator | None = None
) -> Float[Tensor, "B L"]:
    """Keep channel of a hard Gumbel-softmax over (drop, keep) [1].

    The difference of two Gumbel variables is logistic, so one uniform draw a token is enough.

    [1] Categorical Reparameterization with Gumbel-Softmax, arXiv 1611.01144.
    """
    noisy = scores_BL + logistic_noise(scores_BL, generator)
    return _straight_through(noisy > 0, torch.sigmoid(noisy / tau))


def straight_through_mask(scores_BL: Float[Tensor, "B L"], tau: float) -> Float[Tensor, "B L"]:
    """Keep where the score is positive; the gradient is the sigmoid's. No noise."""
    return _straight_through(scores_BL > 0, torch.sigmoid(scores_BL / tau))


def soft_topk(
    scores_BL: Float[Tensor, "B L"],
    counts_B: Int[Tensor, "B"],
    tau: float,
    valid_BL: Bool[Tensor, "B L"],
    steps: int = 50,
) -> Float[Tensor, "B L"]:
    """sigmoid((s - t) / tau) with t of each row such that valid entries sum to `counts_B`.

    Differentiable: the threshold is found by bisection, its gradient by one Newton step.
    """
    k_B1 = counts_B[:, None].to(scores_BL.dtype)
    with torch.no_grad():
        detached = scores_BL.detach()
        low = detached.amin(-1, keepdim=True) - 40 * tau
        high = detached.amax(-1, keepdim=True) + 40 * tau
        for _ in range(steps):
            middle = (low + high) / 2
            total = (torch.sigmoid((detached - middle) / tau) * valid_BL).sum(-1, keepdim=True)
            low, high = (
                torch.where(total > k_B1, middle, low),
                torch.where(total > k_B1, high, middle),
            )
        threshold = (low + high) / 2
        at = torch.sigmoid((detached - threshold) / tau)
        slope = ((at * (1 - at)) * valid_BL).sum(-1, keepdim=True).clamp_min(1e-6)
    total = (torch.sigmoid((scores_BL - threshold) / tau) * valid_BL).sum(-1, keepdim=True)
    # zero in value, and minus the threshold's implicit gradient
    correction = (total - total.detach()) / slope
    return torch.sigmoid((scores_BL - threshold) / tau - correction) * valid_BL


def soft_topk_mask(
    scores_BL: Float[Tensor, "B L"],
    counts_B: Int[Tensor, "B"],
    tau: float,
    valid_BL: Bool[Tensor, "B L"],
    generator: torch.Generator | None = None,
) -> Float[Tensor, "B L"]:
    """The hard top-k of each row's noisy scores with the gradient of `soft_topk`."""
    noisy = scores_BL + logistic_noise(scores_BL, generator)
    soft = soft_topk(noisy, counts_B, tau, valid_BL)
    return _straight_through(topk_mask(noisy.detach(), counts_B, valid_BL), soft)


def explore_mask(
    scores_BL: Float[Tensor, "B L"],
    counts_B: Int[Tensor, "B"],
    valid_BL: Bool[Tensor, "B L"],
    generator: torch.Generator | None = None,
    sharpness: float = 8.0,
) -> Float[Tensor, "B L"]:
    """Exactly `counts_B` tokens, without a gradient: by chance in three of ten rows, else by
    Gumbel-perturbed scores of a sharpness drawn from 0 to `sharpness`.

    Random rows show every token's error in every company, ranked rows the company it will have.
    """
    draws = torch.rand((2, len(scores_BL), 1), generator=generator).to(scores_BL)
    weight_B1 = sharpness * draws[0] * (draws[1] < 0.7)
    uniform = torch.rand(scores_BL.shape, generator=generator).clamp(1e-6, 1 - 1e-6)
    noisy_BL = weight_B1 * scores_BL.detach() - (-uniform.log()).log().to(scores_BL)
    return topk_mask(noisy_BL, counts_B, valid_BL).to(scores_BL.dtype)
