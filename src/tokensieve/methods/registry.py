"""Names to methods, loaded when asked for. A new method is one file and one line here."""

from __future__ import annotations

import dataclasses
from importlib import import_module

from tokensieve.errors import ConfigError, did_you_mean
from tokensieve.fields import check_names, shown
from tokensieve.methods.base import Method
from tokensieve.methods.compose import composed

# What callers of `sieve` and `compress` give beside a method's own options, and may misspell.
BESIDE = (
    "keep", "positions", "pool", "newlines", "layer", "recycle", "cover", "site", "history",
    "frames",
)  # fmt: skip
_METHODS = {
    "full": "tokensieve.methods.full:Full",
    "none": "tokensieve.methods.none:NoImage",
    "random": "tokensieve.methods.random:Random",
    "stride": "tokensieve.methods.stride:Stride",
    "avgpool": "tokensieve.methods.avgpool:AvgPool",
    "interpolate": "tokensieve.methods.interpolate:Interpolate",
    "token-concat": "tokensieve.methods.token_concat:TokenConcat",
    "feature-norm": "tokensieve.methods.feature_norm:FeatureNorm",
    "pixel-variance": "tokensieve.methods.pixel_variance:PixelVariance",
    "downsample": "tokensieve.methods.downsample:Downsample",
    "pixelprune": "tokensieve.methods.pixelprune:PixelPrune",
    "tokenflex": "tokensieve.methods.tokenflex:TokenFlex",
    "divprune": "tokensieve.methods.divprune:DivPrune",
    "dart": "tokensieve.methods.dart:Dart",
    "todre": "tokensieve.methods.todre:ToDRE",
    "cdpruner": "tokensieve.methods.cdpruner:CDPruner",
    "aim": "tokensieve.methods.aim:AIM",
    "fastervlm": "tokensieve.methods.fastervlm:FasterVLM",
    "vtc-cls": "tokensieve.methods.vtc_cls:VtcCls",
    "fopru": "tokensieve.methods.fopru:FoPru",
    "hired": "tokensieve.methods.hired:HiRED",
    "vispruner": "tokensieve.methods.vispruner:VisPruner",
    "scope": "tokensieve.methods.scope:Scope",
    "holov": "tokensieve.methods.holov:HoloV",
    "visionzip": "tokensieve.methods.visionzip:VisionZip",
    "prumerge": "tokensieve.methods.prumerge:PruMerge",
    "prumerge-plus": "tokensieve.methods.prumerge_plus:PruMergePlus",
    "hiprune": "tokensieve.methods.hiprune:HiPrune",
    "vflowopt": "tokensieve.methods.vflowopt:VFlowOpt",
    "mustdrop": "tokensieve.methods.mustdrop:MustDrop",
    "selector": "tokensieve.methods.selector:LearnedSelection",
    "evs": "tokensieve.methods.evs:EVS",
    "tome": "tokensieve.methods.tome:ToMe",
    "dymu": "tokensieve.methods.dymu:DyMu",
    "evit": "tokensieve.methods.evit:EViT",
    "zero-tprune": "tokensieve.methods.zero_tprune:ZeroTPrune",
    "mctf": "tokensieve.methods.mctf:Mctf",
    "expediting": "tokensieve.methods.expediting:Expediting",
    "token-transforming": "tokensieve.methods.token_transforming:TokenTransforming",
    "conditional": "tokensieve.methods.conditional:Conditional",
    "fastv": "tokensieve.methods.fastv:FastV",
    "dart-llm": "tokensieve.methods.dart_llm:DartLLM",
    "trio": "tokensieve.methods.trio:Trio",
    "pyramiddrop": "tokensieve.methods.pyramiddrop:PyramidDrop",
    "feather": "tokensieve.methods.feather:Feather",
    "pact": "tokensieve.methods.pact:Pact",
    "llavolta": "tokensieve.methods.llavolta:Llavolta",
    "corematching": "tokensieve.methods.corematching:CoreMatching",
    "sparsevlm": "tokensieve.methods.sparsevlm:SparseVLM",
    "mustdrop-llm": "tokensieve.methods.mustdrop_llm:MustDropLLM",
    "aim-llm": "tokensieve.methods.aim_llm:AIMLLM",
    "todre-llm": "tokensieve.methods.todre_llm:ToDRELLM",
    "vtw": "tokensieve.methods.vtw:VTW",
}


def method_names() -> tuple[str, ...]:
    """Every registered name, baselines first."""
    return tuple(_METHODS)


def method_class(name: str) -> type[Method]:
    """The class behind `name`. Raises `UnknownNameError` with the nearest name."""
    check_names("method", [name], _METHODS)
    module, _, attribute = _METHODS[name].partition(":")
    found: type[Method] = getattr(import_module(module), attribute)
    return found


def get_method(
    name: str, *, recycle: object = False, cover: object = 0, site: object = None, **options: object
) -> Method:
    """An instance of the method `name` with its dataclass fields set from `options`.

    recycle (True or False), cover (a number), site (a name): what to compose it with, as of
    `composed`.

    Raises `UnknownNameError` for the name, `ConfigError` for an option it does not have or of
    another type, and what `composed` raises.
    """
    cls = method_class(name)
    fields = [field.name for field in dataclasses.fields(cls)]
    for option in options:
        if option not in fields:
            known = ", ".join(fields) or "none"
            near = did_you_mean(option, [*fields, *BESIDE])
            raise ConfigError(
                f"Method '{name}' has no option {shown(option)}.{near} Its options: {known}."
            )
    return composed(cls(**options), recycle=recycle, cover=cover, site=site)
