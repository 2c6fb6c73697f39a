"""What a decoder layer's own prediction owes to each position: one layer run ahead, and back.

B prompts, E rows of all prompts and beams, T positions the layer holds, D width, Q places
predicted, V words.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from tokensieve.errors import UnsupportedError
from tokensieve.hf.runtime.compat import CACHE_NAMES
from tokensieve.hf.runtime.hooks import apart
from tokensieve.types import Kind, Signal

_PLACES = 4


class Probe:
    """Saliency for cuts whose methods ask for it.

    head: the model's output layer. wanted: the signals each cut asks for, by its layer.
    """

    def __init__(self, head: Any, decoder: Any, wanted: Mapping[int, Mapping[str, Signal]]) -> None:
        self.head, self.decoder = head, decoder
        self.names = {
            at: [name for name, signal in signals.items() if signal.kind is Kind.SALIENCY]
            for at, signals in wanted.items()
        }
        self.found: dict[int, Float[Tensor, "E T 1"]] = {}

    def asked_at(self, number: int) -> bool:
        """Whether the cut at that layer asks for it."""
        return bool(self.names.get(number))

    def run(
        self, number: int, hidden_ETD: Float[Tensor, "E T D"], given: Mapping[str, Any],
        read_ET: Bool[Tensor, "E T"],
    ) -> None:  # fmt: skip
        """Find the L2 norm of the gradient of a loss by each position's hidden state.

        The loss asks layer `number`, the LLM's last norm and its output for the likeliest word at
        the four places before the last that is read, and is the mean cross-entropy with that word
        itself: small where the layer is sure. given: what the layer is about to be given beside
        hidden states; no cache is written. read: the prompt as it is read.

        Raises `UnsupportedError` for a model without an output layer, or `torch.inference_mode`.
        """
        norm, layer = getattr(self.decoder, "norm", None), self.decoder.layers[number]
        if self.head is None or norm is None:
            raise UnsupportedError(
                "Expected an LLM with a last norm and an output layer. Got "
                f"{type(self.decoder).__name__}. Use a method that reads no gradient."
            )
        if torch.is_inference_mode_enabled():
            raise UnsupportedError(
                "Expected a mode in which gradients exist. Got torch.inference_mode(). Use "
                "torch.no_grad() instead."
            )
        given = {k: v for k, v in given.items() if k not in ("hidden_states", *CACHE_NAMES)}
        given |= {"use_cache": False} if "use_cache" in given else {}
        with apart(), torch.enable_grad():
            probe_ETD = hidden_ETD.detach().requires_grad_()
            out = layer(probe_ETD, **given)
            out_ETD = out[0] if isinstance(out, tuple) else out
            at_EQ = _before_last(read_ET).to(out_ETD.device)
            taken_EQD = out_ETD.gather(1, at_EQ[..., None].expand(-1, -1, out_ETD.shape[-1]))
            logits_NV = self.head(norm(taken_EQD)).flatten(0, 1).float()
            loss = cross_entropy(logits_NV, logits_NV.detach().argmax(-1), reduction="sum")
            (gradient_ETD,) = torch.autograd.grad(loss / _PLACES, probe_ETD)
        self.found[number] = gradient_ETD.float().norm(dim=-1, keepdim=True)

    def signals(self, number: int, repeats: int) -> dict[str, Float[Tensor, "B T 1"]]:
        """What the cut at that layer asked for. repeats: rows a prompt has; the first is read."""
        if not self.asked_at(number):
            return {}
        found_ET1 = self.found.pop(number)
        return dict.fromkeys(self.names[number], found_ET1[::repeats])


def _before_last(read_BT: Bool[Tensor, "B T"]) -> Int[Tensor, "B Q"]:
    """The places before the last that is read; the first of all again where there are fewer."""
    order_BT = read_BT.long().cumsum(-1)
    wanted_BQ = order_BT[:, -1:] - 1 - torch.arange(_PLACES, device=read_BT.device)
    found_BQT = read_BT[:, None] & (order_BT[:, None] == wanted_BQ.clamp_min(1)[..., None])
    return found_BQT.byte().argmax(-1)
