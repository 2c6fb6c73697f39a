"""Every registered method on every required family: budget, identity at keep 1, determinism."""

from __future__ import annotations

import pytest
import torch

from families.checks import answer
from families.registry import (
    CLOSED,
    FIXED,
    before_the_llm,
    every_method,
    kept_of,
    ready,
    refused,
    refused_there,
    rows_of,
)
from families.said import require_same, require_tokens
from families.tiny import REQUIRED, build
from tokensieve.errors import UnsupportedError
from tokensieve.hf.encoder.encode import encode
from tokensieve.hf.families.fingerprint import encoder_info
from tokensieve.hf.sieve import compress, sieve
from tokensieve.methods.registry import get_method, method_names
from tokensieve.nn.config import SelectorConfig
from tokensieve.nn.selector import Selector
from tokensieve.types import Site

required = pytest.mark.parametrize("family", REQUIRED)


@required
@every_method
@pytest.mark.parametrize("pool", ["crop", "prompt"])
@pytest.mark.one_of_each(apart=refused_there)
def test_budget_is_kept_and_the_model_answers(family, method, pool):
    tiny = build(family)
    instance = ready(method, tiny.model)
    inputs = tiny.inputs([1, 2])
    if instance.site in (Site.PIXELS, Site.ENCODER) and pool != "crop":  # it shrinks crops alike
        with pytest.raises(UnsupportedError, match="Expected pool='crop'"):
            compress(tiny.model, inputs, instance, 0.4, pool=pool)
        return
    if instance.site is Site.ENCODER and family in CLOSED:
        with pytest.raises(UnsupportedError, match="clip_vision_model, siglip_vision_model"):
            compress(tiny.model, inputs, instance, 0.4)
        return
    if instance.site is Site.PATCHES and family in FIXED:
        with pytest.raises(UnsupportedError, match="that can be run on fewer patches"):
            compress(tiny.model, inputs, instance, 0.4, pool=pool)
        return
    if instance.site is Site.PIXELS and family in FIXED:
        with pytest.raises(UnsupportedError, match="Expected an encoder that takes other picture"):
            compress(tiny.model, inputs, instance, 0.4)
        return
    if instance.site is Site.LLM:
        with sieve(tiny.model, instance, 0.4, pool=pool) as report:
            tokens, again = (answer(tiny.model, inputs)[0] for _ in range(2))
        assert torch.equal(tokens, again)
    else:
        short = compress(tiny.model, inputs, instance, 0.4, pool=pool)
        assert kept_of(short) == kept_of(compress(tiny.model, inputs, instance, 0.4, pool=pool))
        tokens, report = answer(tiny.model, short.inputs)[0], short.report
    assert tokens.shape == (2, 5)
    for prompt in report.calls[0].prompts:
        crops = [crop for image in prompt.images for crop in image.crops]
        sizes = [int(crop.valid.sum()) for crop in crops]
        shares = [int(0.4 * size + 0.5) for size in sizes]
        kept = sum(len(crop.kept) for crop in crops)
        wanted = int(0.4 * sum(sizes) + 0.5) if pool == "prompt" else sum(shares)
        said = f"{method} on {family} keeps {kept} of {sum(sizes)} tokens at keep=0.4 a {pool}"
        if not instance.budgeted:
            whole = all(len(c.kept) in (0, size) for c, size in zip(crops, sizes, strict=True))
            assert whole, f"{said}: parts of crops. Expected all of a crop or nothing."
        elif instance.exact:
            assert kept == wanted, f"{said}. Expected {wanted}."
        else:
            most = wanted * (2 if instance.on_average else 1)
            assert 0 < kept <= most, f"{said}. Expected 1 to {most}."


@required
@pytest.mark.parametrize("method", [n for n in method_names() if before_the_llm(n)])
@pytest.mark.one_of_each(apart=refused)
def test_keep_one_changes_nothing(family, method):
    tiny = build(family)
    instance = ready(method, tiny.model)
    inputs = tiny.inputs([1, 2])
    if instance.site is Site.ENCODER and family in CLOSED:
        with pytest.raises(UnsupportedError, match="clip_vision_model, siglip_vision_model"):
            compress(tiny.model, inputs, instance, 1.0)
        return
    if instance.site is Site.PATCHES and family in FIXED:
        with pytest.raises(UnsupportedError, match="that can be run on fewer patches"):
            compress(tiny.model, inputs, instance, 1.0)
        return
    whole = compress(tiny.model, inputs, get_method("full"), 1.0)
    same = compress(tiny.model, inputs, instance, 1.0)
    claim = f"keep=1 is not the identity for {method} on {family}"
    require_same(rows_of(same), rows_of(whole), claim)
    require_tokens(same.inputs["input_ids"], inputs["input_ids"], claim)


@required
def test_a_selector_of_embeddings_ranks_what_the_llm_reads(family):
    tiny = build(family)
    torch.manual_seed(0)
    info = encoder_info(tiny.model)
    selector = Selector(SelectorConfig(encoder=info.at_embeds(), heads=2)).eval()
    assert info.embed_width == selector.config.stack_width
    encoded = encode(tiny.model, tiny.inputs([1]))
    method = get_method("selector", weights=selector)
    (kept,) = kept_of(compress(tiny.model, encoded, method, 0.4))[:1]
    packing = encoded.packings[0]
    rows = packing.origin_N // packing.length == 0
    places = packing.origin_N[rows & (packing.origin_N >= 0)]
    tokens = encoded.images[0][rows & (packing.origin_N >= 0)]
    scores = selector.scores(tokens[None])[0]
    best = places[scores.topk(int(0.4 * len(places) + 0.5)).indices]
    assert kept == sorted(best.tolist())


def test_random_draws_by_key_and_alike_alone_and_in_a_batch():
    tiny = build("llava")
    random = get_method("random", seed=1)
    batch = kept_of(compress(tiny.model, tiny.inputs([1, 2]), random, 0.4))
    alone = kept_of(compress(tiny.model, tiny.inputs([1]), random, 0.4))
    keyed = kept_of(compress(tiny.model, tiny.inputs([1, 1]), random, 0.4, keys=[5, 6]))
    swapped = kept_of(compress(tiny.model, tiny.inputs([1, 1]), random, 0.4, keys=[6, 5]))
    assert batch[0] == alone[0]
    assert batch[1] != batch[2]
    assert keyed[0] != keyed[1]
    assert keyed == swapped[::-1]
