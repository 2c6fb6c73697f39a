"""Records that stand in the documents are of the weights that stand in the repository."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from tokensieve.evaluate.records import file_hash

ROOT = Path(__file__).parents[2]


def stale(folder: Path, root: Path) -> Iterator[str]:
    """Records whose weights lie in the repository and are others than those measured."""
    for path in sorted(folder.rglob("*.json")):
        config = json.loads(path.read_text(encoding="utf-8")).get("config", {})
        weights = config.get("options", {}).get("weights") or config.get("weights")
        measured = config.get("hashes", {}).get("method")
        if not isinstance(weights, str) or measured is None or not (root / weights).exists():
            continue
        if file_hash(root / weights) != measured:
            yield f"{path.relative_to(folder)}: made with other weights than {weights}"


def test_records_are_of_the_weights_that_ship() -> None:
    assert list(stale(ROOT / "results", ROOT)) == []


def test_the_check_bites(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "model.safetensors").write_bytes(b"new")
    record = {"config": {"options": {"weights": "weights"}, "hashes": {"method": "old"}}}
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "a.json").write_text(json.dumps(record))
    assert len(list(stale(tmp_path / "results", tmp_path))) == 1
    record["config"]["hashes"]["method"] = file_hash(tmp_path / "weights")
    (tmp_path / "results" / "a.json").write_text(json.dumps(record))
    assert list(stale(tmp_path / "results", tmp_path)) == []


def test_what_is_told_of_weights_is_no_part_of_their_hash(tmp_path: Path) -> None:
    def hash_of(config: object, card: str = "") -> str:
        (tmp_path / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        (tmp_path / "README.md").write_text(card)
        return file_hash(tmp_path)

    plain = hash_of({"depth": 1})
    assert hash_of({"depth": 1, "trained_by": {"objective": "surprise"}}, "a card") == plain
    assert hash_of({"depth": 2, "trained_by": {"objective": "surprise"}}) != plain
