"""The study of mirrored pictures: its views, its overlaps, its page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lab.studies.mirror import measure as mirror
from lab.studies.mirror.page import write_page
from tokensieve.errors import InputError
from tokensieve.types import VisionTokens


def test_views_of_a_picture() -> None:
    image = np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 4, 3)
    seen = dict(mirror.views(image, 1))
    assert (seen[mirror.MIRRORED][:, 0] == image[:, 3]).all()
    assert (seen[mirror.MOVED][:, 1:] == image[:, :3]).all()
    assert (seen[mirror.MOVED][:, 0] == image[:, 0]).all()


def test_sets_are_laid_on_each_other_where_both_views_show_the_token() -> None:
    was = torch.tensor([[True, False, False], [True, False, True]])
    assert mirror.overlap(was, was.flip(1), mirror.MIRRORED) == 1
    assert mirror.overlap(was, was, mirror.MIRRORED) == 0.5
    moved = torch.tensor([[True, True, False], [True, True, False]])  # the last column went out
    assert mirror.overlap(was, moved, mirror.MOVED) == 1
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    assert mirror.overlap(nothing, nothing, mirror.MOVED) == 1


def test_scores_go_with_their_tokens() -> None:
    def look(scores: list[float]) -> mirror.Look:
        return mirror.Look(VisionTokens(torch.zeros(1, 4, 2)), torch.tensor([scores]))

    own, seen = look([1, 2, 3, 4]), look([9, 8, 7, 6])
    assert mirror.as_seen(own, seen, mirror.MIRRORED).tolist() == [[2, 1, 4, 3]]
    assert mirror.as_seen(own, seen, mirror.MOVED).tolist() == [[9, 1, 7, 3]]


def test_the_page_is_made_of_what_was_measured(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Run python -m lab\.studies\.mirror\.measure"):
        write_page(tmp_path / "none", tmp_path)
    mirror.main(["--models", "nano", "--pictures", "1", "--out", str(tmp_path / "mirror"),
                 "--root", str(tmp_path)])  # fmt: skip
    text = (tmp_path / "docs/results/mirror.md").read_text()
    assert "`nano`, mean of plain, cluttered, scene, mixed:" in text
    assert "| mirrored, top |" in text
    assert "| moved by a patch, scene |" in text
