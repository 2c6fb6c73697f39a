"""Mixture of depths: which visual tokens a layer of the LLM works on, while the others skip it.

B prompts, S prompt length, D width, L layers of the LLM. A layer with a router ranks the visual
tokens that enter it; the best share of each prompt goes through the layer, the rest passes by and
is there again at the next one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tokensieve.errors import ConfigError
from tokensieve.fields import option
from tokensieve.nn.config import CHOICES, Config

MOST, LEAST = 0.85, 0.15  # of p-MoD's cosine: above, a layer reads all; below, it reads this share
GATE = 0.2  # p-MoD's gate: weights of tokens lie between 1 - GATE and 1 + GATE
_SPREAD = 0.02  # of the routers' first weights: near none, yet no two tokens rank alike


@dataclass(frozen=True)
class DepthsConfig(Config):
    """Which layers have routers, and how much of the visual tokens each works on.

    The first layer always reads all: the length of its cache says how long a prompt is.
    """

    width: int = option(4096, "D, width of the LLM.", low=1, high=2**17)
    layers: int = option(32, "L, layers of the LLM.", low=2, high=2**12)
    kind: str = option(
        "p-mod", "p-mod (fewer from layer to layer) or mod (the same in every second layer).",
        choices=CHOICES["depths"],
    )  # fmt: skip
    keep: float = option(
        0.5, "p-mod: the cosine's mean; mod: the share of visual tokens.", over=0, high=1
    )

    def shares(self) -> dict[int, float]:
        """The share of visual tokens that a layer works on, by its number; of others it is all.

        p-mod [1]: in layer l of L it is keep + cos(pi l / (L - 1)) / 2, no less than .15; above .85
        the layer has no router. mod [2]: `keep` in layers 1, 3, 5, ...

        [1] p-MoD: Building Mixture-of-Depths MLLMs via Progressive Ratio Decay, arXiv 2412.04449;
        the numbers are its released recipe's.
        [2] VideoLLM-MoD: Efficient Video-Language Streaming with Mixture-of-Depths Vision
        Computation, arXiv 2408.16730, whose keep is .2.
        """
        later = range(1, self.layers)
        if self.kind == "mod":
            return {layer: self.keep for layer in later if layer % 2 and self.keep < 1}
        cosine = {
            layer: self.keep + math.cos(math.pi * layer / (self.layers - 1)) / 2 for layer in later
        }
        return {layer: max(share, LEAST) for layer, share in cosine.items() if share <= MOST}


class Routers(nn.Module):
    """A linear layer from a token's hidden state to one number, for each layer that skips some.

    They begin near zero, so that every token's weight begins near 1.
    """

    def __init__(self, config: DepthsConfig) -> None:
        super().__init__()
        self.config, self.shares = config, config.shares()
        self.layers = nn.ModuleDict({str(at): nn.Linear(config.width, 1) for at in self.shares})
        for name, weight in self.named_parameters():
            nn.init.normal_(weight, std=_SPREAD if name.endswith("weight") else 0.0)

    def forward(
        self, layer: int, hidden_BSD: Float[Tensor, "B S D"], visual_BS: Bool[Tensor, "B S"]
    ) -> tuple[Bool[Tensor, "B S"], Float[Tensor, "B S"]]:
        """Which visual tokens `layer` works on, and the weight of every token, 1 + .2 tanh(score).

        Of n visual tokens of a prompt floor(share n) are chosen, and one at least: those of highest
        score, of equals the first. visual: False in padding.

        Raises `ConfigError` for a layer without a router.
        """
        if layer not in self.shares:
            raise ConfigError(
                f"Expected a layer with a router: {', '.join(self.layers)}. Got {layer}. Let all "
                "tokens through the others."
            )
        scores_BS = self.layers[str(layer)](hidden_BSD)[..., 0].float()
        count_B1 = visual_BS.sum(-1, keepdim=True)
        wanted_B1 = (count_B1.double() * self.shares[layer] + 1e-9).long()
        most_B1 = wanted_B1.clamp(min=1).minimum(count_B1)
        ranked_BS = scores_BS.detach().masked_fill(~visual_BS, -torch.inf)
        order_BS = ranked_BS.argsort(dim=-1, descending=True, stable=True)
        rank_BS = order_BS.argsort(-1)
        return visual_BS & (rank_BS < most_B1), 1 + GATE * scores_BS.tanh()


def mixed(
    before_BSD: Tensor, after_BSD: Tensor, weight_BS: Tensor, through_BS: Tensor,
    visual_BS: Tensor, *, symmetric: bool,
) -> Tensor:  # fmt: skip
    """Hidden states behind a layer that some visual tokens skipped.

    before, after: what entered, and what the layer made of those that went `through`. A visual
    token that did becomes before + weight (after - before), one that did not stays as it was, or,
    `symmetric` as in p-MoD, is scaled by its weight. Text is what the layer made of it.
    """
    weight = weight_BS.to(before_BSD.dtype)[..., None]
    through, visual = through_BS[..., None], visual_BS[..., None]
    worked = before_BSD + weight * (after_BSD - before_BSD)
    passed = weight * before_BSD if symmetric else before_BSD
    of_visual = torch.where(through, worked, passed)
    return torch.where(visual, of_visual, torch.where(through, after_BSD, before_BSD))
