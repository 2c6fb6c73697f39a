"""The method protocol: tensors in, `Reduction` out. No model names here.

B crops, L tokens of a crop.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokensieve.errors import ConfigError
from tokensieve.fields import check_values
from tokensieve.functional.absorb import absorb_nearest, rest_as_one
from tokensieve.functional.blocks import even_blocks
from tokensieve.functional.topk import topk_mask
from tokensieve.nn.config import SelectorConfig
from tokensieve.types import EncoderInfo, Reduction, Signal, Site, TextContext, VisionTokens


@dataclass(frozen=True)
class TrainedFor:
    """The encoder a method's weights were trained for. name: what the weights are called. hashes:
    (dtype, hash) of that encoder's parameters; none where they are not known. by: how they were
    trained, in words. scorer: sizes of the network that scores, which say what it costs."""

    name: str
    site: Site
    hashes: tuple[tuple[str, str], ...]
    by: str = "not said"
    scorer: SelectorConfig | None = None


PROTECTED = "protected"  # the signal of what a method before the LLM protects

JsonValue = str | int | float | bool | None


@dataclass(frozen=True)
class Method(ABC):
    """One way to shorten visual tokens. Subclasses are frozen dataclasses; fields are its options.

    Class attributes describe it to the CLI, the docs and the contract tests.
    """

    site: ClassVar[Site]
    trained: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset()  # of {"pixels", "text", "grid"}
    budgeted: ClassVar[bool] = True  # False: keeps what it keeps, whatever the budget
    exact: ClassVar[bool] = True  # False: may keep fewer tokens than asked
    on_average: ClassVar[bool] = False  # True: a budget is a mean; half to twice of it may be kept
    reads_picture: ClassVar[bool] = True  # False: the encoder need not even run
    reads_tokens: ClassVar[bool] = True  # False: chooses by pixels, or by nothing; not by tokens
    stochastic: ClassVar[bool] = False  # True: depends on its `seed` field
    conditional: ClassVar[bool] = False  # True: the question must stand before the picture
    across_frames: ClassVar[bool] = False  # True: of a video reads frames beside each other
    paper: ClassVar[str | None] = None  # "Title, arXiv id"

    def __new__(cls, *values: Any, **options: Any) -> Any:
        """Checked by their annotations before any `__post_init__` reads them: no method need say
        what its options' types are. Raises `ConfigError`."""
        names = (field.name for field in fields(cls))
        check_values(cls, dict(zip(names, values, strict=False)) | options)
        return super().__new__(cls)

    def options(self) -> dict[str, JsonValue]:
        """Field values as JSON: `get_method(name, **options)` makes an equal method.

        Raises `ConfigError` for a value that has no JSON form, such as loaded weights.
        """
        values: dict[str, JsonValue] = {}
        for name in (field.name for field in fields(self)):
            value = getattr(self, name)
            value = str(value) if isinstance(value, Path) else value
            if not isinstance(value, str | int | float | bool | None):
                raise ConfigError(
                    f"Expected option '{name}' as a plain value. Got a {type(value).__name__}. "
                    "Save it and give its path instead."
                )
            values[name] = value
        return values

    @classmethod
    def site_text(cls) -> str:
        """The site, or the sites of which weights or the caller choose one, for tables."""
        also = not cls.reads_tokens and cls.site is not Site.PATCHES
        return f"{cls.site} or {Site.PATCHES}" if also else str(cls.site)

    def llm_stages(self, depth: int, keep: float | int) -> Mapping[int, float | int] | None:
        """Site "llm": {layer: keep}, where it drops tokens by itself in an LLM of `depth` layers.

        Layers run from 1 to depth - 1 and `keep` never grows. None: it has no layer of its own.
        """
        return None

    def bind(self, encoder: EncoderInfo) -> Method:
        """This method made ready for `encoder` (load or check weights); itself by default."""
        return self

    def trained_for(self) -> TrainedFor | None:
        """Of a bound method with weights of its own, the encoder that they belong to."""
        return None

    def signals(self, encoder: EncoderInfo) -> dict[str, Signal]:
        """What it must be told of attention layers, by names of its own: `vision.signal(name)`.

        encoder: at the sites "encoder" and "llm" what it says of depth and layer matters little,
        since signals are of the layer just run, or at the cut (`Signal.ahead`).
        """
        return {}

    def protects(self, vision: VisionTokens) -> Bool[Tensor, "B L"] | None:
        """Before the LLM: tokens that a method behind this one, inside the LLM, should drop last.
        It is told of them as its signal `PROTECTED`, 1 or 0; None: no tokens."""
        return None

    @property
    def forgets(self) -> bool:
        """Site "llm" only: whether, once the prompt is read, all layers from the first cut on
        forget what later cuts dropped."""
        return False

    @property
    def unmerges(self) -> bool:
        """Site "encoder": the LLM attends to merged tokens as to all they stand for (its option
        `unmerge`)."""
        return False

    def share(self, vision: VisionTokens) -> Float[Tensor, "B"] | None:
        """How a budget per picture is shared by its crops, in any unit; None: evenly.

        vision: the crops of one picture. Whole tokens are made of it elsewhere: the budget is spent
        exactly, each crop keeps at least one token and no more than it has.
        """
        return None

    @abstractmethod
    def reduce(
        self, vision: VisionTokens, counts: Int[Tensor, "B"], text: TextContext | None = None
    ) -> Reduction:
        """Keep `counts[b]` tokens of crop b."""

    def reduce_pool(
        self, groups: Sequence[VisionTokens], count: int, text: TextContext | None = None
    ) -> list[Reduction]:
        """Keep `count` tokens over all crops of all `groups`, which compete for them.

        A group holds crops of one grid. By default all crops are read as one without a grid.
        """
        whole = as_one(groups)
        counts_1 = torch.tensor([count], device=whole.tokens.device)
        return split_groups(self.reduce(whole, counts_1, text), groups)

    @property
    def weighs_attention(self) -> bool:
        """Sites "encoder" and "llm": later layers attend to a token as often as it stands for
        patches, or for tokens that joined it (`Reduction.assign`)."""
        return False

    def block_counts(self, length: int, keep: int, blocks: int) -> list[int]:
        """Site "encoder" only: tokens left behind each of the `blocks` layers up to the one the
        VLM reads, `keep` of `length` behind the last; `reduce` is called where they become fewer.

        Raises `BudgetError` for a `keep` it cannot reach.
        """
        return even_blocks(length, keep, blocks, halve=False)

    def at_block(self, block: int, share: float) -> Method:
        """Site "encoder" only: this method behind layer `block` of an encoder of which the `share`
        of a crop's tokens is to leave; itself by default."""
        return self

    def target_grid(self, grid: tuple[int, int], count: int) -> tuple[int, int] | None:
        """Site "pixels" only: the grid of at most `count` tokens a crop of `grid` is resized to."""
        return None


