"""Rows that stay in an engine are the rows that `compress` leaves. Needs no engine."""

from __future__ import annotations

import pytest
import torch

from families.tiny import build
from tokensieve import compress
from tokensieve.errors import EncoderMismatchError, UnsupportedError
from tokensieve.hf.encoder.encode import encode
from tokensieve.hf.families.table import projector_of
from tokensieve.serving.items import ItemSieve, outline
from tokensieve.serving.setting import Setting

FAMILIES = ("llava", "llava_next", "qwen2_5_vl", "qwen3_vl", "internvl")
SETTINGS = (
    {"method": "feature-norm"},
    {"method": "divprune"},
    {"method": "pixel-variance"},
    {"method": "divprune", "pool": "image"},
    {"method": "avgpool"},
    {"method": "feature-norm", "recycle": True},
)


def engine_of(name, setting):
    """What an engine sees of two pictures, and a sieve for it."""
    tiny = build(name)
    inputs = tiny.inputs([2])
    seen = []
    projector = projector_of(tiny.model, encode(tiny.model, inputs, run=False).family)
    handle = projector.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    encoded = encode(tiny.model, inputs)
    handle.remove()
    items = ItemSieve(tiny.model.config, Setting.of(setting), "keep")
    items.use_projector(projector)
    view = {key: value for key, value in inputs.items() if "pixel" in key or "image" in key}
    return tiny, inputs, items, view, encoded.images, seen


@pytest.mark.parametrize("given", SETTINGS, ids=lambda given: "-".join(map(str, given.values())))
@pytest.mark.parametrize("name", FAMILIES)
def test_rows_are_those_of_compress(name, given):
    setting = {**given, "keep": 0.4}
    tiny, inputs, items, view, rows, seen = engine_of(name, setting)
    with torch.no_grad():
        left = items.reduce(view, rows, seen, [0.4, 0.4])
        wanted = compress(tiny.model, inputs, **setting)
    torch.testing.assert_close(
        torch.cat(left), torch.cat(list(wanted.inputs["mm_encoder_outputs"]["image"].pooler_output))
    )
    for i, (one, kept) in enumerate(zip(rows, left, strict=True)):
        alone = {key: value[i : i + 1] for key, value in view.items() if key != "pixel_values"}
        assert items.counts(alone, [len(one)], 0.4) == [len(kept)]


def test_each_picture_keeps_what_its_request_asks():
    *_, items, view, rows, seen = engine_of("llava", {"method": "divprune", "keep": 0.5})
    with torch.no_grad():
        left = items.reduce(view, rows, seen, [0.25, 1])
    assert [len(one) for one in left] == [4, 16]
    torch.testing.assert_close(left[1], rows[1])


def test_a_picture_is_chosen_as_if_alone():
    """Its rows are kept for the next prompt, where it may be the first."""
    *_, items, view, rows, seen = engine_of("llava", {"method": "random", "keep": 0.5})
    twice = [rows[0], rows[0]]
    with torch.no_grad():
        first, second = items.reduce(view, twice, [seen[0][:1].repeat(2, 1, 1)], [0.5, 0.5])
    torch.testing.assert_close(first, second)


def test_attention_of_the_encoder_is_the_engines_own():
    config = build("llava").model.config
    with pytest.raises(UnsupportedError, match="reads the attention of the encoder's layers"):
        ItemSieve(config, Setting.of({"method": "visionzip", "keep": 0.4}), "keep")


def test_features_that_are_none_of_a_token_are_refused_at_the_start():
    with pytest.raises(UnsupportedError, match="a token of 'idefics3' is made of several"):
        ItemSieve(
            build("idefics3").model.config,
            Setting.of({"method": "feature-norm", "keep": 0.4}),
            "keep",
        )


def test_weights_for_another_encoder_are_refused_at_the_start():
    from tokensieve.assets import asset_path

    setting = {"method": "selector", "keep": 0.4, "weights": str(asset_path("selector-nano"))}
    with pytest.raises(EncoderMismatchError):
        ItemSieve(build("llava").model.config, Setting.of(setting), "keep")


def test_a_model_that_transformers_has_not_is_refused():
    from transformers import LlamaConfig

    with pytest.raises(UnsupportedError, match="that Transformers has too"):
        outline(LlamaConfig(num_hidden_layers=1))


def test_text_inside_a_picture_is_refused():
    items = ItemSieve(
        build("llava").model.config, Setting.of({"method": "divprune", "keep": 0.4}), "keep"
    )
    with pytest.raises(UnsupportedError, match=r"Got runs of \[4, 12\] rows"):
        items.counts({}, [4, 12], 0.4)


def test_rows_of_another_number_are_refused():
    tiny = build("llava_next")
    inputs = tiny.inputs([1])
    items = ItemSieve(tiny.model.config, Setting.of({"method": "divprune", "keep": 0.4}), "keep")
    with pytest.raises(UnsupportedError, match="as Transformers packs them"):
        items.counts({"image_sizes": inputs["image_sizes"]}, [7], 0.4)
