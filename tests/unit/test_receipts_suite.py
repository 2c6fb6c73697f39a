"""What is kept of the words on a user's own documents."""

import csv
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from tokensieve.errors import ConfigError, InputError, PictureError, UnsupportedError
from tokensieve.evaluate import legible, tesseract
from tokensieve.evaluate.ask import Settings
from tokensieve.evaluate.cells import Cell, cells_of
from tokensieve.evaluate.legible import View, of_pictures
from tokensieve.evaluate.legible_table import lines_of, markdown, table
from tokensieve.evaluate.receipts import load_receipts, read_boxes
from tokensieve.evaluate.shown import pixels_of, shares
from tokensieve.hf.models.loaded import Loaded
from tokensieve.hf.report import CropReport, ImageReport
from tokensieve.viz.overlay import CropMask
from toys.llava_tiny import tiny_model, tiny_processor


@pytest.fixture(scope="module")
def tiny():
    """16 tokens a picture, of 48 pixels."""
    return Loaded("tiny", tiny_model(), tiny_processor())


@pytest.fixture
def folder(tmp_path):
    """Two pages of noise, 60 x 80 pixels, two lines of 10 pixels each."""
    for sub in ("img", "box"):
        (tmp_path / "data" / sub).mkdir(parents=True)
    for name in "ab":
        noise = np.random.default_rng(ord(name)).integers(0, 256, (80, 60, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "data" / "img" / f"{name}.jpg")
        told = [{"box": [5, 10, 50, 20], "text": "AB 12"}, {"box": [5, 50, 55, 60], "text": "CD"}]
        (tmp_path / "data" / "box" / f"{name}.json").write_text(json.dumps(told))
    return tmp_path / "data"


def test_sroies_own_files_say_the_same(tmp_path):
    (tmp_path / "a.txt").write_text("5,10,50,10,50,20,5,20,TOTAL, RM 3\n\n1,1,1,1,1,1,1,1,x\n")
    (tmp_path / "a.json").write_text('[{"box": [5, 10, 50, 20], "text": "TOTAL, RM 3"}]')
    for ending in ("txt", "json"):
        ((box, text),) = read_boxes(tmp_path / f"a.{ending}")
        assert (box.tolist(), text) == ([5, 10, 50, 20], "TOTAL, RM 3")
    (tmp_path / "b.txt").write_text("5,10,50,20,TOTAL\n")
    with pytest.raises(InputError, match="Expected boxes of text"):
        read_boxes(tmp_path / "b.txt")


def test_shares_match_a_slow_loop():
    rng = np.random.default_rng(0)
    fate = rng.integers(0, 3, 12).astype(np.uint8)
    masks = [CropMask((-3.0, 2.0, 21.0, 20.0), (3, 4), fate)]
    boxes = [(2, 3, 9, 11), (0, 0, 24, 24), (15, 15, 40, 40), (5, 5, 5, 9)]
    for merged in (False, True):
        seen = pixels_of((24, 24), masks, merged=merged)
        slow = np.zeros((24, 24), dtype=bool)
        for y in range(24):
            for x in range(24):
                row, column = int((y + 0.5 - 2) // 6), int((x + 0.5 + 3) // 6)
                if 0 <= row < 3 and 0 <= column < 4:
                    slow[y, x] = fate[row * 4 + column] >= (1 if merged else 2)
        np.testing.assert_array_equal(seen, slow)
        want = [slow[t:b, l:r].mean() if r > l else np.nan for l, t, r, b in boxes]  # noqa: E741
        np.testing.assert_allclose(shares(seen, np.array(boxes)), want)


def test_two_pictures_of_one_name_are_refused(folder):
    Image.new("RGB", (60, 80)).save(folder / "img" / "a.png")
    with pytest.raises(InputError, match=r"Got a\.jpg and a\.png"):
        load_receipts(folder)


def test_tiles_lie_where_they_were_cut(tiny, folder):
    """A page 60 wide, lines of 10: at 16 pixels a line two tiles of 48 share its width."""
    receipt = load_receipts(folder)[0]
    page = receipt.open()
    view = View.of(tiny, receipt, page, 16.0)
    assert (view.columns, len(view.pictures), view.scale) == (2, 6, 1.6)
    valid = torch.ones(16, dtype=torch.bool)
    for tile, token in ((0, 0), (1, 5), (3, 15)):
        kept = [torch.tensor([token] if tile == n else []).long() for n in range(6)]
        images = [ImageReport(16, len(k), 0, (CropReport((4, 4), valid, k),)) for k in kept]
        y, x = np.nonzero(view.kept(tiny, page, images))
        left = (tile % 2 * 48 + token % 4 * 12) / 1.6
        top = (tile // 2 * 48 + token // 4 * 12) / 1.6
        assert (x + 0.5).min() >= left and (x + 0.5).max() <= left + 7.5  # noqa: PT018
        assert (y + 0.5).min() >= top and (y + 0.5).max() <= top + 7.5  # noqa: PT018
        assert len(x) in range(49, 65)


def test_records_say_what_is_kept_and_are_made_once(tiny, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(tesseract, "there", lambda: True)
    monkeypatch.setattr(tesseract, "version", lambda: "tesseract 0")
    read = []

    def reading(page):
        read.append(page)
        return "AB CD"

    monkeypatch.setattr(tesseract, "read", reading)
    receipts, settings = load_receipts(folder), Settings()
    cells = list(of_pictures(cells_of(
        ["full", "none", "random", "avgpool", "downsample", "fastv"], [0.25], 2
    )))  # fmt: skip
    out = tmp_path / "records"
    files = legible.legible(tiny, receipts, cells, settings, out, 16.0)
    assert [file.name for file in files] == ["a.json", "b.json"]
    rows = json.loads(files[0].read_text())["rows"]
    full, first, second, merged, small, inside = rows
    assert (full["area"], full["words"], full["kept"], full["read"]) == (1, 1, 96, 0.6667)
    assert first["kept"] == second["kept"] == 24
    assert first["area"] != second["area"]  # seeds draw otherwise
    assert 0 < first["area"] < 0.7
    assert "which merges" in merged["refused"]
    assert "acts before the LLM" in inside["refused"]
    assert (small["read"], "area" in small) == (0.6667, False)
    grey = read[1]  # what the first draw left, painted over elsewhere
    assert (grey == np.median(read[0].reshape(-1, 3), axis=0).astype(np.uint8)).all(-1).mean() > 0.6
    asked = len(read)
    assert legible.legible(tiny, receipts, cells, settings, out, 16.0) == files
    assert len(read) == asked
    found = {line.method: line for line in lines_of(files)}
    assert found["random"].tokens == 24
    assert found["random"].found["area"].mean == pytest.approx(
        np.mean([[row["area"] for row in json.loads(f.read_text())["rows"][1:3]] for f in files])
    )
    assert "downsample, equal pixels | 0.25 |" in markdown(files)
    assert "refused: Expected a method that keeps" in markdown(files)
    assert next(csv.DictReader(io.StringIO(table(files))))["words"] == "1.0000"


def test_without_the_engine_the_table_says_so(tiny, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(tesseract, "there", lambda: False)
    cells = [Cell("full", 1.0), Cell("stride", 0.5), Cell("downsample", 0.5)]
    files = legible.legible(tiny, load_receipts(folder, 1), cells, Settings(), tmp_path / "out")
    assert "tesseract was not run" in markdown(files)
    box = [{"box": [5, 0, 50, 20], "text": "AB"}]  # half of it above the one crop of the middle
    (folder / "box" / "a.json").write_text(json.dumps(box))
    files = legible.legible(tiny, load_receipts(folder, 1), cells, Settings(), tmp_path / "out")
    assert json.loads(files[0].read_text())["rows"][0]["area"] == 0.5


def test_other_weights_in_the_same_place_are_measured_anew(tiny, folder, tmp_path):
    weights, cells = tmp_path / "w.safetensors", [Cell("selector", 0.5)]
    told = (load_receipts(folder, 1), cells, Settings(options={"weights": weights}))
    made = []
    for content in (b"one", b"two"):
        weights.write_bytes(content)
        (file,) = legible.legible(tiny, *told, tmp_path / "out")
        made.append(json.loads(file.read_text())["identity"])
    assert made[0] != made[1]


def test_what_receipts_cannot_be(tiny, folder, tmp_path):
    with pytest.raises(ConfigError, match="Name it: --receipts FOLDER"):
        load_receipts(None)
    with pytest.raises(ConfigError, match="Found none"):
        load_receipts(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="Expected shares for receipts"):
        list(of_pictures([Cell("downsample", 40)]))
    with pytest.raises(ConfigError, match="text height above 0"):
        legible.legible(tiny, [], [], Settings(), tmp_path / "out", -1.0)
    tiles = Loaded("tiles", tiny.model, tiny_processor())
    tiles.processor.image_processor.image_grid_pinpoints = [[48, 96]]
    receipt = load_receipts(folder)[0]
    with pytest.raises(UnsupportedError, match="Leave --text-height out"):
        View.of(tiles, receipt, receipt.open(), 16.0)
    (folder / "box" / "a.json").write_text('[{"box": [500, 500, 600, 600], "text": "x"}]')
    with pytest.raises(PictureError, match="cover nothing"):
        legible.legible(
            tiny, load_receipts(folder), [Cell("full", 1.0)], Settings(), tmp_path / "out"
        )
    (folder / "box" / "b.json").unlink()
    with pytest.raises(InputError, match="Add it, or leave the picture out"):
        load_receipts(folder)
