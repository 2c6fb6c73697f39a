"""Every method of the registry ready to run on a tiny model, and what a call with it kept."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from tokensieve.hf.families.fingerprint import encoder_info, llm_info
from tokensieve.methods.registry import get_method, method_class, method_names
from tokensieve.nn.config import SelectorConfig
from tokensieve.nn.selector import Selector
from tokensieve.nn.thresholds import Thresholds
from tokensieve.types import Site

CLOSED = ("fused_llava",)  # families in whose encoder no token can be dropped
FIXED = ("fused_llava",)  # families whose pictures cannot be made smaller, nor thinned out
every_method = pytest.mark.parametrize("method", method_names())


def ready(method, model):
    """An instance that needs no shipped weights."""
    if method == "dymu":
        info = encoder_info(model)
        values = (tuple(0.0 for _ in range(info.block + 1)),)
        return get_method(method, thresholds=Thresholds(info, (0.4,), values))
    if not method_class(method).trained:
        return get_method(method)
    inside = method_class(method).site is Site.LLM
    return get_method(
        method, weights=trained(llm_info(model, 1) if inside else encoder_info(model))
    )


@cache
def trained(encoder):
    """A selector of random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Selector(SelectorConfig(encoder=encoder, heads=2)).eval()


def refused(family, method="", name=""):
    """Whether this family has no place for the method."""
    site = method_class(method or name).site
    early = site in (Site.PIXELS, Site.PATCHES) and family in FIXED
    return early or (site is Site.ENCODER and family in CLOSED)


def refused_there(family, method, pool):
    """The same, or a budget over a prompt for what shrinks crops alike."""
    alike = method_class(method).site in (Site.PIXELS, Site.ENCODER)
    return refused(family, method) or (alike and pool != "crop")


def rows_of(compressed):
    """(R, C) visual rows of all pictures, as the LLM is handed them."""
    output = compressed.inputs["mm_encoder_outputs"]["image"].pooler_output
    return torch.cat([item.reshape(-1, item.shape[-1]) for item in output])


def crops_of(compressed):
    """Each picture's crops, as the report has them."""
    images = [image for prompt in compressed.report.calls[0].prompts for image in prompt.images]
    return [[*image.crops] for image in images]


def kept_of(compressed):
    """The kept places of each crop."""
    return [crop.kept.tolist() for crops in crops_of(compressed) for crop in crops]


def before_the_llm(name):
    """Whether `compress` can do it with a picture; the site "llm" has `test_stages.py`."""
    return method_class(name).reads_picture and method_class(name).site is not Site.LLM
