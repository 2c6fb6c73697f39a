"""What a method is shown at each site, and what becomes of what it returns, for every family."""

import pytest
import torch
from torch.testing import assert_close

from families.checks import answer, check_blocked, shorten
from families.methods import (
    ByFeatureNorm,
    ByNorm,
    ByText,
    ByVariance,
    Doubled,
    Peek,
    PeekFeatures,
    RolledFeatures,
    Smaller,
    Unchanged,
)
from families.registry import rows_of
from families.tiny import NAMES, REQUIRED, Tiny, build
from tokensieve.errors import UnsupportedError
from tokensieve.hf.families.fingerprint import encoder_info
from tokensieve.hf.families.table import project
from tokensieve.hf.sieve import compress, encode

NO_GRID = ("fused_siglip",)
NO_OTHER_SIZE = ("internvl", "qwen3_vl", "gemma3", "fused_llava", "fused_internvl")
NO_FEATURES = ("mistral3", "idefics3", "smolvlm", "gemma3")
every_family = pytest.mark.parametrize("name", NAMES)
with_features = pytest.mark.parametrize("name", [n for n in NAMES if n not in NO_FEATURES])
required = pytest.mark.parametrize("name", REQUIRED)
resizable = pytest.mark.parametrize("name", [n for n in REQUIRED if n not in NO_OTHER_SIZE])


@every_family
def test_kept_tokens_are_the_rows_the_llm_reads(name):
    tiny = build(name)
    method = Peek([])
    short = compress(tiny.model, tiny.inputs([1, 2]), method, 0.4, newlines="drop", pool="crop")
    seen = torch.cat([vision.tokens.flatten(0, 1) for vision in method.seen])
    rows = rows_of(short)
    known = (rows[:, None] == seen[None]).all(-1).any(1)
    assert bool(known.all())
    images = [image for prompt in short.report.calls[0].prompts for image in prompt.images]
    assert len(rows) == sum(len(crop.kept) for image in images for crop in image.crops)
    assert [len(prompt.images) for prompt in short.report.calls[0].prompts] == [1, 2]


@with_features
def test_features_project_to_the_rows(name):
    tiny = build(name)
    encoded = encode(tiny.model, tiny.inputs([1, 2]))
    for features, rows, packing in zip(
        encoded.features, encoded.images, encoded.packings, strict=True
    ):
        embeds = project(tiny.model, encoded.family, features).flatten(0, 1)
        real = packing.origin_N >= 0
        assert_close(embeds[packing.origin_N[real]], rows[real])


@with_features
def test_new_features_go_through_the_projector(name):
    tiny = build(name)
    inputs = tiny.inputs([1, 2])
    plain = rows_of(compress(tiny.model, inputs, ByFeatureNorm(), 0.4, newlines="drop"))
    same = rows_of(compress(tiny.model, inputs, Unchanged(), 0.4, newlines="drop"))
    other = rows_of(compress(tiny.model, inputs, RolledFeatures(), 0.4, newlines="drop"))
    assert_close(same, plain)
    assert float((other - plain).abs().max()) > 1e-2


@every_family
def test_new_rows_replace_the_old(name):
    tiny = build(name)
    inputs = tiny.inputs([1, 2])
    plain = rows_of(compress(tiny.model, inputs, ByNorm(), 0.4, newlines="drop"))
    doubled = rows_of(compress(tiny.model, inputs, Doubled(), 0.4, newlines="drop"))
    assert_close(doubled, plain * 2)


@pytest.mark.parametrize("name", [n for n in NAMES if n in NO_FEATURES])
def test_no_features_is_said(name):
    tiny = build(name)
    with pytest.raises(UnsupportedError, match="acts on 'embeds'"):
        compress(tiny.model, tiny.inputs([1]), ByFeatureNorm(), 0.4)


