"""What stays of a picture, and how many tokens of each of its crops.

n crops of a picture, L tokens of a crop, D LLM width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokensieve.budget import split_by_weight, split_evenly
from tokensieve.errors import ConfigError
from tokensieve.hf.encoder.encode import Encoded

_KEY_STRIDE = 65_537  # more crops than a prompt ever has: keys of two prompts never meet


@dataclass(frozen=True)
class ImageReduction:
    """What stays of one picture: kept positions per crop, and new rows for them if any.

    protected: tokens that a method inside the LLM should drop last.
    """

    kept_nL: Bool[Tensor, "n L"]
    rows_nLD: Float[Tensor, "n L D"] | None = None
    assign_nL: Int[Tensor, "n L"] | None = None
    protected_nL: Bool[Tensor, "n L"] | None = None


def crop_keys(encoded: Encoded, keys: Sequence[int] | None) -> list[tuple[int, ...]]:
    """Per picture, the keys of its crops: ordinals in the prompt, kept apart by prompts' `keys`."""
    seen = dict(encoded.read)
    out = []
    for packing, prompt in zip(encoded.packings, encoded.prompt_of, strict=True):
        first = seen.get(prompt, 0) + (0 if keys is None else keys[prompt] * _KEY_STRIDE)
        seen[prompt] = seen.get(prompt, 0) + packing.crops
        out.append(tuple(range(first, first + packing.crops)))
    return out


def crop_counts(keep: float | int, valid_nL: Tensor, share_n: Tensor | None = None) -> list[int]:
    """Tokens to keep of each crop of a picture; 0 of a crop that is all padding.

    share_n: what part of the picture's budget each crop gets; None: an even one.
    """
    sizes = valid_nL.sum(-1).tolist()
    real = [size for size in sizes if size]
    even = split_evenly(keep, real)
    if share_n is not None and len(share_n) != len(sizes):
        raise ConfigError(
            f"Expected one share per crop, {len(sizes)} of them. Got {len(share_n)}. Correct the "
            "method's `share`."
        )
    if share_n is not None:
        weights = [w for w, size in zip(share_n.tolist(), sizes, strict=True) if size]
        even = split_by_weight(sum(even), weights, real)
    shares = iter(even)
    return [next(shares) if size else 0 for size in sizes]
