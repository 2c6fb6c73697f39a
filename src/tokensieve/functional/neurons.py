"""Core neurons of a prompt, and how many of them each token activates.

B prompts, N tokens, F neurons of a feed-forward part (what enters its last projection).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_PART = 256  # tokens sorted at a time


def shared_neurons(
    neurons_BNF: Float[Tensor, "B N F"],
    read_BN: Bool[Tensor, "B N"],
    strongest: float = 0.4,
    frequent: float = 0.2,
) -> Int[Tensor, "B N"]:
    """How many core neurons of its prompt each token activates.

    A neuron is active where it is positive. A token's core neurons are the `strongest` share of its
    active ones; a prompt's are the `frequent` share of all, by how many of its tokens
    (`read_BN`) have them as core neurons, ties included. Shares are rounded up.
    """
    B, _, F = neurons_BNF.shape
    often_BF = torch.zeros(B, F, device=neurons_BNF.device)
    for part, read in zip(
        torch.split(neurons_BNF, _PART, 1), torch.split(read_BN, _PART, 1), strict=True
    ):
        own = strongest_of(part, strongest) & read[..., None]
        often_BF += own.sum(1)
    least_B1 = often_BF.topk(math.ceil(frequent * F), dim=-1).values[:, -1:].clamp_min(1)
    core_BF = often_BF >= least_B1
    return ((neurons_BNF > 0) & core_BF[:, None]).sum(-1)


def strongest_of(neurons_BNF: Float[Tensor, "B N F"], share: float) -> Bool[Tensor, "B N F"]:
    """Of each token the strongest `share` of its active neurons, ties included."""
    active_BNF = neurons_BNF > 0
    count_BN = (active_BNF.sum(-1) * share).ceil().long()
    ranked_BNF = neurons_BNF.sort(dim=-1, descending=True).values
    least_BN1 = ranked_BNF.gather(-1, (count_BN - 1).clamp_min(0)[..., None])
    return active_BNF & (neurons_BNF >= least_BN1)
