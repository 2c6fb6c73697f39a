"""Adaptive counts against fixed ones at the same average: `python -m lab.studies.adaptive.measure`.

For each seed's weights: how many tokens pictures keep under counts="adaptive", against the amount
of text on them, and exact match beside that of a fixed count with the same average over all
pictures. Needs weights with thresholds (`python -m tokensieve.train.calibration.selector`).
Then writes docs/results/adaptive.md.

N pictures.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lab import command
from tokensieve.data.synth import generate
from tokensieve.data.synth.picture import Picture, Question
from tokensieve.evaluate import records
from tokensieve.evaluate.remember import remembered_scores
from tokensieve.evaluate.score import IGNORE, Batch, Outcome, prepare, score
from tokensieve.evaluate.stats import pack_counts, pack_hits
from tokensieve.evaluate.subject import Subject, load_subject
from tokensieve.evaluate.tasks import Item, load_tasks, picture_hash
from tokensieve.fields import as_fields, check_fields, check_names, option, read_object
from tokensieve.hf.compress import compress
from tokensieve.methods.base import Method

Counts = NDArray[np.int64]
Encodings = dict[tuple[str, str], list[Batch]]  # by (kind, topic)
LINES = 14  # pages of the study of text have 1 to 14 lines, in turn
PAGES = ("plain", "cluttered", "dense", "scene", "mixed")
NOTHING = Question("What is AC?", "000", "text", "text")  # asked where only counts matter


@dataclass(frozen=True)
class AdaptiveConfig:
    """What is measured, read from lab/studies/adaptive/suite.json."""

    suite: str = "adaptive"
    model: str = "nano"
    weights: tuple[str, ...] = ("src/tokensieve/assets/selector-nano",)
    kinds: tuple[str, ...] = ("plain", "cluttered", "scene", "mixed")
    keeps: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3)
    pictures: int = option(500, low=1, high=10**7)
    split: str = "test"
    batch: int = option(50, low=1, high=2**14)

    def __post_init__(self) -> None:
        check_fields(self)

    @classmethod
    def read(cls, path: Path, **overrides: Any) -> AdaptiveConfig:
        """From a file; `overrides` that are not None win. Raises `ConfigError`."""
        raw = read_object(path, "a suite")
        raw |= {name: value for name, value in overrides.items() if value is not None}
        check_names("suite field", raw, (field.name for field in fields(cls)))
        return cls(**as_fields(cls, raw))


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, measure what is missing, write the page."""
    from lab.studies.adaptive.page import write_page

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "suite", nargs="?", type=Path, default=Path("lab/studies/adaptive/suite.json")
    )
    parser.add_argument("--weights", nargs="+", help="folders of calibrated weights, one per seed")
    parser.add_argument("--pictures", type=int, help="pictures per kind, instead of the suite's")
    parser.add_argument("--split", choices=("val", "test"), help="instead of the suite's")
    parser.add_argument("--out", type=Path, default=Path("results/adaptive"))
    parser.add_argument("--root", type=Path, default=Path("."), help="where docs/ lies")
    parser.add_argument("--page-only", action="store_true", help="rebuild the page from records")
    options = command.parse(parser, arguments)
    config = AdaptiveConfig.read(
        options.suite, weights=options.weights, pictures=options.pictures, split=options.split
    )
    if not options.page_only:
        run(config, options.out)
    write_page(options.out, options.root, options.suite)


def run(config: AdaptiveConfig, out: Path) -> list[Path]:
    """One record per seed, unless it is there; returns the files written."""
    subject = load_subject(config.model)
    data: Encodings = {}
    pages: dict[str, list[tuple[Batch, Counts]]] = {}
    written = []
    for seed, folder in enumerate(config.weights):
        hashes = subject.fingerprints({"weights": folder})
        hashes |= {kind: picture_hash(kind, config.split) for kind in PAGES}
        stated = {**asdict(config), "weights": folder, "seed": seed, "hashes": hashes}
        stated = json.loads(json.dumps(stated))
        path = out / f"{config.model}--{seed}.json"
        if records.is_done(path, stated):
            continue
        adaptive = subject.bound("selector", {"weights": folder, "counts": "adaptive"})
        fixed = subject.bound("selector", {"weights": folder})
        if not data:
            data, pages = encode_questions(subject, config), encode_pages(subject, config)
        started = time.perf_counter()
        rows = list(measure(subject, config, adaptive, fixed, data))
        text = list(text_rows(subject, config, adaptive, pages))
        records.write(path, {
            "form": "adaptive", "identity": records.identity(stated), "config": stated,
            **records.provenance(), "threads": torch.get_num_threads(),
            "seconds": round(time.perf_counter() - started, 1), "rows": rows, "text": text,
        })  # fmt: skip
        print(f"{path}  {time.perf_counter() - started:.0f} s", flush=True)
        written.append(path)
    return written


def encode_questions(subject: Subject, config: AdaptiveConfig) -> Encodings:
    """The batches of every kind and topic, each picture encoded once per question."""
    return {
        (kind, task.topic): [
            prepare(subject.model, subject.processor, items) for items in task.batches(config.batch)
        ]
        for kind in config.kinds
        for task in load_tasks(kind, config.split, config.pictures)
    }


