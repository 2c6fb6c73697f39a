"""What selectors learn of towers that are not CLIP: `python -m lab.studies.worlds.page RUNS`.

Reads what train.sh beside it trained; writes results/worlds/*.json and docs/results/worlds.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from lab.report import markdown
from lab.report.page import document, fold, words
from tokensieve.errors import InputError
from tokensieve.evaluate import records
from tokensieve.files import write_text
from tokensieve.nn.pretrained import read_json

TOWERS = ("siglip", "internvit", "qwen")
PRESETS = ("default", "when-less-is-enough")
NOTES = {
    "siglip": "LLaVA around a SigLIP tower, 16 x 16 tokens",
    "internvit": "InternVL: tiles, pixel-shuffle of 2 x 2 patches, 16 x 16 tokens of a tile",
    "qwen": "Qwen2.5-VL: windows, 2 x 2 merger, pictures of 25 sizes, 64 to 256 tokens",
}


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, write records and page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "runs", type=Path, help="what lab/studies/worlds/train.sh was told to write to"
    )
    parser.add_argument("--results", type=Path, default=Path("results/worlds"))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    options = parser.parse_args(arguments)
    for tower in TOWERS:
        for preset in PRESETS:
            record = record_of(options.runs / f"{tower}-{preset}", tower, preset)
            if record is not None:
                records.write(options.results / f"{tower}--{preset}.json", record)
    found = list(records.read_all(options.results))
    if not found:
        raise InputError(f"Expected trainings in {options.runs}. Run: make results-worlds")
    write_text(options.docs / "results" / "worlds.md", page(found))


def record_of(run: Path, tower: str, preset: str) -> dict[str, Any] | None:
    """The record of one training, None where it has not ended."""
    if not (run / "selector" / "config.json").exists():
        return None
    trained = read_json(run / "train.json")
    lines = (run / "validation.jsonl").read_text("utf-8").splitlines()
    log = (run / "log.jsonl").read_text("utf-8").splitlines()
    config = {"tower": tower, "preset": preset, "trained": trained}
    return {
        "form": "worlds", "identity": records.identity(config), "config": config,
        **records.provenance(), "validation": json.loads(lines[-1]), "log": json.loads(log[-1]),
    }  # fmt: skip


def page(found: list[dict[str, Any]]) -> str:
    """docs/results/worlds.md."""
    shares = list(found[0]["validation"]["lost"])
    rows = [["tower", "preset", *[f"{n}, keep {s}" for s in shares for n in
                                  ("selector", "random", "stride")], "crops/s"]]  # fmt: skip
    for tower in TOWERS:
        for record in found:
            if record["config"]["tower"] != tower:
                continue
            lost = record["validation"]["lost"]
            cells = [f"{lost[s][n]:.3f}" for s in shares for n in ("selector", "random", "stride")]
            pace = f"{record['log']['crops_per_s']:.0f}"
            rows.append([tower, record["config"]["preset"], *cells, pace])
    steps = found[0]["config"]["trained"]["recipe"]["train"]["steps"]
    crops = found[0]["validation"]["crops"]
    notes = "\n".join(f"- `{tower}`: {NOTES[tower]}." for tower in TOWERS)
    parts = [
        markdown.table(small(found, shares)),
        "Root mean square of what is lost of a token's standardised features when that share "
        "of the tokens is kept and the rest is rebuilt from them, averaged over all tokens, a "
        f"kept one counting 0; lower is better. After {steps} steps, on {crops} held-out crops; "
        "all three choices are rebuilt by the same reconstructor. Towers of 4 layers with random "
        "weights cannot read: no question is asked, and it cannot show what is kept of answers.",
        notes,
        "The same two commands for each (`lab/studies/worlds/train.sh`).",
        fold("Every share, and speed", markdown.table(rows)),
    ]
    return document("Towers that are not CLIP", message(found, shares), parts,
                    "`python -m lab.studies.worlds.page` from `results/worlds/`",
                    "`make results-worlds` runs it all.")  # fmt: skip


def small(found: list[dict[str, Any]], shares: list[str]) -> list[list[str]]:
    """What the default preset loses at the middle shares."""
    middle = shares[1:3] or shares
    rows = [
        [
            "lost, default preset",
            *[f"{name} at {s}" for s in middle for name in ("selector", "random", "stride")],
        ]
    ]
    for record in found:
        if record["config"]["preset"] == PRESETS[0]:
            lost = record["validation"]["lost"]
            rows.append([record["config"]["tower"],
                         *[f"{lost[s][n]:.3f}" for s in middle
                           for n in ("selector", "random", "stride")]])  # fmt: skip
    return rows


def message(found: list[dict[str, Any]], shares: list[str]) -> str:
    """How often the selector loses least."""
    said = []
    for preset in PRESETS:
        of = [r["validation"]["lost"] for r in found if r["config"]["preset"] == preset]
        won = sum(lost[s]["selector"] < min(lost[s]["random"], lost[s]["stride"])
                  for lost in of for s in shares)  # fmt: skip
        if of:
            said.append(f"`{preset}` in {won} of {len(of) * len(shares)} cases")
    return f"The trained selector loses less than random tokens and stride: {words(said)}."


if __name__ == "__main__":
    main()
