"""keep="auto": the binomial test by hand, its coverage, and what a sieve does with a file of it."""

import json
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from tokensieve import compress, load_nano, sieve
from tokensieve.assets import asset_path
from tokensieve.data.pictures.decode import open_picture
from tokensieve.errors import ConfigError, UnknownNameError
from tokensieve.evaluate.again import ask_until_sure
from tokensieve.evaluate.ask import Settings
from tokensieve.evaluate.calibrate import Promise, calibrate, certified
from tokensieve.evaluate.questions import load_questions
from tokensieve.hf.calibrated import (
    ALLOWED,
    RECENT,
    Calibration,
    Look,
    Tried,
    Watch,
    weights_of,
)
from tokensieve.hf.load import load_model

KEEPS = (0.8, 0.6, 0.4, 0.2)


def test_the_chance_of_so_few_by_hand():
    """Three throws of a coin: none 1/8, at most one 4/8, at most three certain."""
    coin = Promise(max_loss=0.5, confidence=0.9)
    assert [coin.chance(k, 3) for k in (0, 1, 3)] == pytest.approx([1 / 8, 4 / 8, 1])
    assert not coin.holds(0, 3)  # .125 is above .1
    assert coin.holds(0, 4)  # .0625 is not
    assert coin.fewest == 4
    assert Promise(0.02, 0.95).fewest == 149  # .98^149 = .0493, .98^148 = .0503


def test_the_first_that_fails_ends_it():
    promise = Promise(0.5, 0.9)
    keep, tried = certified(promise, [(0.8, 4, 0), (0.6, 4, 1), (0.4, 4, 0)])
    assert (keep, [one.keep for one in tried]) == (0.8, [0.8, 0.6])
    assert certified(promise, [(0.8, 4, 1), (0.6, 4, 0)])[0] == 1.0


def chosen_in(draws, risks, promise, holds):
    """The share of draws of 300 questions in which a keep was chosen that loses too much."""
    rng, wrong = np.random.default_rng(0), 0
    for _ in range(draws):
        where_N = rng.random(300)  # a question that differs at a keep differs at smaller ones
        counts = [(k, 300, int((where_N < r).sum())) for k, r in zip(KEEPS, risks, strict=True)]
        keep, _ = certified(holds(promise), counts)
        wrong += keep != 1 and risks[KEEPS.index(keep)] > promise.max_loss
    return wrong / draws


@pytest.mark.parametrize("risks", [(0.0, 0.01, 0.051, 0.3), (0.04, 0.051, 0.055, 0.06)])
def test_it_is_wrong_no_more_often_than_promised(risks):
    """1,000 draws; the worst risks are those just above what is allowed."""
    promise = Promise(0.05, 0.9)
    assert chosen_in(1000, risks, promise, lambda one: one) <= 0.1 + 0.02

    class Hopeful(Promise):
        """What it would be without a test: the share that was seen."""

        def holds(self, differed, asked):
            return differed / asked <= self.max_loss

    assert chosen_in(1000, risks, promise, lambda one: Hopeful(**vars(one))) > 0.3


def test_promises_that_cannot_be():
    for wrong in ({"max_loss": 0.0}, {"max_loss": 1.0}, {"confidence": 1.5}):
        with pytest.raises(ConfigError, match="between 0 and 1"):
            Promise(**wrong)


@pytest.fixture(scope="module")
def nano():
    return load_model("nano")


@pytest.fixture
def suite(tmp_path):
    """Twelve questions without answers about two shipped pictures."""
    rows = []
    for name in ("cluttered", "scene"):
        (tmp_path / f"{name}.png").write_bytes(
            (asset_path("pictures") / f"{name}.png").read_bytes()
        )
        told = json.loads((asset_path("pictures") / f"{name}.json").read_text())["questions"]
        rows += [
            {"image": f"{name}.png", "question": told[k % len(told)]["question"], "group": name}
            for k in range(6)
        ]
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return load_questions(str(file), answered=False)


def test_a_calibration_made_kept_and_used(nano, suite, tmp_path):
    promise = Promise(0.5, 0.9, keeps=(0.5, 0.8))
    found = calibrate(nano, suite, "selector", promise, Settings(max_new_tokens=6), tmp_path / "r")
    assert found.keep == {"all": 0.5, "cluttered": 0.5, "scene": 0.5}
    assert [one.asked for one in found.tried["all"]] == [12, 12]
    found.to_file(tmp_path / "cal.json")
    assert Calibration.load(tmp_path / "cal.json") == found
    page = open_picture(asset_path("pictures") / "page.png")
    inputs = nano.processor(images=page, text="<image>What?<answer>", return_tensors="pt")
    file = tmp_path / "cal.json"
    with sieve(nano.model, "selector", keep="auto", calibration=file) as report:
        nano.model.generate(**inputs, max_new_tokens=2)
    assert report.kept_tokens == 128
    small = compress(nano.model, inputs, "selector", "auto", calibration=file, group="scene")
    assert small.report.kept_tokens == 128
    for wrong, told in (
        ({"method": "divprune"}, "Expected the method 'selector'"),
        ({"positions": "renumber"}, "another positions"),
        ({"rule": "top"}, "another rule"),
    ):
        arguments = {"method": "selector", "keep": "auto", "calibration": file} | wrong
        with pytest.raises(ConfigError, match=told), sieve(nano.model, **arguments):
            pass
    with (
        pytest.raises(UnknownNameError, match="all, cluttered, scene"),
        sieve(nano.model, "selector", keep="auto", calibration=file, group="pages"),
    ):
        pass


