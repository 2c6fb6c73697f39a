"""A projector that is told the question (QueCC): what it computes, and what is told to it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from tokensieve.errors import ConfigError, PromptError, UnsupportedError
from tokensieve.hf.encoder.encode import encode
from tokensieve.hf.fused import fuse
from tokensieve.hf.load import load_model
from tokensieve.hf.models.loaded import Loaded
from tokensieve.hf.sieve import sieve
from tokensieve.nn.fusion import FusionConfig, FusionProjector
from tokensieve.train.fusion.run import Data, train_fusion
from toys.extract_tiny import noise
from toys.fusion_toys import plain, rows_of, toy_recipe, write_rows

GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 4, "min_new_tokens": 4}


def asked(**options: Any) -> Loaded:
    """4 visual tokens a picture, chosen by the question."""
    base = plain()
    return fuse(base.model, base.processor, **{"blocks": 1, "kind": "quecc", **options})


def inputs_of(loaded: Loaded, *texts: str) -> Any:
    pictures = [[noise(60, 40, seed=3)] for _ in texts]
    return loaded.processor(images=pictures, text=list(texts), return_tensors="pt", padding=True)


def rows(loaded: Loaded, inputs: Any) -> torch.Tensor:
    with torch.no_grad():
        return torch.stack(list(encode(loaded.model, inputs).output.pooler_output))


@torch.no_grad()
def test_a_cell_by_hand() -> None:
    """Two channels of one head, a picture of 2 x 4 tokens, cells of 2 x 2: number by number."""
    torch.manual_seed(0)
    config = FusionConfig(width=2, out_width=3, rows=2, columns=4, kind="quecc", kernel=2)
    projector = FusionProjector(config).double()
    spatial: Any = projector.spatial
    spatial.heads = 1
    tokens, question = torch.randn(1, 8, 2).double(), torch.randn(1, 3).double()
    told = spatial.question(question)[0]
    wanted = []
    for cell in ([0, 1, 4, 5], [2, 3, 6, 7]):  # of two rows of four
        query = spatial.gather.bias.clone()
        for spot, token in enumerate(cell):
            made = spatial.query(tokens[0, token] + told)
            query += made * spatial.gather.weight[:, 0].flatten(1)[:, spot]
        query = spatial.attention["query"](query)
        keys = [spatial.attention["key"](spatial.key(tokens[0, token])) for token in cell]
        values = [spatial.attention["value"](spatial.value(tokens[0, token])) for token in cell]
        powers = [math.exp(float(query @ key) / math.sqrt(2)) for key in keys]
        mean = sum(p / sum(powers) * value for p, value in zip(powers, values, strict=True))
        wanted.append(spatial.mlp(spatial.attention["out"](mean)))
    assert_close(projector(tokens, question)[0], torch.stack(wanted))
    with pytest.raises(ConfigError, match="Expected the question beside the tokens"):
        projector(tokens)


def test_one_token_of_a_picture() -> None:
    loaded = asked(kernel=4)
    assert loaded.model.config.image_seq_length == 1
    assert rows(loaded, inputs_of(loaded, "<image>What")).shape[1] == 1


def test_tokens_follow_the_question_and_not_the_answer() -> None:
    loaded = asked()
    one, other = (rows(loaded, inputs_of(loaded, f"<image>Is it {word}")) for word in ("A", "B"))
    assert (one - other).abs().max() > 1e-3
    inputs = dict(inputs_of(loaded, "<image>Is it A? Yes", "<image>Is it A? no!"))
    labels = inputs["input_ids"].clone()
    labels[:, :-4] = -100
    first, second = rows(loaded, {**inputs, "labels": labels})
    assert torch.equal(first, second)
    first, second = rows(loaded, inputs)
    assert not torch.equal(first, second)
    short = inputs_of(loaded, "<image>Is it A?")
    assert_close(rows(loaded, short)[0], rows(loaded, {**inputs, "labels": labels})[0])


def test_what_is_told_is_the_last_word_s_state_in_any_batch() -> None:
    loaded, seen = asked(), []
    projector = loaded.model.model.multi_modal_projector.spatial.question
    projector.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    inputs = inputs_of(loaded, "<image>Is it", "<image>What is it, or was")
    rows(loaded, inputs)
    for row, words in enumerate(("<s>Is it", "<s>What is it, or was")):
        text = words.removeprefix("<s>")
        ids = loaded.processor.tokenizer(text, return_tensors="pt").input_ids
        with torch.no_grad():
            wanted = loaded.model.model.language_model(input_ids=ids).last_hidden_state[0, -1]
        assert_close(seen[0][row], wanted, rtol=1e-4, atol=1e-4)


def test_a_prompt_without_words_asks_nothing() -> None:
    loaded, seen = asked(), []
    projector = loaded.model.model.multi_modal_projector.spatial.question
    projector.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    inputs = dict(inputs_of(loaded, "<image>What"))
    labels = torch.zeros_like(inputs["input_ids"])
    rows(loaded, {**inputs, "labels": labels})
    assert not seen[0].any()


@torch.no_grad()
def test_it_answers_alike_alone_in_a_batch_and_under_a_sieve() -> None:
    loaded = asked()
    texts = ("<image>Is it", "<image>What is it, or was")
    inputs = inputs_of(loaded, *texts)
    found = loaded.model.generate(**inputs, **GREEDY)
    for row, text in enumerate(texts):
        alone = loaded.model.generate(**inputs_of(loaded, text), **GREEDY)
        assert torch.equal(alone[0, -4:], found[row, -4:])
    with sieve(loaded.model, "stride", 1.0):
        assert torch.equal(loaded.model.generate(**inputs, **GREEDY), found)
    with sieve(loaded.model, "divprune", 0.5) as report:
        loaded.model.generate(**inputs, **GREEDY)
    assert (report.visual_tokens, report.kept_tokens) == (8, 4)


def test_what_it_is_not_told_it_asks_for() -> None:
    loaded = asked()
    inputs = dict(inputs_of(loaded, "<image>What"))
    with pytest.raises(ConfigError, match="Expected the question beside"):
        loaded.model.get_image_features(inputs["pixel_values"])
    embeds = loaded.model.get_input_embeddings()(inputs["input_ids"])
    with pytest.raises(UnsupportedError, match="Expected `input_ids`"):
        loaded.model(inputs_embeds=embeds, pixel_values=inputs["pixel_values"])
    with pytest.raises(PromptError, match=r"Got 2 picture\(s\), placeholders of 1"):
        loaded.model(**{**inputs, "pixel_values": inputs["pixel_values"].repeat(2, 1, 1, 1)})


@pytest.mark.parametrize("preset", ["stage1", "stage2"])
def test_it_is_trained_saved_and_loaded(preset: str, tmp_path: Path) -> None:
    made = rows_of(8, 2)
    for row in made if preset == "stage1" else []:
        row["conversations"] = row["conversations"][:2]
    data = Data(*write_rows(tmp_path, made[:8] if preset == "stage1" else made))
    loaded = asked(blocks=2)
    before = {k: v.clone() for k, v in loaded.model.state_dict().items()}
    recipe = toy_recipe(preset, "train.steps=2")
    again = load_model(str(train_fusion(loaded, data, recipe, tmp_path / "o")))
    after, inputs = again.model.state_dict(), inputs_of(again, "<image>What")
    name = "model.multi_modal_projector.spatial.question.0.weight"
    assert not torch.equal(before[name], after[name])
    assert torch.equal(rows(again, inputs), rows(Loaded("", loaded.model.eval(), None), inputs))
