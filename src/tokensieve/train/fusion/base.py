"""The model that a training starts from: a VLM whose projector is replaced or kept, or one fused
before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokensieve.errors import ConfigError
from tokensieve.hf.fused import FusedLlavaConfig, deepen, fuse
from tokensieve.hf.load import load_model
from tokensieve.hf.models.loaded import Loaded
from tokensieve.train.fusion.model import load_projector, projector_of

OWN = "own"


def load_base(
    name: str, fusion: dict[str, Any], projector: str | Path | None = None, seed: int = 0,
    depths: tuple[str, float] | None = None,
) -> Loaded:  # fmt: skip
    """The model `name` on the CPU in float32, with a fusion projector.

    fusion: arguments of `fuse`, those given; a model that is fused already takes none. A `kind` of
    "own" leaves the model its own projector and takes no others. projector:
    weights of an earlier stage, its --out folder or a file of it; None: a fresh projector, drawn
    from `seed`, or the fused model's own. depths: kind and keep of `DepthsConfig`, for visual
    tokens to skip layers of the LLM.

    Raises what `load_model`, `fuse`, `deepen` and `load_projector` raise, and `ConfigError` for
    options of fusion where the projector is made.
    """
    loaded = load_model(name, "float32", "cpu")
    if isinstance(loaded.model.config, FusedLlavaConfig):
        if fusion:
            raise ConfigError(
                f"Expected no {', '.join(f'--{key}' for key in sorted(fusion))} for {name}, whose "
                "projector is made. Leave them out, or name the model it was fused from."
            )
    elif fusion.get("kind") == OWN:
        if len(fusion) > 1:
            raise ConfigError(
                f"Expected --kind {OWN} alone, which leaves {name} its own projector. Got "
                f"{', '.join(f'--{key}' for key in sorted(fusion) if key != 'kind')} beside it. "
                "Leave them out."
            )
        projector_of(loaded.model)
    else:
        made = fuse(loaded.model, loaded.processor, seed=seed, **fusion)
        loaded = Loaded(name, made.model, made.processor)
    if depths is not None:
        made = deepen(loaded.model, loaded.processor, *depths, seed=seed)
        loaded = Loaded(f"{loaded.name}+{depths[0]}-{depths[1]}", made.model, made.processor)
    if projector is not None:
        load_projector(loaded.model, projector)
    return loaded
