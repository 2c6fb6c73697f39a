"""Extraction inside the LLM: a question before each picture, exact, resumable, and trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch.testing import assert_close
from transformers.processing_utils import ProcessorMixin

from tokensieve import sieve
from tokensieve.data.extraction.extract import ExtractSettings, extract
from tokensieve.data.sources import open_source
from tokensieve.data.sources.questions import QuestionSource
from tokensieve.data.store.features import FeatureStore
from tokensieve.errors import ConfigError, InputError
from tokensieve.evaluate.prepare import prepared
from tokensieve.hf.families.fingerprint import llm_info
from tokensieve.methods.base import ScoringMethod
from tokensieve.methods.registry import get_method
from tokensieve.train.selector.run import train_selector
from tokensieve.types import Site
from toys.extract_tiny import contents, noise
from toys.real_processors import MAKERS
from toys.train_toys import small

SETTINGS = ExtractSettings(Site.LLM, "bfloat16", chunk=2, batch=2, workers=2, layer=2)
SIZES = [(40, 24), (30, 70)]
ASKED = [("0.png", "w20 w21"), ("1.png", "w30 w31 w32"), ("0.png", "w40 w41 w42 w43")]


@pytest.fixture
def maker(monkeypatch):
    monkeypatch.setattr(ProcessorMixin, "check_argument_for_proper_class", lambda *_: None)
    return lambda name: MAKERS[name]()


def written(folder: Path, asked=ASKED) -> Path:
    for i, size in enumerate(SIZES):
        noise(*size, seed=i).save(folder / f"{i}.png")
    lines = [json.dumps({"image": image, "question": text}) for image, text in asked]
    (folder / "asked.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "asked.jsonl"


def stored(loaded, file, out, settings=SETTINGS, **more):
    return extract(loaded, [QuestionSource(file)], out, settings, **more)


class Seen(ScoringMethod):
    """Keeps what it was shown."""

    site: ClassVar[Site] = Site.LLM
    shown: ClassVar[list[Any]] = []

    def scores(self, vision, text=None):
        self.shown.append(vision.tokens)
        return vision.tokens.mean(-1)


@pytest.mark.parametrize("name", ["siglip", "next", "internvl", "qwen"])
def test_what_is_stored_is_what_a_method_sees_there(name, maker, tmp_path):
    loaded = maker(name)
    summary = stored(loaded, written(tmp_path), tmp_path / "store")
    assert (summary.pictures, summary.skipped) == (3, 0)
    store = FeatureStore([tmp_path / "store"])
    assert store.encoder == llm_info(loaded.model, 2)
    row = 0
    for image, question in ASKED:
        number = int(image[0])
        picture = noise(*SIZES[number], seed=number)
        inputs = prepared(loaded, picture, question, in_front=True)
        Seen.shown.clear()
        with sieve(loaded.model, Seen(), keep=0.5, layer=2), torch.no_grad():
            loaded.model(**inputs)
        crops = torch.cat(Seen.shown)
        batch = store.batch(torch.arange(row, row + len(crops)))
        row += len(crops)
        assert_close(batch.features, crops, rtol=1e-2, atol=2e-2)
    assert row == len(store)


def test_another_question_makes_other_states(maker, tmp_path):
    """The check above bites: states of one picture differ by what is asked."""
    loaded = maker("qwen")
    stored(loaded, written(tmp_path), tmp_path / "store")
    rows = contents(tmp_path / "store")[1]
    assert [row["key"] for row in rows] == ["0.png@1", "1.png@2", "0.png@3"]
    batch = FeatureStore([tmp_path / "store"]).batch(torch.tensor([0, 2])).features
    assert (batch[0] - batch[1]).abs().max() > 0.05


def test_it_goes_on_where_it_stopped(maker, tmp_path):
    loaded, file = maker("qwen"), written(tmp_path)
    stored(loaded, file, tmp_path / "whole")
    stored(loaded, file, tmp_path / "parts")
    (tmp_path / "parts" / "shard-000001.safetensors").unlink()
    (tmp_path / "parts" / "manifest.parquet").unlink()
    stored(loaded, file, tmp_path / "parts")
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_another_question_layer_or_template_is_another_store(maker, tmp_path):
    loaded, file = maker("siglip"), written(tmp_path)
    stored(loaded, file, tmp_path / "store")
    (tmp_path / "b").mkdir()
    other = written(tmp_path / "b", [(image, "w50 w51") for image, _ in ASKED])
    with pytest.raises(ConfigError, match=r"listing\.hash"):
        stored(loaded, other, tmp_path / "store")
    first = ExtractSettings(Site.LLM, "bfloat16", chunk=2, batch=2, workers=2, layer=1)
    with pytest.raises(ConfigError, match=r"encoder\.layer=1"):
        stored(loaded, file, tmp_path / "store", first)
    loaded.processor.chat_template = (
        "{% for c in messages[0]['content'] %}{{ c['text'] if c['type'] == 'text' else '<image>' }}"
        " w9 {% endfor %}"
    )
    with pytest.raises(ConfigError, match="prompt="):
        stored(loaded, file, tmp_path / "store")


def test_a_picture_that_is_missing_is_skipped_and_read_once_it_is_there(maker, tmp_path):
    loaded, file = maker("siglip"), written(tmp_path)
    picture = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").unlink()
    summary = stored(loaded, file, tmp_path / "store")
    assert (summary.skipped, summary.skipped_first[0][0]) == (1, "asked/1.png@2")
    (tmp_path / "1.png").write_bytes(picture)
    summary = stored(loaded, file, tmp_path / "store", retry_skipped=True)
    assert summary.skipped == 0
    stored(loaded, file, tmp_path / "whole")
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("no", "Expected JSON in line 4"),
        ("[" * 100_000, "Expected JSON in line 4"),
        ("7", "Expected image and question as text in line 4"),
        ('{"image": "0.png"}', "Expected image and question as text in line 4"),
        ('{"image": "0.png", "question": " "}', "Expected image and question as text in line 4"),
        ('{"image": "0.png", "question": "w1 <image>"}', "without the placeholder <image>"),
    ],
    ids=["text", "deep", "number", "no question", "empty", "placeholder"],
)
def test_a_line_that_is_wrong_is_told_before_anything_is_written(line, said, maker, tmp_path):
    file = written(tmp_path)
    file.write_text(file.read_text() + line + "\n")
    with pytest.raises(InputError, match=said):
        stored(maker("siglip"), file, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_files_that_hold_no_questions_are_refused(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe")
    for name in ("empty.jsonl", "bytes.jsonl", "nowhere.jsonl", "a\0b", "."):
        with pytest.raises(ConfigError, match=r"Expected .*question"):
            QuestionSource(tmp_path / name)


def test_settings_that_do_not_fit_are_refused(maker, tmp_path):
    with pytest.raises(ConfigError, match=r"Expected a layer with the site 'llm'.*Got the site"):
        ExtractSettings(Site.LLM)
    with pytest.raises(ConfigError, match=r"Expected a layer with the site 'llm'"):
        ExtractSettings(layer=1)
    loaded, file = maker("siglip"), written(tmp_path)
    with pytest.raises(ConfigError, match=r"from 1 to 2 .* Got 3"):
        stored(loaded, file, tmp_path / "store", ExtractSettings(Site.LLM, layer=3))
    with pytest.raises(ConfigError, match=r"Expected a file of questions with the site 'llm'"):
        extract(loaded, [open_source(str(tmp_path / "0.png"))], tmp_path / "store", SETTINGS)
    with pytest.raises(ConfigError, match=r"Expected a file of questions with the site 'llm'"):
        stored(loaded, file, tmp_path / "store", ExtractSettings())
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("name", ["siglip", "internvl", "qwen"])
def test_a_selector_is_trained_on_it_and_chooses_there(name, maker, tmp_path):
    loaded = maker(name)
    stored(loaded, written(tmp_path, ASKED * 4), tmp_path / "store")
    store = FeatureStore([tmp_path / "store"])
    train_selector(store, small(store, "train.steps=2", "train.batch=4"), tmp_path / "run")
    method = get_method("conditional", weights=str(tmp_path / "run" / "selector"))
    inputs = prepared(loaded, noise(40, 24), "w20 w21", in_front=True)
    with sieve(loaded.model, method, keep=0.5) as report, torch.no_grad():
        loaded.model(**inputs)
    assert 0 < report.kept_tokens < report.visual_tokens
    whole = report.visual_tokens
    assert report.calls[0].tokens_by_layer(3) == [whole, whole, report.kept_tokens]
