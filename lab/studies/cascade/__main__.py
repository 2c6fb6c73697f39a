"""Few tokens first, all when unsure, driven by keep="auto": `python -m lab.studies.cascade`.

Nano's answers are asked once (records in --answers, gone on with). Many times over, a random half
of the questions chooses the keep, as `tokensieve calibrate` does with and without --sure; the other
half says what answers and tokens that comes to.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
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
from tokensieve.evaluate.calibrate import Promise, certified
from tokensieve.evaluate.cells import Cell, run_cells
from tokensieve.evaluate.questions import load_questions
from tokensieve.evaluate.stats import paired_difference
from tokensieve.files import write_text
from tokensieve.hf.families.fingerprint import state_hash
from tokensieve.hf.load import load_model

METHOD = "selector"
KEEPS = (0.5, 0.4, 0.3, 0.2, 0.1)
LOSSES, CONFIDENCE, SURE = (0.02, 0.05), 0.95, (None, 0.8, 0.95)
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Answers:
    """Of the questions (N,): right with all tokens; by keep (K, N) right, otherwise than with all
    tokens, how sure, and the share of tokens read."""

    whole: Values
    right: Values
    differ: NDArray[np.bool_]
    sure: Values
    kept: Values

    @classmethod
    def of(cls, full: records.Record, fewer: Sequence[records.Record]) -> Answers:
        """From the records of all tokens and of each keep."""
        wanted = [row["answer"] for row in full["rows"]]
        differ = [[row["answer"] != one for row, one in zip(told["rows"], wanted, strict=True)]
                  for told in fewer]  # fmt: skip
        return cls(
            _column([full], "score")[0], _column(fewer, "score"), np.array(differ),
            _column(fewer, "sure"), _column(fewer, "kept") / _column(fewer, "of"),
        )  # fmt: skip

    def again(self, sure: float | None) -> Answers:
        """The same where answers less sure are asked again with all tokens."""
        unsure = self.sure < (sure or 0.0)
        return Answers(self.whole, np.where(unsure, self.whole, self.right),
                       self.differ & ~unsure, self.sure, self.kept + unsure)  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    """Ask what is missing, split, write record and page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--answers", type=Path, default=Path("build/cascade"), help="of nano")
    parser.add_argument("--pictures", type=int, default=120, help="of a kind and topic")
    parser.add_argument("--splits", type=int, default=1000)
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--root", type=Path, default=Path("."), help="where docs/ lies")
    options = command.parse(parser, arguments)
    record = measure(options.answers, options.pictures, options.splits)
    records.write(options.results / "cascade" / "nano.json", record)
    write_text(options.root / "docs" / "results" / "cascade.md", page(record))


def measure(answers: Path, pictures: int, splits: int) -> records.Record:
    """The record: every promise with and without asking again."""
    loaded, questions = load_model("nano"), load_questions("nano", pictures)
    cells = [Cell("full", 1.0), *(Cell(METHOD, keep) for keep in KEEPS)]
    files = run_cells(loaded, questions, cells, Settings(max_new_tokens=32), answers, print)
    full, *fewer = map(records.read, files)
    found = Answers.of(full, fewer)
    config = {
        "model": loaded.name, "method": METHOD, "keeps": list(KEEPS), "splits": splits,
        "confidence": CONFIDENCE, "questions": len(full["rows"]),
        "hashes": {"model": state_hash(loaded.model), "questions": questions.digest},
    }  # fmt: skip
    return {
        "form": "cascade", "identity": records.identity(config), "config": config,
        **records.provenance(), "score": round(float(found.whole.mean()), 4),
        "seconds": round(sum(told["seconds"] for told in (full, *fewer)), 1),
        "rows": [row(found, loss, sure, splits) for loss in LOSSES for sure in SURE],
    }  # fmt: skip


