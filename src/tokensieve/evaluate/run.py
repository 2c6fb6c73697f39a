"""Run a suite into records: `python -m tokensieve.evaluate.run SUITE.json`.

Two shells with `--shard 0/2` and `--shard 1/2` share the work, each helping the other at the end;
a record of the same config is never made twice, and one of fewer pictures is only added to: run
with `--limit 250` first to see every row early.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tokensieve.data.progress import run_to_the_end
from tokensieve.errors import BudgetError, ConfigError, UnknownNameError
from tokensieve.evaluate import records
from tokensieve.evaluate.config import Job, Suite, load_suite
from tokensieve.evaluate.remember import remembered_scores
from tokensieve.evaluate.rows import merged, summary, totals
from tokensieve.evaluate.score import Batch, Outcome, is_identity, prepare, score
from tokensieve.evaluate.subject import Subject, Told, load_subject
from tokensieve.evaluate.tasks import SYNTH, Task, World, load_tasks, picture_hash
from tokensieve.fields import check_names
from tokensieve.hf.plan import encoder_signals
from tokensieve.methods.base import Method
from tokensieve.methods.registry import get_method, method_class, method_names
from tokensieve.types import Signal, Site

Encodings = dict[str, list[Batch]]  # one kind for one model: batches by topic
UNLIKE_FULL = ("full", "none")  # scored at keep 1: the first is what others are held against


def main(
    arguments: list[str] | None = None,
    beside: Mapping[str, Told] | None = None,
    worlds: Mapping[str, World] | None = None,
) -> None:
    """Parse the command line and run this shard's jobs; `beside` and `worlds` as in `run`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suite", type=Path, help="a suite.json")
    parser.add_argument("--limit", type=int, help="pictures per kind, instead of the suite's")
    parser.add_argument("--split", choices=("val", "test"), help="instead of the suite's")
    parser.add_argument("--shard", default="0/1", help="this process's part, as i/n")
    parser.add_argument("--only", help="variants or models to run, separated by commas")
    parser.add_argument("--kinds", help="kinds to run, separated by commas")
    parser.add_argument("--model", action="append", default=[], metavar="NAME=SOURCE",
                        help="another source for a model of the suite: a folder, say")  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of suites")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # two shards on two cores beat one shard on both
    kinds = options.kinds.split(",") if options.kinds else None
    suite = load_suite(options.suite, pictures=options.limit, split=options.split, kinds=kinds)
    suite = with_models(suite, options.model)
    only = set(options.only.split(",")) if options.only else None
    run(suite, options.out / suite.suite, shard=parse_shard(options.shard), only=only,
        beside=beside, worlds=worlds)  # fmt: skip


def with_models(suite: Suite, sources: Sequence[str]) -> Suite:
    """The suite with other sources of its models, each told as NAME=SOURCE.

    Raises `ConfigError` for other text, `UnknownNameError` for a model that the suite has not.
    """
    told = dict(suite.models)
    for text in sources:
        name, _, source = text.partition("=")
        if not source:
            raise ConfigError(f"Expected a model as NAME=SOURCE. Got '{text}'.")
        check_names("model", [name], suite.models)
        told[name] = source
    return replace(suite, models=told)


def parse_shard(text: str) -> tuple[int, int]:
    """ "i/n" as numbers. Raises `ConfigError` unless 0 <= i < n."""
    part, _, parts = text.partition("/")
    if not (part.isdigit() and parts.isdigit() and int(part) < int(parts)):
        raise ConfigError(f"Expected a shard as i/n with 0 <= i < n. Got '{text}'.")
    return int(part), int(parts)


