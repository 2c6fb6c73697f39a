"""Adaptive counts against fixed ones of the same average: records, tables and their arithmetic."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from lab.studies.adaptive import measure as adaptive
from lab.studies.adaptive import page as adaptive_page
from tokensieve.data.synth import generate
from tokensieve.errors import ConfigError, InputError, UnknownNameError
from tokensieve.evaluate.records import read, write
from tokensieve.evaluate.score import prepare, score
from tokensieve.evaluate.stats import pack_counts, spearman, unpack_counts, unpack_hits
from tokensieve.evaluate.tasks import load_tasks
from tokensieve.hf.families.fingerprint import encoder_info
from tokensieve.nn.ranking import calibrate
from tokensieve.nn.selector import Selector, SelectorConfig
from toys.eval_tiny import tiny_subject

SUBJECT = tiny_subject()
SMALL = adaptive.AdaptiveConfig(kinds=("plain", "mixed"), keeps=(0.1, 0.3), pictures=4, batch=4)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two calibrated selectors of the tiny model."""
    folders = []
    info = replace(encoder_info(SUBJECT.model).at_embeds(), ffn=32)
    for seed in (0, 1):
        torch.manual_seed(seed)
        selector = Selector(SelectorConfig(encoder=info, depth=1, rule="diverse")).eval()
        calibrate(selector, [torch.randn(6, 256, info.width)])
        folders.append(str(tmp_path_factory.mktemp("w") / str(seed)))
        selector.save_pretrained(folders[-1])
    return folders


@pytest.fixture(scope="module")
def folder(weights: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("records")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adaptive, "load_subject", lambda _: SUBJECT)
        patch.setattr(adaptive, "PAGES", ("plain", "dense", "cluttered", "scene", "mixed"))
        config = replace(SMALL, weights=tuple(weights))
        assert len(adaptive.run(config, out)) == 2
        assert adaptive.run(config, out) == []  # made once
    return out


@pytest.mark.slow
def test_counts_of_records_are_those_of_the_sieve(folder: Path, weights: list[str]) -> None:
    record = read(folder / "nano--0.json")
    method = SUBJECT.bound("selector", {"weights": weights[0], "counts": "adaptive"})
    (task,) = load_tasks("plain", "test", 4)
    batch = prepare(SUBJECT.model, SUBJECT.processor, task.items)
    for row in (row for row in record["rows"] if row["kind"] == "plain"):
        kept = unpack_counts(row["kept"])
        assert score(SUBJECT.model, batch, method, row["keep"], positions="keep").kept_tokens == (
            kept.sum()
        )
        assert row["kept_tokens"] == pytest.approx(kept.mean(), abs=1e-3)
        budget = round(256 * row["keep"])
        assert (budget + 1) // 2 <= kept.min() <= kept.max() <= 2 * budget
        low = math.floor(row["average_tokens"])
        assert set(row["fixed_hits"]) == {str(low), str(low + 1)}


def test_the_average_is_over_kinds_alike(folder: Path) -> None:
    rows = [row for row in read(folder / "nano--1.json")["rows"] if row["keep"] == 0.1]
    kept = {row["kind"]: unpack_counts(row["kept"]).mean() for row in rows}
    assert len(rows) == 3  # mixed pictures are asked twice, and counted once
    assert rows[0]["average_tokens"] == pytest.approx(np.mean(list(kept.values())), abs=1e-3)


def test_the_page_says_everything(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    adaptive_page.write_page(folder, tmp_path, Path("lab/studies/adaptive/suite.json"))
    text = (tmp_path / "docs" / "results" / "adaptive.md").read_text()
    for line in (
        "| plain, text | 0.1 |",
        "| mixed, panel | 0.3 |",
        "| all three |",
        "| training mix",
    ):
        assert line in text
    assert (tmp_path / "docs" / "figures" / "adaptive.png").stat().st_size > 1000
    with pytest.raises(InputError, match="Expected records"):
        adaptive_page.write_page(tmp_path / "none", tmp_path, Path("x"))


def test_fixed_counts_are_mixed_to_the_very_average(tmp_path: Path) -> None:
    row = {"n": 2, "average_tokens": 10.25, "hits": adaptive.pack_hits(np.array([True, False])),
           "fixed_hits": {"10": adaptive.pack_hits(np.array([True, False])),
                          "11": adaptive.pack_hits(np.array([True, True]))}}  # fmt: skip
    ours, fixed = adaptive_page.scores_of([row])
    assert ours.tolist() == [1, 0]
    assert fixed.tolist() == [1, 0.25]
    assert unpack_hits(row["hits"], 2).tolist() == [True, False]
    # 9 comes before 10: as numbers, not as text
    row["fixed_hits"] = {"10": row["fixed_hits"]["11"], "9": row["fixed_hits"]["10"]}
    assert adaptive_page.scores_of([row])[1].tolist() == [1, 0.25]
    write(tmp_path / "r.json", {"config": {}, "row": row})


def test_text_is_every_patch_with_ink() -> None:
    dense, scene = generate("dense", 1, "val"), generate("scene", 1, "val")
    assert adaptive.text_patches(dense) == int((dense.labels.ink > 0).sum()) > 50
    assert adaptive.text_patches(scene) == 0


def test_packed_counts_come_back() -> None:
    counts = np.array([1, 256, 65_535])
    assert unpack_counts(pack_counts(counts)).tolist() == counts.tolist()


def test_spearman_by_hand() -> None:
    up = np.arange(40)
    assert spearman(up, up**3).mean == pytest.approx(1, abs=1e-6)
    assert spearman(up, -up).mean == pytest.approx(-1, abs=1e-6)
    assert spearman(up, np.ones(40)).mean == 0
    # ties share their rank: 1, 2.5, 2.5, 4 against 1, 2, 3, 4 is 4.5 / sqrt(4.5 * 5)
    found = spearman(np.array([1, 2, 2, 9]), np.array([1, 2, 3, 4]))
    assert found.mean == pytest.approx(4.5 / math.sqrt(4.5 * 5), abs=1e-6)
    assert found.low <= found.mean <= found.high
    with pytest.raises(InputError, match="2 or more"):
        spearman(np.array([1]), np.array([1]))


def test_a_suite_with_a_wrong_field(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"keep": [0.1]}')
    with pytest.raises(UnknownNameError, match="Did you mean 'keeps'"):
        adaptive.AdaptiveConfig.read(tmp_path / "a.json")
    with pytest.raises(ConfigError, match="Expected a suite as JSON"):
        adaptive.AdaptiveConfig.read(tmp_path / "b.json")
    assert (
        adaptive.AdaptiveConfig.read(Path("lab/studies/adaptive/suite.json"), pictures=7).pictures
        == 7
    )
