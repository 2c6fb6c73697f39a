"""Ask a suite of questions by many methods, keeps and seeds; a record each.

What was answered is on the disk at once, so that a run goes on where it was cut off; several
processes of one command share the cells.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

from tokensieve.errors import ConfigError, PictureError, PromptError, TokensieveError
from tokensieve.evaluate import records
from tokensieve.evaluate.ask import BASELINES, Settings, ask
from tokensieve.evaluate.metrics import METRICS
from tokensieve.evaluate.questions import Question, Questions
from tokensieve.evaluate.shown import region_seen
from tokensieve.files import appended, make_folder
from tokensieve.folders import FolderBusyError, claimed
from tokensieve.hf.families.fingerprint import state_hash
from tokensieve.hf.models.loaded import Loaded
from tokensieve.methods.registry import method_class
from tokensieve.types import Site

FORM = "answers"
BESIDE = ("full", "none", "random", "stride", "avgpool", "downsample")  # in every comparison
WAIT_S = 1.0  # between two looks at what other processes are at
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Cell:
    """One record: a method at one keep, with one seed where it draws."""

    method: str
    keep: float | int
    seed: int = 0

    @property
    def name(self) -> str:
        """Of its record, without the ending."""
        return f"{self.method}--{self.keep:g}--{self.seed}"

    @property
    def file(self) -> str:
        """Its record."""
        return f"{self.name}.json"


def cells_of(methods: Sequence[str], keeps: Sequence[float | int], seeds: int) -> list[Cell]:
    """The cells of a comparison: all tokens and no image once, what draws once a seed."""
    if seeds < 1:
        raise ConfigError(f"Expected at least 1 seed. Got {seeds}.")
    found = []
    for method in dict.fromkeys(methods):
        if method in BASELINES:
            found.append(Cell(method, BASELINES[method]))
            continue
        drawn = range(seeds if method_class(method).stochastic else 1)
        found += [Cell(method, keep, seed) for keep in keeps for seed in drawn]
    return found


def run_cells(
    loaded: Loaded,
    questions: Questions,
    cells: Sequence[Cell],
    settings: Settings,
    folder: Path,
    tell: Tell = lambda text: None,
) -> list[Path]:
    """Make the records that are missing in `folder`; all of their files, in the cells' order.

    A method that the model refuses has a record that says why. Raises what `ask` raises for a
    question or a picture that is wrong, `ConfigError` for a folder of others.
    """
    make_folder(folder)
    weights = state_hash(loaded.model)
    todo = [(cell, _config(loaded, weights, questions, cell, settings)) for cell in cells]
    while left := [one for one in todo if not records.is_done(folder / one[0].file, one[1])]:
        free = 0
        for cell, config in left:
            try:
                with claimed(folder, records.RECORDS, share=cell.name):
                    if not records.is_done(folder / cell.file, config):
                        record = _record(loaded, questions, cell, settings, folder, config)
                        records.write(folder / cell.file, record)
                        tell(f"{cell.file}  {_told(record)}")
                    free += 1
            except FolderBusyError:
                continue
        if not free:
            sleep(WAIT_S)
    return [folder / cell.file for cell in cells]


def _config(
    loaded: Loaded, weights: str, questions: Questions, cell: Cell, settings: Settings
) -> dict[str, Any]:
    """Everything that decides a record's numbers."""
    own = settings.plan(cell.method)
    hashes = {"model": weights, "questions": questions.digest, **records.weights_hash(own)}
    return {
        "suite": questions.name, "model": loaded.name, "hashes": hashes, "method": cell.method,
        "keep": cell.keep, "seed": cell.seed, "dtype": str(loaded.model.dtype),
        "max_new_tokens": settings.max_new_tokens,
        "plan": {name: str(value) for name, value in own.items() if name != "seed"},
        "questions": len(questions.items),
    }  # fmt: skip


def _record(
    loaded: Loaded,
    questions: Questions,
    cell: Cell,
    settings: Settings,
    folder: Path,
    config: Mapping[str, Any],
) -> records.Record:
    """Ask what is left of a cell."""
    part = folder / f".{cell.name}.part"
    identity = records.identity(config)
    rows, good = _kept(part, identity)
    keep = settings.keep if cell.method in BASELINES else cell.keep
    own = replace(settings, keep=keep, options={**settings.options, "seed": cell.seed})
    refused = ""
    with appended(part, good) as file:
        for question in questions.items[len(rows) :]:
            try:
                row = _row(loaded, question, cell.method, own)
            except (PictureError, PromptError):
                raise  # of the suite, not of the method
            except TokensieveError as error:
                refused = " ".join(str(error).split())
                break
            rows.append(row)
            file.write(json.dumps([identity, row]).encode() + b"\n")
    record = {
        "form": FORM, "identity": identity, "config": dict(config),
        **records.provenance(), "refused": refused, "rows": [] if refused else rows,
        "seconds": round(sum(row["s"] for row in rows), 2),
    }  # fmt: skip
    part.unlink()
    return record


def _row(loaded: Loaded, question: Question, method: str, settings: Settings) -> dict[str, Any]:
    started, picture = perf_counter(), question.open()
    answer = ask(loaded, picture, question.text, method, settings)
    seen = None
    if question.regions and answer.images and method_class(method).site is not Site.PIXELS:
        seen = region_seen(loaded.processor, picture, answer.images, question.regions)
    return {
        "group": question.group,
        "score": round(METRICS[question.metric](answer.answer, question.answers), 4),
        "answer": answer.answer,
        "sure": answer.sure,
        "kept": answer.kept_tokens,
        "of": answer.visual_tokens,
        "seen": seen and [round(share, 4) for share in seen],
        "flops": sum(answer.flops.values()) if answer.flops else None,
        "ms": answer.ms,
        "s": round(perf_counter() - started, 4),
    }


def _kept(part: Path, identity: str) -> tuple[list[dict[str, Any]], int]:
    """Rows that an earlier run of the same cell left, and their bytes; a line that was cut off
    ends them."""
    rows, good = list[dict[str, Any]](), 0
    for line in part.read_bytes().splitlines(keepends=True) if part.exists() else ():
        try:
            whose, row = json.loads(line)
        except ValueError:
            break
        if whose != identity or not line.endswith(b"\n"):
            break
        rows.append(row)
        good += len(line)
    return rows, good


def _told(record: records.Record) -> str:
    if record["refused"]:
        return f"refused: {record['refused']}"
    scores = [row["score"] for row in record["rows"]]
    return f"{sum(scores) / len(scores):.3f}  {record['seconds']:.0f} s"
