"""Costs of whole VLMs: by hand, against the counter of PyTorch, and what is printed."""

import pytest
import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration, Qwen2VLConfig

from tokensieve.cost.encoders import encode_flops
from tokensieve.cost.measured import measured_flops
from tokensieve.cost.models import PRESETS, cache_of, paper_stages, stages, vlm_of_config
from tokensieve.cost.printed import printed_figures
from tokensieve.cost.recipes import recipe_of, training_shape
from tokensieve.errors import BudgetError, ConfigError, UnsupportedError
from tokensieve.hf.sieve import sieve

TINY = {
    "vision_config": {
        "model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 56, "patch_size": 14,
    },
    "text_config": {
        "model_type": "llama", "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100,
    },
}  # fmt: skip


def test_presets_have_the_visual_tokens_of_their_checkpoints():
    """As their cards and papers say; row ends of NeXT and OneVision left out."""
    assert {name: shape.tokens for name, shape in PRESETS.items()} == {
        "llava-1.5-7b": 576, "llava-1.5-13b": 576, "llava-next-7b": 2880, "llava-next-13b": 2880,
        "llava-onevision-7b": 5 * 729, "internvl3-2b": 1792, "internvl3-8b": 1792,
        "qwen2.5-vl-7b": 391, "qwen3-vl-8b": 300,
    }  # fmt: skip


def test_a_whole_llava_is_what_the_counter_counts():
    """Encoder, projector and prefill of a picture of 16 tokens and 7 others."""
    config = LlavaConfig(**TINY, image_token_id=99, vision_feature_layer=-1)
    config._attn_implementation = "sdpa"
    model = LlavaForConditionalGeneration(config).eval()
    ids = torch.tensor([[99] * 16 + [1] * 7])
    pixels = torch.zeros(1, 3, 56, 56)
    counted = measured_flops(
        lambda: model(input_ids=ids, pixel_values=pixels, use_cache=True, logits_to_keep=1)
    )
    found = stages(vlm_of_config("tiny", config), 1, text=7, new=1)
    assert found["decode"] == found["selection"] == 0
    assert sum(found.values()) == counted


def test_patches_that_are_not_encoded_are_not_counted():
    """Half of 16 patches: all embedded and projected, 8 and CLS in the layers, 8 in the LLM."""
    config = LlavaConfig(
        **TINY, image_token_id=99, vision_feature_layer=-1, vision_feature_select_strategy="default"
    )
    config._attn_implementation = "sdpa"
    model = LlavaForConditionalGeneration(config).eval()
    ids = torch.tensor([[99] * 16 + [1] * 7])
    pixels = torch.zeros(1, 3, 56, 56)
    with sieve(model, "random", 0.5, site="patches"):
        counted = measured_flops(
            lambda: model(input_ids=ids, pixel_values=pixels, use_cache=True, logits_to_keep=1)
        )
    found = stages(vlm_of_config("tiny", config), 0.5, text=7, new=1, patches=True)
    assert sum(found.values()) == counted
    late = stages(vlm_of_config("tiny", config), 0.5, text=7, new=1)
    assert late["encoder"] > found["encoder"]
    whole = stages(vlm_of_config("tiny", config), 1.0, text=7, new=1)
    assert whole == stages(vlm_of_config("tiny", config), 1.0, text=7, new=1, patches=True)


def test_windows_keep_their_share_of_what_is_encoded():
    """By hand, a quarter of Qwen2.5-VL's 391 tokens: 98 of them, 392 patches."""
    shape = PRESETS["qwen2.5-vl-7b"].encoder
    n, w, f = 392, 1280, 3420
    linear = 2 * 32 * n * (4 * w * w + 3 * w * f)
    along = [4 * 64 + 2 * 2, 5 * 64 + 6 * 6]  # 34 = 4 x 8 + 2 patches high, 46 = 5 x 8 + 6 wide
    windows = round(along[0] * along[1] * (n / 1564) ** 2)
    stem, merger = 2 * 1564 * w * 3 * 196 * 2, 2 * 98 * 4 * w * (4 * w + 3584)
    attention = 4 * w * (4 * n * n + 28 * windows)
    assert encode_flops(shape, 98) == linear + attention + stem + merger


def test_stages_of_half_the_tokens_of_llava_by_hand():
    """576 tokens of width 1024 behind CLIP-L: the projector sees all, the LLM 288 and 10."""
    shape = PRESETS["llava-1.5-7b"]
    selector = training_shape(shape.encoder, recipe_of("default")).selector
    found = stages(shape, 0.5, text=10, new=2, selector=selector)
    n, d, m = 298, 4096, 11008
    head = 2 * d * 32000
    assert found["projector"] == 2 * 576 * (1024 * 4096 + 4096 * 4096)
    assert found["prefill"] == 2 * 32 * (4 * n * d * d + 2 * n * n * d + 3 * n * d * m) + head
    assert found["decode"] == 2 * 32 * (4 * d * d + 2 * (n + 1) * d + 3 * d * m) + head
    # three layers of 1024 and 4096: four products of attention, two of the MLP, two of scores
    layer = 2 * 576 * (4 * 1024 * 1024 + 2 * 1024 * 4096) + 4 * 576 * 576 * 1024
    assert found["selection"] == 3 * layer + 4 * 576 * 1024
    assert cache_of(shape, 0.5, text=10, new=2, dtype=torch.bfloat16) == 2 * 2 * 32 * 4096 * 299


@pytest.mark.parametrize("figure", printed_figures(), ids=lambda one: one.what)
def test_every_printed_figure_comes_out(figure):
    """Within the rounding of what is printed; 640 tokens come to 4.25, printed as 4.2."""
    unit = 0.01 if figure.printed < 0.5 else 0.1
    assert figure.counted == pytest.approx(figure.printed, abs=unit / 2 + 0.0025)


def test_the_conventions_differ_by_two_and_by_the_sampler():
    shape = PRESETS["llava-next-7b"]
    ours, fused = (paper_stages(shape, 0.5, name) for name in ("selector", "stf"))
    assert fused["prefill"] == 2 * ours["prefill"]
    assert round(ours["selection"] / 1e12, 2) == 0.16
    assert paper_stages(shape, 1, "selector")["selection"] == 0
    with pytest.raises(ConfigError, match="selector, stf"):
        paper_stages(shape, 0.5, "exact")


def test_more_tokens_are_more_crops_or_a_larger_picture():
    assert PRESETS["llava-next-7b"].of_tokens(577).tokens == 1152
    assert PRESETS["qwen2.5-vl-7b"].of_tokens(1000).tokens == 1024


def test_what_cannot_be_counted_is_said():
    with pytest.raises(BudgetError, match="Expected `keep`"):
        stages(PRESETS["llava-1.5-7b"], 0.0, text=1, new=1)
    with pytest.raises(UnsupportedError, match="patches"):
        vlm_of_config("bare", LlavaConfig(**TINY).text_config)
    qwen = vlm_of_config("q", Qwen2VLConfig())
    assert qwen.encoder.merge == 2
    assert not qwen.encoder.fixed