@with_features
def test_fingerprint_says_what_features_look_like(name):
    tiny = build(name)
    method = PeekFeatures([])
    compress(tiny.model, tiny.inputs([1]), method, 0.4)
    info, vision = encoder_info(tiny.model), method.seen[0]
    assert info.width == vision.tokens.shape[-1]
    assert info.grid in (None, vision.grid)
    assert info.depth == 3


def test_llava_and_next_share_a_fingerprint():
    one, other = encoder_info(build("llava").model), encoder_info(build("llava_next").model)
    one.require_same_output(other, owner="selector")
    assert one == other
    assert (one.layer, one.width, one.heads, one.ffn, one.grid) == (-2, 24, 2, 32, (4, 4))


@pytest.mark.parametrize("name", [n for n in NAMES if n not in NO_GRID])
def test_pixels_lie_under_their_tokens(name):
    """A picture quiet but for one spot: the token over the spot is kept first."""
    tiny = build(name)
    inputs = tiny.inputs([1])
    pixels = torch.full_like(inputs["pixel_values"], 0.5)
    rows, columns = encode(tiny.model, inputs).packings[0].grid
    row, column = rows - 1, columns // 2
    spot = torch.randn(3, 2, 2)
    if pixels.ndim == 2:  # flattened patches, four of one token together
        pixels[4 * (row * columns + column)] = torch.randn(pixels.shape[-1])
    else:
        size = (36, 36) if "image_sizes" in inputs and pixels.ndim == 4 else pixels.shape[-2:]
        if "image_sizes" in inputs and pixels.ndim == 4:
            size = inputs["image_sizes"][0].tolist()
        y, x = row * size[0] // rows, column * size[1] // columns
        flat = pixels.view(-1, *pixels.shape[-3:])
        flat[0, :, y : y + 2, x : x + 2] = spot
    quiet = {**inputs, "pixel_values": pixels}
    short = compress(tiny.model, quiet, ByVariance(), 2, pool="image")
    kept = short.report.calls[0].prompts[0].images[0].crops[0].kept.tolist()
    assert row * columns + column in kept


@required
def test_text_is_that_of_the_prompt(name):
    tiny = build(name)
    together = compress(tiny.model, tiny.inputs([1, 2]), ByText(), 0.4).report
    alone = compress(tiny.model, tiny.inputs([1]), ByText(), 0.4).report
    for one, other in zip(
        together.calls[0].prompts[0].images[0].crops,
        alone.calls[0].prompts[0].images[0].crops,
        strict=True,
    ):
        assert torch.equal(one.kept, other.kept)


@pytest.mark.parametrize("name", NO_GRID)
def test_tokens_without_a_grid_have_no_pixels(name):
    tiny = build(name)
    assert encode(tiny.model, tiny.inputs([1])).packings[0].grid is None
    with pytest.raises(UnsupportedError, match="not one per patch"):
        compress(tiny.model, tiny.inputs([1]), ByVariance(), 2)


@resizable
@pytest.mark.parametrize("keep", [0.3, 0.6])
def test_smaller_pictures(name, keep):
    tiny = build(name)
    inputs = tiny.inputs([1, 2])
    short = compress(tiny.model, inputs, Smaller(), keep)
    again = compress(tiny.model, encode(tiny.model, inputs), Smaller(), keep)
    assert_close(rows_of(short), rows_of(again), rtol=0, atol=0)
    call = short.report.calls[0]
    assert 0 < call.kept_tokens < call.visual_tokens
    for prompt in call.prompts:
        for image in prompt.images:
            valid = sum(int(crop.valid.sum()) for crop in image.crops)
            assert image.kept - image.structural <= round(keep * valid) + len(image.crops)
    assert answer(tiny.model, short.inputs)[0].shape == (2, 5)
    whole = rows_of(compress(tiny.model, inputs, ByNorm(), 1.0))
    assert_close(rows_of(compress(tiny.model, inputs, Smaller(), 1.0)), whole, rtol=0, atol=0)


