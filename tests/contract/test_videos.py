"""Videos, alone and beside pictures: what holds of pictures holds of them."""

from __future__ import annotations

import pytest
import torch

from families import checks
from families.methods import ByNorm, ByText, ByVariance, Doubled
from families.tiny import VIDEO
from families.videos import FRAMES, NAMES, PROMPTS, build_video, check_before, check_inside
from tokensieve.errors import BudgetError, ConfigError, PromptError, UnsupportedError
from tokensieve.hf.sieve import compress, encode, sieve
from tokensieve.methods.base import Method
from tokensieve.types import Reduction, Site


def shorten(model, inputs, **options):
    return compress(model, inputs, ByNorm(), 0.4, **options).inputs


def kept_of(model, inputs, method="evs", keep=0.3, **options):
    """Tokens kept of each frame of the first video."""
    call = compress(model, inputs, method, keep, **options).report.calls[0]
    return [len(crop.kept) for crop in call.prompts[0].images[0].crops]


@pytest.mark.parametrize("name", NAMES)
def test_all_tokens_are_the_plain_answer(name):
    videos = build_video(name)
    inputs = videos.inputs(PROMPTS)
    plain = checks.answer(videos.model, inputs)
    with sieve(videos.model, ByNorm(), 1.0):
        inside = checks.answer(videos.model, inputs)
    short = checks.answer(videos.model, compress(videos.model, inputs, ByNorm(), 1.0).inputs)
    for found in (inside, short):
        assert torch.equal(found[0], plain[0])
        assert torch.equal(found[1], plain[1])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("frames", [None, "together", 2])
def test_dropped_tokens_are_as_if_blocked(name, frames):
    check_before(build_video(name), lambda model, inputs: shorten(model, inputs, frames=frames))


def test_rows_of_another_order_are_noticed():
    def rolled(model, inputs):
        short = shorten(model, inputs)
        rows = short["mm_encoder_outputs"]["video"].pooler_output
        short["mm_encoder_outputs"]["video"].pooler_output = [row.flip(0) for row in rows]
        return short

    with pytest.raises(AssertionError):
        check_before(build_video("qwen2_vl"), rolled)


@pytest.mark.parametrize("name", NAMES)
def test_inside_the_llm(name):
    check_inside(build_video(name))


@pytest.mark.parametrize("name", NAMES)
def test_in_a_batch_as_alone(name):
    videos = build_video(name)
    _, together = checks.answer(videos.model, shorten(videos.model, videos.inputs(PROMPTS)))
    _, alone = checks.answer(videos.model, shorten(videos.model, videos.inputs(PROMPTS[:1])))
    torch.testing.assert_close(together[:1], alone, **checks.CLOSE)


@pytest.mark.parametrize("name", NAMES)
def test_inside_a_sieve_as_compressed(name):
    videos = build_video(name)
    inputs = videos.inputs(PROMPTS)
    tokens, logits = checks.answer(videos.model, shorten(videos.model, inputs))
    with sieve(videos.model, ByNorm(), 0.4) as report:
        found = checks.answer(videos.model, inputs)
        beams = videos.model.generate(**inputs, max_new_tokens=3, num_beams=2, do_sample=False)
    assert torch.equal(found[0], tokens)
    torch.testing.assert_close(found[1], logits, **checks.CLOSE)
    short = shorten(videos.model, inputs)
    wanted = videos.model.generate(**short, max_new_tokens=3, num_beams=2, do_sample=False)
    assert torch.equal(beams[:, -3:], wanted[:, -3:])
    video = report.calls[0].prompts[1].images[1]
    assert video.video
    assert len(video.crops) == FRAMES
    assert all(crop.grid is not None for crop in video.crops)


@pytest.mark.parametrize("name", NAMES)
def test_budgets_over_frames(name):
    videos = build_video(name)
    encoded = encode(videos.model, videos.inputs(["v"]))
    (packing,) = encoded.packings
    L, kept = packing.length, {}
    for frames in ("each", "together", 2):
        kept[frames] = kept_of(videos.model, encoded, ByNorm(), frames=frames)

    def of(total: int) -> int:
        return max(1, int(0.3 * total + 0.5))

    assert kept["each"] == [of(L)] * FRAMES
    assert sum(kept["together"]) == of(FRAMES * L)
    assert [sum(kept[2][:2]), kept[2][2]] == [of(2 * L), of(L)]


def test_a_number_is_the_most_tokens_of_a_video():
    videos = build_video("qwen2_vl")
    inputs = videos.inputs(["v"])
    assert kept_of(videos.model, inputs, ByNorm(), 7, frames="each") == [3, 2, 2]
    assert sum(kept_of(videos.model, inputs, ByNorm(), 7, frames="together")) == 7
    with pytest.raises(BudgetError, match="frames='together'"):
        kept_of(videos.model, inputs, ByNorm(), 2, frames="each")


