"""Vision encoders as far as costs depend on them, and the four that selectors are trained for.

n tokens inside the encoder (patches and CLS), W its width, m patches along the side of an LLM
token, T = patches / m^2 tokens a crop gives the LLM, C = m^2 W their width at the site "features".
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tokensieve.cost.flops import encoder_flops
from tokensieve.cost.shapes import TransformerShape
from tokensieve.errors import ConfigError, UnknownNameError
from tokensieve.types import EncoderInfo, Site


@dataclass(frozen=True)
class EncoderShape:
    """A vision encoder and the crop it reads.

    rows, cols: patches of a crop. patch: pixels along a patch. margin: pixels of a crop's side that
    make no whole patch. merge: m. cls: it has a CLS token.
    window: patches along the side of an attention window in all but `full_layers` layers; 0: none.
    frames: a still picture is read as that many equal frames. merger: the tower ends in the
    projector. parameters: of the tower. embed_width: of the checkpoint's LLM. crops: per picture.
    fixed: every crop has this size. rates: the shape whose measured rates hold for this one too.
    """

    name: str
    checkpoint: str
    model_type: str
    transformer: TransformerShape
    parameters: int
    embed_width: int
    patch: int = 14
    rows: int = 24
    cols: int = 24
    margin: int = 0
    merge: int = 1
    cls: bool = False
    layer: int = -1
    window: int = 0
    full_layers: int = 0
    frames: int = 1
    merger: bool = False
    crops: int = 1
    fixed: bool = True
    rates: str = ""

    @property
    def encoder_tokens(self) -> int:
        """n: tokens inside the encoder."""
        return self.rows * self.cols + self.cls

    @property
    def tokens(self) -> int:
        """T: tokens of a crop at the sites "features" and "embeds"."""
        return self.rows * self.cols // self.merge**2

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a crop in pixels."""
        return self.rows * self.patch + self.margin, self.cols * self.patch + self.margin

    def width(self, site: Site = Site.FEATURES) -> int:
        """Numbers per token at a site."""
        if site is Site.EMBEDS:
            return self.embed_width
        return self.transformer.width * self.merge**2

    def info(self, site: Site = Site.FEATURES) -> EncoderInfo:
        """The fingerprint that a selector for this encoder carries."""
        t, m = self.transformer, self.merge
        info = EncoderInfo(
            self.model_type,
            width=self.width(),
            layer=self.layer,
            depth=t.layers,
            heads=t.heads,
            ffn=t.ffn,
            grid=(self.rows // m, self.cols // m) if self.fixed else None,
            embed_width=self.embed_width,
        )
        return info.at_embeds() if site is Site.EMBEDS else info

    def of_pixels(self, height: int, width: int) -> EncoderShape:
        """The same encoder on a picture of another size, rounded as Qwen2.5-VL rounds it.

        Raises `ConfigError` for an encoder whose crops have one size only.
        """
        if self.fixed:
            raise ConfigError(
                f"Expected an encoder that takes pictures of any size. Got {self.name}, which cuts "
                "them into crops of one size. Change `crops` instead."
            )
        unit = self.patch * self.merge
        rows, cols = (self.merge * max(1, round(side / unit)) for side in (height, width))
        return replace(self, rows=rows, cols=cols)


def encode_flops(shape: EncoderShape, tokens: int | None = None) -> int:
    """FLOPs (two per multiply-add) of encoding one crop: patch stem, layers, merger if any.

    tokens: of T, those whose patches the layers are handed (site "patches"); None: all. All are
    embedded; windows are taken to keep the same share each.
    """
    t, left = shape.transformer, shape.tokens if tokens is None else tokens
    n = shape.encoder_tokens if tokens is None else left * shape.merge**2 + shape.cls
    inner = t.heads * t.head_dim
    pairs = t.layers * n * n
    linear = encoder_flops(t, n) - 4 * inner * pairs
    if shape.window:
        windowed = round(_window_pairs(shape) * (n / shape.encoder_tokens) ** 2)
        pairs = shape.full_layers * n * n + (t.layers - shape.full_layers) * windowed
    stem = 2 * shape.rows * shape.cols * t.width * 3 * shape.patch**2 * shape.frames
    merged = t.width * shape.merge**2
    merger = 2 * left * merged * (merged + shape.embed_width) if shape.merger else 0
    return linear + 4 * inner * pairs + stem + merger


def _window_pairs(shape: EncoderShape) -> int:
    """Query-key pairs of one windowed layer; windows at the lower and right edge may be cut."""
    along = []
    for length in (shape.rows, shape.cols):
        whole, rest = divmod(length, shape.window)
        along.append(whole * shape.window**2 + rest**2)
    return along[0] * along[1]


def _vit(layers: int, width: int, ffn: int, heads: int, *, gated: bool = False) -> TransformerShape:
    return TransformerShape(layers, width, ffn, heads, heads, width // heads, gated=gated)


_CLIP_L = _vit(24, 1024, 4096, 16)

SHAPES = {
    shape.name: shape
    for shape in (
        EncoderShape(
            "clip-l-336", "llava-hf/llava-1.5-7b-hf", "clip_vision_model", _CLIP_L,
            parameters=303_507_456, embed_width=4096, cls=True, layer=-2,
        ),
        EncoderShape(
            "clip-l-336-next", "llava-hf/llava-v1.6-vicuna-7b-hf", "clip_vision_model", _CLIP_L,
            parameters=303_507_456, embed_width=4096, cls=True, layer=-2, crops=5,
            rates="clip-l-336",
        ),
        EncoderShape(  # the checkpoint drops the last of SigLIP's 27 layers
            "siglip-so400m-384", "llava-hf/llava-onevision-qwen2-7b-ov-hf", "siglip_vision_model",
            _vit(26, 1152, 4304, 16), parameters=397_747_744, embed_width=3584,
            rows=27, cols=27, margin=6, crops=5,
        ),
        EncoderShape(
            "internvit-300m-448", "OpenGVLab/InternVL3-8B-hf", "internvl_vision",
            _vit(24, 1024, 4096, 16), parameters=304_012_288, embed_width=3584,
            rows=32, cols=32, merge=2, cls=True, crops=7,
        ),
        EncoderShape(  # a picture of 640 x 480, which the processor makes 644 x 476
            "qwen2.5-vl", "Qwen/Qwen2.5-VL-7B-Instruct", "qwen2_5_vl_vision",
            _vit(32, 1280, 3420, 16, gated=True), parameters=676_550_144, embed_width=3584,
            rows=34, cols=46, merge=2, window=8, full_layers=4, frames=2, merger=True,
            fixed=False,
        ),
    )
}  # fmt: skip


def encoder_shape(name: str) -> EncoderShape:
    """A shape by name. Raises `UnknownNameError`, which lists them."""
    if name not in SHAPES:
        raise UnknownNameError.of("encoder shape", name, SHAPES)
    return SHAPES[name]
