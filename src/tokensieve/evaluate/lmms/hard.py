"""VTC-Bench's filter over what lmms-eval logged: `python -m tokensieve.evaluate.lmms.hard out`.

`out` holds runs with --log_samples of the model "tokensieve": all tokens, `downsample` and methods
at the same keeps. A row a task, method and keep: its score over the questions that all tokens
answer and the picture made smaller to as many tokens does not (arXiv 2510.07143).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokensieve.errors import InputError, TokensieveError

RIGHT = 0.5  # a score from which on an answer counts as right
FULL, FILTER = "full", "downsample"
Scores = dict[Any, float]  # by question
Key = tuple[str, str, str, float]  # model, task, method, keep


@dataclass(frozen=True)
class Hard:
    """A method at one keep over the `number` hard questions of a task, of `asked`."""

    model: str
    task: str
    method: str
    keep: float
    number: int
    asked: int
    score: float | None


def logged(folder: Path) -> dict[Key, Scores]:
    """Scores of every run. Raises `InputError` for a file that is none of lmms-eval's."""
    found: dict[Key, Scores] = {}
    for file in sorted(folder.rglob("*_results.json")):
        date = file.name.removesuffix("_results.json")
        try:
            told = json.loads(file.read_text(encoding="utf-8"))["config"]["model_args"]
            run = told if isinstance(told, Mapping) else dict(
                one.partition("=")[::2] for one in told.split(",")
            )  # fmt: skip
            method = str(run.get("method", "selector"))
            keep = 1.0 if method == FULL else float(run.get("keep", 0.4))
            for samples in sorted(file.parent.glob(f"{date}_samples_*.jsonl")):
                task = samples.stem.removeprefix(f"{date}_samples_")
                key = (str(run.get("pretrained", "nano")), task, method, keep)
                lines = samples.read_text(encoding="utf-8").splitlines()
                found[key] = dict(map(_scored, map(json.loads, lines)))
        except (ValueError, KeyError, TypeError, AttributeError) as problem:
            raise InputError(
                f"Expected results and samples of lmms-eval at {file}. Got {problem!r}. Run it "
                "again with --log_samples."
            ) from None
    return found


def _scored(row: Mapping[str, Any]) -> tuple[Any, float]:
    """The number of a question, and the first of its metrics that is one in [0, 1]."""
    own = {name: value for name, value in row.items() if name != "doc_id"}
    for value in own.values():
        if isinstance(value, int | float) and 0 <= value <= 1:
            return row["doc_id"], float(value)
    raise ValueError("no score in [0, 1] in a line; this task scores all questions together")


def hard_of(found: Mapping[Key, Scores]) -> Iterator[Hard]:
    """Where all tokens and `downsample` at the same keep were asked."""
    for (model, task, method, keep), own in found.items():
        full, small = found.get((model, task, FULL, 1.0)), found.get((model, task, FILTER, keep))
        if method in (FULL, FILTER, "none") or full is None or small is None:
            continue
        hard = [one for one in own if full.get(one, 0) >= RIGHT > small.get(one, 1)]
        score = sum(own[one] for one in hard) / len(hard) if hard else None
        yield Hard(model, task, method, keep, len(hard), len(own), score)


def main(arguments: list[str] | None = None) -> None:
    """Say the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="--output_path of lmms-eval")
    rows = list(hard_of(logged(parser.parse_args(arguments).folder)))
    if not rows:
        raise InputError(
            "Expected runs of method=full, method=downsample and another at the same keep. Got "
            "none. Run them with --log_samples."
        )
    sys.stdout.write("| model | task | method | keep | hard | of | score, % |\n")
    sys.stdout.write("| :-- | :-- | :-- | --: | --: | --: | --: |\n")
    for one in rows:
        score = "" if one.score is None else f"{100 * one.score:.1f}"
        sys.stdout.write(f"| {one.model} | {one.task} | `{one.method}` | {one.keep:g} | "
                         f"{one.number} | {one.asked} | {score} |\n")  # fmt: skip


if __name__ == "__main__":
    try:
        main()
    except TokensieveError as error:
        sys.exit(f"tokensieve: {error}")