@pytest.mark.parametrize("name", ["qwen3_vl", "llava_onevision", "video_llama_3"])
@pytest.mark.parametrize(
    ("method", "options"),
    [(ByText(), {}), (Doubled(), {"frames": "together"}), ("random", {}), ("divprune", {}),
     ("stride", {"frames": 2}), ("divprune", {"frames": "together", "recycle": True}),
     ("evs", {}), ("none", {})],
)  # fmt: skip
def test_methods_on_frames(name, method, options):
    videos = build_video(name)
    inputs = videos.inputs(PROMPTS)
    short = compress(videos.model, inputs, method, 0.5, **options)
    rows = int((short.inputs["input_ids"] == VIDEO).sum())
    images = [image for prompt in short.report.calls[0].prompts for image in prompt.images]
    assert rows == sum(image.kept for image in images if image.video)
    assert len(checks.answer(videos.model, short.inputs)[0]) == 2


def test_pixels_under_the_tokens_of_frames():
    """The liveliest frame keeps most; the others are flat."""
    videos = build_video("qwen2_vl")
    inputs = videos.inputs(["v"])
    per_frame = inputs["pixel_values_videos"].view(FRAMES, -1, 96)
    per_frame[0] = per_frame[2] = 0.5
    counts = kept_of(videos.model, inputs, ByVariance(), frames="together")
    assert counts == [0, 7, 0]


def test_new_values_are_those_of_their_frames():
    """Half-kept windows put values where their tokens stand."""

    class Numbered(Method):
        site = Site.EMBEDS

        def reduce(self, vision, counts, text=None):
            return Reduction(ByNorm().reduce(vision, counts, text).kept, vision.tokens + 1)

    videos = build_video("llava_onevision")
    encoded = encode(videos.model, videos.inputs(["v"]))
    short = compress(videos.model, encoded, Numbered(), 0.5, frames=2)
    call = short.report.calls[0].prompts[0].images[0]
    rows = short.inputs["mm_encoder_outputs"]["video"].pooler_output[0]
    length = encoded.packings[0].length
    at = [c * length + int(i) for c, crop in enumerate(call.crops) for i in crop.kept]
    torch.testing.assert_close(rows[:-1], encoded.images[0][at] + 1)
    assert torch.equal(rows[-1], encoded.images[0][-1])  # the newline behind the last frame


def test_evs_keeps_what_changes():
    videos = build_video("qwen2_vl")
    inputs = videos.inputs(["v"])
    frames = inputs["pixel_values_videos"].view(FRAMES, -1, 96)
    frames[1:] = frames[0]
    frames[2, :4] += 3.0  # the patches of the first token of the last frame
    call = compress(videos.model, inputs, "evs", 0.4).report.calls[0]
    kept = [crop.kept.tolist() for crop in call.prompts[0].images[0].crops]
    assert kept[0] == list(range(8))
    assert len(kept[2]) >= len(kept[1])
    with pytest.raises(ConfigError, match="frames='together'"):
        compress(videos.model, inputs, "evs", 0.4, frames="each")


def test_what_the_processor_left_out_of_a_video():
    """VideoLLaMA3: rows that its mask leaves out never reach the LLM, kept or not."""
    videos = build_video("video_llama_3")
    inputs = videos.inputs(["v"])
    mask = torch.ones(FRAMES * 8, dtype=torch.bool)
    mask[2] = mask[20] = False
    at = (inputs["input_ids"][0] == VIDEO).nonzero()[:2, 0].tolist()
    stay = [i for i in range(inputs["input_ids"].shape[1]) if i not in at]
    for name in ("input_ids", "attention_mask"):
        inputs[name] = inputs[name][:, stay]
    inputs["video_compression_mask"] = mask
    plain = checks.answer(videos.model, inputs)
    whole = compress(videos.model, inputs, ByNorm(), 1.0)
    assert torch.equal(checks.answer(videos.model, whole.inputs)[1], plain[1])
    assert [len(c.kept) for c in whole.report.calls[0].prompts[0].images[0].crops] == [7, 8, 7]
    short = compress(videos.model, inputs, ByNorm(), 0.5)
    assert [len(c.kept) for c in short.report.calls[0].prompts[0].images[0].crops] == [4, 4, 4]


def test_refusals():
    videos = build_video("qwen2_vl")
    inputs = videos.inputs(["v"])
    with pytest.raises(UnsupportedError, match="Got a video"):
        compress(videos.model, inputs, "downsample", 0.4)
    with pytest.raises(ConfigError, match="Expected `frames` as 'each', 'together' or"):
        compress(videos.model, inputs, ByNorm(), 0.4, frames=0)
    without = {k: v for k, v in inputs.items() if k != "pixel_values_videos"}
    with pytest.raises(PromptError, match="Expected a video for the"):
        compress(videos.model, without, ByNorm(), 0.4)
    inputs["input_ids"] = inputs["input_ids"].where(inputs["input_ids"] != VIDEO, 5)
    with pytest.raises(PromptError, match="Expected a video placeholder"):
        compress(videos.model, inputs, ByNorm(), 0.4)


def test_a_chat_goes_on_behind_a_video_only_with_all_of_it():
    videos = build_video("qwen2_vl")
    inputs = videos.inputs(["v"])
    with sieve(videos.model, ByNorm(), 0.4):
        out = videos.model.generate(**inputs, max_new_tokens=2, return_dict_in_generate=True)
        ids = torch.cat([out.sequences, torch.tensor([[7, 8]])], 1)
        with pytest.raises(UnsupportedError, match="Got a video"):
            videos.model.generate(input_ids=ids, past_key_values=out.past_key_values)