def run(
    suite: Suite,
    folder: Path,
    *,
    shard: tuple[int, int] = (0, 1),
    only: set[str] | None = None,
    beside: Mapping[str, Told] | None = None,
    worlds: Mapping[str, World] | None = None,
) -> list[Path]:
    """Run the jobs of this shard's queue whose records are missing; returns the files written.

    beside: by name, methods beside those of the registry that are told what a batch shows, such as
        a ceiling.
    worlds: by name, where a suite's pictures come from beside "synth".

    Raises `UnknownNameError` for a name in `only` that is neither a variant nor a model, for a
    world that is not told, and for a kind that the world has not.
    """
    _check_only(suite, only or set())
    known = {"synth": SYNTH, **(worlds or {})}
    check_names("world", [suite.world], known)
    world = known[suite.world]
    world.check(suite.kinds)
    models: dict[str, Subject] = {}
    written: list[Path] = []
    pictures = _Pictures(suite, world)
    for job in suite.queue(*shard):
        if only is not None and not {job.variant.name, job.model} & only:
            continue
        if lacks := _lacks(job):
            print(f"{job.file_name}  not run: no {lacks}", flush=True)  # noqa: T201
            continue
        if job.source not in models:
            models[job.source] = load_subject(job.source, beside)
        loaded = models[job.source]
        seen = {"pictures": picture_hash(job.kind, suite.split, world=world)}
        config = job.config(suite, loaded.fingerprints(job.options) | seen)
        path = folder / job.file_name
        if records.is_done(path, config):
            continue
        encoded = pictures.encoded(job, loaded)
        record = make_record(suite, job, loaded, encoded, records.shorter(path, config), config)
        records.write(path, {**record, "shards": shard[1]})
        print(f"{path.name}  {record['seconds']:.0f} s  {summary(record['rows'])}", flush=True)  # noqa: T201
        written.append(path)
    return written


def _check_only(suite: Suite, only: Collection[str]) -> None:
    """Raise `UnknownNameError` for what is neither a variant nor a model of the suite."""
    known = {*suite.models, *(variant.name for variant in suite.variants)}
    for name in sorted(only):
        if name not in known:
            raise UnknownNameError.of("variant or model", name, known)


def _lacks(job: Job) -> str:
    """What a job cannot run without and this machine has not, in words; "" where it has all."""
    weights = job.options.get("weights")
    if weights is not None and not Path(weights).exists():
        return f"weights at {weights}"
    return f"model at {job.source}" if not_there(job.source) else ""


class _Pictures:
    """A suite's pictures as its models' encoders see them, the newest held."""

    def __init__(self, suite: Suite, world: World) -> None:
        self.suite, self.world = suite, world
        self.tasks: dict[str, tuple[Task, ...]] = {}
        self.held: dict[tuple[str, str], Encodings] = {}

    def encoded(self, job: Job, loaded: Subject) -> Encodings:
        """Those of a job, drawn and encoded once."""
        suite, kind, key = self.suite, job.kind, (job.kind, job.source)
        if key not in self.held:
            _make_room(self.held, suite.at_once)
            if kind not in self.tasks:
                _make_room(self.tasks, suite.at_once)
                self.tasks[kind] = load_tasks(
                    kind, suite.split, suite.pictures, suite.topics, self.world
                )
            signals = asked_signals(suite, loaded)
            self.held[key] = encode_tasks(
                self.tasks[kind], suite.batch, loaded, suite.prompt, signals
            )
        return self.held[key]


def _make_room(held: dict[Any, Any], most: int) -> None:
    """Let go of the oldest where there are `most` already."""
    if len(held) >= most:
        del held[next(iter(held))]


def not_there(source: str) -> bool:
    """Whether a model that is a folder of this machine, such as a training's, is missing."""
    return source.startswith((".", "/")) and not Path(source).exists()


