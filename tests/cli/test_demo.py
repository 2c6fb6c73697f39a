"""The demo and the pictures it asks about."""

import json

import numpy as np
import pytest
from PIL import Image

from tokensieve.data.synth import shipped
from tokensieve.data.synth.shipped import PICTURES, QUESTIONS, make, shipped_pictures
from tokensieve.errors import TokensieveError, UnknownNameError
from tokensieve.evaluate import demo
from tokensieve.evaluate.answer import Answer


def test_shipped_pictures_are_what_the_generator_makes(tmp_path):
    make(tmp_path)
    for one in shipped_pictures():
        again = Image.open(tmp_path / one.path.name)
        np.testing.assert_array_equal(np.asarray(again), np.asarray(one.image))
        told = json.loads((tmp_path / f"{one.name}.json").read_text(encoding="utf-8"))
        pairs = tuple((q["question"], q["answer"]) for q in told["questions"])
        assert pairs == one.questions


def test_every_shipped_picture_has_questions_on_all_it_shows():
    found = shipped_pictures()
    assert [one.name for one in found] == list(PICTURES)
    assert all(len(one.questions) == QUESTIONS for one in found)
    mixed = dict(zip(PICTURES, found, strict=True))["mixed"].questions
    text = [answer for _, answer in mixed if answer.isdigit() and len(answer) == 3]
    assert 0 < len(text) < QUESTIONS


def test_a_picture_that_is_not_shipped_is_an_error(monkeypatch):
    monkeypatch.setattr(shipped, "asset_path", lambda name: shipped.Path("/gone"))
    with pytest.raises((TokensieveError, OSError)):
        shipped_pictures()
    with pytest.raises(UnknownNameError, match="Unknown kind of picture 'poster'"):
        shipped.generate("poster", 0)


def answer(method, text, kept):
    return Answer(
        answer=text, model="nano", method=method, keep=0.4, visual_tokens=256, kept_tokens=kept,
        prompt_tokens=kept + 8, new_tokens=4, kv_bytes=123_456, llm_flops=9_876_543_210, flops={},
        sure=1.0, ms={"encode": 1.0, "select": 2.25, "prefill": 33.0, "decode": 444.0},
    )  # fmt: skip


def test_the_table_tells_right_from_wrong_in_80_columns(capsys):
    picture = shipped_pictures()[0]
    answers = [answer("full", "417", 256), answer("selector", "417", 102),
               answer("random", "red blue", 102), answer("none", "", 0)]  # fmt: skip
    asked = [(picture, "What is the background colour?", "417", answers)]
    demo.show(demo.demo_table(asked), demo.summary(asked))
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80
    rows = {line[:13].strip(): line for line in lines if "/256" in line}
    assert list(rows) == ["all tokens", "selector", "random", "no image"], out
    assert " yes " in rows["selector"]
    assert " no " in rows["random"]
    assert "102/256" in rows["selector"]
    assert "123 kB" in rows["selector"]
    assert "9.88 G" in rows["selector"]
    assert "all tokens 1/1, selector 1/1, random 0/1, no image 0/1" in out.replace("\n", " ")


def test_case_and_space_do_not_make_an_answer_wrong():
    assert demo.is_right(answer("full", " Red ", 1), "red")
    assert not demo.is_right(answer("full", "red blue", 1), "red")
    assert not demo.is_right(answer("full", "", 1), "red")


def test_the_demo_asks_everything_and_writes_its_sheet(monkeypatch, model_dir, tmp_path, capsys):
    loaded = demo.load_model(str(model_dir))
    monkeypatch.setattr(demo, "METHODS", ("full", "stride", "none"))
    monkeypatch.setattr(demo, "load_model", lambda name: loaded)
    monkeypatch.setattr(demo, "shipped_pictures", lambda: shipped_pictures()[:2])
    demo.main(tmp_path / "new" / "demo.png")
    out = capsys.readouterr().out
    assert f"0/{2 * QUESTIONS}" in out
    assert out.count("16/16") == 2 * QUESTIONS
    with Image.open(tmp_path / "new" / "demo.png") as page:
        assert page.width == 4 * (384 + 14) + 14
        assert page.height > 2 * 384