def encode_pages(subject: Subject, config: AdaptiveConfig) -> dict[str, list[tuple[Batch, Counts]]]:
    """Batches of pictures by kind with the number of patches under ink; key-value pages have from
    one line to many in equal parts."""
    out = {}
    for kind in PAGES:
        made = [
            generate(kind, i, config.split, **_few_lines(kind, i)) for i in range(config.pictures)
        ]
        batches = []
        for start in range(0, len(made), config.batch):
            part = made[start : start + config.batch]
            items = [_unasked(start + i, picture) for i, picture in enumerate(part)]
            text = np.array([text_patches(picture) for picture in part])
            batches.append((prepare(subject.model, subject.processor, items), text))
        out[kind] = batches
    return out


def _few_lines(kind: str, ordinal: int) -> dict[str, int]:
    return {"max_lines": 1 + ordinal % LINES} if kind in ("plain", "cluttered") else {}


def text_patches(picture: Picture) -> int:
    """Patches that hold ink of any character, asked about or not."""
    return int((picture.labels.ink > 0).sum())


def _unasked(ordinal: int, picture: Picture) -> Item:
    text = torch.from_numpy(picture.text_mask.reshape(-1).copy())
    return Item(ordinal, picture.image, NOTHING, text, ())


def measure(
    subject: Subject, config: AdaptiveConfig, adaptive: Method, fixed: Method, data: Encodings
) -> Iterator[dict[str, Any]]:
    """One row per keep, kind and topic.

    The fixed count equals the adaptive one's average over the population: all kinds alike, pictures
    with two questions once. An average of 25.3 is 25 tokens for seven in ten pictures and 26 for
    the others, so both are scored.
    """
    scored = _score_all(subject, adaptive, data, config.keeps)
    averages = {}
    for keep in config.keeps:
        kept = {kind: scored[kind, topic, keep][1] for kind, topic in data}
        averages[keep] = float(np.mean([counts.mean() for counts in kept.values()]))
    budgets = sorted({math.floor(m) + i for m in averages.values() for i in (0, 1)})
    level = _score_all(subject, fixed, data, budgets)
    for keep, average in averages.items():
        low = math.floor(average)
        for kind, topic in data:
            hits, counts = scored[kind, topic, keep]
            yield {
                "keep": keep, "kind": kind, "topic": topic, "n": len(hits),
                "exact_match": round(float(hits.mean()), 4),
                "kept_tokens": round(float(counts.mean()), 3),
                "average_tokens": round(average, 4),
                "kept": pack_counts(counts), "hits": pack_hits(hits),
                "fixed_hits": {str(n): pack_hits(level[kind, topic, n][0])
                               for n in (low, low + 1)},
            }  # fmt: skip


def _score_all(
    subject: Subject, method: Method, data: Encodings, keeps: Sequence[float | int]
) -> dict[tuple[str, str, float | int], tuple[NDArray[np.bool_], Counts]]:
    """Hits and kept tokens per picture, by kind, topic and keep."""
    out = {}
    for (kind, topic), batches in data.items():
        found: dict[float | int, list[Outcome]] = {keep: [] for keep in keeps}
        for batch in batches:
            with remembered_scores(method):
                for keep in keeps:
                    found[keep].append(score(subject.model, batch, method, keep, positions="keep"))
        for keep, outcomes in found.items():
            hits = np.array([hit for o in outcomes for hit in o.hits], dtype=bool)
            length = np.array([n for o in outcomes for n in o.prompt_tokens])
            words = np.concatenate([text_tokens(batch) for batch in batches])
            out[kind, topic, keep] = hits, length - words
    return out


def text_tokens(batch: Batch) -> Counts:
    """(N,) prompt tokens that are no visual ones, the answer left out."""
    inputs = batch.encoded.inputs
    real_NT = inputs["attention_mask"].bool() & (inputs["labels"] == IGNORE)
    counts: Counts = (real_NT & (inputs["input_ids"] != batch.encoded.placeholder)).sum(1).numpy()
    return counts


def text_rows(
    subject: Subject, config: AdaptiveConfig, method: Method,
    pages: Mapping[str, list[tuple[Batch, Counts]]],
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Kept tokens and patches under text of every picture, per keep and kind."""
    for kind, batches in pages.items():
        text = np.concatenate([patches for _, patches in batches])
        kept: dict[float, list[int]] = {keep: [] for keep in config.keeps}
        for batch, _ in batches:
            with remembered_scores(method), torch.no_grad():
                for keep in config.keeps:
                    short = compress(subject.model, batch.encoded, method, keep)
                    prompts = short.report.calls[0].prompts
                    kept[keep] += [prompt.images[0].kept for prompt in prompts]
        for keep, counts in kept.items():
            yield {"keep": keep, "kind": kind, "n": len(text), "text": pack_counts(text),
                   "kept": pack_counts(np.array(counts)),
                   "kept_tokens": round(float(np.mean(counts)), 3)}  # fmt: skip


if __name__ == "__main__":
    command.run(main)
