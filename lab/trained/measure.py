"""Measure one trained selector of a study.

N pictures, L tokens of a picture.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lab.run import WORLDS
from lab.trained.spec import DEFAULT, Training
from tokensieve.evaluate import records
from tokensieve.evaluate.score import Batch, prepare, score
from tokensieve.evaluate.stats import wilson
from tokensieve.evaluate.subject import Subject
from tokensieve.evaluate.tasks import SYNTH, World, load_tasks, picture_hash
from tokensieve.fields import check_names
from tokensieve.methods.base import Method, ScoringMethod
from tokensieve.types import Site, VisionTokens

FULL, EMPTY = 0.99, 0.01  # a mask beyond them ranks nothing
CURVE = 60  # points of a training curve
DRAWN = ("step", "kept", "reconstruction", "mask", "image")


def world_of(spec: Mapping[str, Any]) -> World:
    """The world that a spec asks about, by name; the library's own, where it names none."""
    name = spec.get("world")
    check_names("world", [name] if name else [], WORLDS)
    return WORLDS[name] if name else SYNTH


def encode_pictures(subject: Subject, spec: Mapping[str, Any]) -> dict[str, list[Batch]]:
    """Batches of each kind of the spec, each picture encoded once."""
    return {
        kind: [
            prepare(subject.model, subject.processor, items)
            for task in load_tasks(kind, spec["split"], spec["pictures"], world=world_of(spec))
            for items in task.batches(50)
        ]
        for kind in spec["kinds"]
    }


def config_of(spec: Mapping[str, Any], one: Training, folder: Path) -> dict[str, Any]:
    """Everything that decides a record's numbers."""
    return {
        **{name: spec[name] for name in ("model", "world") if name in spec},
        **({} if one.preset == DEFAULT else {"preset": one.preset}),
        "settings": dict(one.settings),
        "seed": one.seed,
        "kinds": list(spec["kinds"]),
        "keeps": list(spec["keeps"]),
        "pictures": spec["pictures"],
        "split": spec["split"],
        "weights": records.file_hash(folder / "selector"),
        "hashes": {
            kind: picture_hash(kind, spec["split"], world=world_of(spec)) for kind in spec["kinds"]
        },
    }


def measure(
    subject: Subject, pictures: Mapping[str, Sequence[Batch]], folder: Path, keeps: Sequence[float]
) -> dict[str, Any]:
    """Exact match under the pure ranking, how well it finds text, and how the training went."""
    method = subject.bound("selector", {"weights": str(folder / "selector"), "rule": "top"})
    curve = [json.loads(line) for line in (folder / "log.jsonl").read_text("utf-8").splitlines()]
    every = max(1, len(curve) // CURVE)
    return {
        "scores": scores_of(subject, pictures, method, keeps),
        "auc": {kind: text_auc(method, batches) for kind, batches in pictures.items()},
        "curve": [{name: line[name] for name in DRAWN if name in line} for line in curve[::every]],
        "state": state_of([float(line["kept"]) for line in curve]),
    }


def scores_of(
    subject: Subject, pictures: Mapping[str, Sequence[Batch]], method: Method,
    keeps: Sequence[float],
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Exact match of a method by kind and keep."""
    scores: dict[str, dict[str, Any]] = {}
    for kind, batches in pictures.items():
        scores[kind] = {}
        for keep in keeps:
            hits: list[bool] = []
            for batch in batches:
                hits += score(subject.model, batch, method, keep, positions="keep").hits
            share = wilson(sum(hits), len(hits)).rounded()
            scores[kind][f"{keep:g}"] = {"n": len(hits), **share}
    return scores


def text_auc(method: Any, batches: Sequence[Batch]) -> float | None:
    """Chance that a patch with text outranks one without, mean over pictures; None: no text."""
    if not isinstance(method, ScoringMethod):
        return None
    found = []
    for batch in batches:
        encoded = batch.encoded
        seen = encoded.images if method.site is Site.EMBEDS else encoded.features
        tokens_NLC = torch.stack([one.reshape(-1, one.shape[-1]) for one in seen or ()])
        with torch.no_grad():
            scores_NL = method.scores(VisionTokens(tokens_NLC, encoded.packings[0].grid))
        found += [
            auc(scores, item.text_mask) for scores, item in zip(scores_NL, batch.items, strict=True)
        ]
    real = [value for value in found if value is not None]
    return round(sum(real) / len(real), 4) if real else None


def auc(scores_L: Float[Tensor, "L"], wanted_L: Bool[Tensor, "L"]) -> float | None:
    """Area under the ROC curve, ties counting half; None where all or none are wanted."""
    good, bad = scores_L[wanted_L], scores_L[~wanted_L]
    if not len(good) or not len(bad):
        return None
    over = (good[:, None] > bad).double() + 0.5 * (good[:, None] == bad).double()
    return float(over.mean())


def state_of(kept: Sequence[float]) -> str:
    """What became of the mask: "all ones" or "all zeros" at the end, or "ranks"."""
    last = kept[-max(1, len(kept) // 10) :]
    if min(last) > FULL:
        return "all ones"
    return "all zeros" if max(last) < EMPTY else "ranks"
