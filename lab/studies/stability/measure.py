"""Does a small change of the picture change what is kept? `python -m lab.studies.stability.measure`

Each picture is cropped by 1 to 5 % a side (and enlarged again) and made darker and brighter; kept
sets and greedy answers are held against those of the picture as it was. Then writes
docs/results/stability.md. A token of the cropped picture stands where its centre was before.

N pictures of a batch, k kept tokens.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from lab import command
from tokensieve.data.synth.picture import GRID, PATCH, SIZE
from tokensieve.errors import UnknownNameError
from tokensieve.evaluate import records
from tokensieve.evaluate.remember import remembered_scores
from tokensieve.evaluate.score import answer_ids, prompt
from tokensieve.evaluate.stats import pack_counts, pack_hits, unpack_hits
from tokensieve.evaluate.subject import Subject, load_subject
from tokensieve.evaluate.tasks import Item, load_tasks, picture_hash
from tokensieve.hf.compress import compress
from tokensieve.hf.encoder.encode import Encoded, encode
from tokensieve.hf.runtime.devices import input_device
from tokensieve.methods.base import Method

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels
Kept = frozenset[int]
Values = NDArray[np.float64]
AS_IT_WAS, CROP = "as it was", "crop"
BRIGHTNESS = (0.8, 0.9, 1.1, 1.2)
VIEWS = (AS_IT_WAS, CROP, *map(str, BRIGHTNESS))
WHOLE: Box = (0.0, 0.0, float(SIZE), float(SIZE))
WEIGHTS = (
    "src/tokensieve/assets/selector-nano",
    "lab/nano/weights/selector-seed1",
    "lab/nano/weights/selector-seed2",
)
PEERS = ("full", "divprune", "random", "pixel-variance")  # full: what the model itself bears
PRECISION = 10_000  # overlaps are stored in parts of this


@dataclass(frozen=True)
class StabilityConfig:
    """Everything that decides the numbers, apart from model, method and pictures."""

    model: str = "nano"
    kinds: tuple[str, ...] = ("plain", "cluttered", "scene")
    keeps: tuple[float, ...] = (0.1, 0.2, 0.4)
    pictures: int = 200
    split: str = "test"
    batch: int = 50


@dataclass(frozen=True)
class Seen:
    """One batch under one view: its encoded prompts, and the box of each picture it shows."""

    encoded: Encoded
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class Found:
    """What one method kept of each picture of a batch, and what was answered."""

    kept: list[Kept]
    answers: list[list[int]]


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, measure what is missing, write the page."""
    from lab.studies.stability.page import write_page

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("results/stability"))
    parser.add_argument("--root", type=Path, default=Path("."), help="where docs/ lies")
    parser.add_argument("--weights", nargs="+", default=WEIGHTS, help="selectors, one per seed")
    parser.add_argument("--pictures", type=int, default=40, help="pictures per kind")
    parser.add_argument("--split", choices=("val", "test"), default="test")
    parser.add_argument("--page-only", action="store_true", help="rebuild the page from records")
    options = command.parse(parser, arguments)
    if not options.page_only:
        config = StabilityConfig(pictures=options.pictures, split=options.split)
        run(config, tuple(options.weights), options.out)
    write_page(options.out, options.root)


def run(config: StabilityConfig, weights: tuple[str, ...], out: Path) -> list[Path]:
    """One record per method and seed, and one that compares the seeds, unless they are there."""
    subject, written = load_subject(config.model), []
    jobs = [("selector", seed, {"weights": folder}) for seed, folder in enumerate(weights)]
    jobs += [(name, 0, {}) for name in PEERS]
    data: dict[str, list[tuple[tuple[Item, ...], dict[str, Seen]]]] = {}
    for name, seed, options in jobs:
        hashes = subject.fingerprints(options)
        hashes |= {kind: picture_hash(kind, config.split) for kind in config.kinds}
        stated = {**asdict(config), "method": name, "options": options, "seed": seed,
                  "views": VIEWS, "hashes": hashes}  # fmt: skip
        stated = json.loads(json.dumps(stated))
        path = out / f"{config.model}--{name}--{seed}.json"
        if records.is_done(path, stated):
            continue
        for kind in config.kinds if not data else ():
            tasks = load_tasks(kind, config.split, config.pictures)
            data[kind] = [(items, look(subject, items)) for items in tasks[0].batches(config.batch)]
        started = time.perf_counter()
        keeps = (1.0,) if name == "full" else config.keeps
        rows = list(measure(subject, keeps, name, options, data))
        records.write(path, {
            "form": "stability", "identity": records.identity(stated), "config": stated,
            **records.provenance(), "threads": torch.get_num_threads(),
            "seconds": round(time.perf_counter() - started, 1), "rows": rows,
        })  # fmt: skip
        print(f"{path}  {time.perf_counter() - started:.0f} s", flush=True)
        written.append(path)
    return written


def look(subject: Subject, items: tuple[Item, ...]) -> dict[str, Seen]:
    """The batch encoded under every view."""
    seen = {}
    for view in VIEWS:
        shown = [show(item, view) for item in items]
        inputs = subject.processor(
            images=[image for image, _ in shown],
            text=[prompt(subject.processor, item.question.text) for item in items],
            padding=True, padding_side="left", return_tensors="pt",
        )  # fmt: skip
        with torch.inference_mode():
            encoded = encode(subject.model, dict(inputs.to(input_device(subject.model))))
        seen[view] = Seen(encoded, tuple(box for _, box in shown))
    return seen


