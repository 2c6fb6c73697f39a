"""The config of a LLaVA whose projector fuses tokens."""

from __future__ import annotations

from typing import Any

from transformers import LlavaConfig

from tokensieve.errors import ConfigError
from tokensieve.nn.depths import DepthsConfig
from tokensieve.nn.fusion import FusionConfig, topmost

# encoders that give every picture the same grid of tokens, and whether CLS stands before it
ENCODERS = {"clip_vision_model": True, "internvl_vision": True, "siglip_vision_model": False}


class FusedLlavaConfig(LlavaConfig):  # type: ignore[no-untyped-call]
    """LLaVA's config and how tokens are fused; `FusionConfig` says what the four fields mean.

    vision_feature_layer: the encoder's block that is read, or a list of them in the order in which
    they lie on the channels, as indices into its `hidden_states` (0: what enters the first block).
    depths_kind, depths_keep: as in `DepthsConfig`; None: every layer of the LLM reads all tokens.

    Raises `ConfigError` for a projector that does not fit the encoder.
    """

    __no_type_check__ = True  # it takes more than its fields, which jaxtyping's hook would refuse
    model_type = "fused_llava"

    vision_config: Any = None
    text_config: Any = None
    fusion_kind: str = "fusion"
    fusion_kernel: int = 2
    fusion_fused: int = 1
    fusion_form: str = "paper"
    depths_kind: str | None = None
    depths_keep: float = 0.5

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]
        self.image_seq_length = self.fusion.tokens

    @property
    def blocks(self) -> list[int]:
        """The encoder's blocks that are read, in the order of the channels."""
        layers = self.vision_feature_layer
        return [layers] if isinstance(layers, int) else list(layers)

    @property
    def topmost(self) -> int:
        """Which of `blocks` is the highest; fusion of them begins with it alone."""
        return topmost(self.blocks, self.vision_config.num_hidden_layers)

    @property
    def fusion(self) -> FusionConfig:
        """The projector's shape. Raises `ConfigError` where the fields contradict the encoder."""
        vision, text = self.vision_config, self.text_config
        _check_encoder(vision.model_type, self.vision_feature_select_strategy)
        check_blocks(self.blocks, vision.num_hidden_layers)
        rows, columns = encoder_grid(vision)
        return FusionConfig(
            width=vision.hidden_size,
            out_width=text.hidden_size,
            rows=rows,
            columns=columns,
            blocks=len(self.blocks),
            kind=self.fusion_kind,
            kernel=self.fusion_kernel,
            fused=self.fusion_fused,
            form=self.fusion_form,
        )

    @property
    def depths(self) -> DepthsConfig | None:
        """Which visual tokens skip which layers of the LLM; None: none do.

        Raises `ConfigError` for fields that `DepthsConfig` refuses.
        """
        if self.depths_kind is None:
            return None
        text = self.text_config
        return DepthsConfig(
            text.hidden_size, text.num_hidden_layers, self.depths_kind, self.depths_keep
        )


def encoder_grid(vision: Any) -> tuple[int, int]:
    """(rows, columns) of tokens of an encoder's config."""
    (height, width), (down, across) = pair(vision.image_size), pair(vision.patch_size)
    return height // down, width // across


def pair(size: Any) -> tuple[int, int]:
    """(height, width) of a size that may be one number."""
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def check_blocks(blocks: list[int], depth: int) -> None:
    """Raise `ConfigError` unless blocks are indices into the encoder's hidden states, each once."""
    wrong = [block for block in blocks if not -depth - 1 <= block <= depth]
    if wrong or not blocks:
        got = ", ".join(map(str, wrong)) or "none"
        raise ConfigError(
            f"Expected blocks of the encoder from {-depth - 1} to {depth}, of which 0 is what "
            f"enters the first of {depth} blocks and -1 the last one. Got {got}. Correct `blocks`, "
            "or `vision_feature_layer` in config.json."
        )
    places = [block % (depth + 1) for block in blocks]
    if len(set(places)) < len(places):
        raise ConfigError(
            f"Expected each block of the encoder once. Got {', '.join(map(str, blocks))} of {depth}"
            ", of which -1 is the last one. Correct `blocks`, or `vision_feature_layer` in "
            "config.json."
        )


def _check_encoder(encoder: str, strategy: str) -> None:
    if encoder not in ENCODERS:
        raise ConfigError(
            f"Expected an encoder with one grid for all pictures: {', '.join(ENCODERS)}. Got "
            f"'{encoder}'. Tokens of its pictures cannot be fused by cells of a fixed grid."
        )
    wanted = "default" if ENCODERS[encoder] else "full"
    if strategy != wanted:
        what = "puts CLS before its tokens" if ENCODERS[encoder] else "has no CLS token"
        raise ConfigError(
            f"Expected vision_feature_select_strategy='{wanted}' for '{encoder}', which {what}. "
            f"Got '{strategy}'. Set it to '{wanted}'."
        )
