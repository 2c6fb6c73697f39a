"""The papers' numbers beside ours: `python -m tokensieve.evaluate.lmms.published out`.

`out` holds what lmms-eval wrote (--output_path) for the model "tokensieve". One row a method,
number of tokens and benchmark: paper, ours, difference and the command; "not run" where nothing is.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokensieve.errors import InputError, TokensieveError

FILE = Path(__file__).with_name("published.json")
METRICS = {  # of lmms-eval's results, and times how much they are what papers print
    "docvqa_val": ("docvqa_val", "anls", 100), "infovqa_val": ("infovqa_val", "anls", 100),
    "chartqa": ("chartqa", "relaxed_overall", 100),
    "textvqa_val": ("textvqa_val", "exact_match", 100),
    "scienceqa_img": ("scienceqa_img", "exact_match", 100),
    "vizwiz_vqa_val": ("vizwiz_vqa_val", "exact_match", 100),
    "mmmu_val": ("mmmu_val", "mmmu_acc", 100), "ai2d": ("ai2d", "exact_match", 100),
    "mme_cognition": ("mme", "mme_cognition_score", 1),
    "mme_perception": ("mme", "mme_perception_score", 1),
}  # fmt: skip
Run = tuple[str, str, int]  # model, method, tokens a picture


@dataclass(frozen=True)
class Beside:
    """One number of a paper, and ours where it was run."""

    table: str
    run: Run
    of: int
    benchmark: str
    paper: float
    ours: float | None

    @property
    def command(self) -> str:
        """What runs it."""
        model, method, tokens = self.run
        task = METRICS[self.benchmark][0]
        return (
            f"lmms-eval --model tokensieve --tasks {task} --output_path out --model_args "
            f"pretrained={model},method={method},keep={tokens / self.of:.4g}"
        )


def ours_in(folder: Path, of: int) -> dict[tuple[Run, str], float]:
    """By run and benchmark, what lmms-eval wrote below `folder`. Raises `InputError` for a file of
    results that is none."""
    found = {}
    for file in sorted(folder.rglob("*results.json")):
        try:
            told = json.loads(file.read_text(encoding="utf-8"))
            run = _run(told["config"]["model_args"], of)
            results = told["results"]
        except (ValueError, KeyError, TypeError, AttributeError) as problem:
            raise InputError(
                f"Expected results of lmms-eval in {file}. Got {problem!r}. Remove it, or run it "
                "again."
            ) from None
        for name, (task, metric, times) in METRICS.items():
            if (value := _value(results.get(task, {}), metric)) is not None:
                found[run, name] = times * value
    return found


def _run(arguments: str | Mapping[str, Any], of: int) -> Run:
    told = arguments
    if isinstance(told, str):
        told = dict(one.partition("=")[::2] for one in told.split(","))
    method, keep = str(told.get("method", "selector")), float(told.get("keep", 0.4))
    tokens = of if method == "full" else round(keep if keep > 1 else keep * of)
    return str(told.get("pretrained", "nano")), method, tokens


def _value(results: Mapping[str, Any], metric: str) -> float | None:
    """A metric under any filter."""
    for name, value in results.items():
        if name.partition(",")[0] == metric and isinstance(value, int | float):
            return float(value)
    return None


def beside(folder: Path) -> Iterator[Beside]:
    """Every published number."""
    for table in json.loads(FILE.read_text(encoding="utf-8")):
        ours = ours_in(folder, table["of"])
        for row in table["rows"]:
            run = (table["model"], row["method"], row["tokens"])
            for benchmark, paper in row["scores"].items():
                where = f"{table['paper']}, {table['table']}"
                yield Beside(where, run, table["of"], benchmark, paper, ours.get((run, benchmark)))


def markdown(rows: Sequence[Beside]) -> str:
    """A table a table of the papers."""
    run = sum(one.ours is not None for one in rows)
    parts = [f"# The papers' numbers beside ours\n\n{run} of {len(rows)} were run.\n"]
    for table in dict.fromkeys(one.table for one in rows):
        parts.append(
            f"\n## {table}\n\n| method | tokens | benchmark | paper | ours | difference | command |"
            "\n| :-- | --: | :-- | --: | --: | --: | :-- |\n"
        )
        for one in (row for row in rows if row.table == table):
            _, method, tokens = one.run
            ours = "not run" if one.ours is None else f"{one.ours:.1f}"
            apart = "" if one.ours is None else f"{one.ours - one.paper:+.1f}"
            parts.append(
                f"| `{method}` | {tokens} | {one.benchmark} | {one.paper:g} | {ours} | {apart} | "
                f"`{one.command}` |\n"
            )
    return "".join(parts)


def main(arguments: list[str] | None = None) -> None:
    """Say the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="--output_path of lmms-eval")
    sys.stdout.write(markdown(list(beside(parser.parse_args(arguments).folder))))


if __name__ == "__main__":
    try:
        main()
    except TokensieveError as error:
        sys.exit(f"tokensieve: {error}")