@dataclass(frozen=True)
class ScoringMethod(Method):
    """A method that ranks tokens: the highest scores stay, in original order.

    Scores are comparable between crops, so a pooled budget goes where they are highest. What scores
    below `least` goes whatever the budget (of a method that is not `exact`).
    """

    least: ClassVar[float] = -math.inf

    @abstractmethod
    def scores(self, vision: VisionTokens, text: TextContext | None = None) -> Float[Tensor, "B L"]:
        """Higher is kept first."""

    def reduce(
        self, vision: VisionTokens, counts: Int[Tensor, "B"], text: TextContext | None = None
    ) -> Reduction:
        return Reduction(self._best(self.scores(vision, text), counts, vision.valid_BL))

    def _best(self, scores_BL: Tensor, counts_B: Tensor, valid_BL: Tensor) -> Tensor:
        kept_BL = topk_mask(scores_BL, counts_B, valid_BL)
        return kept_BL & (scores_BL >= self.least) if math.isfinite(self.least) else kept_BL

    def reduce_pool(
        self, groups: Sequence[VisionTokens], count: int, text: TextContext | None = None
    ) -> list[Reduction]:
        """Score each crop as itself, then let the scores of all crops compete."""
        scores_1L = torch.cat([self.scores(g, text).flatten() for g in groups])[None]
        valid_1L = torch.cat([g.valid_BL.flatten() for g in groups])[None]
        counts_1 = torch.tensor([count], device=scores_1L.device)
        return split_groups(Reduction(self._best(scores_1L, counts_1, valid_1L)), groups)


