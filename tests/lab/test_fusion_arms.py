"""The arms of selection against fusion on nano: batches, training, what is written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from lab.nano.features import load_questions, with_questions
from lab.nano.lm import Reader
from lab.nano.pool import make_shard, open_shard
from lab.studies.fusion.__main__ import main
from lab.studies.fusion.arms import Arm, Study
from lab.studies.fusion.blocks import Blocks, cache_blocks
from lab.studies.fusion.feed import Feed
from lab.studies.fusion.train import as_llava, build, export, place, train
from tokensieve.data.synth import generate
from tokensieve.errors import ConfigError, TrainingError, UnknownNameError
from tokensieve.evaluate.score import prompt
from tokensieve.hf.load import load_model

STF = Arm("stf")
EVERY = Arm("every", {"kind": "mlp", "kernel": 1})
SELECTED = Arm("selected", {"kind": "mlp", "kernel": 1}, keeper="selector", kept=20)
RANDOM = replace(SELECTED, name="random", keeper="random")
BLOCKS = Arm("blocks", {"blocks": 2, "kernel": 4, "fused": 4, "form": "release"})
STUDY = Study((STF, EVERY, SELECTED, RANDOM, BLOCKS), (0,), steps=2, align=1, batch=2,
              train_shards=1)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool of four pictures a split, and what the encoder's blocks say of them."""
    out = tmp_path_factory.mktemp("pool")
    for split in ("train", "val"):
        make_shard(out / "pool", split, 0, 4)
    cache_blocks(out, [("train", 0), ("val", 0)])
    return out


def feed(arm: Arm, data: Path) -> Feed:
    return Feed(arm, Blocks(data, [("train", 0)], 128), STUDY.selector)


def test_a_batch_holds_the_tokens_of_its_arm(data: Path) -> None:
    examples = load_questions(data, [("train", 0)])
    for arm, shape, channels in (
        (STF, (2, 64), (2, 256, 128)),
        (BLOCKS, (2, 64), (2, 256, 256)),
        (SELECTED, (2, 20), (2, 256, 128)),
        (RANDOM, (2, 20), (2, 256, 128)),
    ):
        features, batch = feed(arm, data)(np.random.default_rng(0), examples[:2])
        assert features.shape == channels
        assert batch.kept.shape == batch.places.shape == shape
        assert arm.tokens == shape[1]
        assert bool((batch.places.diff(dim=1) > 0).all())
        # fused tokens are numbered anew and text follows; kept ones stay where they were
        assert set(batch.start.tolist()) == ({64} if arm.keeper is None else {256})
    assert int(batch.places.max()) > 20


def test_kept_tokens_are_those_of_the_picture(data: Path) -> None:
    """An answer is read from the tokens kept alone, at the places they had."""
    examples = load_questions(data, [("train", 0)])
    reader = Reader(build(STUDY, SELECTED, 0).model)
    features, batch = feed(RANDOM, data)(np.random.default_rng(0), examples[:2])
    with torch.no_grad():
        before = reader(features, batch)
        for row in range(2):
            gone = torch.ones(256, dtype=torch.bool)
            gone[batch.kept[row]] = False
            features[row, gone] = 9.0
        assert_close(reader(features, batch), before, rtol=0, atol=0)
        features[:, batch.kept[0, 0]] = 9.0
        assert not torch.equal(reader(features, batch)[0], before[0])
    # the selector says the same each time, chance does not
    for arm, same in ((SELECTED, True), (RANDOM, False)):
        first, second = (
            feed(arm, data)(np.random.default_rng(seed), examples[:2])[1].kept for seed in (0, 1)
        )
        assert torch.equal(first, second) is same
        study = replace(STUDY, steps=1, align=0)
        assert train(study, arm, 0, data, data / "trained") is not None


def test_blocks_are_the_encoders_hidden_states(data: Path) -> None:
    loaded = build(STUDY, BLOCKS, 0)
    shard = open_shard(data / "pool", "train", 0)
    picture = Image.fromarray(shard.images[with_questions(shard)[0]])
    inputs = loaded.processor(images=[picture], text=["<image>"], return_tensors="pt")
    states = loaded.model.model.vision_tower(
        inputs["pixel_values"], output_hidden_states=True
    ).hidden_states
    wanted = torch.cat([states[2][:, 1:], states[4][:, 1:]], -1)
    assert_close(Blocks(data, [("train", 0)], 128).rows(np.array([0]), 2), wanted.detach(),
                 rtol=0, atol=5e-3)  # fmt: skip


