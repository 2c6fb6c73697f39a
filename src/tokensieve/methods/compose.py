"""Methods around a method: what it drops merged into what it keeps, no part left empty, another
site.

B crops, L tokens of a crop, K coarse cells of a crop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar, get_type_hints

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokensieve.errors import BudgetError, ConfigError, UnsupportedError
from tokensieve.fields import option, shown
from tokensieve.functional.cells import any_of_cells, best_of_cells
from tokensieve.functional.grid import coarse_cells
from tokensieve.functional.matching import nearest_target
from tokensieve.functional.merge import mean_at
from tokensieve.functional.topk import topk_mask
from tokensieve.methods.base import JsonValue, Method, ScoringMethod, TrainedFor, split_groups
from tokensieve.types import EncoderInfo, Reduction, Signal, Site, TextContext, VisionTokens

_Wrapped = TypeVar("_Wrapped", bound="_Around")


def composed(
    method: Method, *, recycle: object = False, cover: object = 0, site: object = None
) -> Method:
    """The method with a spatial floor (`Covered`) of `cover` x `cover` cells if that is not 0, at
    the `site` "patches" (`BeforeEncoder`) if so asked, and what it drops recycled (`Recycled`).

    Raises `ConfigError` for a `cover` that is no whole number from 0 up, a `recycle` that is
    neither True nor False, or a `site` that is neither the method's nor "patches"; and what
    `Covered`, `BeforeEncoder` and `Recycled` raise.
    """
    if isinstance(cover, bool) or not isinstance(cover, int) or cover < 0:
        raise ConfigError(f"Expected `cover` as a whole number from 0 up. Got {shown(cover)}.")
    if not isinstance(recycle, bool):
        raise ConfigError(f"Expected `recycle` as True or False. Got {shown(recycle)}.")
    if site not in (None, Site.PATCHES, method.site):
        raise ConfigError(
            f"Expected `site` as '{Site.PATCHES}', or left out: {_name(method)} acts on "
            f"'{method.site}'. Got {shown(site)}."
        )
    method = Covered(method, cover) if cover else method
    if site == Site.PATCHES != method.site:
        method = BeforeEncoder(method)
    return Recycled(method) if recycle else method


@dataclass(frozen=True)
class _Around(Method):
    """Is, needs and asks what `method` does."""

    method: Method

    def __post_init__(self) -> None:
        for name in _CLASS_ATTRIBUTES:
            object.__setattr__(self, name, getattr(self.method, name))

    def bind(self: _Wrapped, encoder: EncoderInfo) -> _Wrapped:
        return replace(self, method=self.method.bind(encoder))

    def trained_for(self) -> TrainedFor | None:
        return self.method.trained_for()

    def signals(self, encoder: EncoderInfo) -> dict[str, Signal]:
        return self.method.signals(encoder)

    def protects(self, vision: VisionTokens) -> Bool[Tensor, "B L"] | None:
        return self.method.protects(vision)

    @property
    def forgets(self) -> bool:
        return self.method.forgets

    def share(self, vision: VisionTokens) -> Float[Tensor, "B"] | None:
        return self.method.share(vision)

    def llm_stages(self, depth: int, keep: float | int) -> Mapping[int, float | int] | None:
        return self.method.llm_stages(depth, keep)

    def options(self) -> dict[str, JsonValue]:
        """With its name and these, `get_method` makes an equal one."""
        return self.method.options()


_CLASS_ATTRIBUTES = tuple(
    name for name, hint in get_type_hints(Method).items() if "ClassVar" in str(hint)
)


@dataclass(frozen=True)
class BeforeEncoder(_Around):
    """A method that reads pixels or nothing, choosing before the encoder is run: what it drops is
    not encoded.

    Raises `UnsupportedError` for a method that reads what the encoder gives.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reads_tokens:
            raise UnsupportedError(
                f"Expected a method that reads pixels or nothing, for the site '{Site.PATCHES}'. "
                f"Got {_name(self.method)}, which reads what the encoder gives. Leave `site` out, "
                "or use one such as 'pixelprune' or 'pixel-variance'."
            )
        object.__setattr__(self, "site", Site.PATCHES)

    def options(self) -> dict[str, JsonValue]:
        return {**super().options(), "site": str(Site.PATCHES)}

    def reduce(
        self, vision: VisionTokens, counts: Int[Tensor, "B"], text: TextContext | None = None
    ) -> Reduction:
        return self.method.reduce(vision, counts, text)

    def reduce_pool(
        self, groups: Sequence[VisionTokens], count: int, text: TextContext | None = None
    ) -> list[Reduction]:
        return self.method.reduce_pool(groups, count, text)


