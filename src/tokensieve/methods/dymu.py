"""DyMU: merging by a threshold, so that simple pictures keep fewer tokens.

B crops, L tokens.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokensieve.errors import ConfigError
from tokensieve.functional.blocks import even_blocks
from tokensieve.functional.matching import best_edges, deal, join, match_down
from tokensieve.functional.merge import mean_at
from tokensieve.functional.places import own_places
from tokensieve.methods.base import Method, merged
from tokensieve.nn.thresholds import Thresholds, shipped_thresholds
from tokensieve.types import EncoderInfo, Kind, Reduction, Signal, Site, TextContext, VisionTokens


@dataclass(frozen=True)
class DyMu(Method):
    """Behind every encoder layer, merge all tokens whose keys are more alike than a threshold [1].

    Pairs are found as in ToMe. Thresholds come from pictures: at each layer the one by which they
    lose, on average, as many tokens as a schedule says that takes the same number at every layer.
    A budget is then an average over such pictures: one picture keeps from half to twice as many.

    thresholds: a file of `Thresholds` or those; None: the one shipped for the encoder.
    proportional: later layers add the log of the number of patches to a token's attention logits.
    unmerge: the paper's virtual unmerging. In the LLM's attention a merged token stands at the
        place of every patch that joined it, with the rotary position of that place, as query and as
        key; what these places attend to is averaged. All but attention has the size of what is
        left. Of a `sieve` with positions="keep"; of LLMs with plain rotary positions.

    Differs from the paper: tokens merge behind the layer, not between its attention and its MLP;
    unmerge is off unless asked for, since attention then takes the time of the whole prompt (there
    too scores are of all pairs of places); half and twice the budget bound what a picture keeps.
    That outputs are averaged is from memory of the paper, which could not be looked at again.

    Raises `WeightsError` or `EncoderMismatchError` from `bind` where thresholds do not fit.

    [1] DyMU, arXiv 2504.17040.
    """

    site: ClassVar[Site] = Site.ENCODER
    exact: ClassVar[bool] = False
    on_average: ClassVar[bool] = True
    paper: ClassVar[str | None] = "DyMU, arXiv 2504.17040"

    thresholds: str | Path | Thresholds | None = None
    proportional: bool = True
    unmerge: bool = False

    @property
    def weighs_attention(self) -> bool:
        return self.proportional

    @property
    def unmerges(self) -> bool:
        return self.unmerge

    def bind(self, encoder: EncoderInfo) -> DyMu:
        found = self.thresholds
        if found is None:
            found = shipped_thresholds(encoder)
        elif not isinstance(found, Thresholds):
            found = Thresholds.load(found)
        found.encoder.require_same_output(encoder, owner="This file of thresholds")
        return dataclasses.replace(self, thresholds=found)

    def signals(self, encoder: EncoderInfo) -> dict[str, Signal]:
        return {"keys": Signal(Kind.KEYS)}

    def block_counts(self, length: int, keep: int, blocks: int) -> list[int]:
        return even_blocks(length, keep, blocks)

    def at_block(self, block: int, share: float) -> Method:
        return _Behind(self.thresholds, self.proportional, block=block, left=share)

    def threshold_B(self, counts: Int[Tensor, "B"], valid_BL: Tensor) -> Float[Tensor, "B"]:
        """What decides for each crop. Raises `ConfigError` before `bind`."""
        return self._table.at(None, counts / valid_BL.sum(-1).clamp_min(1))

    @property
    def _table(self) -> Thresholds:
        if not isinstance(self.thresholds, Thresholds):
            raise ConfigError("Expected a bound method. Got one without thresholds. Call `bind`.")
        return self.thresholds

    def reduce(
        self, vision: VisionTokens, counts: Int[Tensor, "B"], text: TextContext | None = None
    ) -> Reduction:
        """Keep as many as the threshold says, from half to twice `counts[b]`."""
        vision.require_finite(f"the site '{self.site}'")
        keys_BLK, valid_BL, sizes_BL = vision.signal("keys"), vision.valid_BL, vision.sizes
        good_BL, into_BL = best_edges(keys_BLK, *deal(valid_BL, vision.cls))
        alike_B = (good_BL > self.threshold_B(counts, valid_BL)[:, None]).sum(-1)
        alike_B = alike_B.masked_fill(counts >= valid_BL.sum(-1), 0)
        joined_BL = join(good_BL, into_BL, alike_B, valid_BL)  # at most half of all join
        kept_BL, assign_BL = match_down(
            keys_BLK, 2 * counts, valid_BL, sizes_BL, joined_BL, vision.cls
        )
        return merged(
            vision, kept_BL, mean_at(vision.tokens, assign_BL, sizes_BL, rest=False), assign_BL
        )


@dataclass(frozen=True)
class _Behind(DyMu):
    """The same behind one layer, for one share."""

    block: int = 0
    left: float = 1.0  # share of a crop's tokens

    def threshold_B(self, counts: Int[Tensor, "B"], valid_BL: Tensor) -> Float[Tensor, "B"]:
        return self._table.at(self.block, torch.full(counts.shape, self.left, device=counts.device))


@dataclass(frozen=True)
class Calibration(Method):
    """DyMU while it looks for thresholds: the best pairs of a whole batch merge, as many as the
    schedule says, and what lies between the last that did and the first that did not is noted.

    found: per layer the thresholds of each batch.
    """

    site: ClassVar[Site] = Site.ENCODER
    exact: ClassVar[bool] = False

    found: dict[int, list[float]]
    proportional: bool = True
    block: int = 0

    @property
    def weighs_attention(self) -> bool:
        return self.proportional

    def signals(self, encoder: EncoderInfo) -> dict[str, Signal]:
        return {"keys": Signal(Kind.KEYS)}

    def block_counts(self, length: int, keep: int, blocks: int) -> list[int]:
        return even_blocks(length, keep, blocks)

    def at_block(self, block: int, share: float) -> Method:
        return dataclasses.replace(self, block=block)

    def reduce(
        self, vision: VisionTokens, counts: Int[Tensor, "B"], text: TextContext | None = None
    ) -> Reduction:
        vision.require_finite(f"the site '{self.site}'")
        valid_BL = vision.valid_BL
        good_BL, into_BL = best_edges(vision.signal("keys"), *deal(valid_BL, vision.cls))
        best_E = good_BL[good_BL > -torch.inf].sort(descending=True).values
        ends_E = torch.cat([best_E.new_tensor([1.1]), best_E, best_E.new_tensor([-1.1])])
        merges = min(max(int(valid_BL.sum() - counts.sum()), 0), len(best_E))
        threshold = float(ends_E[merges : merges + 2].mean())
        self.found.setdefault(self.block, []).append(threshold)
        merges_B = (good_BL > threshold).sum(-1)
        assign_BL = join(good_BL, into_BL, merges_B, valid_BL)
        kept_BL = valid_BL & (assign_BL == own_places(valid_BL))
        return Reduction(kept_BL, mean_at(vision.tokens, assign_BL, vision.sizes), assign_BL)
