"""Why an answer was lost: its place dropped, or kept and misread."""

import csv
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from tokensieve.errors import ConfigError, InputError
from tokensieve.evaluate.ask import Settings
from tokensieve.evaluate.cells import Cell, run_cells
from tokensieve.evaluate.lost import CAUSES, cause_of, lost_of, markdown, overlays, table
from tokensieve.evaluate.questions import load_questions
from tokensieve.evaluate.receipts import Receipt
from tokensieve.evaluate.shown import region_seen
from tokensieve.hf.load import load_model
from tokensieve.hf.models.loaded import Loaded
from tokensieve.hf.report import CropReport, ImageReport
from toys.llava_tiny import tiny_model, tiny_processor


def image(kept, assign=None):
    valid = torch.ones(16, dtype=torch.bool)
    return ImageReport(16, len(kept), 0, (CropReport((4, 4), valid, torch.tensor(kept), assign),))


def test_the_region_seen_best_counts():
    """48 pixels in 4 x 4 tokens of 12; token 5 is at (12..24, 12..24)."""
    picture, processor = Image.new("RGB", (48, 48)), tiny_processor()
    near, far = ((12.0, 12.0, 24.0, 30.0),), ((0.0, 0.0, 12.0, 12.0), (36.0, 36.0, 48.0, 48.0))
    assert region_seen(processor, picture, [image([5])], [near]) == pytest.approx((12 / 18,) * 2)
    assert region_seen(processor, picture, [image([5, 0])], [near, far]) == pytest.approx(
        (12 / 18,) * 2
    )
    assert region_seen(processor, picture, [image([0, 15])], [near, far]) == (1.0, 1.0)
    assign = torch.full((16,), -1)
    assign[[9, 5]] = 5
    seen = region_seen(processor, picture, [image([5], assign)], [near])
    assert seen == pytest.approx((12 / 18, 1.0))
    outside = ((60.0, 0.0, 70.0, 9.0),)
    assert region_seen(processor, picture, [image([5])], [outside]) is None
    processor.image_processor.do_tiling = True  # cuts in a way that nobody knows
    assert region_seen(processor, picture, [image([5])], [near]) is None


def test_causes_are_told_apart():
    told = [cause_of(seen) for seen in ((0.95, 1), (0.5, 0.9), (0.2, 0.6), (0.1, 0.2), None)]
    assert told == ["misread", "merged", "part", "dropped", "unknown"]
    assert set(told) == set(CAUSES)


def written(folder, method, keep, rows):
    config = {"suite": "s", "model": "m", "method": method, "keep": keep, "seed": 0}
    rows = [{"group": "g", "score": score, "seen": seen} for score, seen in rows]
    file = folder / f"{method}--{keep:g}--0.json"
    file.write_text(json.dumps({"config": config, "rows": rows, "refused": ""}))
    return file


def test_only_what_all_tokens_answer_counts(tmp_path):
    files = [
        written(tmp_path, "full", 1, [(1, [1, 1]), (1, [1, 1]), (0, [1, 1]), (1, None)]),
        written(tmp_path, "none", 0, [(0, [0, 0])] * 4),
        written(tmp_path, "stride", 0.5, [(0, [0.2, 0.2]), (1, [0, 0]), (0, [0, 0]), (0, None)]),
    ]
    (one,) = lost_of(files)
    assert (one.method, one.answered, dict(one.causes)) == ("stride", 2, {"dropped": 1})
    assert "| `stride` | 0.5 | g | 2 | 1 | 1 | 0 | 0 | 0 | 0 |" in markdown(files)
    assert next(csv.DictReader(io.StringIO(table(files))))["dropped"] == "1"
    assert markdown(files[1:]) == ""  # all tokens were not asked


def test_nanos_pages_know_where_answers_stand_and_are_drawn(tmp_path):
    questions = load_questions("nano", 1)
    text = next(one for one in questions.items if one.group == "cluttered: text")
    ((left, top, right, bottom), *_), scene = text.regions[0], questions.items[-1]
    assert (right - left, bottom - top) == (12, 12)
    assert np.asarray(text.open())[int(top) : int(bottom), int(left) : int(right)].std() > 5
    assert scene.regions == ()
    nano, settings = load_model("nano"), Settings(max_new_tokens=6)
    files = run_cells(nano, questions, [Cell("full", 1.0), Cell("stride", 0.1)], settings, tmp_path)
    assert sum(one.causes["dropped"] for one in lost_of(files)) > 0
    assert overlays(nano, questions, files, settings, tmp_path / "lost", 1) == 1
    (drawn,) = (tmp_path / "lost").glob("stride--0.1--0--*.png")
    assert Image.open(drawn).width >= 384