def show(item: Item, view: str) -> tuple[Image.Image, Box]:
    """The picture under a view, and the part of it that is seen.

    Raises `UnknownNameError` for a view that is none of VIEWS.
    """
    if view == AS_IT_WAS:
        return item.image, WHOLE
    if view == CROP:
        left, top, right, bottom = (
            float(v) * SIZE for v in np.random.default_rng((5, item.ordinal)).uniform(0.01, 0.05, 4)
        )
        box = (left, top, SIZE - right, SIZE - bottom)
        return item.image.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=box), box
    if view not in VIEWS:
        raise UnknownNameError.of("view", view, VIEWS)
    return ImageEnhance.Brightness(item.image).enhance(float(view)), WHOLE


def places(box: Box) -> NDArray[np.int64]:
    """(L,) for each token of a picture that shows `box`, the token of the whole picture that lies
    under its centre."""
    left, top, right, bottom = box
    centre = (np.arange(GRID) + 0.5) * PATCH / SIZE
    columns = ((left + centre * (right - left)) // PATCH).astype(np.int64)
    rows = ((top + centre * (bottom - top)) // PATCH).astype(np.int64)
    return (rows[:, None] * GRID + columns[None]).reshape(-1)


def overlap(one: Kept, other: Kept) -> float:
    """Tokens in both sets over tokens in either; 1 for two empty sets."""
    return len(one & other) / len(one | other) if one | other else 1.0


def look_again(kept: Kept, box: Box) -> Kept:
    """What the same choice of content would be worth: the tokens of the whole picture under those
    tokens of the part `box` that show what was `kept`, as many as before."""
    under = places(box)
    same = [int(place) for place in under if int(place) in kept]
    return frozenset(same[: len(kept)])


def measure(
    subject: Subject, keeps: tuple[float, ...], name: str, options: Mapping[str, Any],
    data: Mapping[str, list[tuple[tuple[Item, ...], dict[str, Seen]]]],
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """One row per kind, keep and view."""
    for kind, batches in data.items():
        found: dict[tuple[str, float], list[Found]] = {}
        for items, seen in batches:
            keys = [item.ordinal for item in items]
            for number, (view, batch) in enumerate(seen.items()):
                # Random tokens drawn anew for each view: the level of chance.
                chosen = {**options, "seed": number} if name == "random" else options
                method = subject.bound(name, chosen)
                with remembered_scores(method):
                    for keep in keeps:
                        done = answer(subject, batch, method, keep, keys)
                        found.setdefault((view, keep), []).append(done)
        gold = [answer_ids(subject.processor, item.question.answer)
                for items, _ in batches for item in items]  # fmt: skip
        boxes = {v: [box for _, seen in batches for box in seen[v].boxes] for v in VIEWS}
        for keep in keeps:
            for view in VIEWS:
                yield _row(kind, keep, view, found, gold, boxes[view])


def answer(subject: Subject, seen: Seen, method: Method, keep: float, keys: list[int]) -> Found:
    """Kept tokens, where they lie in the picture as it was, and the greedy answers."""
    eos = subject.processor.tokenizer.eos_token_id
    with torch.inference_mode():
        short = compress(subject.model, seen.encoded, method, keep, keys=keys)
        out = subject.model.generate(**short.inputs, max_new_tokens=8, do_sample=False)
    answers = []
    for row in out[:, short.prompt_length :].tolist():
        answers.append([*row[: row.index(eos)], eos] if eos in row else row)
    kept = []
    for report, box in zip(short.report.calls[0].prompts, seen.boxes, strict=True):
        index = report.images[0].crops[0].kept.numpy()
        kept.append(frozenset(places(box)[index].tolist()))
    return Found(kept, answers)


def _kept(found: list[Found]) -> list[Kept]:
    return [kept for part in found for kept in part.kept]


def _answers(found: list[Found]) -> list[list[int]]:
    return [given for part in found for given in part.answers]


def _row(
    kind: str, keep: float, view: str, found: Mapping[tuple[str, float], list[Found]],
    gold: list[list[int]], boxes: list[Box],
) -> dict[str, Any]:  # fmt: skip
    """Overlap, agreement and exact match of one view, picture by picture and on average."""
    base, now = found[AS_IT_WAS, keep], found[view, keep]
    shared = [overlap(*pair) for pair in zip(_kept(base), _kept(now), strict=True)]
    most = [overlap(a, look_again(a, box)) for a, box in zip(_kept(base), boxes, strict=True)]
    pairs = zip(_answers(base), _answers(now), strict=True)
    agree = np.array([a == b for a, b in pairs])
    right = np.array([a == b for a, b in zip(gold, _answers(now), strict=True)])
    means = {"overlap": shared, "same_content": most, "agreement": agree, "exact_match": right}
    return {
        "kind": kind, "keep": keep, "view": view, "n": len(gold),
        **{name: round(float(np.mean(np.asarray(values))), 4) for name, values in means.items()},
        "kept": pack_kept(_kept(now)) if view == AS_IT_WAS else "",
        "overlaps": pack_counts(np.round(PRECISION * np.array(shared))),
        "agreements": pack_hits(agree), "hits": pack_hits(right),
    }  # fmt: skip


def pack_kept(kept: list[Kept]) -> str:
    """Kept sets of N pictures as packed bits."""
    mask_NL = np.zeros((len(kept), GRID * GRID), dtype=bool)
    for row, chosen in zip(mask_NL, kept, strict=True):
        row[list(chosen)] = True
    return pack_hits(mask_NL.reshape(-1))


def unpack_kept(packed: str, n: int) -> list[Kept]:
    """The inverse of `pack_kept` for `n` pictures."""
    mask_NL = unpack_hits(packed, n * GRID * GRID).reshape(n, -1)
    return [frozenset(np.flatnonzero(row).tolist()) for row in mask_NL]


if __name__ == "__main__":
    command.run(main)
