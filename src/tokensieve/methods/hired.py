"""A budget that crops share by what the whole view sees in them.

B crops of a picture, L tokens of a crop, n of them behind the whole view.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from tokensieve.budget import EPS
from tokensieve.errors import ConfigError
from tokensieve.fields import option
from tokensieve.functional.tiles import sums_under_tiles
from tokensieve.functional.topk import topk_mask
from tokensieve.methods.base import ScoringMethod
from tokensieve.types import EncoderInfo, Kind, Signal, Site, TextContext, VisionTokens


@dataclass(frozen=True)
class HiRED(ScoringMethod):
    """Share a picture's budget by early attention of CLS, spend each crop's part by late one [1].

    Of the budget, `alpha` goes to the crop that shows the whole picture. The rest is shared by the
    other crops in proportion to how much of its CLS attention, at an early layer, falls into each.
    Inside a crop the tokens stay that CLS attends to most at a late layer. A picture of one crop,
    or of crops that are not known to tile it, is spent evenly. Where there is no CLS (SigLIP,
    Qwen-VL): the mean attention of all tokens to each.

    alpha: the whole view's share of the budget.
    early, late: layers, counted from 0; late=None: the one the VLM reads (22 of CLIP-L's 24 in
        LLaVA).
    as_released: a tile's part counts the tokens of highest early attention, a share 1 - `alpha` of
        all (at least one), not how high it is; and the whole view's tokens are cut into as many
        runs, in reading order, as there are tiles, not into the tiles' places.

    Differs from paper and released code: the budget is spent exactly, what rounding or a full crop
    leaves goes to the others, and each crop keeps at least one token; a tile's part of the whole
    view leaves out the tile's padding. With a budget pooled over crops (pool="image" or "prompt")
    they compete token by token, by late attention alone. The release leaves out newline tokens,
    which stay here.

    Raises `ConfigError` for a share outside 0 to 1, or a layer that the encoder does not have.

    [1] HiRED: Attention-Guided Token Dropping for Efficient Inference of High-Resolution
    Vision-Language Models, arXiv 2408.10945.
    """

    site: ClassVar[Site] = Site.FEATURES
    paper: ClassVar[str | None] = "HiRED, arXiv 2408.10945"

    alpha: float = option(0.5, low=0, high=1)
    early: int = 0
    late: int | None = None
    as_released: bool = False

    def signals(self, encoder: EncoderInfo) -> dict[str, Signal]:
        late = encoder.block if self.late is None else self.late
        for name, layer in (("early", self.early), ("late", late)):
            if not 0 <= layer < encoder.depth:
                raise ConfigError(
                    f"Expected `{name}` from 0 to {encoder.depth - 1}, a layer of the encoder. "
                    f"Got {layer}."
                )
        return {
            "early": Signal(Kind.CLS_ATTENTION, self.early),
            "late": Signal(Kind.CLS_ATTENTION, late),
        }

    def share(self, vision: VisionTokens) -> Float[Tensor, "B"] | None:
        if vision.tiles is None or vision.grid is None or len(vision.tokens) == 1:
            return None
        early_L = vision.signal("early")[0].float()
        if self.as_released:
            most = early_L.new_tensor([(1 - self.alpha) * len(early_L) + EPS]).long().clamp_min(1)
            best_L = topk_mask(early_L[None], most, vision.valid_BL[:1])[0].float()
            runs = best_L.tensor_split(math.prod(vision.tiles))
            seen_n = torch.stack([run.sum() for run in runs])
        else:
            seen_n = sums_under_tiles(early_L.view(vision.grid), vision.valid_BL[1:], vision.tiles)
        seen_n = seen_n / seen_n.sum().clamp_min(torch.finfo(torch.float32).tiny)
        return torch.cat([seen_n.new_tensor([self.alpha]), (1 - self.alpha) * seen_n])

    def scores(self, vision: VisionTokens, text: TextContext | None = None) -> Float[Tensor, "B L"]:
        vision.signal("early")  # finite, or it is said here
        return vision.signal("late").float()
