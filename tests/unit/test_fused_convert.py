"""Released checkpoints, made up in their very layout, converted and held against their tensors."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tokensieve.errors import ConfigError, WeightsError
from tokensieve.hf.fused import FusedLlavaForConditionalGeneration, convert, released
from tokensieve.hf.fused.carried import TEMPLATE
from tokensieve.hf.fused.convert import main
from tokensieve.hf.load import load_model
from tokensieve.nn import fusion
from toys.extract_tiny import noise
from toys.llava_tiny import WORDS, tiny_model, tiny_processor

C, D, DEPTH, M, SIDE, PATCH = 8, 16, 6, 3, 24, 6
CROSS, MLP = "model.mm_projector_crosslayer.", "model.mm_projector."
SHAPES = {
    f"{CROSS}0.weight": (4 * C, M * C), f"{CROSS}0.bias": (4 * C,),
    f"{CROSS}2.weight": (C, 4 * C), f"{CROSS}2.bias": (C,),
    f"{MLP}0.weight": (16 * C, 4 * C), f"{MLP}0.bias": (16 * C,),
    f"{MLP}2.weight": (D, 16 * C), f"{MLP}2.bias": (D,),
}  # fmt: skip


def projector_tensors(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(*shape, generator=generator) / 3 for name, shape in SHAPES.items()}


def llm() -> Any:
    torch.manual_seed(1)
    config = tf.LlamaConfig(
        hidden_size=D, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, vocab_size=10, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        rope_theta=5e5,
    )  # fmt: skip
    return tf.LlamaForCausalLM(config)


def encoder(folder: Path, width: int = C) -> Any:
    """A whole CLIP, text side and all, as on the hub."""
    torch.manual_seed(2)
    vision = {
        "hidden_size": width, "intermediate_size": 16, "num_hidden_layers": DEPTH,
        "num_attention_heads": 2, "image_size": SIDE, "patch_size": PATCH, "projection_dim": 4,
    }  # fmt: skip
    text = {
        "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 1, "vocab_size": 9, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    model = tf.CLIPModel(tf.CLIPConfig(vision_config=vision, text_config=text, projection_dim=4))
    model.save_pretrained(folder)
    return model


def words(folder: Path, *, image: bool = False) -> None:
    """The LLM's tokenizer; Vicuna's knows no image token."""
    tokenizer = tiny_processor().tokenizer
    if not image:
        named = json.loads(tokenizer.backend_tokenizer.to_str())
        named["added_tokens"] = [t for t in named["added_tokens"] if t["content"] != "<image>"]
        named["model"]["vocab"] = {w: i for i, w in enumerate(w for w in WORDS if w != "<image>")}
        named["model"]["vocab"] = {w: i for w, i in named["model"]["vocab"].items() if i < 10}
        from tokenizers import Tokenizer

        tokenizer = tf.PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(json.dumps(named)), bos_token="<s>",
            eos_token="</s>", unk_token="<unk>",
        )  # fmt: skip
    tokenizer.save_pretrained(folder)


def checkpoint(
    folder: Path, *, shards: int = 1, tower: bool = False, config: dict[str, Any] | None = None
) -> dict[str, Tensor]:
    """A checkpoint of stage 2 and its encoder beside it, `folder` and `folder/../clip`."""
    folder.mkdir(parents=True)
    made, clip = llm(), encoder(folder.parent / "clip")
    tensors = {name: value.clone() for name, value in made.state_dict().items()}
    tensors |= projector_tensors()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    if tower:
        own = tf.CLIPVisionModel(clip.config.vision_config)
        for weight in own.parameters():
            torch.nn.init.normal_(weight, std=0.3)
        prefix = "model.vision_tower.vision_tower.vision_model."
        tensors |= {prefix + name: value for name, value in own.state_dict().items()}
        tensors[prefix + "embeddings.position_ids"] = torch.arange(17)[None]
    names = sorted(tensors)
    weight_map = {name: f"model-{i % shards}.safetensors" for i, name in enumerate(names)}
    for file in set(weight_map.values()):
        part = {name: tensors[name] for name in names if weight_map[name] == file}
        save_file(part, folder / (file if shards > 1 else "model.safetensors"))
    if shards > 1:
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    values = {k: v for k, v in made.config.to_dict().items() if k != "rope_parameters"}
    values |= {
        "model_type": "llava_llama", "architectures": ["LlavaLlamaForCausalLM"],
        "rope_theta": 5e5, "mm_projector_type": "mlp2x_gelu", "mm_hidden_size": C,
        "mm_vision_tower": str(folder.parent / "clip"), "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch", "image_aspect_ratio": "pad", "mm_use_im_start_end":
        False, "use_mm_proj": True, **(config or {}),
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(values))
    words(folder)
    return tensors


def linear(tensors: dict[str, Tensor], name: str, x: list[float]) -> list[float]:
    rows, biases = tensors[f"{name}.weight"].tolist(), tensors[f"{name}.bias"].tolist()
    return [
        sum(w * v for w, v in zip(row, x, strict=True)) + bias
        for row, bias in zip(rows, biases, strict=True)
    ]


def gelu(values: list[float]) -> list[float]:
    return [v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in values]


def by_the_description(tensors: dict[str, Tensor], states: list[Tensor]) -> Tensor:
    """Tokens of the LLM of one picture, from the raw tensors, a number at a time."""
    tokens = []
    for place in range((SIDE // PATCH) ** 2):
        side_by_side = [v for i in (-2, 4, 2) for v in states[i][0, 1 + place].tolist()]
        hidden = gelu(linear(tensors, f"{CROSS}0", side_by_side))
        tokens.append(linear(tensors, f"{CROSS}2", hidden))
    columns, out = SIDE // PATCH, []
    for top in range(0, columns, 2):
        for left in range(0, columns, 2):
            cell = [0.0] * (4 * C)
            for channel in range(C):
                for row in range(2):
                    for column in range(2):
                        token = tokens[(top + row) * columns + left + column]
                        cell[channel * 4 + row * 2 + column] = token[channel]
            hidden = gelu(linear(tensors, f"{MLP}0", cell))
            out.append(linear(tensors, f"{MLP}2", hidden))
    return torch.tensor(out)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("tower", [False, True])
def test_tokens_are_those_of_the_raw_tensors(shards: int, tower: bool, tmp_path: Path) -> None:
    tensors = checkpoint(tmp_path / "stf", shards=shards, tower=tower)
    assert main(["--checkpoint", str(tmp_path / "stf"), "--out", str(tmp_path / "out")]) == 0
    made = load_model(str(tmp_path / "out"))
    model = made.model
    assert model.config.vision_feature_layer == [-2, 4, 2]
    assert (model.config.fusion_form, model.config.image_seq_length) == ("release", 4)
    stored = {k: v for k, v in tensors.items() if "vision_tower" in k}
    reads = tf.CLIPVisionModel.from_pretrained(tmp_path / "clip")
    if tower:
        prefix = "model.vision_tower.vision_tower.vision_model."
        own = {k.removeprefix(prefix): v for k, v in stored.items()}
        reads.load_state_dict(own, strict=False)
    pixels = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        found = model.model.get_image_features(pixels, return_dict=True).pooler_output
        for i in range(2):
            states = reads(pixels[i : i + 1], output_hidden_states=True).hidden_states
            wanted = by_the_description(tensors, list(states))
            assert_close(found[i], wanted, rtol=1e-4, atol=1e-4)


def test_the_llm_is_the_same_and_never_says_the_image_token(tmp_path: Path) -> None:
    checkpoint(tmp_path / "stf")
    made = convert.convert(tmp_path / "stf", tmp_path / "out")
    model, old = made.model, llm()
    assert model.config.text_config.rope_parameters["rope_theta"] == 5e5
    assert (model.config.image_token_id, model.config.text_config.vocab_size) == (10, 11)
    ids = torch.tensor([[1, 5, 6, 3, 8]])
    with torch.no_grad():
        logits, wanted = model(input_ids=ids).logits, old(input_ids=ids).logits
    assert_close(logits[..., :10], wanted)
    assert bool((logits[..., 10] < logits[..., :10].amax(-1)).all())
    generation = model.generation_config
    assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (1, 2, 3)


def test_pictures_and_words_are_carried_over(tmp_path: Path) -> None:
    checkpoint(tmp_path / "stf")
    convert.convert(tmp_path / "stf", tmp_path / "out")
    made = load_model(str(tmp_path / "out"))
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what ?"}]}]
    text = made.processor.apply_chat_template(chat, add_generation_prompt=True)
    assert text.startswith("<s>A chat between a curious user")
    assert text.endswith("USER: <image>\nwhat ? ASSISTANT:")
    inputs = made.processor(images=[noise(20, 60)], text=[text], return_tensors="pt")
    assert int((inputs["input_ids"] == 10).sum()) == 4
    assert inputs["pixel_values"].shape == (1, 3, SIDE, SIDE)
    # 60 wide and 20 high, padded to a square: its upper third is of the mean colour
    assert_close(inputs["pixel_values"][..., :6, :], torch.zeros(1, 3, 6, SIDE), rtol=0, atol=0.02)
    assert made.model.generate(**inputs, max_new_tokens=3, do_sample=False).shape[0] == 1
    assert made.processor.tokenizer.chat_template == TEMPLATE


def test_an_image_processor_and_an_image_token_that_are_there_are_kept(tmp_path: Path) -> None:
    tensors = checkpoint(tmp_path / "stf", config={"image_aspect_ratio": "square"})
    assert tensors["lm_head.weight"].shape == (10, D)
    words(tmp_path / "stf", image=True)
    CLIPImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE},
        image_mean=[0.1, 0.2, 0.3],
    ).save_pretrained(tmp_path / "clip")  # fmt: skip
    made = convert.convert(tmp_path / "stf", tmp_path / "out")
    assert made.model.config.image_token_id == 4
    assert made.model.config.text_config.vocab_size == 10
    pictures = load_model(str(tmp_path / "out")).processor.image_processor
    assert list(pictures.image_mean) == [0.1, 0.2, 0.3]
    assert not getattr(pictures, "do_pad", False)


def test_stage_1_with_an_llm_beside_it(tmp_path: Path) -> None:
    tensors = projector_tensors()
    (tmp_path / "stage1").mkdir()
    file = tmp_path / "stage1" / "mm_projector.safetensors"
    save_file(tensors, file)
    encoder(tmp_path / "clip")
    llm().to(torch.bfloat16).save_pretrained(tmp_path / "llm")
    words(tmp_path / "llm")
    options = {"llm": str(tmp_path / "llm"), "encoder": str(tmp_path / "clip")}
    made = convert.convert(file, tmp_path / "out", **options)
    assert {p.dtype for p in made.model.parameters()} == {torch.bfloat16}
    weight = made.model.model.multi_modal_projector.blocks.mlp[0].weight
    assert_close(weight, tensors[f"{CROSS}0.weight"].bfloat16(), rtol=0, atol=0)
    again = convert.convert(file.parent, tmp_path / "again", **options)
    assert again.model.config.fusion == made.model.config.fusion
    with pytest.raises(ConfigError, match=r"Got neither. Pass --llm DIR"):
        convert.convert(file, tmp_path / "x")
    with pytest.raises(ConfigError, match=r"Expected the encoder: --encoder.*Got neither"):
        convert.convert(file, tmp_path / "x", llm=str(tmp_path / "llm"))
    with pytest.raises(WeightsError, match=r"Expected a causal LLM in '.*nothing'"):
        convert.convert(file, tmp_path / "x", llm=str(tmp_path / "nothing"))
    with pytest.raises(WeightsError, match=r"Expected the vision encoder '.*Pass --encoder DIR"):
        convert.convert(file, tmp_path / "x", llm=options["llm"], encoder=str(tmp_path / "no"))
    encoder(tmp_path / "wide", width=12)
    with pytest.raises(WeightsError, match=r"the projector reads, 8 wide. Got .*, 12 wide"):
        convert.convert(file, tmp_path / "x", llm=options["llm"], encoder=str(tmp_path / "wide"))
    with pytest.raises(WeightsError, match=r"Got 'llama' in"):
        convert.convert(file, tmp_path / "x", llm=options["llm"], encoder=options["llm"])
    small = {k: v[: D // 2].clone() if k.startswith(f"{MLP}2") else v for k, v in tensors.items()}
    save_file(small, file)
    with pytest.raises(WeightsError, match=r"writes for, 8 wide. Got one 16 wide. Pass the --llm"):
        convert.convert(file, tmp_path / "x", **options)
    assert not (tmp_path / "x").exists()


def _saved(folder: Path, tensors: dict[str, Tensor]) -> Path:
    save_file(tensors, folder / "model.safetensors")
    return folder


def _without(name: str) -> Any:
    return lambda tensors: {k: v for k, v in tensors.items() if k != name}


def _with(name: str, *shape: int) -> Any:
    return lambda tensors: {**tensors, name: torch.zeros(shape)}


def _poisoned(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**tensors, f"{MLP}0.bias": torch.full((16 * C,), float("nan"))}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_without(f"{CROSS}2.bias"), r"Got no model.mm_projector_crosslayer.2.bias in"),
        (_without(f"{MLP}0.weight"), r"Got no model.mm_projector.0.weight in"),
        (_with(f"{MLP}0.weight", 16 * C, C), r"mm_projector.0.weight of shape \(128, 8\) in plac"),
        (_with(f"{CROSS}4.bias", C), "an unexpected model.mm_projector_crosslayer.4.bias"),
        (_with("model.image_newline", D), "Got model.image_newline in .*Merge adapters"),
        (_with("base_model.model.lora_A.weight", 2), "Merge adapters .LoRA. into their LLM"),
        (_poisoned, r"Got NaN or Inf in model.mm_projector.0.bias"),
        (_without("model.norm.weight"), "Expected the weights of a 'llama'.*norm.weight .1 differ"),
        (_with("model.layers.7.bias", 3), "Expected the weights of a 'llama'.*layers.7.bias"),
    ],
)
def test_other_layouts_are_refused(change: Any, said: str, tmp_path: Path) -> None:
    folder = tmp_path / "stf"
    tensors = checkpoint(folder)
    with pytest.raises(WeightsError, match=said):
        convert.convert(_saved(folder, change(tensors)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_plain_llava_and_folders_of_our_own_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "stf"
    tensors = {k: v for k, v in checkpoint(folder).items() if not k.startswith(CROSS)}
    with pytest.raises(WeightsError, match=r"Got one of a plain LLaVA. To fuse a plain LLaVA your"):
        convert.convert(_saved(folder, tensors), tmp_path / "out")
    bare = {k: v for k, v in tensors.items() if not k.startswith(MLP)}
    with pytest.raises(WeightsError, match=r"Expected a projector that fuses .* Got none"):
        convert.convert(_saved(folder, bare), tmp_path / "out")
    tiny_model().save_pretrained(tmp_path / "hf")
    with pytest.raises(WeightsError, match="of tokensieve or Transformers needs no conversion"):
        convert.convert(tmp_path / "hf", tmp_path / "out")


def test_pickles_are_refused_with_the_way_out(tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "mm_projector.bin"
    torch.save(projector_tensors(), file)
    for source in (file, tmp_path):
        code = main(["--checkpoint", str(source), "--out", str(tmp_path / "out")])
        told = capsys.readouterr().err
        assert (code, told.startswith("error: Expected safetensors. Got")) == (2, True)
    command = told.split('python -c "')[1].split('"')[0].replace("'mm", f"'{tmp_path}/mm")
    exec(command)  # the advice is right
    made = load_file(tmp_path / "mm_projector.safetensors")
    assert all(torch.equal(made[name], value) for name, value in projector_tensors().items())


def test_missing_files_and_full_folders(tmp_path: Path) -> None:
    folder = tmp_path / "stf"
    checkpoint(folder, shards=3)
    with pytest.raises(ConfigError, match=r"either in the checkpoint or by --llm. Got both. Leave"):
        convert.convert(folder, tmp_path / "out", llm="somewhere")
    with pytest.raises(
        ConfigError, match=r"a new or empty folder for a converted checkpoint\. Got"
    ):
        convert.convert(folder, folder)
    with pytest.raises(WeightsError, match="no such thing"):
        convert.convert(tmp_path / "nothing", tmp_path / "out")
    values = json.loads((folder / "config.json").read_text())
    for field, got in (("mm_use_im_start_end", True), ("mm_vision_select_feature", "cls_patch")):
        (folder / "config.json").write_text(json.dumps({**values, field: got}))
        with pytest.raises(WeightsError, match=f"Expected {field}=.* Got {got!r}"):
            convert.convert(folder, tmp_path / "out")
    (folder / "config.json").write_text(json.dumps({**values, "model_type": "llava_mpt"}))
    with pytest.raises(WeightsError, match=r"\(llava_llama, llava, llava_mistral\). Got 'llava_mp"):
        convert.convert(folder, tmp_path / "out")
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "model-1.safetensors").rename(folder / "away")
    with pytest.raises(WeightsError, match=r"complete safetensors file at .*model-1"):
        convert.convert(folder, tmp_path / "out")
    (folder / "away").rename(folder / "model-1.safetensors")
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(WeightsError, match=r"several files and .*index.json.*Got model-0.safetens"):
        convert.convert(folder, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match=r"Got none. Download the whole checkpoint"):
        convert.convert(tmp_path / "empty", tmp_path / "out")


def test_a_checkpoint_without_words_says_so(tmp_path: Path) -> None:
    checkpoint(tmp_path / "stf")
    for file in (tmp_path / "stf").glob("tokenizer*"):
        file.unlink()
    with pytest.raises(WeightsError, match="Expected a tokenizer's files in"):
        convert.convert(tmp_path / "stf", tmp_path / "out")


def test_blocks_in_the_order_of_the_channels() -> None:
    assert released.blocks_read(8, 24, -2) == [-2, 21, 18, 15, 12, 9, 6, 3]


@pytest.mark.parametrize("broken", ["blocks", "cell"])
def test_a_broken_converter_is_noticed(broken: str, tmp_path: Path, monkeypatch: Any) -> None:
    if broken == "blocks":  # upwards, as `fuse` has them
        monkeypatch.setattr(released, "spaced_blocks", lambda depth, count: (4, 2, depth))
    else:
        right = fusion.unfold

        def token_major(tokens: Tensor, grid: tuple[int, int], kernel: int) -> Tensor:
            cells = right(tokens, grid, kernel)
            return cells.unflatten(2, (-1, kernel**2)).transpose(2, 3).flatten(2)

        monkeypatch.setattr(fusion, "unfold", token_major)
    with pytest.raises(AssertionError):
        test_tokens_are_those_of_the_raw_tensors(1, False, tmp_path)


def test_it_is_a_model_of_its_class(tmp_path: Path) -> None:
    checkpoint(tmp_path / "stf")
    made = convert.convert(tmp_path / "stf", tmp_path / "out")
    assert type(made.model) is FusedLlavaForConditionalGeneration
    assert not list((tmp_path / "out").glob("*.bin"))