def row(found: Answers, loss: float, sure: float | None, splits: int) -> dict[str, Any]:
    """One promise over splits drawn by fixed seeds; the difference in score is over all questions
    at the keep most often chosen."""
    own, promise = found.again(sure), Promise(loss, CONFIDENCE, KEEPS, sure)
    number = len(own.whole)
    picked, tokens, differ, kept = list[float](), list[float](), list[float](), 0
    for seed in range(splits):
        order = np.random.default_rng(seed).permutation(number)
        some, others = order[: number // 2], order[number // 2 :]
        counts = [(keep, len(some), int(own.differ[k, some].sum())) for k, keep in enumerate(KEEPS)]
        chosen, _ = certified(promise, counts)
        picked.append(chosen)
        k = None if chosen == 1 else KEEPS.index(chosen)
        tokens.append(1.0 if k is None else float(own.kept[k, others].mean()))
        differ.append(0.0 if k is None else float(own.differ[k, others].mean()))
        kept += k is None or float(own.differ[k].mean()) <= loss
    often = max(set(picked), key=picked.count)
    right = own.whole if often == 1 else own.right[KEEPS.index(often)]
    to_full = paired_difference([right], [own.whole])
    return {
        "max_loss": loss, "sure": sure, "keep": often, "chosen": picked.count(often),
        "splits": splits, "kept": kept, "tokens": round(float(np.mean(tokens)), 4),
        "differed": round(float(np.mean(differ)), 4), "to_full": asdict(to_full),
    }  # fmt: skip


def _column(told: Sequence[records.Record], name: str) -> Values:
    return np.array([[row[name] for row in one["rows"]] for one in told], dtype=np.float64)


def page(record: records.Record) -> str:
    """docs/results/cascade.md."""
    config, rows = record["config"], record["rows"]
    head = ["at most", "asked again below", "keep, most often", "tokens, % of all",
            "differed", "to all tokens, points", "promise kept"]  # fmt: skip
    body = [[
        f"{row['max_loss']:.0%}", "never" if row["sure"] is None else f"{row['sure']:g}",
        f"{row['keep']:g} ({row['chosen'] / row['splits']:.0%})", f"{100 * row['tokens']:.1f}",
        f"{row['differed']:.1%}", _points(row["to_full"]), f"{row['kept'] / row['splits']:.1%}",
    ] for row in rows]  # fmt: skip
    note = (
        f"{config['questions']} questions of the suite nano, of which all tokens answer "
        f"{record['score']:.1%}; method `{config['method']}`, confidence {config['confidence']:g}; "
        f"{config['splits']} random halves choose the keep as `tokensieve calibrate` does, with "
        "`--sure` where answers are asked again. *Tokens* (of both times) and *differed* are means "
        "over the other halves; *points*: the score at the keep most often chosen, over all "
        "questions in pairs, with a 95 % interval; *promise kept*: share of the splits whose keep "
        "changes no more of all answers than was promised."
    )
    return document("Few tokens first, all when unsure", message(rows), [table([head, *body]),
                    note], "`python -m lab.studies.cascade`", on=NANO)  # fmt: skip


def message(rows: Sequence[Mapping[str, Any]]) -> str:
    """What asking again saves under the tightest promise."""
    loss = min(row["max_loss"] for row in rows)
    own = [row for row in rows if row["max_loss"] == loss]
    once = next(row for row in own if row["sure"] is None)
    best = min((row for row in own if row["sure"] is not None), key=lambda row: row["tokens"])
    fewer = "fewer" if best["tokens"] < once["tokens"] else "no fewer"
    return (
        f"Under the promise that at most {loss:.0%} of the answers change, asking again when "
        f"unsure (below {best['sure']:g}) reads {fewer} tokens on average: {best['tokens']:.1%} of "
        f"all instead of {once['tokens']:.1%}, at {_points(best['to_full'])} points to all tokens."
    )


def _points(to: Mapping[str, float]) -> str:
    low, high = 100 * to["low"], 100 * to["high"]
    return f"{100 * to['mean']:+.1f} [{low:+.1f}, {high:+.1f}]"


if __name__ == "__main__":
    command.run(main, "question")
