"""What is wrong with a projector's weights that do not fit, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokensieve.errors import WeightsError
from tokensieve.nn.fusion import SPREAD, FusionConfig

PROJECTOR = "multi_modal_projector."
ROUTERS = "model.routers."


def check_loaded(model: Any, info: Mapping[str, Any], *, lenient: bool) -> None:
    """Raise `WeightsError` unless every weight of projector and routers came from the checkpoint.

    info: what `from_pretrained` says of missing, unexpected and mis-shaped weights. lenient: other
    weights may differ in shape, as the caller asked.
    """
    # Transformers hands over sets: sorted, so that the same checkpoint gives the same words
    shapes = {name: tuple(got) for name, got, _ in sorted(info["mismatched_keys"], key=_name)}
    others = [name for name in shapes if PROJECTOR not in name]
    if others and not lenient:
        raise WeightsError(
            f"Expected weights of the shapes that config.json says. Got {shapes[others[0]]} for "
            f"{others[0]} ({len(others)} differ). Correct config.json, or fetch the model again."
        )
    wrong = {*info["missing_keys"], *info["unexpected_keys"], *shapes}
    if routers := sorted(name for name in wrong if ROUTERS in name):
        raise WeightsError(
            f"Expected the routers that config.json says: depths_kind {model.config.depths_kind}. "
            f"Got other weights, such as {routers[0]} ({len(routers)} differ). Correct "
            "depths_kind and depths_keep, or fetch the model again."
        )
    missing = {_own(name) for name in info["missing_keys"] if PROJECTOR in name}
    surplus = {_own(name) for name in info["unexpected_keys"] if PROJECTOR in name}
    shaped = {_own(name): shape for name, shape in shapes.items() if PROJECTOR in name}
    if missing or surplus or shaped:
        raise WeightsError(_told(model.config.fusion, missing, surplus, shaped))


def _name(mismatch: tuple[str, Any, Any]) -> str:
    return mismatch[0]


def _own(name: str) -> str:
    return name.partition(PROJECTOR)[2]


def _told(
    config: FusionConfig,
    missing: set[str],
    surplus: set[str],
    shaped: Mapping[str, tuple[int, ...]],
) -> str:
    """What the config says, what the checkpoint looks like and what to set."""
    wanted = (
        f"Expected the projector that config.json says: kind '{config.kind}', form "
        f"'{config.form}', kernel {config.kernel}, {config.fused} fused token(s), {config.blocks} "
        "block(s)."
    )
    first = min(missing or surplus or set(shaped))
    count = len(missing | surplus | set(shaped))
    how = "no" if first in missing else "an unexpected" if first in surplus else "another"
    got = f"Got {how} {first} ({count} tensors differ)"
    if shaped:
        name = min(shaped)
        got += f", {name} of shape {shaped[name]}"
    return f"{wanted} {got}. {_advice(config, missing, surplus, shaped)}"


def _advice(
    config: FusionConfig,
    missing: set[str],
    surplus: set[str],
    shaped: Mapping[str, tuple[int, ...]],
) -> str:
    """What the checkpoint's projector looks like and what to do about it."""
    convolution, block = "spatial.convolution.weight", "blocks.mlp.0.weight"
    if "linear_1.weight" in surplus:
        return (
            "It looks like a plain LLaVA: load it with LlavaForConditionalGeneration and pass it "
            "to tokensieve.hf.fused.fuse."
        )
    if "spatial.mlp.gate.weight" in surplus:
        return "It looks like the kind 'swiglu': set fusion_kind='swiglu', fusion_kernel=1."
    if "spatial.gather.weight" in surplus:
        return "It looks like the kind 'quecc': set fusion_kind='quecc'."
    if "spatial.mlp.0.weight" in missing:
        return (
            "It holds no projector of this kind: load the model it belongs to and pass it to "
            "tokensieve.hf.fused.fuse, or convert a released checkpoint with "
            "python -m tokensieve.hf.fused.convert."
        )
    if block in missing:
        return "It looks like one of a single block: set vision_feature_layer to that one."
    if block in surplus:
        return "It looks like one of several blocks: list them in vision_feature_layer."
    if block in shaped:
        hidden, wide = shaped[block]
        return (
            f"It looks like one of {wide * SPREAD // hidden} blocks: list as many in "
            "vision_feature_layer."
        )
    if convolution in missing and not shaped:
        return "It looks like the form 'release': set fusion_form='release'."
    if convolution in surplus and config.kind == "fusion":
        return "It looks like the form 'paper': set fusion_form='paper'."
    hidden, wide = shaped.get("spatial.mlp.0.weight", (0, 0))
    looks = "another kind or size"
    if hidden == config.out_width:
        looks = "the kind 'concat'" if wide > config.width else "the kind 'avgpool' or 'mlp'"
    elif hidden == SPREAD * wide and wide % config.width == 0:
        looks = f"the kind 'fusion' with fusion_kernel**2 / fusion_fused = {wide // config.width}"
    return (
        f"It looks like {looks}: set fusion_kind, fusion_kernel and fusion_fused to those it was "
        "trained with."
    )