def make_record(
    suite: Suite, job: Job, loaded: Subject, pictures: Encodings, old: records.Record | None,
    config: Mapping[str, Any],
) -> records.Record:  # fmt: skip
    """The record of one job; `old`: one of fewer pictures, which is only added to."""
    started = time.perf_counter()
    done = old["config"]["pictures"] // suite.batch if old else 0
    fresh = {topic: batches[done:] for topic, batches in pictures.items()}
    same = (
        1 in suite.keeps
        and identity_at_1(job, loaded, fresh)
        and (old is None or old["identity_at_1"])
    )
    rows = list(run_job(suite, job, loaded, fresh, same))
    if old is not None:
        rows = [merged(*pair) for pair in zip(old["rows"], rows, strict=True)]
    return {
        "form": "scores", "identity": records.identity(config), "config": config,
        **records.provenance(), "threads": torch.get_num_threads(),
        "seconds": round(time.perf_counter() - started + (old["seconds"] if old else 0), 2),
        "identity_at_1": same, "rows": rows,
    }  # fmt: skip


def asked_signals(suite: Suite, loaded: Subject) -> tuple[Signal, ...]:
    """What the suite's methods want to know of the encoder's attention."""
    asked: dict[Signal, None] = {}
    for variant in suite.variants:
        if variant.method not in loaded.beside and not method_class(variant.method).trained:
            method = get_method(variant.method, **dict(next(variant.seeds())[1]))
            asked |= dict.fromkeys(encoder_signals(loaded.model, method))
    return tuple(asked)


def encode_tasks(
    tasks: Sequence[Task], size: int, loaded: Subject, form: str = "image-first",
    signals: Collection[Signal] = (),
) -> Encodings:  # fmt: skip
    """The batches of every topic, each picture encoded once."""
    return {
        task.topic: [
            prepare(loaded.model, loaded.processor, items, form, signals)
            for items in task.batches(size)
        ]
        for task in tasks
    }


def identity_at_1(job: Job, loaded: Subject, pictures: Encodings) -> bool:
    """Whether keep 1 changes nothing for any picture, so that it need not be scored again.

    Not asked of what acts inside the LLM: its keep 1 is scored like any other.
    """
    if job.variant.method in UNLIKE_FULL or job.variant.layer is not None:
        return False
    if job.variant.method in method_names() and method_class(job.variant.method).site is Site.LLM:
        return False
    return all(
        is_identity(loaded.model, batch, method_of(job, loaded, batch))
        for batches in pictures.values()
        for batch in batches
    )


def run_job(
    suite: Suite, job: Job, loaded: Subject, pictures: Encodings, same: bool
) -> Iterator[dict[str, Any]]:
    """One row per topic and keep; keep 1 is left to "full" where it is the `same`.

    No row for a keep that the method cannot reach, such as one that halves at most per layer.
    """
    positions = job.variant.positions or suite.positions
    keeps = [k for k in job.variant.keeps or suite.keeps if not (same and k == 1)]
    for topic, batches in pictures.items():
        outcomes: dict[float, list[Outcome]] = {keep: [] for keep in keeps}
        for batch in batches:
            method = method_of(job, loaded, batch)
            with remembered_scores(method) as saved_ms:
                for keep in tuple(outcomes):
                    try:
                        found = score(loaded.model, batch, method, keep, positions=positions,
                                      layer=job.variant.layer)  # fmt: skip
                    except BudgetError as error:
                        print(f"{job.file_name} at {keep}: {error}", flush=True)  # noqa: T201
                        del outcomes[keep]
                        continue
                    extra = saved_ms.pop() if saved_ms else 0.0
                    outcomes[keep].append(replace(found, select_ms=found.select_ms + extra))
        for keep, of_keep in outcomes.items():
            yield {"topic": topic, "keep": keep, **totals(batches, of_keep)}


def method_of(job: Job, loaded: Subject, batch: Batch) -> Method:
    """The job's method; one beside the registry is told what this batch shows."""
    if job.variant.method in loaded.beside:
        return loaded.beside[job.variant.method](batch.items, job.seed)
    return loaded.bound(job.variant.method, job.options, job.variant.layer)


if __name__ == "__main__":
    raise SystemExit(run_to_the_end(main, "record"))