def folder_of(tmp_path, key='{"total": "9.50", "company": "ACME  sdn", "note": "x"}'):
    for sub in ("img", "box", "key"):
        (tmp_path / sub).mkdir()
    Image.new("RGB", (60, 60), "white").save(tmp_path / "img" / "a.png")
    told = [{"box": [0, 0, 30, 10], "text": "Acme Sdn Bhd"},
            {"box": [0, 20, 9, 30], "text": "9.50"},
            {"box": [0, 40, 9, 50], "text": "RM 9.50"}]  # fmt: skip
    (tmp_path / "box" / "a.json").write_text(json.dumps(told))
    (tmp_path / "key" / "a.json").write_text(key)
    return tmp_path


def test_keys_of_receipts_are_asked_and_found_in_their_lines(tmp_path):
    questions = load_questions("keys", receipts=folder_of(tmp_path))
    total, company = questions.items
    assert (total.text, total.answers, total.metric, total.group) == (
        "What is the total?", ("9.50",), "anls", "total"
    )  # fmt: skip
    assert total.regions == (((0, 20, 9, 30),), ((0, 40, 9, 50),))
    assert company.regions == (((0, 0, 30, 10),),)
    split = Receipt("b", tmp_path, [(np.array([0, 0, 9, 9]), "1, LONG ROAD,"),
                                    (np.array([0, 9, 9, 18]), "SOME TOWN"),
                                    (np.array([0, 18, 9, 27]), "ELSEWHERE")])  # fmt: skip
    assert split.where("1, Long Road, Some Town") == (((0, 0, 9, 9), (0, 9, 9, 18)),)
    assert split.where("Atlantis") == ()


def test_a_number_within_a_longer_one_is_no_place_of_it(tmp_path):
    texts = ["19.50", "1,9.50", "9.505", "9.50.1", "RM9.50", "TOTAL: 9.50,", "9.50 9.50X"]
    receipt = Receipt("c", tmp_path, [(np.array([0, y, 9, y + 1]), t) for y, t in enumerate(texts)])
    assert [boxes[0][1] for boxes in receipt.where("9.50")] == [4, 5, 6]


def test_a_price_equal_to_the_total_is_not_the_total(tmp_path):
    lines = [((60, 10, 80, 20), "9.50"), ((0, 12, 40, 20), "SUBTOTAL TEA"),
             ((0, 30, 40, 40), "Total (RM):"), ((60, 32, 80, 42), "9.50"),
             ((0, 50, 40, 60), "CASH 9.50")]  # fmt: skip
    receipt = Receipt("d", tmp_path, [(np.array(box), text) for box, text in lines])
    assert receipt.where("9.50", "TOTAL") == (((60, 32, 80, 42),),)
    assert len(receipt.where("9.50")) == 3
    assert len(receipt.where("9.50", "SUM")) == 3  # no row has that word
    assert receipt.where("Total (RM):", "TOTAL") == (((0, 30, 40, 40),),)


def test_keys_that_are_not_there_are_told(tmp_path):
    folder = folder_of(tmp_path, key="{}")
    with pytest.raises(ConfigError, match="Add the files"):
        load_questions("keys", receipts=folder)
    (folder / "key" / "a.json").write_text("[1]")
    with pytest.raises(InputError, match="Mend the file"):
        load_questions("keys", receipts=folder)


def test_boxes_of_a_line(tmp_path):
    Image.new("RGB", (48, 48), "white").save(tmp_path / "a.png")
    line = {"image": "a.png", "question": "q", "answer": "7", "boxes": [[0, 0, 48, 48]]}
    file = tmp_path / "mine.jsonl"
    file.write_text(json.dumps(line))
    questions = load_questions(str(file))
    assert questions.items[0].regions == (((0, 0, 48, 48),),)
    tiny = Loaded("tiny", tiny_model(), tiny_processor())
    (made,) = run_cells(
        tiny, questions, [Cell("stride", 0.5)], Settings(max_new_tokens=1), tmp_path / "out"
    )
    (row,) = json.loads(made.read_text())["rows"]
    assert row["seen"] == [0.5, 0.5]
    for wrong in ([], [[0, 0, 0, 9]], [[1, 2, 3]], "here", [["a", 0, 1, 1]]):
        file.write_text(json.dumps(line | {"boxes": wrong}))
        with pytest.raises(InputError, match="Expected boxes as"):
            load_questions(str(file))
