"""The page of the papers' claims: verdicts that follow the records, and what is not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lab.studies.claims import page
from lab.studies.claims.choose import chosen
from lab.studies.claims.evidence import CLAIMS, FULL_LENGTH, Evidence, clear
from lab.trained.spec import variants

ROOT = Path(__file__).parents[2]
SPEC = json.loads((ROOT / "lab/studies/claims/suite.json").read_text("utf-8"))


def record(one: Any, mean: float, kept: float = 0.6) -> dict[str, Any]:
    """A training that reads `mean` of everything and ends with `kept` of the tokens."""
    scores = {kind: {f"{k:g}": {"mean": mean} for k in SPEC["keeps"]} for kind in SPEC["kinds"]}
    curve = [{"step": s, "kept": 0.5 if s < 5 else kept, "reconstruction": 2.0 - s / 10}
             for s in range(10)]  # fmt: skip
    config = {"preset": one.preset, "settings": dict(one.settings), "seed": one.seed}
    return {"config": config, "state": "ranks", "scores": scores, "curve": curve, "crops": 192}


@pytest.fixture
def whole() -> Evidence:
    """Everything ran, and did as the papers say."""
    found: dict[str, Any] = {}
    for name, group in SPEC["groups"].items():
        for variant in group["variants"]:
            mean = 0.9 if name in FULL_LENGTH or variant == "mse, raw" else 0.5
            if (name, variant) in {("depth", "4"), ("epochs", "100"),
                                   ("objective", "two-sided, gumbel")}:  # fmt: skip
                mean = 0.8
            kept = 0.0 if variant.startswith("plain, gumbel") else 0.6
            for one in variants(SPEC, name, chosen(SPEC, found)).get(variant, []):
                found.setdefault(one.folder, record(one, mean, kept))
    like = next(iter(found.values()))["scores"]
    for name, mean in (("full", 0.9), ("none", 0.0), ("random", 0.1)):
        scores = {kind: {k: {"mean": mean} for k in of} for kind, of in like.items()}
        found[f"peers-{name}-0"] = {"config": {"method": name}, "scores": scores}
    row = {"view": "crop", "overlap": 0.5}, {"view": "0.8", "overlap": 0.9}
    return Evidence(SPEC, found, [{"config": {"method": "selector"}, "rows": list(row)}])


def verdicts(e: Evidence) -> dict[str, str]:
    return {judge.__name__: judge(e)[0] for _, _, judge in CLAIMS}


def test_without_records_nothing_is_claimed(tmp_path: Path) -> None:
    page.write_page(Evidence(SPEC, {}), tmp_path)
    assert (tmp_path / "figures" / "claims.png").stat().st_size > 1000
    text = (tmp_path / "results" / "claims.md").read_text("utf-8")
    assert f"None of the {len(CLAIMS)} claims is measured yet" in text
    assert set(verdicts(Evidence(SPEC, {})).values()) == {"not run"}
    assert "Not chosen yet." in text
    assert "seen |" not in text


def test_verdicts_follow_the_records(whole: Evidence) -> None:
    said = verdicts(whole)
    assert said.pop("no_matter_on_calm") == "partly"  # these read 80 points more than random ones
    assert said.pop("stable_masks") == "partly"  # crops do move the mask
    assert said.pop("settles_at_p") == "partly"  # one system has p = .3 and keeps .6
    assert set(said.values()) == {"seen"}
    text = page.text_of(whole)
    assert "reading of the norm: **mse, raw**" in text
    assert "| as printed | 3 | 90.0 |" in text


def test_curves_are_drawn_by_name(whole: Evidence) -> None:
    drawn = page.lines({"a": whole.system("best-first"), "b": []}, "reconstruction")
    assert [series.name for series in drawn] == ["a"]
    assert list(drawn[0].y)[:2] == [1.0, 0.95]  # shares of the first
    assert page.variant_of("plain, a1=1", "gumbel") == "plain, gumbel, a1=1"
    for term in page.TERMS:
        assert page.variant_of(term, "gumbel") in SPEC["groups"]["objective"]["variants"]


def test_a_verdict_turns_with_its_record(whole: Evidence) -> None:
    picked = chosen(SPEC, whole.found)
    for group, variant, level, judge in [  # level: 2 points below, of 200 pictures
        ("depth", "8", 0.78, "four_layers"), ("epochs", "10", 0.88, "hundred_epochs"),
    ]:  # fmt: skip
        for one in variants(SPEC, group, picked)[variant]:
            whole.found[one.folder].update(record(one, 0.99))
        assert verdicts(whole)[judge] == "not seen"
        for one in variants(SPEC, group, picked)[variant]:
            whole.found[one.folder].update(record(one, level))
        assert verdicts(whole)[judge] == "partly"
    for one in variants(SPEC, "objective", picked)["plain, gumbel"]:
        whole.found[one.folder].update(record(one, 0.5, kept=0.3))
    assert verdicts(whole)["gumbel_collapses"] == "partly"


def test_a_lead_is_clear_beyond_the_noise_of_its_pictures() -> None:
    """Of two shares of 200: at 50 % 1.96 sqrt(2 x .25 / 200) = 9.8 points, at 98 % 2.7."""
    e = Evidence({**SPEC, "pictures": 200}, {})
    assert [clear(e, 50 + gap, 50) for gap in (9, 11, -9, -11)] == [0, 1, 0, -1]
    assert clear(e, 98, 94) == 1
    assert clear(e, 98, 95) == 0


def test_a_training_that_diverged_is_no_row_of_numbers(whole: Evidence) -> None:
    one = variants(SPEC, "depth", chosen(SPEC, whole.found))["8"][0]
    other = variants(SPEC, "depth", chosen(SPEC, whole.found))["8"][1]
    whole.found[one.folder] = {"config": {}, "state": "stopped", "error": "Expected a loss"}
    del whole.found[other.folder]
    assert "| 8 | diverged |" in page.table(whole, "depth")
