"""Masks of decoder layers that hold only a part of the prompt.

A window, or a chunk, of a layer counts places in the whole prompt, those of dropped tokens among
them: a layer sees what it would see of the whole prompt, less what was dropped. Its cache holds the
last tokens left, so never fewer of a window than are left in it. Layers without attention
(convolutions, linear attention) run over what is left, one behind the other, and get masks of
padding only.

B prompts, times beams, S prompt length, T tokens left, Q new tokens, K keys a layer holds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tokensieve.errors import UnsupportedError
from tokensieve.hf.families.towers import attention_in
from tokensieve.hf.llm import cut
from tokensieve.hf.prompt.compaction import Gather


@dataclass
class Masks:
    """Of one prompt's layers; what is made for one of them serves those like it in the same pass.

    first_B: where each prompt begins behind its padding; chunks are counted from there.
    """

    decoder: Any
    length: int  # S
    first_B: Int[Tensor, "B"]
    made: dict[tuple[Any, ...], Tensor | None] = field(default_factory=dict)

    @classmethod
    def of(cls, decoder: Any, mask_BS: Tensor) -> Masks:
        """For prompts with this padding."""
        return cls(decoder, mask_BS.shape[1], mask_BS.long().argmax(-1))

    @property
    def flash(self) -> bool:
        """Whether attention takes masks of padding only."""
        return "flash" in str(self.decoder.config._attn_implementation)

    def prefill(self, number: int, mask: Any, gather: Gather) -> Tensor | None:
        """The mask of a layer that reads the prompt for the first time."""
        recurrent = attention_in(self.decoder.layers[number]) is None
        key = (id(mask), id(gather), recurrent)
        if key not in self.made:
            self._require_window(number, self.length)
            self.made[key] = cut.prefill_mask(mask, gather, flash=self.flash or recurrent)
        return self.made[key]

    def decode(
        self, number: int, mask: Any, gather: Gather, cache: Any, hidden_BQD: Tensor
    ) -> Tensor | None:
        """The mask of new tokens over what a layer holds."""
        if attention_in(self.decoder.layers[number]) is None:
            return mask if isinstance(mask, Tensor) else None
        layers, new = getattr(cache, "layers", ()), hidden_BQD.shape[1]
        if all(_plain(layer) for layer in layers):  # made for a layer that holds the whole prompt
            key: tuple[Any, ...] = (id(mask), id(gather))
            if key not in self.made:
                self.made[key] = cut.decode_mask(mask, gather, self.length, new, flash=self.flash)
            return self.made[key]
        held = layers[number]  # the mask may have been made for any layer: it is made anew
        window = held.sliding_window if getattr(held, "is_sliding", False) else None
        key = (id(gather), window)
        if key not in self.made:
            T = gather.index_BT.shape[1]
            decoded = int(held.get_seq_length()) - T
            self._require_window(number, self.length + decoded + new)
            seen = self._seen(gather, decoded, new, window)[..., -held.keys.shape[-2] - new :]
            self.made[key] = self._as_taken(seen, hidden_BQD.dtype)
        return self.made[key]

    def _seen(
        self, gather: Gather, decoded: int, new: int, window: int | None
    ) -> Bool[Tensor, "B Q K"]:
        """What each new token may see of all that is left and all that was decoded."""
        device, B = gather.index_BT.device, len(gather.index_BT)
        behind = torch.arange(self.length, self.length + decoded + new, device=device)
        place_BK = torch.cat([gather.index_BT, behind.expand(B, -1)], 1)
        real_BK = torch.cat([gather.real_BT, gather.real_BT.new_ones(B, len(behind))], 1)
        place_B1K, at_Q1 = place_BK[:, None], behind[-new:, None]
        seen = real_BK[:, None] & (place_B1K <= at_Q1)
        if window is None:
            return seen
        if not self._chunked:
            return seen & (at_Q1 - place_B1K < window)
        first = self.first_B.to(device).repeat_interleave(B // len(self.first_B))[:, None, None]
        return seen & ((place_B1K - first) // window == (at_Q1 - first) // window)

    @property
    def _chunked(self) -> bool:
        return "chunked_attention" in (getattr(self.decoder.config, "layer_types", None) or ())

    def _as_taken(self, seen_BQK: Tensor, dtype: torch.dtype) -> Tensor | None:
        """As the decoder's kind of attention takes it."""
        if self.flash:
            return seen_BQK[:, -1].long()
        if self.decoder.config._attn_implementation == "eager":
            hidden = torch.finfo(dtype).min
            return torch.zeros(seen_BQK.shape, dtype=dtype, device=seen_BQK.device).masked_fill(
                ~seen_BQK, hidden
            )[:, None]
        return seen_BQK[:, None]

    def _require_window(self, number: int, places: int) -> None:
        """Raise `UnsupportedError` where FlashAttention would count its window in tokens left."""
        window = window_of(self.decoder, number)
        if self.flash and window is not None and places > window:
            raise UnsupportedError(
                f"Expected at most {window} places, the window of layer {number} of the LLM, for a "
                f"cut inside it under FlashAttention, which counts a window in tokens left. Got "
                f"{places}. Call model.set_attn_implementation('sdpa'), which counts places."
            )


def window_of(decoder: Any, number: int) -> int | None:
    """How many places a layer looks back, its own among them; None: all."""
    config = decoder.config
    kinds, window = getattr(config, "layer_types", None), getattr(config, "sliding_window", None)
    if not isinstance(window, int) or (kinds and "sliding" not in kinds[number]):
        return None
    return window


def held_by(cache: Any, number: int) -> int:
    """Tokens that a cache's layer has read; 0 without a cache."""
    layers = getattr(cache, "layers", ())
    if number >= len(layers) or not hasattr(layers[number], "get_seq_length"):
        return 0  # a layer that holds a state has no length
    return int(layers[number].get_seq_length())


def _plain(layer: Any) -> bool:
    """Whether a cache's layer holds all it was given, and keys and values only."""
    return not getattr(layer, "is_sliding", False) and not hasattr(layer, "update_conv_state")
