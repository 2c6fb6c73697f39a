"""A question asked of pictures encoded once, and the page that shows it."""

import base64
import json
import re
from dataclasses import replace

import pytest
import torch
from PIL import Image

from tokensieve.errors import BudgetError, ConfigError
from tokensieve.evaluate.answer import Refused
from tokensieve.evaluate.ask import Settings, ask
from tokensieve.evaluate.pictures import open_all
from tokensieve.hf.load import load_model
from tokensieve.view.look import Look
from tokensieve.view.report import html_page, stops, write_report
from tokensieve.view.told import ask_all, data_url, page_data

SETTINGS = Settings(keep=0.2, max_new_tokens=4, options={"seed": 0})
QUESTION = "What is KR?"
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)> \u2028 & {{value}} ${value}"
DATA = re.compile(r'<script type="application/json" id="data">(.*?)</script>', re.S)


@pytest.fixture(scope="module")
def loaded():
    return load_model("nano")


@pytest.fixture(scope="module")
def picture():
    return open_all(["example:cluttered"])[0]


@pytest.fixture(scope="module")
def look(loaded, picture):
    return Look(loaded, picture, QUESTION, SETTINGS)


# one of each way: features, embeds, attention told, new tokens, no picture, inside and before the
# encoder, a smaller picture, inside the LLM, nothing dropped
@pytest.mark.parametrize(
    "method", ["selector", "divprune", "hiprune", "tome", "random", "pixelprune", "evit",
               "downsample", "fastv", "full", "none"],
)  # fmt: skip
def test_an_answer_is_that_of_ask(look, loaded, picture, method):
    mine, plain = look.ask(method, 0.2), ask(loaded, picture, QUESTION, method, SETTINGS)
    same = {"ms": {}, "images": (), "sure": 0.0}
    assert replace(mine, **same) == replace(plain, **same)
    assert mine.sure == pytest.approx(plain.sure, abs=1e-3)
    for one, other in zip(mine.images, plain.images, strict=True):
        for crop, as_asked in zip(one.crops, other.crops, strict=True):
            torch.testing.assert_close(crop.kept, as_asked.kept)


def test_the_encoder_runs_once(loaded, picture):
    runs = []
    tower = loaded.model.base_model.vision_tower
    with tower.register_forward_hook(lambda *_: runs.append(1)):
        look = Look(loaded, picture, QUESTION, SETTINGS)
        for keep in (0.1, 0.3):
            for method in ("selector", "divprune", "fastv", "full"):
                look.ask(method, keep)
        Look(loaded, picture, "Read XR.", SETTINGS, look.encoded).ask("selector", 0.3)
    assert len(runs) == 1


def test_scores_are_those_the_kept_tokens_lead(look):
    (scores,) = look.scores("feature-norm")
    kept = look.ask("feature-norm", 0.2).images[0].crops[0].kept
    assert set(scores[0].topk(len(kept)).indices.tolist()) == set(kept.tolist())
    assert look.scores("divprune") is None
    assert look.scores("fastv") is None


@pytest.mark.parametrize(
    ("keep", "label"), [(0.3, 0.3), (0.33, 0.33), (64, 64), (1, 1.0), (10_000, 10_000)]
)
def test_a_slider_stops_at_the_keep_asked_for_and_goes_up(keep, label):
    every, start = stops(keep, 256)
    assert every[start] == label
    shares = [one / 256 if one > 1 else one for one in every]
    assert shares == sorted(shares)
    with pytest.raises(BudgetError):
        stops(0, 256)


def test_page_data_says_what_was_kept(look, picture):
    asked = ask_all(look, ["feature-norm", "full"], [0.1, 0.4])
    data = page_data(look, asked, [0.1, 0.4], 1)
    json.dumps(data, allow_nan=False)
    (crop,) = data["pictures"][0]["crops"]
    assert crop == {"box": [0.0, 0.0, *picture.size], "grid": (16, 16)}
    scoring, full = data["methods"]
    assert [step["kept"] for step in scoring["steps"]] == [26, 102]
    assert len(full["steps"]) == 1
    assert len(scoring["scores"][0]) == 256
    for step in scoring["steps"]:
        (fate,) = step["fate"]
        assert sum(byte.bit_count() for byte in base64.b64decode(fate)) == step["kept"]


def test_a_refusal_is_shown_not_raised(look):
    (one,) = ask_all(look, ["conditional"], [0.2])
    assert isinstance(one.steps[0], Refused)
    data = page_data(look, [one], [0.2])
    assert data["methods"][0]["steps"][0] == {"refused": one.steps[0].reason}


def test_nothing_a_user_writes_becomes_markup(loaded, picture):
    look = Look(loaded, picture, EVIL, SETTINGS)
    page = html_page(page_data(look, ask_all(look, ["stride"], [0.2]), [0.2]))
    assert page.count("<script") == 2
    assert page.count("</script>") == 2
    assert "<img src=x" not in page
    assert json.loads(DATA.search(page)[1])["question"] == EVIL
    assert "default-src 'none'" in page
    assert not re.search(r"https?://|\bsrc=\"(?!data:)|@import|url\(", page.replace(EVIL, ""))


def test_a_page_is_one_small_file(look, tmp_path):
    size = write_report(tmp_path / "a.html", look, ["selector", "full"])
    assert (tmp_path / "a.html").stat().st_size == size
    assert size < 150_000
    assert [one.name for one in tmp_path.iterdir()] == ["a.html"]


def test_a_large_picture_is_shown_smaller():
    url = data_url(Image.effect_noise((4000, 1000), 80).convert("RGB"))
    assert url.startswith("data:image/jpeg;base64,")
    assert len(url) < 700_000


def test_ask_writes_a_report_and_refuses_other_names(tmp_path):
    from tokensieve.view.report import check_report_path

    with pytest.raises(ConfigError, match=r"Expected the name of a page"):
        check_report_path(tmp_path / "a.png")
    with pytest.raises(ConfigError, match="Expected a directory"):
        check_report_path(tmp_path / "none" / "a.html")
