"""The figure of nano's results and the README's table: of the records."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lab.report import quality
from lab.report.lead import AT, OURS, best_peer, present, untrained
from lab.studies.nano.page import PEERS, readme_block
from toys.figures import ROOT, board_of, check_readable


def test_the_figure_can_be_read() -> None:
    board, suite = board_of("lab/studies/nano/suite.json")
    peers, times = present(suite, (OURS, *PEERS)), quality.times_of(ROOT / "results")
    check_readable(quality.figure(board, suite, peers, best_peer(board, suite), times))


def test_the_best_peer_is_the_best_of_what_the_suite_has_untrained() -> None:
    board, suite = board_of("lab/studies/nano/suite.json")
    names = untrained(suite)
    assert {"divprune", "random", "downsample"} <= set(names)
    assert not {"full", "no-image", "oracle-text", OURS, "preset-wlie"} & set(names)
    reached = {name: board.overall("main", name, AT, suite.kinds) or 0.0 for name in names}
    assert reached[best_peer(board, suite)] == max(reached.values())
    small = replace(suite, variants=tuple(v for v in suite.variants if v.name != "divprune"))
    assert best_peer(board, small) == "pixel-variance"
    block = readme_block(board, small, {})
    assert f"| `pixel-variance`, the best of {len(names) - 1} untrained here |" in block
    assert "(docs/results/comparison.md)" in block


@pytest.mark.slow
def test_the_readmes_table_is_of_the_records() -> None:
    """If this fails: python -m lab.studies.nano.page"""
    board, suite = board_of("lab/studies/nano/suite.json")
    block = readme_block(board, suite, quality.times_of(ROOT / "results"))
    assert f"<!-- results:begin -->\n{block}\n<!-- results:end -->" in (
        ROOT / "README.md"
    ).read_text("utf-8")
