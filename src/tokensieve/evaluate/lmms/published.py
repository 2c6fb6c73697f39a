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

from tokensieve.errors import ConfigError, InputError, TokensieveError
from tokensieve.methods.registry import method_names

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
    "gqa": ("gqa", "exact_match", 100), "vqav2_val": ("vqav2_val", "exact_match", 100),
    "pope": ("pope", "pope_accuracy", 100), "pope_f1": ("pope", "pope_f1_score", 100),
    "mmbench_en_dev": ("mmbench_en_dev", "gpt_eval_score", 1),
    "mmbench_cn_dev": ("mmbench_cn_dev", "gpt_eval_score", 1),
    "activitynetqa_score": ("activitynetqa", "gpt_eval_score", 1),
    "activitynetqa_accuracy": ("activitynetqa", "gpt_eval_accuracy", 1),
    "seedbench_video": ("seedbench", "seed_video", 100),
    "nextqa_oe_test": ("nextqa_oe_test", "WUPS", 1),
    "egoschema_subset": ("egoschema_subset", "score", 100),
    "longvideobench_val_v": ("longvideobench_val_v", "lvb_acc", 100),
}  # fmt: skip
Run = tuple[str, str, int | None]  # model, method, tokens a picture (None: not said)


@dataclass(frozen=True)
class Beside:
    """One number of a paper, and ours where it was run."""

    table: str
    run: Run
    of: int
    benchmark: str
    paper: float
    ours: float | None
    name: str = ""
    more: str = ""

    @property
    def command(self) -> str:
        """What runs it; nothing for a method that is not here, or of which too little is said."""
        model, method, tokens = self.run
        if method not in method_names() or tokens is None:
            return ""
        task = METRICS[self.benchmark][0]
        return (
            f"lmms-eval --model tokensieve --tasks {task} --output_path out --model_args "
            f"pretrained={model},method={method}"
            + ("" if method == "full" else f",keep={tokens / self.of:.4g}")
            + self.more
        )


def ours_in(
    folder: Path, of: int, models: Mapping[str, str] | None = None
) -> dict[tuple[Run, str], float]:
    """By run and benchmark, what lmms-eval wrote below `folder`. models: by name in the tables, the
    folder or name that was run. Raises `InputError` for a file of results that is none."""
    found, known = {}, {source: name for name, source in (models or {}).items()}
    for file in sorted(folder.rglob("*results.json")):
        try:
            told = json.loads(file.read_text(encoding="utf-8"))
            model, method, tokens = _run(told["config"]["model_args"], of)
            results = told["results"]
        except (ValueError, KeyError, TypeError, AttributeError) as problem:
            raise InputError(
                f"Expected results of lmms-eval in {file}. Got {problem!r}. Remove it, or run it "
                "again."
            ) from None
        for name, (task, metric, times) in METRICS.items():
            if (value := _value(results.get(task, {}), metric)) is not None:
                found[(known.get(model, model), method, tokens), name] = times * value
    return found


def _run(arguments: str | Mapping[str, Any], of: int) -> Run:
    told = arguments
    if isinstance(told, str):
        told = dict(one.partition("=")[::2] for one in told.split(","))
    method, keep = str(told.get("method", "selector")), float(told.get("keep", 0.4))
    tokens = None if method == "full" else round(keep if keep > 1 else keep * of)
    return str(told.get("pretrained", "nano")), method, tokens


def _value(results: Mapping[str, Any], metric: str) -> float | None:
    """A metric under any filter."""
    for name, value in results.items():
        if name.partition(",")[0] == metric and isinstance(value, int | float):
            return float(value)
    return None


def beside(folder: Path, models: Mapping[str, str] | None = None) -> Iterator[Beside]:
    """Every published number. models: as of `ours_in`."""
    for table in json.loads(FILE.read_text(encoding="utf-8")):
        ours, more = ours_in(folder, table["of"], models), table.get("more", "")
        for row in table["rows"]:
            run = (row.get("model", table["model"]), row["method"], row["tokens"])
            key = (*run[:2], None) if row["method"] == "full" else run
            for benchmark, paper in row["scores"].items():
                where = f"{table['paper']}, {table['table']}"
                yield Beside(where, run, table["of"], benchmark, paper, ours.get((key, benchmark)),
                             row.get("name", ""), more and f",{more}")  # fmt: skip


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
            _, method, count = one.run
            tokens, command = count or "not said", one.command
            shown = f"`{method}`" + (f" ({one.name})" if one.name else "")
            ours = "not run" if one.ours is None else f"{one.ours:.1f}"
            apart = "" if one.ours is None else f"{one.ours - one.paper:+.1f}"
            parts.append(
                f"| {shown} | {tokens} | {one.benchmark} | {one.paper:g} | {ours} | {apart} | "
                f"{f'`{command}`' if command else 'not offered'} |\n"
            )
    parts.append(
        "\nModels named without an owner are trained first (`tokensieve train fusion`) and told as "
        "`--model NAME=FOLDER`; a trained method takes `weights=FOLDER` more. SeedBench counts its "
        "videos, NextQA its open questions (WUPS), POPE of the second paper F1: choices made here, "
        "the papers do not say.\n"
    )
    return "".join(parts)


def main(arguments: list[str] | None = None) -> None:
    """Say the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="--output_path of lmms-eval")
    parser.add_argument("--model", action="append", default=[], metavar="NAME=FOLDER",
                        help="what was run for a model that the tables name so")  # fmt: skip
    options = parser.parse_args(arguments)
    models = dict(one.partition("=")[::2] for one in options.model)
    if not all(models.values()):
        raise ConfigError(f"Expected --model NAME=FOLDER. Got {options.model}. Name both.")
    sys.stdout.write(markdown(list(beside(options.folder, models))))


if __name__ == "__main__":
    try:
        main()
    except TokensieveError as error:
        sys.exit(f"tokensieve: {error}")