def test_the_projector_is_trained_first(data: Path, tmp_path: Path) -> None:
    """After `align` steps alone the LLM is as it was; after one more it is not."""
    before = build(STUDY, STF, 0).model.state_dict()
    llm = [name for name in before if "language_model" in name or "lm_head" in name]
    for steps, moved in ((1, False), (2, True)):
        study = replace(STUDY, steps=steps)
        reader = train(study, STF, 0, data, tmp_path / str(steps))
        after = {f"model.{k}": v for k, v in reader.state_dict().items()}
        after["lm_head.weight"] = reader.lm_head.weight
        assert any(not torch.equal(before[name], after[name]) for name in llm) is moved
        weights = reader.projector.spatial.mlp[0].weight
        assert not torch.equal(weights, before["model.multi_modal_projector.spatial.mlp.0.weight"])


@pytest.mark.slow
def test_a_written_arm_is_the_trained_one(data: Path, tmp_path: Path) -> None:
    """Loaded from its folder, it answers with the logits of what was trained, through the
    processor's own placeholders."""
    with pytest.raises(TrainingError, match=r"Expected stf of seed 0 after 2 steps in .* Got 0"):
        export(STUDY, STF, 0, tmp_path)
    for arm in (STF, EVERY, BLOCKS):
        reader = train(STUDY, arm, 0, data, tmp_path)
        loaded = load_model(str(export(STUDY, arm, 0, tmp_path)))
        picture = generate("plain", 0, "train")
        text = prompt(loaded.processor, picture.questions[0].text)
        inputs = loaded.processor(images=[picture.image], text=[text], return_tensors="pt")
        with torch.no_grad():
            got = loaded.model(**inputs).logits
        assert loaded.model.config.model_type == ("llava" if arm is EVERY else "fused_llava")
        states = loaded.model.model.vision_tower(
            inputs["pixel_values"], output_hidden_states=True
        ).hidden_states
        blocks = [states[2], states[4]] if arm is BLOCKS else [states[4]]
        visual = reader.projector(torch.cat([b[:, 1:] for b in blocks], -1))
        embeds = reader.language_model.get_input_embeddings()(inputs["input_ids"])
        embeds[inputs["input_ids"] == loaded.model.config.image_token_id] = visual[0]
        with torch.no_grad():
            want = reader.lm_head(reader.language_model(inputs_embeds=embeds).last_hidden_state)
        assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_every_token_as_a_plain_llava() -> None:
    fused = build(STUDY, EVERY, 3)
    model, _ = as_llava(fused.model)
    picture = generate("scene", 0, "val")
    text = prompt(fused.processor, picture.questions[0].text)
    inputs = fused.processor(images=[picture.image], text=[text], return_tensors="pt")
    with torch.no_grad():
        assert_close(model(**inputs).logits, fused.model(**inputs).logits)


@pytest.mark.slow
def test_the_command_trains_what_is_missing(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "arms.json"
    file.write_text(json.dumps({
        "seeds": [0, 1], "steps": 1, "align": 0, "batch": 1, "train_shards": 1,
        "arms": [{"name": "concat", "projector": {"kind": "concat"}, "seeds": [1]},
                 {"name": "avgpool", "projector": {"kind": "avgpool"}}],
    }))  # fmt: skip
    study = Study.load(file)
    assert [(arm.name, seed) for arm, seed in study.runs()] == [
        ("concat", 1), ("avgpool", 0), ("avgpool", 1),
    ]  # fmt: skip
    command = [str(file), "--data", str(data), "--out", str(tmp_path), "--shard", "0/2"]
    main(command)
    made = [place(tmp_path, study.arm("concat"), 1), place(tmp_path, study.arm("avgpool"), 1)]
    assert sorted(tmp_path.glob("*/*/model/config.json")) == sorted(
        folder / "model" / "config.json" for folder in made
    )
    stamp = (made[0] / "state" / "state.safetensors").stat().st_mtime_ns
    main(command)
    assert (made[0] / "state" / "state.safetensors").stat().st_mtime_ns == stamp


def test_studies_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="keeper 'selecter'"):
        Arm("x", {"kernel": 1}, keeper="selecter")
    with pytest.raises(ConfigError, match="Expected kernel 1 where tokens are kept one by one: x"):
        Arm("x", keeper="random")
    file = tmp_path / "arms.json"
    with pytest.raises(ConfigError, match="Expected a study as JSON"):
        Study.load(file)
    for arms in ([], [{"projector": {}}]):
        file.write_text(json.dumps({"arms": arms}))
        with pytest.raises(ConfigError, match="Expected `arms`, each with a name"):
            Study.load(file)
    for raw, message in (
        ({"arms": [], "step": 3}, "study field 'step'.*Did you mean 'steps'"),
        ({"arms": [{"name": "x", "keep": 3}]}, "arm field 'keep'"),
    ):
        file.write_text(json.dumps(raw))
        with pytest.raises(UnknownNameError, match=message):
            Study.load(file)
    with pytest.raises(UnknownNameError, match=r"arm 'stp'.*Did you mean 'stf'"):
        STUDY.arm("stp")
