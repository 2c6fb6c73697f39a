"""What counts as the same record."""

from __future__ import annotations

import json
from pathlib import Path

from lab.same import other_records

RECORD = {"identity": "a", "config": {"model": "nano+old/reader.safetensors", "seed": 0,
                                      "options": {"weights": "old/place"}},
          "rows": [{"right": 7, "n": 9}]}  # fmt: skip


def write(folder: Path, record: object) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "one.json").write_text(json.dumps(record))


def test_weights_may_move_and_nothing_else_may(tmp_path: Path) -> None:
    write(tmp_path / "old", RECORD)
    moved = json.loads(json.dumps(RECORD).replace("old/", "new/")) | {"identity": "b"}
    write(tmp_path / "new", moved)
    assert list(other_records(tmp_path / "old", tmp_path / "new")) == []
    for key, value in {"right": 6, "seed": 1, "n": 8}.items():
        text = json.dumps(moved).replace(f'"{key}": {({**RECORD["rows"][0], "seed": 0})[key]}',
                                         f'"{key}": {value}')  # fmt: skip
        write(tmp_path / "new", json.loads(text))
        assert list(other_records(tmp_path / "old", tmp_path / "new")) == ["one.json"], key


def test_a_record_that_is_gone_is_told(tmp_path: Path) -> None:
    write(tmp_path / "old", RECORD)
    (tmp_path / "new").mkdir()
    assert list(other_records(tmp_path / "old", tmp_path / "new")) == ["one.json"]
