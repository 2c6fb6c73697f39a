"""A fused LLaVA made of other models' parts goes through all of Transformers' tool-chain."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from families.tiny import build
from tokensieve.errors import ConfigError, UnsupportedError, WeightsError
from tokensieve.hf.fused import (
    FusedLlavaConfig,
    FusedLlavaForConditionalGeneration,
    FusedLlavaModel,
    FusedLlavaProcessor,
    fuse,
    register,
)
from tokensieve.hf.fused.build import _blocks
from tokensieve.hf.load import load_encoder, load_model
from tokensieve.hf.models.loaded import Loaded
from tokensieve.hf.models.random import RANDOM_MODELS
from toys.extract_tiny import noise
from toys.llava_tiny import tiny_model, tiny_processor
from toys.real_processors import llava_next
from toys.real_processors import tokenizer as tokenizer_of_families

GREEDY = {"do_sample": False, "max_new_tokens": 5, "min_new_tokens": 5}
TEXTS = ["<image> what is it", "<image> is it red ? is it blue"]


def clip(**options: Any) -> Loaded:
    """LLaVA around CLIP, 4 x 4 patches."""
    return fuse(tiny_model(), tiny_processor(), **{"blocks": [1, 2], **options})


def random_model(name: str) -> tuple[Any, Any]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, processor = RANDOM_MODELS[name]()
    return model.eval(), processor


BASES = {
    "clip": lambda: (tiny_model(), tiny_processor()),
    "siglip": lambda: random_model("siglip"),
    "internvit": lambda: random_model("internvit"),
    "next": lambda: (llava_next().model, llava_next().processor),
}
every_base = pytest.mark.parametrize("name", BASES)


def inputs_of(loaded: Loaded, texts: list[str] | None = None, sizes: Any = None) -> Any:
    token = loaded.processor.image_token
    texts = [text.replace("<image>", token) for text in texts or TEXTS]
    pictures = [noise(*size, seed=i) for i, size in enumerate(sizes or [(60, 40)] * len(texts))]
    loaded.processor.tokenizer.padding_side = "left"
    made = loaded.processor(
        images=[[p] for p in pictures], text=texts, return_tensors="pt", padding=True
    )
    return made.to(loaded.model.dtype)


@every_base
@pytest.mark.parametrize("options", [{}, {"fused": 2}, {"kind": "mlp", "kernel": 1}], ids=str)
def test_encoder_and_llm_are_shared_and_the_projector_reads_their_blocks(
    name: str, options: dict[str, Any]
) -> None:
    model, processor = BASES[name]()
    depth = model.config.vision_config.num_hidden_layers
    made = fuse(model, processor, blocks=[1, 0, depth], **options)
    assert made.model.model.vision_tower is model.model.vision_tower
    assert made.model.model.language_model is model.model.language_model
    assert made.model.lm_head is model.lm_head
    inputs = inputs_of(made)
    with torch.no_grad():
        states = model.model.vision_tower(
            inputs["pixel_values"], output_hidden_states=True
        ).hidden_states
        first = 0 if name == "siglip" else 1
        side_by_side = torch.cat([states[i][:, first:] for i in (1, 0, depth)], -1)
        wanted = made.model.model.multi_modal_projector(side_by_side)
        found = made.model.model.get_image_features(inputs["pixel_values"], return_dict=True)
    assert_close(torch.stack(list(found.pooler_output)), wanted)
    count = int((inputs["input_ids"] == made.model.config.image_token_id).sum(-1)[0])
    assert count == wanted.shape[1] == made.model.config.image_seq_length
    assert made.model.generate(**inputs, **GREEDY).shape[1] == inputs["input_ids"].shape[1] + 5


def test_the_model_it_is_made_of_is_left_as_it_was() -> None:
    model, processor = tiny_model(), tiny_processor()
    model.set_attn_implementation("eager")
    before, state = model.config.to_dict(), deepcopy(model.state_dict())
    drawn = torch.get_rng_state()
    made = fuse(model, processor, blocks=[1, 2], kind="concat")
    assert torch.equal(torch.get_rng_state(), drawn)
    assert model.config.to_dict() == before
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert type(model.model.multi_modal_projector).__name__ == "LlavaMultiModalProjector"
    assert made.model.config._attn_implementation == "eager"
    assert made.name == "llava+concat"
    assert not made.model.training


def test_the_projector_is_that_of_the_seed() -> None:
    a, b, c = (clip(seed=s).model.model.multi_modal_projector.state_dict() for s in (0, 0, 1))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(not torch.equal(a[name], c[name]) for name in a)


def test_the_projector_begins_with_the_highest_block() -> None:
    """Wherever on the channels that lies, whether it is fused or made from a config."""
    for blocks, last in (([1, 2], slice(16, None)), ([-1, 0], slice(16))):
        made = clip(blocks=blocks, form="release").model
        assert made.config.blocks[made.config.topmost] in (2, -1)
        torch.manual_seed(1)
        anew = FusedLlavaForConditionalGeneration(made.config)
        rows = torch.randn(1, 16, 32)
        for model in (made, anew):
            fused = model.model.multi_modal_projector.blocks(rows)
            assert_close(fused, rows[..., last], rtol=0, atol=1e-5)


def test_a_model_of_a_config_has_a_projector_that_can_learn() -> None:
    """Drawn as Transformers draws, tokens behind five layers would nearly be all alike."""
    torch.manual_seed(0)
    old = tiny_model().config
    config = FusedLlavaConfig(
        vision_config=old.vision_config, text_config=old.text_config, vision_feature_layer=[1, 2],
        image_token_index=4,
    )  # fmt: skip
    projector = FusedLlavaForConditionalGeneration(config).model.multi_modal_projector
    with torch.no_grad():
        assert float(projector(torch.randn(8, 16, 32)).std((0, 1)).mean()) > 0.2


def test_blocks_are_counted_out_or_taken_as_they_are() -> None:
    model, processor = BASES["clip"]()
    model.config.vision_feature_layer = -1

    def blocks(wanted: Any) -> Any:
        return fuse(model, processor, blocks=wanted).model.config.vision_feature_layer

    assert blocks(2) == [1, -1]
    assert blocks(1) == -1
    assert blocks([2, 0]) == [2, 0]
    assert blocks((1,)) == 1
    model.config.vision_feature_layer = 1  # below it, not twice the same
    with pytest.raises(ConfigError, match=r"Expected 1 to 1 blocks of the encoder. Got 2"):
        blocks(2)
    model.config.vision_config.num_hidden_layers = 24
    for own, wanted in ((-2, [3, 6, 9, 12, 15, 18, 21, -2]), (21, [2, 5, 7, 10, 13, 15, 18, 21])):
        model.config.vision_feature_layer = own
        assert _blocks(model, 8) == wanted
    model.config.vision_config.num_hidden_layers = 2
    model.config.vision_feature_layer = [0, 1]  # none of its own
    assert blocks(2) == [1, 2]
    for wrong, said in (
        (3, "Expected 1 to 2 blocks of the encoder. Got 3"),
        ([1, 3], r"Expected blocks of the encoder from -3 to 2.*Got 3. Correct `blocks`"),
        ([-4, 9], "Got -4, 9"),
        ([], "Got none"),
        ([2, 1, -1], r"Expected each block of the encoder once. Got 2, 1, -1 of 2, of which -1 is"),
    ):
        with pytest.raises(ConfigError, match=said):
            blocks(wrong)
    for kind in ("ab", 2.5, True, [1, 2.0]):  # what beartype would refuse first, in tests
        with pytest.raises(ConfigError, match="Expected `blocks` as a number of them or their ind"):
            _blocks(model, kind)


def test_models_of_other_parts_are_refused() -> None:
    model, processor = BASES["clip"]()
    with pytest.raises(UnsupportedError, match=r"Got LlamaModel without vision_tower and lang"):
        fuse(model.model.language_model, processor)
    with pytest.raises(UnsupportedError, match=r"Got Qwen2_5_VL.* without vision_tower"):
        fuse(build("qwen2_5_vl").model, processor)
    with pytest.raises(UnsupportedError, match=r"one grid for all pictures.*Got 'pixtral'"):
        fuse(build("pixtral_llava").model, processor)
    other = deepcopy(processor)
    other.image_token = "what"
    with pytest.raises(ConfigError, match=r"'what' is token 4. Got one in which it is 6"):
        fuse(model, other, blocks=[1, 2])
    with pytest.raises(ConfigError, match=r"grid of 4 x 4 tokens. Got 3. Kernels that do: 1, 2, 4"):
        fuse(model, processor, blocks=[1, 2], kernel=3)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"vision_feature_select_strategy": "full"}, r"'default'.* puts CLS before its tokens"),
        ({"vision_feature_layer": [25]}, r"from -25 to 24.*Got 25"),
        (
            {"vision_feature_layer": [3, 23, -2]},
            r"each block of the encoder once. Got 3, 23, -2 of",
        ),
        ({"fusion_kernel": 5}, "Kernels that do: 1, 2, 3, 4, 6, 8, 12, 24"),
        ({"fusion_form": "old"}, "Unknown form 'old'"),
        ({"vision_config": {"model_type": "pixtral"}}, "one grid for all pictures"),
        (
            {"vision_config": {"model_type": "siglip_vision_model", "image_size": 32}},
            "'siglip_vision_model', which has no CLS token. Got 'default'. Set it to 'full'",
        ),
    ],
)
def test_configs_that_contradict_themselves(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        FusedLlavaConfig(**fields)


def test_tied_output_layers_stay_tied(tmp_path: Path) -> None:
    model, processor = random_model("internvit")
    assert model.lm_head.weight is model.get_input_embeddings().weight
    made = fuse(model, processor, blocks=2)
    assert made.model.config.tie_word_embeddings
    made.model.save_pretrained(tmp_path)
    again = FusedLlavaForConditionalGeneration.from_pretrained(tmp_path)
    assert again.lm_head.weight is again.get_input_embeddings().weight
    assert not clip().model.config.tie_word_embeddings


def test_one_view_of_a_picture_whatever_its_shape() -> None:
    for name in ("next", "internvit"):  # their own processors cut these into tiles
        made = fuse(*BASES[name](), blocks=2)
        sizes = [(20, 200), (200, 20)]
        inputs = inputs_of(made, sizes=sizes)
        side = made.processor.image_processor.size
        assert inputs["pixel_values"].shape == (2, 3, side["height"], side["width"])
        counts = (inputs["input_ids"] == made.model.config.image_token_id).sum(-1)
        assert counts.tolist() == [made.model.config.image_seq_length] * 2


@pytest.mark.parametrize(("kernel", "fused", "count"), [(2, 1, 144), (1, 1, 576), (4, 8, 288)])
def test_placeholders_of_llava_1_5(kernel: int, fused: int, count: int) -> None:
    pictures = CLIPImageProcessorPil(
        size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}
    )
    made = FusedLlavaProcessor(
        pictures, tiny_processor().tokenizer, patch_size=14, kernel=kernel, fused=fused,
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
    )  # fmt: skip
    out = made(images=[noise(50, 80)], text="<image> what", return_tensors="pt")
    assert int((out["input_ids"] == 4).sum()) == count
    told = made._get_num_multimodal_tokens(image_sizes=[[80, 50], [9, 9]])
    assert told["num_image_tokens"] == [count, count]
    assert told["num_image_patches"] == [1, 1]
    assert made._get_num_multimodal_tokens().num_image_tokens is None
    with pytest.raises(ConfigError, match=r"grid of 24 x 24 tokens. Got 5. Kernels that do: 1, 2"):
        FusedLlavaProcessor(pictures, made.tokenizer, patch_size=14, kernel=5).tokens(336, 336)
    with pytest.raises(ConfigError, match=r"Expected `kernel` as a number of at least 1. Got 0"):
        FusedLlavaProcessor(pictures, made.tokenizer, patch_size=14, kernel=0)


@every_base
def test_saved_and_loaded_by_the_auto_classes(name: str, tmp_path: Path) -> None:
    made = fuse(*BASES[name](), blocks=[1, 2], fused=2, form="release")
    made.model.save_pretrained(tmp_path)
    made.processor.save_pretrained(tmp_path)
    register()
    register()  # as often as you like
    config = tf.AutoConfig.from_pretrained(tmp_path)
    assert type(config) is FusedLlavaConfig
    assert config.fusion == made.model.config.fusion
    model = tf.AutoModelForImageTextToText.from_pretrained(tmp_path)
    processor = tf.AutoProcessor.from_pretrained(tmp_path)
    assert type(model) is FusedLlavaForConditionalGeneration
    assert type(processor) is FusedLlavaProcessor
    assert (processor.kernel, processor.fused) == (2, 2)
    inputs = inputs_of(made)
    same = inputs_of(Loaded("again", model, processor))
    for key, value in inputs.items():
        assert torch.equal(value, same[key]), key
    with torch.no_grad():
        assert_close(model(**inputs).logits, made.model(**inputs).logits, rtol=0, atol=0)
    whole = tf.AutoModelForMultimodalLM.from_pretrained(tmp_path)  # "any-to-any" pipelines
    assert type(whole) is FusedLlavaForConditionalGeneration
    bare = tf.AutoModel.from_pretrained(tmp_path)
    assert type(bare) is FusedLlavaModel
    weights = bare.multi_modal_projector.state_dict()
    for key, value in made.model.model.multi_modal_projector.state_dict().items():
        assert torch.equal(value, weights[key])
    assert not list(tmp_path.glob("*.bin")) + list(tmp_path.glob("*.py"))
    assert "auto_map" not in (tmp_path / "config.json").read_text()


def test_load_model_and_load_encoder_know_it(tmp_path: Path) -> None:
    made = clip()
    made.model.save_pretrained(tmp_path)
    made.processor.save_pretrained(tmp_path)
    inputs = inputs_of(made)
    whole, small = load_model(str(tmp_path)), load_encoder(str(tmp_path))
    assert small.model.config.get_text_config().num_hidden_layers == 1
    with torch.no_grad():
        wanted = made.model.model.get_image_features(inputs["pixel_values"]).pooler_output
        for loaded in (whole, small):
            found = loaded.model.model.get_image_features(inputs["pixel_values"]).pooler_output
            assert_close(found, wanted, rtol=0, atol=0)
    assert type(whole.processor) is FusedLlavaProcessor


@pytest.mark.slow
def test_importing_registers_nothing() -> None:
    import subprocess
    import sys

    code = (
        "import tokensieve.hf.fused, transformers; "
        "from transformers.models.auto.configuration_auto import CONFIG_MAPPING; "
        "print('fused_llava' in CONFIG_MAPPING); tokensieve.hf.fused.register(); "
        "print('fused_llava' in CONFIG_MAPPING)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "True"]


def _edited(folder: Path, **fields: Any) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))
    return folder


@pytest.mark.parametrize(
    ("saved", "fields", "said"),
    [
        ({"form": "release"}, {"fusion_form": "paper"}, "looks like the form 'release': set fusio"),
        ({"form": "paper"}, {"fusion_form": "release"}, "looks like the form 'paper': set fusion_"),
        ({}, {"vision_feature_layer": -2}, "looks like one of several blocks: list them"),
        ({"blocks": 1}, {"vision_feature_layer": [1, 2]}, "looks like one of a single block"),
        ({}, {"vision_feature_layer": [0, 1, 2]}, "looks like one of 2 blocks: list as many"),
        ({"form": "release"}, {"fusion_form": "release", "fusion_fused": 2},
         "'fusion' with fusion_kernel.*2 / fusion_fused = 4"),
        ({"kind": "concat"}, {"fusion_kind": "fusion", "fusion_form": "release"},
         "looks like the kind 'concat'"),
        ({"kind": "avgpool"}, {"fusion_kind": "concat"}, "looks like the kind 'avgpool' or 'mlp'"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("lenient", [False, True])
def test_a_projector_of_another_form_is_never_drawn(
    saved: dict[str, Any], fields: dict[str, Any], said: str, lenient: bool, tmp_path: Path
) -> None:
    clip(**saved).model.save_pretrained(tmp_path)
    _edited(tmp_path, **fields)
    options = {"ignore_mismatched_sizes": True} if lenient else {}
    with pytest.raises(WeightsError, match=rf"Expected the projector that config.json.*{said}"):
        FusedLlavaForConditionalGeneration.from_pretrained(tmp_path, **options)
    with pytest.raises(WeightsError, match=said):
        FusedLlavaModel.from_pretrained(tmp_path, **options)
    tiny_processor().save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=r"^Expected the projector that config.json"):
        load_model(str(tmp_path))


def test_a_plain_llava_is_told_to_be_fused(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=r"plain LLaVA.* pass it to tokensieve.hf.fused.fuse"):
        FusedLlavaForConditionalGeneration.from_pretrained(tmp_path)
    fresh = tmp_path / "llm"
    made = clip().model
    state = {k: v for k, v in made.state_dict().items() if "projector" not in k}
    made.save_pretrained(fresh, state_dict=state)
    with pytest.raises(WeightsError, match="no projector of this kind"):
        FusedLlavaForConditionalGeneration.from_pretrained(fresh)


def test_other_weights_of_another_shape_are_refused_too(tmp_path: Path) -> None:
    made = clip()
    made.model.save_pretrained(tmp_path)
    text = made.model.config.text_config.to_dict() | {"intermediate_size": 48}
    _edited(tmp_path, text_config=text)
    with pytest.raises(WeightsError, match=r"Got \(16, 32\) for model.*0.mlp.down_proj.*6 differ"):
        FusedLlavaForConditionalGeneration.from_pretrained(tmp_path)
    options = {"ignore_mismatched_sizes": True, "output_loading_info": True}
    _, info = FusedLlavaForConditionalGeneration.from_pretrained(tmp_path, **options)
    assert len(info["mismatched_keys"]) == 6  # as the caller asked


@pytest.mark.parametrize("option", [{}, {"num_beams": 3}, {"cache_implementation": "static"}])
def test_a_padded_batch_is_answered_as_each_alone(option: dict[str, Any]) -> None:
    made = clip(fused=2)
    inputs = inputs_of(made)
    assert int(inputs["attention_mask"][0].sum()) < inputs["input_ids"].shape[1]
    together = made.model.generate(**inputs, **GREEDY, **option)[:, -5:]
    for i, text in enumerate(TEXTS):
        pixels = inputs["pixel_values"][i : i + 1]
        alone = {**inputs_of(made, [text]), "pixel_values": pixels}
        assert torch.equal(made.model.generate(**alone, **GREEDY, **option)[0, -5:], together[i])


def test_bfloat16() -> None:
    model = tiny_model().to(torch.bfloat16)
    made = fuse(model, tiny_processor(), blocks=[1, 2])
    assert {p.dtype for p in made.model.parameters()} == {torch.bfloat16}
    inputs = inputs_of(made)
    assert bool(torch.isfinite(made.model(**inputs).logits).all())
    assert made.model.generate(**inputs, **GREEDY).shape[0] == 2


def test_the_pipeline() -> None:
    made = clip()
    register()
    pipe = tf.pipeline("image-text-to-text", model=made.model, processor=made.processor)
    picture = noise(60, 40)
    chat = [{"role": "user", "content": [
        {"type": "image", "image": picture}, {"type": "text", "text": "what is it"},
    ]}]  # fmt: skip
    (out,) = pipe(text=chat, max_new_tokens=3, return_full_text=False)
    inputs = made.processor(
        images=[picture], text=[made.processor.apply_chat_template(chat)], return_tensors="pt",
        add_special_tokens=False,
    )  # fmt: skip
    wanted = made.model.generate(**inputs, max_new_tokens=3, do_sample=False)
    new = wanted[0, inputs["input_ids"].shape[1] :]
    text = made.processor.decode(new, skip_special_tokens=True)
    assert out["generated_text"].strip() == text.strip()


def _gradients(model: Any, inputs: Any, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**inputs, labels=labels).loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_training_with_a_frozen_encoder_and_checkpoints_of_activations() -> None:
    made = clip()
    model, inputs = made.model.train(), inputs_of(made)
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    labels = labels.masked_fill(labels == model.config.image_token_id, -100)
    loss = model(**inputs, labels=labels).loss
    logits = model(**inputs).logits[:, :-1]
    by_hand = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
    )
    assert_close(loss, by_hand)
    whole = _gradients(model, inputs, labels)
    assert any("vision_tower" in name for name in whole)
    model.freeze_encoder()
    frozen = _gradients(model, inputs, labels)
    assert not any("vision_tower" in name for name in frozen)
    assert {n for n in whole if "vision_tower" not in n} == set(frozen)
    projector = [n for n, _ in model.model.multi_modal_projector.named_parameters()]
    assert all(f"model.multi_modal_projector.{n}" in frozen for n in projector)
    model.gradient_checkpointing_enable()
    again = _gradients(model, inputs, labels)
    for name, gradient in frozen.items():
        assert_close(again[name], gradient)


def test_weights_on_disk_are_plain_safetensors(tmp_path: Path) -> None:
    made = clip()
    made.model.save_pretrained(tmp_path, max_shard_size="20KB")
    shards = list(tmp_path.glob("*.safetensors"))
    assert len(shards) > 1
    names = {name for shard in shards for name in load_file(shard)}
    assert "model.multi_modal_projector.spatial.convolution.weight" in names
    again = FusedLlavaForConditionalGeneration.from_pretrained(tmp_path)
    for key, value in made.model.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])


def test_pictures_of_another_size_are_told() -> None:
    made = clip()
    inputs = inputs_of(made)
    small = inputs["pixel_values"][..., :24, :24]
    with pytest.raises(ConfigError, match="Expected 4 x 4 tokens of a picture"):
        made.model.model.get_image_features(small, interpolate_pos_encoding=True)


def test_onevision_too() -> None:
    """Its processor takes videos, which need torchvision: here a stand-in with the same fields."""
    tiny = build("llava_onevision")

    class Stand:
        tokenizer = tokenizer_of_families()
        image_processor = llava_next().processor.image_processor
        image_token = "<image>"

    made = fuse(tiny.model, Stand(), blocks=3)
    assert made.model.config.vision_feature_layer == [1, 2, -1]
    assert made.model.config.vision_feature_select_strategy == "full"
    inputs = inputs_of(made, sizes=[(60, 40), (20, 90)])
    assert inputs["pixel_values"].shape == (2, 3, 24, 24)
    assert made.model.generate(**inputs, **GREEDY).shape[0] == 2
