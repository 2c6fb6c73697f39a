"""What the changelog says of the next release is there."""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]


def gone(changelog: str, root: Path) -> Iterator[str]:
    """Pages named under "Unreleased" that do not exist."""
    unreleased = changelog.partition("## [Unreleased]")[2].partition("\n## [")[0]
    for name in re.findall(r"\bdocs/[\w./-]*\w", unreleased):
        if not (root / name).exists():
            yield name


def test_pages_of_the_next_release_are_there() -> None:
    assert list(gone((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), ROOT)) == []


def test_a_page_that_is_gone_is_told(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").touch()
    text = "## [Unreleased]\n- docs/a.md, docs/b/c.md.\n## [0.1.0] - 2026-01-01\n- docs/d.md\n"
    assert list(gone(text, tmp_path)) == ["docs/b/c.md"]
