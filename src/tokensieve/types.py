"""The few types every part of tokensieve speaks.

B crops (or pictures) of equal length, L tokens of a crop, C width, P pixel values under one token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokensieve.errors import (
    ConfigError,
    EncoderMismatchError,
    InputError,
    NonFiniteError,
    UnsupportedError,
)
from tokensieve.fields import check_fields, option


class Site(StrEnum):
    """Where in a VLM a method acts."""

    PIXELS = "pixels"  # before the encoder: a smaller picture
    PATCHES = "patches"  # before the encoder: fewer patches of the same picture
    ENCODER = "encoder"  # inside the encoder
    FEATURES = "features"  # encoder output, before the projector
    EMBEDS = "embeds"  # projector output, before the LLM
    LLM = "llm"  # inside the LLM


class Kind(StrEnum):
    """What a layer says about tokens, beside the tokens themselves.

    Attention is the mean over heads; it is computed from queries and keys, only the rows asked for,
    so SDPA and FlashAttention stay on. Shapes are for B crops of L tokens.
    """

    CLS_ATTENTION = "cls-attention"  # (B, L) from CLS; from all queries where there is no CLS
    CLS_UNSPLIT = "cls-unsplit"  # (B, L) the same, as if all heads were one of the full width
    RECEIVED_ATTENTION = "received-attention"  # (B, L) mean over all queries
    HEAD_MAPS = "head-maps"  # (B, L, L, H) row: query, then key, then head; CLS left out, not
    # renormalised
    KEYS = "keys"  # (B, L, K) mean over heads
    ALL_KEYS = "all-keys"  # (B, L, K) keys of all heads side by side
    # inside the LLM
    LAST_ATTENTION = "last-attention"  # (B, L) from the last token of the prompt
    TEXT_ATTENTION = "text-attention"  # (B, L, T) from each text token of `TextContext`
    TEXT_PRIORITY = "text-priority"  # (B, L, T) the same, of the half of the heads in which text
    # attends to visual tokens most
    LAST_UNROTATED = "last-unrotated"  # (B, L) as from the last token, without rotary positions
    LAST_TO_VISUAL = "last-to-visual"  # (B, L) the same, its softmax over visual tokens only
    MEAN_UNROTATED = "mean-unrotated"  # (B, L) by the mean query of visual tokens, no rotary
    KEYS_UNROTATED = "keys-unrotated"  # (B, L, K) keys of all heads, without rotary positions
    TEXT_KEY_NORMS = "text-key-norms"  # (B, L, T) L1 norm of each text token's keys; all rows alike
    SALIENCY = "saliency"  # (B, L) L2 norm of the gradient by each token of how sure the layer at
    # the cut is of the words at the four places before the prompt's last; always `ahead`
    SHARED_NEURONS = "shared-neurons"  # (B, L) of the prompt's core neurons, how many it activates


@dataclass(frozen=True)
class Signal:
    """One `Kind` of signal of one attention layer.

    block: the encoder's layer, counted from 0; None: the one just run (sites "encoder", "llm").
    ahead: sites "encoder" and "llm": of the layer at the cut, as it would attend to what it is
        handed if nothing were dropped. Its queries and keys are computed once more for that. Where
        it has no attention, or there is no such layer: of the layer just run.
    above: of `RECEIVED_ATTENTION` before the LLM: only that from tokens which themselves receive
        more than so many times the mean, or most of all.
    """

    kind: Kind
    block: int | None = None
    ahead: bool = False
    above: float = 0.0

    def layer_at(self, cut: int) -> int:
        """Site "llm": the layer it is of, for a cut before layer `cut`."""
        return cut if self.ahead else cut - 1


Grid = tuple[int, int]  # rows, columns
Grids = Grid | tuple[Grid, ...]  # of all crops alike, or of each


@dataclass(frozen=True)
class EncoderInfo:
    """What identifies a vision encoder's output: the fingerprint selectors are trained for.

    At the site "embeds" it is the projector's output: `width` is then the LLM's. `embed_width` says
    that width at the site "features", where it is known. At the site "llm" all of it is about the
    LLM: its type and sizes, and `layer` is the decoder layer whose incoming hidden states it is.

    Raises `ConfigError` for another site, or a `layer` that an LLM of that depth does not have.
    """

    model_type: str
    width: int = option(low=0, high=2**20)
    layer: int = option(low=-4096, high=4096)  # as the VLM's `vision_feature_layer`: 0 counts the
    # embeddings, -1 is the last
    depth: int = option(low=0, high=4096)
    heads: int = option(low=0, high=2**12)
    ffn: int = option(low=0, high=2**20)
    grid: tuple[int, int] | None = None  # tokens of one crop; None: varies with the picture
    site: Site = Site.FEATURES
    embed_width: int | None = option(None, low=1, high=2**20)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.grid is not None and not all(1 <= side <= 2**12 for side in self.grid):
            raise ConfigError(f"Expected a grid of 1 to 4096 rows and columns. Got {self.grid}.")
        if self.site not in (Site.FEATURES, Site.EMBEDS, Site.LLM):
            raise ConfigError(
                f"Expected the site 'features', 'embeds' or 'llm'. Got '{self.site}'."
            )
        if self.site is Site.LLM and not 0 < self.layer < self.depth:
            raise ConfigError(
                f"Expected `layer` from 1 to {self.depth - 1}, a decoder layer of the LLM behind "
                f"its first. Got {self.layer}."
            )

    def at_embeds(self) -> EncoderInfo:
        """The same encoder behind its projector. Raises `ConfigError` if its width is unknown."""
        if self.site is Site.EMBEDS:
            return self
        if self.embed_width is None:
            raise ConfigError(
                f"Expected the width of the projector's output for '{self.model_type}'. Got none."
            )
        return replace(self, width=self.embed_width, site=Site.EMBEDS, embed_width=None)

    def require_same_output(self, other: EncoderInfo, *, owner: str) -> None:
        """Raise `EncoderMismatchError` unless `other` yields features of the same kind.

        Weights may differ (a fine-tuned copy of the encoder is welcome); type, width, depth and
        layer may not, and neither may a fixed grid. Weights for the site "embeds" are held against
        `other` behind its projector.
        """
        if self.site is Site.EMBEDS and other.embed_width is not None:
            other = other.at_embeds()
        for name in ("site", "model_type", "width", "depth", "layer", "grid"):
            want, got = getattr(self, name), getattr(other, name)
            if name == "layer":
                want, got = self._absolute_layer(), other._absolute_layer()
            if name == "grid" and (want is None or got is None):
                continue
            if want != got:
                what = "LLM" if self.site is Site.LLM else "encoder"
                raise EncoderMismatchError(
                    f"{owner} was trained for an {what} with {name}={want}. Got {name}={got}. "
                    f"Use weights trained for this {what}, or train them (see the README)."
                )

    @property
    def block(self) -> int:
        """The layer, counted from 0, whose output it is."""
        return self._absolute_layer() - 1

    def _absolute_layer(self) -> int:
        return self.layer if self.layer >= 0 else self.depth + 1 + self.layer


@dataclass(frozen=True)
class VisionTokens:
    """The visual tokens of B crops of equal shape, as one site sees them.

    tokens: (B, L, C) features or embeddings, row-major over `grid` where there is one.
    grid: (rows, columns) with rows * columns = L, or None where tokens have no grid.
    valid: (B, L), False where a token never reaches the LLM (padding); None: all are real.
    patches: (B, L, P) the pixel values under each token, colour channel after colour channel, for
        methods that need "pixels".
    keys: one integer per crop, its ordinal in the prompt: seeds what is random, so that a crop
        is treated alike alone and in a batch.
    signals: what `Method.signals` asked for, by its names; shapes as `Kind` says.
    sizes: (B, L) how many patches each token stands for (site "encoder"); None: one.
    cls: whether a CLS token, which always stays, stands before them (site "encoder").
    frames: crops are the frames of a video, one after another.
    tiles: (rows, columns) of the crops behind the first, which shows the whole picture; None: the
        crops are not laid out so.

    Raises `InputError` where shapes contradict each other.
    """

    tokens: Float[Tensor, "B L C"]
    grid: tuple[int, int] | None = None
    valid: Bool[Tensor, "B L"] | None = None
    patches: Float[Tensor, "B L P"] | None = None
    keys: tuple[int, ...] | None = None
    signals: Mapping[str, Tensor] = field(default_factory=dict)
    sizes: Float[Tensor, "B L"] | None = None
    cls: bool = False
    tiles: tuple[int, int] | None = None
    frames: bool = False

    def __post_init__(self) -> None:
        B, L, _ = self.tokens.shape
        if self.grid is not None and self.grid[0] * self.grid[1] != L:
            raise InputError(f"Expected grid {self.grid} to hold {L} tokens. Give its true shape.")
        if self.keys is not None and len(self.keys) != B:
            raise InputError(f"Expected {B} keys, one per crop. Got {len(self.keys)}.")

    @property
    def valid_BL(self) -> Bool[Tensor, "B L"]:
        """The valid mask, all True where none was given."""
        if self.valid is not None:
            return self.valid
        return torch.ones(self.tokens.shape[:2], dtype=torch.bool, device=self.tokens.device)

    def signal(self, name: str) -> Tensor:
        """The signal of that name. Raises `UnsupportedError` without it, `NonFiniteError`."""
        if name not in self.signals:
            raise UnsupportedError(
                f"Expected the signal '{name}' of an attention layer. Got none. Run the encoder "
                "inside the sieve (pass pixels), on a model whose attention can be read."
            )
        found = self.signals[name]
        if not math.isfinite(found.sum()) and not bool(torch.isfinite(found).all()):
            raise NonFiniteError(
                f"Expected finite numbers for the signal '{name}'. Got NaN or Inf. Check the "
                "picture and the model's dtype (try bfloat16 instead of float16)."
            )
        return found

    def require_finite(self, where: str) -> None:
        """Raise `NonFiniteError` naming `where` if any real token holds NaN or Inf."""
        if not bool((_finite_rows(self.tokens) | ~self.valid_BL).all()):
            raise NonFiniteError(
                f"Expected finite visual tokens at {where}. Got NaN or Inf. Check the picture and "
                "the model's dtype (float16 overflows in some encoders; try bfloat16)."
            )


def _finite_rows(values: Tensor) -> Tensor:
    """Whether all numbers along the last axis are finite.

    NaN and Inf survive a sum; where one is not finite, an overflow perhaps, its numbers are looked
    at. A tenth of the time of looking at all, and no copy.
    """
    finite = torch.isfinite(values.sum(-1))
    if not bool(finite.all()):
        finite = finite.clone()
        finite[~finite] = torch.isfinite(values[~finite]).all(-1)
    return finite


@dataclass(frozen=True)
class TextContext:
    """What a prompt asks, for methods conditioned on it: the text behind its last picture.

    embeds: (T, D) embeddings of one prompt's question, without special tokens, padding and answers
        (`tokensieve.hf.prompt.text.Asked` says what they are and what stands in for a question in
        front of the picture); at the site "llm" their hidden states.
    """

    embeds: Float[Tensor, "T D"]


@dataclass(frozen=True)
class Reduction:
    """What a method decided for B crops.

    kept: (B, L) True where a token goes on, in original order.
    tokens: (B, L, C) new values, read at kept positions only (merging, pooling); None: unchanged.
    assign: (B, L) the position of the kept token that absorbed each token, itself for a kept one,
        -1 for a token whose content is gone; None: nothing was merged.
    """

    kept: Bool[Tensor, "B L"]
    tokens: Float[Tensor, "B L C"] | None = None
    assign: Int[Tensor, "B L"] | None = None

    @property
    def counts_B(self) -> Int[Tensor, "B"]:
        """Tokens kept of each crop."""
        return self.kept.sum(-1)

    def indices(self) -> list[Int[Tensor, "k"]]:
        """Sorted kept positions, one tensor per crop."""
        return [row.nonzero()[:, 0] for row in self.kept]

    def apply(self, tokens: Float[Tensor, "B L C"]) -> list[Float[Tensor, "k C"]]:
        """The kept tokens of each crop, in original order, with new values where there are any."""
        source = tokens if self.tokens is None else self.tokens
        return [row[mask] for row, mask in zip(source, self.kept, strict=True)]
