"""Records as the papers print them, as plots a benchmark, and on what downsampling gets wrong."""

import csv
import io
import json

import pytest
from PIL import Image

from tokensieve.evaluate import compare, hard, layout, plots

GROUPS = ("docs", "docs", "$cenes", "$cenes")


def written(folder, method, keep, scores, seed=0, refused=""):
    config = {"suite": "s", "model": "m", "method": method, "keep": keep, "seed": seed}
    rows = [{"group": group, "score": score, "kept": 100 * keep, "ms": {"select": 1.0}}
            for group, score in zip(GROUPS, scores, strict=False)]  # fmt: skip
    file = folder / f"{method}--{keep:g}--{seed}.json"
    file.write_text(json.dumps({"config": config, "rows": rows, "refused": refused}))
    return file


@pytest.fixture
def files(tmp_path):
    return [
        written(tmp_path, "none", 0, (0, 0, 0, 1)),
        written(tmp_path, "full", 1, (1, 1, 1, 0)),
        written(tmp_path, "ours", 0.2, (1, 0.5, 1, 1)),
        written(tmp_path, "random", 0.2, (0, 0, 1, 0)),
        written(tmp_path, "random", 0.2, (1, 0, 0, 0), seed=1),
        written(tmp_path, "downsample", 0.2, (1, 0, 0, 1)),
        written(tmp_path, "wrong", 0.2, (), refused="No."),
    ]


def test_methods_down_benchmarks_across_and_the_share_of_full(files):
    groups, rows = layout.rows_of(files)
    assert groups == ["docs", "$cenes"]
    assert rows[0].method == "full"
    assert (rows[0].scores, rows[0].of_full) == ((1, 0.5), 1)
    ours = next(row for row in rows if row.method == "ours")
    assert (ours.scores, ours.of_full, ours.tokens) == ((0.75, 1), (0.75 + 2) / 2, 20)
    text = layout.markdown(files)
    assert "| method | keep | tokens | docs | $cenes | of full, % |" in text
    assert "| `ours` | 0.2 | 20 | 75.0 | 100.0 | 137.5 |" in text
    assert "| `wrong` | 0.2 | 0 |  |  |  |" in text
    read = {row["method"]: row for row in csv.DictReader(io.StringIO(layout.table(files)))}
    assert (read["ours"]["docs"], read["ours"]["of_full"]) == ("0.7500", "1.3750")
    assert layout.markdown([file for file in files if "full" not in file.name]).count("| |") == 0


def test_one_group_needs_no_layout_and_no_plots(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.GROUPS", ("docs", "docs"))
    files = [written(tmp_path, "full", 1, (1, 0)), written(tmp_path, "ours", 0.2, (1, 0))]
    assert layout.markdown(files) == ""
    assert not plots.by_group(files, tmp_path / "benchmarks.png")
    assert [row.of_full for row in layout.rows_of(files)[1]] == [1, 1]


def test_differences_to_random_are_in_pairs_with_a_test(files):
    lines = {one.method: one for one in compare.compared(files)}
    assert lines["ours"].to_random.mean == pytest.approx((0.5 + 0.5 + 0.5 + 1) / 4)
    assert 0.05 < lines["ours"].p < 0.2  # of 16 signs two are as far: 1/8
    assert lines["random"].to_random is None
    assert lines["full"].p is None
    assert lines["ours"].to_random.low > 0
    assert "to random, points" in compare.markdown(files)


def test_a_plot_a_benchmark(files, tmp_path):
    assert plots.by_group(files, tmp_path / "benchmarks.png")
    plots.curves(files, tmp_path / "curves.png")
    assert Image.open(tmp_path / "benchmarks.png").size[0] > 500


def test_only_what_downsampling_gets_wrong(files):
    found = {one.method: one for one in hard.hard_of(files)}
    assert sorted(found) == ["ours", "random"]
    ours, drawn = found["ours"], found["random"]
    assert (ours.number, ours.asked) == (2, 4)  # the fourth is wrong with all tokens too
    assert ours.score.mean == 0.75
    assert drawn.score.mean == 0.25
    assert "| `ours` | 0.2 | 2 | 50% | 75.0 [" in hard.markdown(files)
    assert hard.table(files).splitlines()[1].startswith("ours,0.2,2,4,0.7500")
    without = [file for file in files if "downsample" not in file.name]
    assert hard.markdown(without) == ""
    assert list(hard.hard_of([file for file in files if "full" not in file.name])) == []


def test_where_nothing_is_hard_there_is_no_score(tmp_path):
    files = [written(tmp_path, name, keep, (1, 1)) for name, keep in
             (("full", 1), ("downsample", 0.2), ("ours", 0.2))]  # fmt: skip
    (one,) = hard.hard_of(files)
    assert (one.number, one.score) == (0, None)
    assert "| `ours` | 0.2 | 0 | 0% |  |" in hard.markdown(files)