@resizable
def test_a_picture_resized_to_its_own_size_is_the_picture(name):
    from tokensieve.hf.encoder.pixels import shrink

    tiny = build(name)
    inputs = tiny.inputs([1, 2])
    encoded = encode(tiny.model, inputs)
    grids = [packing.grid for packing in encoded.packings]
    small = shrink(tiny.model, encoded.family, inputs, encoded.packings, grids)
    for new, rows, packing in zip(small, encoded.images, encoded.packings, strict=True):
        real = packing.origin_N >= 0
        assert_close(new.flatten(0, 1)[packing.origin_N[real]], rows[real])


def test_qwen_patches_shrink_like_the_picture_they_were_cut_from(monkeypatch):
    """A picture dark on the left and bright on the right stays so at half its size."""
    from tokensieve.hf.encoder import pixels

    tiny = build("qwen2_5_vl")
    picture = torch.zeros(1, 6, 32, 32)
    picture[..., 16:] = 1.0
    cut = picture.view(1, 6, 4, 2, 4, 4, 2, 4).permute(0, 2, 5, 3, 6, 1, 4, 7).reshape(64, -1)
    seen = {}

    right = tiny.model.base_model.get_image_features

    def spy(pixel_values, image_grid_thw, return_dict):
        seen.update(pixels=pixel_values, grid=image_grid_thw)
        return right(pixel_values, image_grid_thw)

    monkeypatch.setattr(tiny.model.base_model, "get_image_features", spy)
    inputs = {"pixel_values": cut, "image_grid_thw": torch.tensor([[1, 8, 8]])}
    pixels._shrink_patches(tiny.model, inputs, [(2, 2)])
    assert seen["grid"].tolist() == [[1, 4, 4]]
    back = seen["pixels"].view(1, 2, 2, 2, 2, 6, 4, 4).permute(0, 5, 1, 3, 6, 2, 4, 7)
    back = back.reshape(6, 16, 16)
    assert_close(back[..., :6], torch.zeros(6, 16, 6), atol=1e-3, rtol=0)
    assert_close(back[..., 10:], torch.ones(6, 16, 6), atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", NO_OTHER_SIZE)
def test_other_encoders_say_they_take_no_other_size(name):
    tiny = build(name)
    with pytest.raises(UnsupportedError, match="smaller"):
        compress(tiny.model, tiny.inputs([1]), Smaller(), 0.3)


def test_an_answer_that_is_scored_is_no_text_to_choose_by():
    """Labels mark it; else a method would be told what it is asked."""
    tiny = build("llava")
    inputs, answer = tiny.inputs([1]), torch.tensor([[21, 22, 23]])
    ids = torch.cat([inputs["input_ids"], answer], 1)
    labels = torch.cat([torch.full_like(inputs["input_ids"], -100), answer], 1)
    long = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    kept = []
    for given in (inputs, {**long, "labels": labels}, long):
        report = compress(tiny.model, given, ByText(), 0.5).report
        kept.append(report.calls[0].prompts[0].images[0].crops[0].kept.tolist())
    assert kept[0] == kept[1] != kept[2]


def test_onevision_resizes_large_pictures_until_it_is_told_not_to(monkeypatch):
    """Its rows are blends of tokens beyond anyres_max_N; with a larger N they are tokens again."""
    tiny = build("llava_onevision")
    rows = tiny.rows([1])[0]
    monkeypatch.setattr(tiny.model.config, "vision_aspect_ratio", "anyres_max_1")
    resized = Tiny(tiny.name, tiny.model, tiny.pixels)
    assert resized.rows([1])[0] < rows
    with pytest.raises(UnsupportedError, match=r"raise N in `model\.config\.vision"):
        compress(tiny.model, resized.inputs([1]), ByNorm(), 0.4)
    monkeypatch.setattr(tiny.model.config, "vision_aspect_ratio", "anyres_max_4")
    whole = Tiny(tiny.name, tiny.model, tiny.pixels)
    assert whole.rows([1])[0] == rows
    check_blocked(whole, shorten)
