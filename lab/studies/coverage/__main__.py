"""Is the promise of `tokensieve calibrate` kept? `python -m lab.studies.coverage`.

Nano's answers with all tokens and at every keep are asked once (records in --answers, gone on
with); then, many times over, a random half of the questions chooses the keep, and all of them and
the other half say how many answers differ there.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lab import command
from lab.report.markdown import table
from lab.report.page import NANO, document
from tokensieve.evaluate import records
from tokensieve.evaluate.ask import Settings
from tokensieve.evaluate.calibrate import KEEPS, Promise, certified
from tokensieve.evaluate.cells import Cell, run_cells
from tokensieve.evaluate.questions import load_questions
from tokensieve.evaluate.stats import wilson
from tokensieve.files import write_text
from tokensieve.hf.families.fingerprint import state_hash
from tokensieve.hf.load import load_model

METHOD = "selector"
PROMISES = tuple(
    Promise(loss, confidence) for loss in (0.02, 0.05, 0.1) for confidence in (0.9, 0.95)
)
Differ = NDArray[np.bool_]  # (keeps, questions) whether an answer differs from that of all tokens


@dataclass(frozen=True)
class Kept:
    """One promise over all splits: how often it was kept over all questions and on the other half,
    the keep chosen and the answers that differed there, on average."""

    max_loss: float
    confidence: float
    splits: int
    kept: int
    kept_on_other_half: int
    keep: float
    loss: float
    nothing: int  # splits of which no keep below 1 held


def main(arguments: list[str] | None = None) -> None:
    """Ask what is missing, split, write record and page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--answers", type=Path, default=Path("build/coverage"), help="of nano")
    parser.add_argument("--pictures", type=int, default=120, help="of a kind and topic")
    parser.add_argument("--splits", type=int, default=1000)
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--root", type=Path, default=Path("."), help="where docs/ lies")
    options = command.parse(parser, arguments)
    record = measure(options.answers, options.pictures, options.splits)
    records.write(options.results / "coverage" / "nano.json", record)
    write_text(options.root / "docs" / "results" / "coverage.md", page(record))


def measure(answers: Path, pictures: int, splits: int) -> records.Record:
    """The record: every promise over the splits of the answers, which are asked where missing."""
    loaded, questions = load_model("nano"), load_questions("nano", pictures)
    cells = [Cell("full", 1.0), *(Cell(METHOD, keep) for keep in KEEPS)]
    files = run_cells(loaded, questions, cells, Settings(max_new_tokens=32), answers, print)
    full, *fewer = [[row["answer"] for row in records.read(file)["rows"]] for file in files]
    differ = np.array([[a != b for a, b in zip(own, full, strict=True)] for own in fewer])
    config = {
        "model": loaded.name, "method": METHOD, "keeps": list(KEEPS), "splits": splits,
        "questions": len(full), "hashes": {"model": state_hash(loaded.model),
                                           "questions": questions.digest},
    }  # fmt: skip
    return {
        "form": "coverage", "identity": records.identity(config), "config": config,
        **records.provenance(),
        "seconds": round(sum(records.read(file)["seconds"] for file in files), 1),
        "differ": [round(float(share), 4) for share in differ.mean(1)],
        "rows": [asdict(kept(promise, differ, splits)) for promise in PROMISES],
    }  # fmt: skip


def kept(promise: Promise, differ: Differ, splits: int) -> Kept:
    """One promise, over splits drawn by fixed seeds."""
    number = differ.shape[1]
    half, everywhere = number // 2, differ.mean(1)
    good = other_good = nothing = 0
    keeps, losses = list[float](), list[float]()
    for seed in range(splits):
        order = np.random.default_rng(seed).permutation(number)
        some, others = order[:half], order[half:]
        counts = [(keep, half, int(differ[n, some].sum())) for n, keep in enumerate(KEEPS)]
        chosen, _ = certified(promise, counts)
        keeps.append(chosen)
        nothing += chosen == 1
        loss = 0.0 if chosen == 1 else float(everywhere[KEEPS.index(chosen)])
        other = 0.0 if chosen == 1 else float(differ[KEEPS.index(chosen), others].mean())
        losses.append(other)
        good += loss <= promise.max_loss
        other_good += other <= promise.max_loss
    return Kept(promise.max_loss, promise.confidence, splits, good, other_good,
                round(float(np.mean(keeps)), 4), round(float(np.mean(losses)), 4),
                nothing)  # fmt: skip


def page(record: records.Record) -> str:
    """docs/results/coverage.md."""
    config, rows = record["config"], record["rows"]
    head = ["at most", "confidence", "kept, all questions", "kept, other half", "keep chosen",
            "differed, other half", "nothing held"]  # fmt: skip
    body = [[
        f"{row['max_loss']:.0%}", f"{row['confidence']:.0%}", _share(row["kept"], row["splits"]),
        _share(row["kept_on_other_half"], row["splits"]), f"{row['keep']:.2f}",
        f"{row['loss']:.1%}", _share(row["nothing"], row["splits"]),
    ] for row in rows]  # fmt: skip
    differ = [["keep", *[f"{keep:g}" for keep in config["keeps"]]],
              ["answers that differ", *[f"{share:.1%}" for share in record["differ"]]]]  # fmt: skip
    note = (
        f"{config['questions']} questions of the suite nano, method `{config['method']}`; "
        f"{config['splits']} random halves choose the keep as `tokensieve calibrate` does. *Kept*: "
        "share of the splits whose keep changes no more answers than was promised, with Wilson's "
        "95 % interval, over all questions, which is what is promised; on the other half the count "
        "itself is drawn by chance. *Differed*: mean over splits. A half of all questions, drawn "
        "without putting back, says more of them than as many of endlessly many would: in the "
        "promise's favour."
    )
    return document("Is the guarantee kept?", message(rows), [table([head, *body]), note,
                    "## How many answers differ", table(differ)],
                    "`python -m lab.studies.coverage`", on=NANO)  # fmt: skip


def message(rows: Sequence[dict[str, Any]]) -> str:
    """Whether every promise was kept as often as said."""
    broken = [row for row in rows if row["kept"] < row["confidence"] * row["splits"]]
    least = min(rows, key=lambda row: row["kept"] / row["splits"] - row["confidence"])
    said = (
        f"{least['kept'] / least['splits']:.1%} of the splits keep it where "
        f"{least['confidence']:.0%} were promised"
    )
    if broken:
        return f"{len(broken)} of {len(rows)} promises are kept less often than said: {said}."
    return f"Every promise is kept at least as often as said; the nearest: {said}."


def _share(part: int, whole: int) -> str:
    found = wilson(part, whole)
    return f"{100 * found.mean:.1f} % ({100 * found.low:.1f}–{100 * found.high:.1f})"


if __name__ == "__main__":
    command.run(main, "question")