@dataclass(frozen=True)
class Recycled(_Around):
    """What a method drops goes into the nearest token it keeps, by cosine; that becomes the mean.

    Raises `UnsupportedError` for a method before the encoder or one that runs without a picture,
    and, once it has run, for one that makes new tokens itself.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.site in (Site.PIXELS, Site.PATCHES, Site.ENCODER) or not self.reads_picture:
            raise UnsupportedError(
                "Expected a method that drops tokens behind the encoder, for `recycle`. Got "
                f"{_name(self.method)}, which does not. Leave `recycle` out."
            )

    def options(self) -> dict[str, JsonValue]:
        return {**super().options(), "recycle": True}

    def reduce(
        self, vision: VisionTokens, counts: Int[Tensor, "B"], text: TextContext | None = None
    ) -> Reduction:
        return self._recycle(vision, self.method.reduce(vision, counts, text))

    def reduce_pool(
        self, groups: Sequence[VisionTokens], count: int, text: TextContext | None = None
    ) -> list[Reduction]:
        """A token joins one of its own crop; those of a crop that keeps none are gone."""
        parts = self.method.reduce_pool(groups, count, text)
        return [self._recycle(v, part) for v, part in zip(groups, parts, strict=True)]

    def _recycle(self, vision: VisionTokens, reduction: Reduction) -> Reduction:
        if reduction.tokens is not None:
            raise UnsupportedError(
                f"Expected a method that drops tokens, for `recycle`. Got {_name(self.method)}, "
                "which makes new ones of them already. Leave `recycle` out."
            )
        vision.require_finite(f"the site '{self.site}'")
        kept_BL, valid_BL = reduction.kept & vision.valid_BL, vision.valid_BL
        target_BL = nearest_target(vision.tokens, valid_BL & ~kept_BL, kept_BL)
        target_BL = target_BL.masked_fill(~valid_BL, -1)
        return Reduction(kept_BL, mean_at(vision.tokens, target_BL, rest=False), target_BL)


@dataclass(frozen=True)
class Covered(_Around):
    """A scoring method that keeps a token or more of every cell of a coarse grid.

    Tokens the method keeps stay where they are the best of their cell; a cell left empty gets its
    highest score, in place of the lowest of the others.

    cells: rows and columns of the coarse grid. Cells that hold padding only do not count.

    Raises `UnsupportedError` for a method without scores or, once it runs, crops without a grid;
    `BudgetError` for a budget of fewer tokens than there are cells.
    """

    cells: int = option(2, low=1, high=2**12)

    def __post_init__(self) -> None:
        super().__post_init__()
        _scoring(self.method)

    def options(self) -> dict[str, JsonValue]:
        return {**super().options(), "cover": self.cells}

    def reduce(
        self, vision: VisionTokens, counts: Int[Tensor, "B"], text: TextContext | None = None
    ) -> Reduction:
        reduction = self.method.reduce(vision, counts, text)
        if bool(((counts == 0) | (counts >= vision.valid_BL.sum(-1))).all()):
            return reduction
        rank_BL = self._rank(vision, reduction.kept, text)
        floor_B = (rank_BL == torch.inf).sum(-1).where(counts > 0, 0)
        for floor, count in zip(floor_B.tolist(), counts.tolist(), strict=True):
            self._require(floor, count)
        final_B = torch.maximum(reduction.kept.sum(-1), floor_B)
        return Reduction(topk_mask(rank_BL, final_B, vision.valid_BL))

    def reduce_pool(
        self, groups: Sequence[VisionTokens], count: int, text: TextContext | None = None
    ) -> list[Reduction]:
        """Every crop has its cells; the rest of the budget goes where the method puts it."""
        parts = self.method.reduce_pool(groups, count, text)
        ranks = [
            self._rank(v, part.kept, text).flatten() for v, part in zip(groups, parts, strict=True)
        ]
        rank_1N = torch.cat(ranks)[None]
        valid_1N = torch.cat([v.valid_BL.flatten() for v in groups])[None]
        floor_1 = (rank_1N == torch.inf).sum(-1)
        self._require(int(floor_1), count)
        final_1 = floor_1.clamp_min(sum(int(part.counts_B.sum()) for part in parts))
        return split_groups(Reduction(topk_mask(rank_1N, final_1, valid_1N)), groups)

    def _require(self, floor: int, count: int) -> None:
        if floor > count:
            raise BudgetError(
                f"Expected a budget of {floor} tokens or more, one per cell of {self.cells} x "
                f"{self.cells}. Got {count}. Raise `keep` or lower `cover`."
            )

    def _rank(
        self, vision: VisionTokens, kept_BL: Bool[Tensor, "B L"], text: TextContext | None
    ) -> Float[Tensor, "B L"]:
        """inf for the best token of each cell, kept ones before others; then the score of those
        kept, and -inf for the rest."""
        if vision.grid is None:
            raise UnsupportedError(
                "Expected tokens on a grid, for `cover`. Got some without. Leave `cover` out."
            )
        valid_BL = vision.valid_BL
        score_BL = _scoring(self.method).scores(vision, text).float()
        cell_BL = coarse_cells(vision.grid, self.cells).to(kept_BL.device).expand_as(kept_BL)
        first_BL = best_of_cells(score_BL, cell_BL, kept_BL) | (
            best_of_cells(score_BL, cell_BL, valid_BL) & ~any_of_cells(cell_BL, kept_BL)
        )
        return score_BL.masked_fill(~kept_BL, -torch.inf).masked_fill(first_BL, torch.inf)


def _scoring(method: Method) -> ScoringMethod:
    if isinstance(method, ScoringMethod):
        return method
    raise UnsupportedError(
        f"Expected a method that scores tokens, for `cover`. Got {_name(method)}. Use one that "
        "ranks them, such as 'selector', or leave `cover` out."
    )


def _name(method: Method) -> str:
    return type(method).__name__
