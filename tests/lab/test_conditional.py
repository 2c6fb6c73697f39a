"""The method "conditional": what it is bound to; its prompts; nano's hidden states."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lab.nano.packing import Packed
from lab.nano.vocabulary import ANSWER, vocabulary
from lab.studies.conditional.ask_first import in_front, main, visible
from lab.studies.conditional.hidden import hidden_states
from tokensieve.data.synth import generate
from tokensieve.errors import ConfigError, EncoderMismatchError, UnsupportedError, WeightsError
from tokensieve.hf.families.fingerprint import encoder_info, llm_info
from tokensieve.hf.models.nano import load_nano
from tokensieve.hf.prompt.template import ask_first
from tokensieve.hf.sieve import encode, sieve
from tokensieve.methods.registry import get_method
from tokensieve.nn.config import encoder_from_dict
from tokensieve.nn.selector import Selector, SelectorConfig
from tokensieve.types import EncoderInfo, Site

LLM = EncoderInfo("llama", 16, 1, 4, 2, 32, site=Site.LLM)


def selector(info: EncoderInfo = LLM) -> Selector:
    torch.manual_seed(0)
    return Selector(SelectorConfig(encoder=info, depth=1)).eval()


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (replace(LLM, layer=2), "an LLM with layer=1. Got layer=2"),
        (replace(LLM, model_type="qwen2"), "an LLM with model_type=llama. Got model_type=qwen2"),
        (replace(LLM, depth=5), "an LLM with depth=4. Got depth=5"),
        (replace(LLM, site=Site.FEATURES), "an LLM with site=llm. Got site=features"),
    ],
)
def test_another_llm_or_layer_is_refused(other: EncoderInfo, said: str) -> None:
    with pytest.raises(EncoderMismatchError, match=said):
        get_method("conditional", weights=selector()).bind(other)


def test_weights_of_an_encoder_are_refused_and_the_other_way_round() -> None:
    features = EncoderInfo("clip_vision_model", 16, -1, 4, 2, 32)
    with pytest.raises(EncoderMismatchError, match="Expected weights for the site 'llm'"):
        get_method("conditional", weights=selector(features)).bind(LLM)
    with pytest.raises(EncoderMismatchError, match="with site=llm"):
        get_method("selector", weights=selector()).bind(features)


def test_weights_are_asked_for() -> None:
    with pytest.raises(WeightsError, match="Expected `weights` of a selector trained on hidden"):
        get_method("conditional").bind(LLM)
    with pytest.raises(UnsupportedError, match="bound to an LLM"):
        get_method("conditional", weights="somewhere").scores(get_vision())


def get_vision():  # type: ignore[no-untyped-def]
    from tokensieve.types import VisionTokens

    return VisionTokens(torch.randn(1, 4, 16))


@pytest.mark.parametrize("layer", [0, 4, -1])
def test_a_fingerprint_names_a_layer_that_is_there(layer: int) -> None:
    with pytest.raises(ConfigError, match="`layer` from 1 to 3"):
        replace(LLM, layer=layer)


def test_weights_say_their_layer(tmp_path: Path) -> None:
    selector().save_pretrained(tmp_path)
    assert get_method("conditional", weights=str(tmp_path)).llm_stages(4, 0.3) == {1: 0.3}
    with pytest.raises(WeightsError, match=r"Expected `weights`.* Got none"):
        get_method("conditional").llm_stages(4, 0.3)
    assert encoder_from_dict(Selector.from_pretrained(tmp_path).config.to_dict()["encoder"]) == LLM


def test_the_layer_comes_from_the_weights_and_another_is_refused() -> None:
    model, processor = load_nano()
    weights = selector(llm_info(model, 2))
    inputs = asked(processor, "What is KX?")
    with sieve(model, "conditional", keep=0.1, weights=weights) as report:
        model.generate(**inputs, max_new_tokens=2)
    assert [(s.layer, s.kept_tokens) for s in report.calls[0].stages] == [(2, 26)]
    with (
        pytest.raises(EncoderMismatchError, match="with layer=2"),
        sieve(model, "conditional", keep=0.1, weights=weights, layer=1),
    ):
        pass


def asked(processor, *questions: str):  # type: ignore[no-untyped-def]
    picture = generate("plain", 0, "val").image
    texts = [
        processor.apply_chat_template(ask_first(q), add_generation_prompt=True) for q in questions
    ]
    return dict(processor(images=[picture] * len(texts), text=texts, padding=True,
                          return_tensors="pt"))  # fmt: skip


def test_the_question_stands_on_both_sides() -> None:
    _, processor = load_nano()
    text = processor.apply_chat_template(ask_first("What is KX?"), add_generation_prompt=True)
    assert text == f"What is KX?<image>What is KX?{ANSWER}"
    assert [part["type"] for part in ask_first("Hm", images=2)[0]["content"]] == [
        "text", "image", "image", "text",
    ]  # fmt: skip


def test_only_a_question_in_front_reaches_the_visual_tokens() -> None:
    """The reason for the form of the prompt: behind the picture it changes nothing there."""
    model, processor = load_nano()

    def states(texts: list[str]) -> torch.Tensor:
        picture = generate("plain", 0, "val").image
        inputs = processor(images=[picture] * 2, text=texts, padding=True, return_tensors="pt")
        with torch.no_grad():
            out = model(**inputs, output_hidden_states=True).hidden_states[2]
        return out[inputs["input_ids"] == model.config.image_token_id].view(2, 256, -1)

    behind = states([f"<image>What is KX?{ANSWER}", f"<image>What is AB?{ANSWER}"])
    front = states([f"What is KX?<image>{ANSWER}", f"What is AB?<image>{ANSWER}"])
    assert_close(behind[0], behind[1])
    assert float((front[0] - front[1]).abs().max()) > 0.01


def test_stored_hidden_states_are_those_the_method_is_shown() -> None:
    model, processor = load_nano()
    inputs = asked(processor, "What is KX?", "How many objects are there?")
    features = torch.cat(encode(model, inputs).features)
    marker = processor.tokenizer.convert_tokens_to_ids("<image>")
    fronts = []
    for ids, mask in zip(
        inputs["input_ids"].tolist(), inputs["attention_mask"].tolist(), strict=True
    ):
        real = [i for i, m in zip(ids, mask, strict=True) if m]
        fronts.append(real[: real.index(marker)])
    stored = hidden_states(model, features, fronts)[1]
    with torch.no_grad():
        states = model(**inputs, output_hidden_states=True).hidden_states[1]
    shown = states[inputs["input_ids"] == marker].view(2, 256, -1)
    assert_close(stored, shown, rtol=1e-4, atol=1e-4)


def test_llm_info_says_what_it_is() -> None:
    model, _ = load_nano()
    info = llm_info(model, 3)
    assert (info.site, info.layer, info.model_type, info.depth) == (Site.LLM, 3, "llama", 4)
    assert (info.width, info.grid) == (128, encoder_info(model).grid)


def test_a_hidden_question_reaches_its_answer_through_the_picture_alone() -> None:
    table = vocabulary()
    ids = torch.tensor([[table["what"], table["is"], table[ANSWER], table["4"]]] * 2)
    place = torch.arange(3).expand(2, 3)
    same = torch.zeros_like(ids)
    batch = Packed(
        np.zeros(2, dtype=np.int64), place, place, torch.tensor([3, 3]), ids, ids, same.float(),
        same, same, torch.zeros(2, 4, 3, dtype=torch.bool),
    )  # fmt: skip
    front, real = in_front(batch, torch.tensor([False, True]))
    assert front.tolist() == [[table["what"], table["is"]]] * 2
    assert real.tolist() == [[True, True], [False, False]]
    seen = visible(real, batch, torch.tensor([True, False]))[:, 0]
    marker, answer = 2 + 3 + 2, 2 + 3 + 3
    assert seen[0, answer].tolist() == [False, False, True, True, True, False, False, True, True]
    assert seen[1, answer].tolist() == [False, False, True, True, True, True, True, True, True]
    assert bool(seen[0, marker, 2:5].all())
    assert bool(seen[0, 2, :2].all())
    assert not bool(seen[1, 2, :2].any())


def test_a_folder_of_others_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"weeks of work")
    with pytest.raises(ConfigError, match="nothing was changed"):
        main(["--data", str(tmp_path), "--out", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["weights.bin"]
