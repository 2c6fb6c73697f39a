"""Projectors that hand the LLM fewer, fused tokens: spatial and multi-block token fusion.

B pictures, M encoder blocks, C channels of a block, L = H * W tokens of the encoder, k kernel side,
E fused tokens of a k x k cell, N = L / k^2 * E tokens of the LLM, D width of the LLM.
Everything is a 1x1 convolution or stays inside a cell, so a linear layer over channels says it all.
"""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tokensieve.errors import ConfigError
from tokensieve.nn.cells import as_map as as_map
from tokensieve.nn.cells import unfold as unfold
from tokensieve.nn.fusion_config import FusionConfig as FusionConfig
from tokensieve.nn.fusion_config import check_divides as check_divides
from tokensieve.nn.fusion_config import spaced_blocks as spaced_blocks
from tokensieve.nn.fusion_config import topmost as topmost
from tokensieve.nn.questions import QuestionProjector

SPREAD = 4  # hidden channels of both parts' 1x1 convolutions, per channel they come in with


class MultiBlockFusion(nn.Module):
    """MBTF of [1]: what several encoder blocks say of a token, as one token of a block's width.

    1x1 convolution M C -> 4 C, GELU, 1x1 convolution 4 C -> C, GELU. The release's form has no
    activation at the end.

    [1] Learning Compact Vision Tokens for Efficient Large Multimodal Models, arXiv 2506.07138.
    """

    def __init__(self, width: int, blocks: int, form: str = "paper") -> None:
        super().__init__()
        self.channels = blocks * width
        self.mlp = _two_layers(blocks * width, SPREAD * width, width, activated=form == "paper")

    @torch.no_grad()
    def pass_through(self, block: int = -1) -> None:
        """Begin as if that block alone were read: its channels go through, the others' wait.

        gelu(x) - gelu(-x) is x, so two of the four hidden units of a channel let it pass; what
        leaves the others has no weight yet. The last layer's activation, if any, follows.
        Drawn at random, the blocks drown each other, and a small LLM never learns to read them.
        """
        first, second = cast(nn.Linear, self.mlp[0]), cast(nn.Linear, self.mlp[2])
        C = second.out_features
        channel = torch.arange(C)
        for layer in (first, second):
            layer.bias.zero_()
        at = channel + (block % (self.channels // C)) * C
        first.weight[: 2 * C] = second.weight[:] = 0
        first.weight[channel, at] = second.weight[channel, channel] = 1
        first.weight[C + channel, at] = second.weight[channel, C + channel] = -1

    def forward(self, blocks_BLX: Float[Tensor, "B L X"]) -> Float[Tensor, "B L C"]:
        """Blocks side by side on the channels, first block first: X = M C.

        Raises `ConfigError` for another number of channels.
        """
        _check_channels(blocks_BLX, self.channels)
        fused: Tensor = self.mlp(blocks_BLX)
        return fused


class SpatialFusion(nn.Module):
    """STF of [1]: each k x k cell of tokens becomes E tokens of the LLM's width.

    k x k convolution of stride k, C -> k^2 C, GELU; the channels split into E tokens; 1x1
    convolution to 4 times as many, GELU; 1x1 convolution to D, GELU. The release's form gathers
    the cell by a parameter-free unfold, with no activation there nor at the end.

    [1] Learning Compact Vision Tokens for Efficient Large Multimodal Models, arXiv 2506.07138.
    """

    def __init__(
        self, width: int, out_width: int, kernel: int = 2, fused: int = 1, form: str = "paper"
    ) -> None:
        super().__init__()
        self.kernel, self.fused = kernel, fused
        channels = kernel**2 * width
        self.convolution = (
            nn.Conv2d(width, channels, kernel, stride=kernel) if form == "paper" else None
        )
        inner = channels // fused
        self.mlp = _two_layers(inner, SPREAD * inner, out_width, activated=form == "paper")

    def forward(
        self, tokens_BLC: Float[Tensor, "B L C"], grid: tuple[int, int]
    ) -> Float[Tensor, "B N D"]:
        """Tokens in reading order; cells in reading order, the E tokens of a cell together.

        Raises `ConfigError` for a grid that the tokens do not fill or the kernel does not divide.
        """
        fused: Tensor = self.mlp(self.gather(tokens_BLC, grid))
        return fused

    def gather(self, tokens_BLC: Float[Tensor, "B L C"], grid: tuple[int, int]) -> Tensor:
        """What enters the 1x1 convolutions, one row a token: (B, N, k^2 C / E)."""
        if self.convolution is None:
            cells = unfold(tokens_BLC, grid, self.kernel)
        else:
            check_divides(self.kernel, grid)
            found = self.convolution(as_map(tokens_BLC, grid))
            cells = nn.functional.gelu(found).flatten(2).mT
        B, cells_of_picture, channels = cells.shape
        return cells.reshape(B, cells_of_picture * self.fused, channels // self.fused)


class TokenConcatProjector(nn.Module):
    """The channels of a k x k cell side by side, then LLaVA's two-layer MLP; an arm of [1]'s
    ablation.

    [1] Learning Compact Vision Tokens for Efficient Large Multimodal Models, arXiv 2506.07138.
    """

    def __init__(self, width: int, out_width: int, kernel: int = 2) -> None:
        super().__init__()
        self.kernel = kernel
        self.mlp = _two_layers(kernel**2 * width, out_width, out_width)

    def forward(
        self, tokens_BLC: Float[Tensor, "B L C"], grid: tuple[int, int]
    ) -> Float[Tensor, "B N D"]:
        """As `SpatialFusion`."""
        projected: Tensor = self.mlp(unfold(tokens_BLC, grid, self.kernel))
        return projected


class AvgPoolProjector(nn.Module):
    """The mean of a k x k cell, then LLaVA's two-layer MLP; an arm of [1]'s ablation.

    With kernel 1 it is LLaVA's projector: every token by itself.

    [1] Learning Compact Vision Tokens for Efficient Large Multimodal Models, arXiv 2506.07138.
    """

    def __init__(self, width: int, out_width: int, kernel: int = 2) -> None:
        super().__init__()
        self.kernel = kernel
        self.mlp = _two_layers(width, out_width, out_width)

    def forward(
        self, tokens_BLC: Float[Tensor, "B L C"], grid: tuple[int, int]
    ) -> Float[Tensor, "B N D"]:
        """As `SpatialFusion`."""
        check_divides(self.kernel, grid)
        map_BCHW = as_map(tokens_BLC, grid)
        pooled = nn.functional.avg_pool2d(map_BCHW, self.kernel).flatten(2).mT
        projected: Tensor = self.mlp(pooled)
        return projected


class SwiGlu(nn.Module):
    """down(silu(gate(x)) * up(x)), each a linear layer, the width of the LLM inside."""

    def __init__(self, width: int, out_width: int) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(width, out_width), nn.Linear(width, out_width)
        self.down = nn.Linear(out_width, out_width)

    def forward(self, rows_NC: Float[Tensor, "*N C"]) -> Float[Tensor, "*N D"]:
        """Row by row."""
        out: Tensor = self.down(nn.functional.silu(self.gate(rows_NC)) * self.up(rows_NC))
        return out


class SwiGluProjector(nn.Module):
    """Every token by itself through a SwiGLU: the projector of [1] behind its pooling, which is the
    method `tokenflex` and may be to any number of tokens.

    [1] TokenFLEX: Unified VLM Training for Flexible Visual Tokens Inference, arXiv 2504.03154.
    """

    def __init__(self, width: int, out_width: int) -> None:
        super().__init__()
        self.mlp = SwiGlu(width, out_width)

    def forward(
        self, tokens_BLC: Float[Tensor, "B L C"], grid: tuple[int, int]
    ) -> Float[Tensor, "B L D"]:
        """As `SpatialFusion`, of cells of one token."""
        as_map(tokens_BLC, grid)  # refuses another number of tokens
        projected: Tensor = self.mlp(tokens_BLC)
        return projected


class FusionProjector(nn.Module):
    """A VLM's projector: multi-block fusion where several blocks are read, then tokens of the LLM.

    `spatial.mlp` is what each token of the LLM goes through by itself, one row in, one row out.

    [1] Learning Compact Vision Tokens for Efficient Large Multimodal Models, arXiv 2506.07138.
    """

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        self.config = config
        C, D, k = config.width, config.out_width, config.kernel
        self.blocks = MultiBlockFusion(C, config.blocks, config.form) if config.blocks > 1 else None
        self.spatial: nn.Module
        if config.kind == "fusion":
            self.spatial = SpatialFusion(C, D, k, config.fused, config.form)
        elif config.kind == "concat":
            self.spatial = TokenConcatProjector(C, D, k)
        elif config.kind == "swiglu":
            self.spatial = SwiGluProjector(C, D)
        elif config.kind == "quecc":
            self.spatial = QuestionProjector(C, D, k)
        else:
            self.spatial = AvgPoolProjector(C, D, k)
        keep_variance(self)
        if self.blocks is not None:
            self.blocks.pass_through()

    def forward(
        self,
        blocks_BLX: Float[Tensor, "B L X"],
        question_BD: Float[Tensor, "B D"] | None = None,
    ) -> Float[Tensor, "B N D"]:
        """Hidden states of the blocks read, side by side on the channels, without CLS: X = M C.
        question: what is asked of each picture, for the kind "quecc" alone.

        Raises `ConfigError` for another number of tokens or channels than the config's, and where
        a question is missing.
        """
        _check_channels(blocks_BLX, self.config.blocks * self.config.width)
        tokens_BLC = blocks_BLX if self.blocks is None else self.blocks(blocks_BLX)
        told = (question_BD,) if self.config.kind == "quecc" else ()
        projected: Tensor = self.spatial(tokens_BLC, self.config.grid, *told)
        return projected


def keep_variance(module: nn.Module) -> None:
    """Draw the weights anew so that signals neither fade nor grow: He's for GELU, no biases.

    Through up to five layers PyTorch's own leave 3 % of the differences between tokens beside what
    all have in common, and training stands still.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d) and layer.bias is not None:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)


def _two_layers(wide: int, hidden: int, out: int, *, activated: bool = False) -> nn.Sequential:
    last = [nn.GELU()] if activated else []
    return nn.Sequential(nn.Linear(wide, hidden), nn.GELU(), nn.Linear(hidden, out), *last)


def _check_channels(blocks_BLX: Tensor, channels: int) -> None:
    if blocks_BLX.shape[-1] != channels:
        raise ConfigError(
            f"Expected {channels} channels, those of all encoder blocks read side by side. Got "
            f"{blocks_BLX.shape[-1]}. Read the blocks that the projector was made for."
        )
