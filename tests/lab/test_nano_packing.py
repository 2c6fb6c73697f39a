"""Several questions in one sequence must answer as one at a time does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import CLIPVisionConfig

from lab.nano import packing
from lab.nano.lm import Reader, build_llava, look_loss, shown_features
from lab.nano.packing import PATCHES, Asked, Example, needed, pack
from lab.nano.pool import describe
from lab.nano.recipe import LmRecipe
from lab.nano.vocabulary import build_tokenizer, encode_question, key_positions
from tokensieve.data.synth import generate


def example(kind: str, seed: int) -> Example:
    tokenizer, picture = build_tokenizer(), generate(kind, seed)
    plain, asked = describe(picture), []
    for question in picture.questions:
        ids = encode_question(tokenizer, question.text)
        full = [*ids, *tokenizer(question.answer)["input_ids"], tokenizer.eos_token_id]
        about = (question.topic, question.about, question.line)
        asked.append(Asked(full, len(ids), key_positions(ids), *about))
    needs = [needed(plain, picture.labels.stack(), item) for item in asked]
    return Example(0, kind, asked, needs)


def reader() -> Reader:
    torch.manual_seed(0)
    vision = CLIPVisionConfig(hidden_size=16, num_attention_heads=2, num_hidden_layers=1)
    return Reader(
        build_llava(LmRecipe(width=16, layers=2, heads=2, hidden=24, guide_layer=1), vision)
    ).eval()


def worst_difference() -> float:
    """Largest difference of logits between packed and single questions."""
    one, model = example("mixed", 1), reader()
    features = np.random.default_rng(0).standard_normal((1, PATCHES, 16)).astype(np.float16)
    batch = pack(np.random.default_rng(1), [one], 40, 3, 0.3)
    packed, worst = model(shown_features(features, batch), batch), 0.0
    for number in range(int(batch.segment.max()) + 1):
        mine = batch.segment[0] == number
        ids = batch.ids[:, mine]
        visual = model.projector(shown_features(features, batch))
        embeds = torch.cat([visual, model.language_model.get_input_embeddings()(ids)], 1)
        after = batch.start[:, None] + torch.arange(ids.shape[1])[None]
        hidden = model.language_model(
            inputs_embeds=embeds,
            attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long),
            position_ids=torch.cat([batch.places, after], 1),
            use_cache=False,
        ).last_hidden_state[:, visual.shape[1] :]
        worst = max(worst, float((model.lm_head(hidden) - packed[:, mine]).abs().max()))
    return worst


@torch.no_grad()
def test_packed_questions_equal_single_ones() -> None:
    assert worst_difference() < 1e-5


@torch.no_grad()
def test_the_check_bites_when_questions_see_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def leaky(batch: packing.Packed) -> torch.Tensor:
        size = batch.kept.shape[1] + batch.ids.shape[1]
        return torch.ones(1, 1, size, size, dtype=torch.bool).tril()

    monkeypatch.setattr("lab.nano.lm.attention_mask", leaky)
    assert worst_difference() > 1e-3


@pytest.mark.parametrize("kind", ["plain", "cluttered", "scene", "mixed"])
@pytest.mark.parametrize("tokens", [24, 72, 256])
def test_shown_tokens_hold_what_the_questions_need(kind: str, tokens: int) -> None:
    one, rng = example(kind, 2), np.random.default_rng(0)
    kept, chosen = packing.show(rng, one, tokens, 6)
    assert kept.tolist() == sorted(set(kept.tolist()))
    assert len(kept) == tokens
    assert chosen
    for number in chosen:
        assert all(np.isin(group, kept).any() for group in one.needs[number])


def test_targets_are_the_answers_and_keys_weigh_less() -> None:
    one, sizes = example("plain", 0), []
    batch = pack(np.random.default_rng(0), [one], 256, 99, 0.3)
    for number in range(len(one.asked)):
        mine = batch.segment[0] == number
        sizes.append(int((mine & (batch.weights[0] == 1)).sum()))
        assert int((batch.weights[0][mine] == np.float32(0.3)).sum()) == 2
    values = [asked for asked in one.asked if asked.about == "text"]
    assert sizes.count(4) == len(values)  # three digits and the end
    assert sizes.count(2) == len(one.asked) - len(values) > 0  # a place and the end


def test_the_source_of_an_answer_is_what_its_question_needs() -> None:
    one = example("mixed", 1)
    batch = pack(np.random.default_rng(0), [one], 256, 99, 0.3)
    order = batch.segment[0].unique().tolist()
    assert len(order) > len({asked.about for asked in one.asked}) > 2
    for number in (n for n in order if n >= 0):
        mine = batch.segment[0] == number
        ids = batch.ids[0][mine].tolist()
        index = next(i for i, a in enumerate(one.asked) if a.ids[: len(ids)] == ids)
        read = batch.source[0][mine]
        answered = len(one.asked[index].ids) - one.asked[index].answer_at - 1
        assert int(read.any(-1).sum()) == answered  # every token of the answer but its end
        wanted = np.unique(np.concatenate(one.needs[index]))
        assert read[-2].nonzero()[:, 0].tolist() == wanted.tolist()


def test_looking_elsewhere_costs() -> None:
    batch = pack(np.random.default_rng(0), [example("plain", 0)], 256, 99, 0.3)
    there = batch.source[:, None].float().expand(-1, 2, -1, -1)
    assert float(look_loss(there / there.sum(-1, keepdim=True).clamp_min(1), batch)) < 1e-3
    assert float(look_loss(torch.full(there.shape, 1 / 256), batch)) > 2
