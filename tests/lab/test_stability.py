"""Stability: the geometry of a crop, overlaps, and what records say of methods that never move."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from PIL import Image

from lab.studies.stability import measure as stability
from lab.studies.stability import page as stability_page
from lab.studies.stability.measure import AS_IT_WAS, CROP, WHOLE, Seen
from tokensieve.errors import InputError, UnknownNameError
from tokensieve.evaluate.records import read
from tokensieve.evaluate.tasks import load_tasks
from tokensieve.hf.families.fingerprint import encoder_info
from tokensieve.nn.selector import Selector, SelectorConfig
from toys.eval_tiny import tiny_subject

SUBJECT = tiny_subject()


def item(ordinal: int = 3) -> stability.Item:
    return load_tasks("plain", "val", ordinal + 1)[0].items[ordinal]


def test_tokens_of_the_whole_lie_where_they_are() -> None:
    assert stability.places(WHOLE).tolist() == list(range(256))


def test_a_token_of_a_crop_is_found_under_its_centre() -> None:
    """By a picture whose pixels say on which token they lie."""
    rows, columns = np.indices((192, 192)) // 12
    picture = np.stack([rows, columns, rows * 0], -1).astype(np.uint8)
    box = (9.0, 3.0, 185.0, 190.0)
    seen = np.asarray(
        Image.fromarray(picture).resize((192, 192), Image.Resampling.NEAREST, box=box)
    )
    centre = seen[6::12, 6::12].astype(int)
    want = centre[..., 0] * 16 + centre[..., 1]
    assert (stability.places(box).reshape(16, 16) == want).mean() > 0.95  # but for rounding


def test_crops_take_one_to_five_per_cent_of_each_side_and_repeat() -> None:
    image, box = stability.show(item(), CROP)
    again, same = stability.show(item(), CROP)
    assert image.size == (192, 192)
    assert box == same
    assert image.tobytes() == again.tobytes()
    cuts = np.array([box[0], box[1], 192 - box[2], 192 - box[3]]) / 192
    assert ((cuts >= 0.01) & (cuts <= 0.05)).all()
    assert stability.show(item(4), CROP)[1] != box


def test_brightness_scales_pixels() -> None:
    whole = np.asarray(item().image).astype(float)
    dark, box = stability.show(item(), "0.8")
    assert box == WHOLE
    assert abs(np.asarray(dark).mean() / whole.mean() - 0.8) < 0.01
    with pytest.raises(UnknownNameError, match="Unknown view"):
        stability.show(item(), "0.5")


def test_overlap() -> None:
    assert stability.overlap(frozenset({1, 2, 3}), frozenset({2, 3, 4})) == 0.5
    assert stability.overlap(frozenset(), frozenset()) == 1
    kept = frozenset({0, 17, 255})
    assert stability.look_again(kept, WHOLE) == kept
    assert stability.unpack_kept(stability.pack_kept([kept, frozenset({5})]), 2) == [
        kept, frozenset({5}),
    ]  # fmt: skip


def test_answers_are_those_of_generate() -> None:
    (task,) = load_tasks("plain", "val", 2)
    seen = stability.look(SUBJECT, task.items)[AS_IT_WAS]
    found = stability.answer(SUBJECT, seen, SUBJECT.bound("full", {}), 1.0, [0, 1])
    assert found.kept == [frozenset(range(256))] * 2
    inputs = dict(seen.encoded.inputs)
    with torch.inference_mode():
        out = SUBJECT.model.generate(**inputs, max_new_tokens=8, do_sample=False)
    length = inputs["input_ids"].shape[1]
    for row, answer in zip(out[:, length:].tolist(), found.answers, strict=True):
        assert row[: len(answer)] == answer


def test_kept_tokens_are_told_in_the_picture_as_it_was() -> None:
    (task,) = load_tasks("plain", "val", 1)
    seen = stability.look(SUBJECT, task.items)[AS_IT_WAS]
    box = (12.0, 12.0, 192.0, 192.0)  # as if the first row and column had been cut off
    method = SUBJECT.bound("stride", {})
    plain = stability.answer(SUBJECT, seen, method, 0.1, [0]).kept[0]
    moved = stability.answer(SUBJECT, Seen(seen.encoded, (box,)), method, 0.1, [0]).kept[0]
    assert moved == {int(stability.places(box)[i]) for i in plain}
    assert moved != plain


def test_records_and_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing moves, overlap and agreement are whole; random tokens are at chance."""
    monkeypatch.setattr(stability, "load_subject", lambda _: SUBJECT)
    monkeypatch.setattr(stability, "PEERS", ("stride", "random", "full"))
    monkeypatch.setattr(stability, "VIEWS", (AS_IT_WAS, "0.9"))
    monkeypatch.setattr(stability_page, "VIEWS", (AS_IT_WAS, "0.9"))
    info = replace(encoder_info(SUBJECT.model).at_embeds(), ffn=32)
    folders = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        folders.append(str(tmp_path / f"w{seed}"))
        Selector(SelectorConfig(encoder=info, depth=1)).eval().save_pretrained(folders[-1])
    config = stability.StabilityConfig(kinds=("plain",), keeps=(0.2,), pictures=4, batch=4)
    assert len(stability.run(config, tuple(folders), tmp_path / "r")) == 5
    assert stability.run(config, tuple(folders), tmp_path / "r") == []
    rows = {name: read(tmp_path / "r" / f"nano--{name}--0.json")["rows"][1]
            for name in ("stride", "random", "full")}  # fmt: skip
    assert rows["stride"]["overlap"] == 1
    assert 0 < rows["random"]["overlap"] < 0.3
    assert rows["full"]["keep"] == 1
    monkeypatch.setattr(stability_page, "CROP", "0.9")
    stability_page.write_page(tmp_path / "r", tmp_path)
    text = (tmp_path / "docs" / "results" / "stability.md").read_text()
    assert "| plain, 0.2, stride | 100.0 (100.0–100.0) |" in text
    assert "| plain, 1, full |" in text
    assert "one seed only" not in text
    with pytest.raises(InputError, match="Expected records"):
        stability_page.write_page(tmp_path / "none", tmp_path)
