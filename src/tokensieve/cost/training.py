"""What training a selector costs: parameters, FLOPs, disk, memory and hours, by formula.

B crops of a step, L tokens of a crop, C encoder width, W stack width, F its feed-forward width,
P parameters. FLOPs count a multiply-add twice. Norms, softmax, activations and losses are left out
of FLOPs, as everywhere. GB are 10^9 bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokensieve.cost.encoders import EncoderShape
from tokensieve.nn.config import ReconstructorConfig, SelectorConfig, StackConfig
from tokensieve.types import Site

INDEX_BYTES = 300  # of a crop: its manifest row and its entry in the shard's header; an estimate
CUDA_BYTES = 10**9  # context, libraries and workspaces of a process on a GPU; an estimate
UTILISATION = 0.35  # of the peak that a plain loop reaches; an assumption, not a measurement


@dataclass(frozen=True)
class Gpu:
    """A GPU: what PyTorch's name for it contains, its dense bfloat16 FLOP/s as its maker prints
    them (summed in float32)."""

    name: str
    part: str
    peak: float

    def rate(self, flops: int) -> float:
        """Crops a second of `flops` each at the assumed utilisation."""
        return UTILISATION * self.peak / flops


GPUS = (
    Gpu("A100-80G", "A100", 312e12),
    Gpu("H100 SXM", "H100", 989e12),
    Gpu("RTX 4090", "4090", 165e12),
)


@dataclass(frozen=True)
class TrainingShape:
    """The modules that are trained, for one encoder: enough to count everything below."""

    selector: SelectorConfig
    reconstructor: ReconstructorConfig
    tokens: int

    def parameters(self) -> int:
        """P, exactly: of selector, feature reconstructor and image reconstructor."""
        s, r = self.selector, self.reconstructor
        C = s.encoder.width
        count = _stack_parameters(s, s.positions, self.tokens) + 4 * s.stack_width + 2
        count += _stack_parameters(r, r.positions, self.tokens) + C
        if r.stack_width != C:
            count += r.stack_width * C + C
        if r.image_depth:
            count += r.image_depth * _layer_parameters(C, r.stack_ffn) + C * r.image_width
            count += r.image_width
            for wide, narrow, _ in _stages(r):
                count += 9 * narrow * (wide + 2 * narrow) + 3 * narrow
            count += 27 * _last_channels(r) + 3
        return count

    def forward_flops(self) -> int:
        """FLOPs of one forward pass over one crop."""
        s, r, L = self.selector, self.reconstructor, self.tokens
        C = s.encoder.width
        flops = selector_flops(s, L) + _stack_flops(r, L)
        if r.stack_width != C:
            flops += 2 * L * r.stack_width * C
        if r.image_depth:
            flops += r.image_depth * _layer_flops(L, C, r.stack_ffn) + 2 * L * C * r.image_width
            for wide, narrow, scale in _stages(r):
                flops += 2 * L * scale**2 * 9 * narrow * (wide + 2 * narrow)
            flops += 2 * L * r.patch**2 * 27 * _last_channels(r)
        return flops

    def step_flops(self) -> int:
        """FLOPs of one training step per crop: three forward passes.

        Features carry no gradient, which spares the selector's first projection one of its three.
        Fused attention kernels recompute scores going back, which adds half of attention's share.
        """
        spared = 0
        if self.selector.stack_width != self.selector.encoder.width:
            spared = 2 * self.tokens * self.selector.encoder.width * self.selector.stack_width
        return 3 * self.forward_flops() - spared

    def activation_bytes(self, *, mixed: bool = True) -> int:
        """Bytes kept for the backward pass per crop; an estimate, within a tenth of a count.

        A layer keeps 8 LW + 2 LF numbers: two inputs and two outputs of norms, q, k and v, what
        attention gives, and the feed-forward's hidden layer before and after its activation. In
        float32 each takes 4 bytes; in mixed precision 2, but for the two on the residual stream.
        Blending and losses keep about 6 LC in float32, upsampling its maps, without attention's
        scores (fused kernels do not keep them).
        """
        s, r, L = self.selector, self.reconstructor, self.tokens
        C = s.encoder.width
        kept = s.depth * _layer_bytes(L, s.stack_width, s.stack_ffn, mixed)
        kept += r.depth * _layer_bytes(L, r.stack_width, r.stack_ffn, mixed) + 24 * L * C
        if r.image_depth:
            kept += r.image_depth * _layer_bytes(L, C, r.stack_ffn, mixed)
            size = 2 if mixed else 4
            for wide, narrow, scale in _stages(r):
                kept += size * L * scale**2 * (wide + 4 * narrow)
            kept += size * L * r.patch**2 * (_last_channels(r) + 6)
        return kept

    def memory_bytes(self, batch: int, *, mixed: bool = True) -> int:
        """GPU bytes of training: 16 P (weights, gradients, two Adam moments, all float32), 2 P
        more for the copies of weights that mixed precision makes, B times the activations, and
        `CUDA_BYTES`."""
        state = (18 if mixed else 16) * self.parameters()
        return state + batch * self.activation_bytes(mixed=mixed) + CUDA_BYTES


def selector_flops(config: SelectorConfig, tokens: int) -> int:
    """FLOPs of scoring a crop of `tokens`; the choice by these scores is left out."""
    return _stack_flops(config, tokens) + 4 * tokens * config.stack_width


def store_bytes(shape: EncoderShape, crops: int, site: Site, *, pixels: bool = False) -> int:
    """Bytes of a feature store: 2 per number of a token, 3 per pixel where asked, the index."""
    height, width = shape.size
    crop = 2 * shape.tokens * shape.width(site) + (3 * height * width if pixels else 0)
    return crops * (crop + INDEX_BYTES)


def extraction_bytes(shape: EncoderShape, batch: int) -> int:
    """GPU bytes of encoding in 16 bits, the LLM not loaded; an estimate.

    Weights; per crop the hidden states of all layers (Transformers keeps them where an inner layer
    is asked for) and the widest layer's 4 nW + 2 nF (3 nF if gated); `CUDA_BYTES`.
    """
    t, n = shape.transformer, shape.encoder_tokens
    states = (t.layers + 1 if shape.layer != -1 else 2) * n * t.width
    widest = n * (4 * t.width + (3 if t.gated else 2) * t.ffn)
    return 2 * shape.parameters + 2 * batch * (states + widest) + CUDA_BYTES


def hours(crops: int, per_second: float) -> float:
    """Hours for so many crops at a rate."""
    return crops / per_second / 3600


def _layer_parameters(width: int, ffn: int) -> int:
    return 4 * width * width + 2 * width * ffn + 9 * width + ffn


def _layer_flops(tokens: int, width: int, ffn: int) -> int:
    return 4 * tokens * width * (2 * width + ffn + tokens)


def _layer_bytes(tokens: int, width: int, ffn: int, mixed: bool) -> int:
    if mixed:
        return tokens * (20 * width + 4 * ffn)
    return 4 * tokens * (8 * width + 2 * ffn)


def _stack_parameters(config: StackConfig, positions: str, tokens: int) -> int:
    C, W = config.encoder.width, config.stack_width
    inlet = 0 if C == W else C * W + W
    table = tokens * W if positions == "learned" else 0
    return inlet + table + config.depth * _layer_parameters(W, config.stack_ffn)


def _stack_flops(config: StackConfig, tokens: int) -> int:
    C, W = config.encoder.width, config.stack_width
    inlet = 0 if C == W else 2 * tokens * C * W
    return inlet + config.depth * _layer_flops(tokens, W, config.stack_ffn)


def _stages(config: ReconstructorConfig) -> list[tuple[int, int, int]]:
    """(channels in, channels out, pixels along a token's side so far) of each upsampling stage."""
    stages, channels, scale, left, factor = [], config.image_width, 1, config.patch, 2
    while left > 1:
        if left % factor:
            factor += 1
            continue
        left, scale, narrow = left // factor, scale * factor, max(8, channels // 2)
        stages.append((channels, narrow, scale))
        channels = narrow
    return stages


def _last_channels(config: ReconstructorConfig) -> int:
    stages = _stages(config)
    return stages[-1][1] if stages else config.image_width