def test_asking_again_counts_what_is_left_to_differ(nano, suite, tmp_path):
    """Of 12 answers at .5 ten differ, half of them unsure: five are left."""
    settings, made = Settings(max_new_tokens=6), tmp_path / "r"
    promise = Promise(0.5, 0.9, keeps=(0.8, 0.5))
    calibrate(nano, suite, "random", promise, settings, made)
    full, *fewer = (made / f"{name}--0.json" for name in ("full--1", "random--0.8", "random--0.5"))
    wanted = [row["answer"] for row in json.loads(full.read_text())["rows"]]
    for file in fewer:
        record = json.loads(file.read_text())
        for k, row in enumerate(record["rows"]):
            row["answer"] = wanted[k] + ("x" if k < 10 else "")
            row["sure"] = 0.9 if k < 5 else 0.1
        file.write_text(json.dumps(record))
    once = calibrate(nano, suite, "random", promise, settings, made)
    again = calibrate(nano, suite, "random", replace(promise, sure=0.8), settings, made)
    assert [(one.tried["all"][0].differed, one.sure) for one in (once, again)] == [
        (10, None), (5, 0.8)
    ]  # fmt: skip
    again.to_file(tmp_path / "again.json")
    assert Calibration.load(tmp_path / "again.json") == again
    with (
        pytest.raises(ConfigError, match="ask_until_sure asks again"),
        sieve(nano.model, "random", keep="auto", calibration=again),
    ):
        pass
    page = open_picture(asset_path("pictures") / "page.png")
    with pytest.raises(ConfigError, match="Got one of answers asked once"):
        ask_until_sure(nano, page, "What?", "random", settings, once)
    told = replace(again, keep={"all": 0.25, "scene": 0.5}, sure=1.0)
    first, second = ask_until_sure(nano, page, "What?", "random", settings, told)
    assert (first.kept_tokens, second.kept_tokens) == (64, 256)
    assert ask_until_sure(nano, page, "What?", "random", settings, told, "scene")[0].keep == 0.5
    with pytest.raises(ConfigError, match="Expected `sure`"):
        Promise(0.5, 0.9, sure=1.5)


def test_another_model_is_refused(nano, suite, tmp_path):
    found = Calibration("selector", {"positions": "keep", "pool": "crop", "newlines": "keep"},
                        "0" * 16, 0.1, 0.9, {"all": 0.5}, {"all": ()})  # fmt: skip
    with (
        pytest.raises(ConfigError, match="Got other weights"),
        sieve(nano.model, "selector", keep="auto", calibration=found),
    ):
        pass
    model, _ = load_nano()
    before = weights_of(model)
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    assert weights_of(model) != before  # hashed again once it was written to


def test_auto_and_a_file_go_together(nano, tmp_path):
    for arguments in ({"keep": "auto"}, {"keep": 0.5, "calibration": tmp_path / "a.json"}):
        with (
            pytest.raises(ConfigError, match="together"),
            sieve(nano.model, "selector", **arguments),
        ):
            pass
    (tmp_path / "a.json").write_text('{"keep": 1}')
    with (
        pytest.raises(ConfigError, match="Expected a calibration"),
        sieve(nano.model, "selector", keep="auto", calibration=tmp_path / "a.json"),
    ):
        pass


def test_too_few_questions_say_how_many_are_needed(nano, suite, tmp_path):
    with pytest.raises(ConfigError, match="Expected 149 questions"):
        calibrate(nano, suite, "stride", Promise(), Settings(), tmp_path / "r")
    for keeps in ((), (1.0,), (0.0, 0.5)):
        with pytest.raises(ConfigError, match="shares below 1"):
            Promise(keeps=keeps)


def test_how_rare_a_picture_is_by_hand():
    """Distances .5, 1, 1.5 and 2 of those measured: 1.2 is reached by two of four, and itself."""
    look = Look((0.0, 0.0), (1.0, 2.0), (0.5, 1.0, 1.5, 2.0))
    # each width on its own spread: sqrt((1.2^2 + (2.4/2)^2) / 2) = 1.2
    assert look.rare(torch.tensor([1.2, 2.4])) == pytest.approx(3 / 5)
    assert look.rare(torch.tensor([9.0, 9.0])) == pytest.approx(1 / 5)


def test_pictures_that_look_like_others_are_told_once(caplog):
    torch.manual_seed(0)
    watch = Watch(Look.of(torch.randn(400, 8)))
    own, other = torch.randn(200, 1, 8), torch.randn(60, 1, 8) + 3
    with caplog.at_level(logging.WARNING, logger="tokensieve"):
        for picture in own:
            watch.see([picture])
        assert caplog.records == []
        for number, picture in enumerate(other):
            watch.see([picture])
            if number > ALLOWED:
                assert len(caplog.records) == 1
    assert f"of the last {RECENT}" in caplog.text


def test_an_unknown_field_is_no_calibration(tmp_path):
    made = Calibration("stride", {}, "0", 0.1, 0.9, {"all": 0.5}, {"all": (Tried(0.5, 1, 0, 1.0),)})
    made.to_file(tmp_path / "a.json")
    assert Calibration.load(tmp_path / "a.json") == replace(
        made, tried={"all": (Tried(0.5, 1, 0, 1.0),)}
    )
    told = json.loads((tmp_path / "a.json").read_text()) | {"more": 1}
    (tmp_path / "a.json").write_text(json.dumps(told))
    with pytest.raises(ConfigError, match="Expected a calibration"):
        Calibration.load(tmp_path / "a.json")