def as_one(groups: Sequence[VisionTokens]) -> VisionTokens:
    """All crops of all `groups` as a single crop without a grid."""
    first = groups[0]
    given = [g.patches.flatten(0, 1) for g in groups if g.patches is not None]
    return VisionTokens(
        torch.cat([g.tokens.flatten(0, 1) for g in groups])[None],
        valid=torch.cat([g.valid_BL.flatten() for g in groups])[None],
        patches=torch.cat(given)[None] if given else None,
        keys=None if first.keys is None else first.keys[:1],
        signals={
            name: torch.cat([g.signals[name].flatten(0, 1) for g in groups])[None]
            for name in first.signals
        },
    )


def split_groups(whole: Reduction, groups: Sequence[VisionTokens]) -> list[Reduction]:
    """The `Reduction` of `as_one(groups)` cut back into one per group.

    Assignments across crops cannot be told per crop and become -1.
    """
    parts, start = [], 0
    for group in groups:
        B, L, _ = group.tokens.shape
        cut = slice(start, start + B * L)
        tokens = None if whole.tokens is None else whole.tokens[0, cut].view(B, L, -1)
        assign = None
        if whole.assign is not None:
            first = start + torch.arange(B, device=whole.assign.device)[:, None] * L
            assign = whole.assign[0, cut].view(B, L) - first
            assign = assign.where((assign >= 0) & (assign < L), torch.full_like(assign, -1))
        parts.append(Reduction(whole.kept[0, cut].view(B, L), tokens, assign))
        start += B * L
    return parts


def keep_all(vision: VisionTokens) -> Bool[Tensor, "B L"]:
    """Mask of every real token."""
    return vision.valid_BL.clone()


def keep_none(vision: VisionTokens) -> Bool[Tensor, "B L"]:
    """Mask of no token."""
    return torch.zeros_like(vision.valid_BL)


def merged(
    vision: VisionTokens,
    kept_BL: Bool[Tensor, "B L"],
    tokens_BLC: Float[Tensor, "B L C"],
    assign_BL: Int[Tensor, "B L"] | None = None,
) -> Reduction:
    """Kept tokens with new values. Where every real token stays they are the old ones, and the VLM
    is spared from projecting them anew, which would round them otherwise."""
    if torch.equal(kept_BL, vision.valid_BL):
        return Reduction(kept_BL)
    return Reduction(kept_BL, tokens_BLC, assign_BL)


def absorbed(
    vision: VisionTokens,
    kept_BL: Bool[Tensor, "B L"],
    neighbours: int,
    *,
    averaged: bool,
    rest_B: Int[Tensor, "B"],
) -> Reduction:
    """Kept tokens that take in the `neighbours` others most like them (`absorb_nearest`), by the
    signals "keys" and "attention". Where `rest_B[b]` is 1 one more token stays: all others in one.
    """
    attention_BL, valid_BL = vision.signal("attention"), vision.valid_BL
    new_BLC = absorb_nearest(
        vision.tokens, vision.signal("keys"), attention_BL, kept_BL, valid_BL, neighbours,
        averaged=averaged,
    )  # fmt: skip
    if bool(rest_B.any()):
        kept_BL, new_BLC = rest_as_one(
            vision.tokens, new_BLC, attention_BL, kept_BL, valid_BL, rest_B
        )
    return merged(vision, kept_BL, new_BLC)
