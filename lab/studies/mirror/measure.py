"""What is kept of a picture and of its mirror image: `python -m lab.studies.mirror.measure`

Two views of each picture: mirrored, and moved by one patch to the right, which changes every
token's place and nothing of what it shows. Kept sets are laid on each other where both views have
the token. Then writes docs/results/mirror.md.

H x W grid of a picture.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lab import command
from lab.world import NANO2
from tokensieve.budget import count
from tokensieve.evaluate import records
from tokensieve.evaluate.score import prompt
from tokensieve.evaluate.subject import Subject, load_subject
from tokensieve.evaluate.tasks import SYNTH, World
from tokensieve.hf.encoder.encode import encode
from tokensieve.methods.selector import LearnedSelection
from tokensieve.nn.ranking import choose, neighbours
from tokensieve.types import Site, VisionTokens

OUT = Path("results/mirror")
MIRRORED, MOVED = "mirrored", "moved by a patch"
KEEPS = (0.05, 0.1, 0.2, 0.3, 0.5)
SHIPPED, TOP, SAME = "shipped rule", "top", "shipped rule, scores of the picture as it was"
WORLDS: Mapping[str, tuple[World, tuple[str, ...], int]] = {
    "nano": (SYNTH, ("plain", "cluttered", "scene", "mixed"), 12),
    "nano2": (NANO2, ("lines", "receipt", "form", "prose", "scene", "mixed"), 14),
}


@dataclass(frozen=True)
class Look:
    """A view of a picture: its tokens and their scores, (1, L)."""

    vision: VisionTokens
    scores: Tensor


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, write records and page."""
    from lab.studies.mirror.page import write_page

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=WORLDS, default=list(WORLDS))
    parser.add_argument("--pictures", type=int, default=10, help="of a kind")
    parser.add_argument("--split", choices=("val", "test"), default="val")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--root", type=Path, default=Path(), help="where docs/ lies")
    parser.add_argument("--page-only", action="store_true", help="rebuild the page from records")
    options = command.parse(parser, arguments)
    for model in [] if options.page_only else options.models:
        subject = load_subject(model)
        config = {"model": model, "pictures": options.pictures, "split": options.split,
                  "kinds": WORLDS[model][1], "keeps": KEEPS,
                  "weights": subject.fingerprint}  # fmt: skip
        rows = list(measure(subject, model, options.pictures, options.split))
        records.write(options.out / f"{model}.json", {
            "form": "mirror", "identity": records.identity(config), "config": config,
            **records.provenance(), "rows": rows,
        })  # fmt: skip
    write_page(options.out, options.root)


@torch.inference_mode()
def measure(subject: Subject, model: str, pictures: int, split: str) -> Iterator[dict[str, Any]]:
    """One row a kind, rule, view and share: the overlap, mean of the pictures."""
    world, kinds, patch = WORLDS[model]
    method = cast(LearnedSelection, subject.bound("selector", {}))
    for kind in kinds:
        found: dict[tuple[str, str, float], list[float]] = {}
        for number in range(pictures):
            image = np.asarray(world.draw(kind, number, split).image)
            looks = {view: look(subject, method, pixels) for view, pixels in views(image, patch)}
            for key, overlap in overlaps(method, looks):
                found.setdefault(key, []).append(overlap)
        for (rule, view, keep), shares in found.items():
            yield {"kind": kind, "rule": rule, "view": view, "keep": keep,
                   "overlap": round(float(np.mean(shares)), 4)}  # fmt: skip


def views(image: NDArray[np.uint8], patch: int) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """The picture as it was (""), mirrored, and moved; what comes in from the left is its edge."""
    yield "", image
    yield MIRRORED, image[:, ::-1]
    yield MOVED, np.concatenate([image[:, :1].repeat(patch, 1), image[:, :-patch]], 1)


def look(subject: Subject, method: LearnedSelection, pixels: NDArray[np.uint8]) -> Look:
    """Through the encoder, to the place where the selector reads."""
    inputs = subject.processor(
        images=[Image.fromarray(np.ascontiguousarray(pixels))],
        text=[prompt(subject.processor, "?")], return_tensors="pt",
    )  # fmt: skip
    encoded = encode(subject.model, dict(inputs))
    if method.site is Site.EMBEDS or encoded.features is None:
        tokens = encoded.images[0][None]
    else:
        tokens = encoded.features[0]
    side = round(tokens.shape[1] ** 0.5)
    vision = VisionTokens(tokens, grid=(side, side))
    return Look(vision, method.scores(vision))


def overlaps(
    method: LearnedSelection, looks: Mapping[str, Look]
) -> Iterator[tuple[tuple[str, str, float], float]]:
    """By rule, view and share: tokens in both sets over tokens in either."""
    own = looks[""]
    for keep in KEEPS:
        for rule in (SHIPPED, TOP, SAME):
            was = grid_of(kept(method, own, own.scores, rule, keep))
            for view in (MIRRORED, MOVED):
                seen = looks[view]
                scores = as_seen(own, seen, view) if rule == SAME else seen.scores
                now = grid_of(kept(method, seen, scores, rule, keep))
                yield (rule, view, keep), overlap(was, now, view)


def kept(method: LearnedSelection, seen: Look, scores: Tensor, rule: str, keep: float) -> Tensor:
    """(L,) what stays of a view under those scores."""
    vision, selector = seen.vision, method.selector
    counts = torch.tensor([count(keep, vision.tokens.shape[1])])
    chosen = TOP if rule == TOP else method.chosen_rule
    near = neighbours(vision.grid, vision.tokens)
    return choose(selector, vision.tokens, scores, counts, vision.valid_BL, chosen, near)[0]


def grid_of(flat: Tensor) -> Tensor:
    """(H, W) of (L,), a square."""
    side = round(len(flat) ** 0.5)
    return flat.view(side, side)


def as_seen(own: Look, seen: Look, view: str) -> Tensor:
    """The scores of the picture as it was, where its tokens stand in the view; of a column that
    came in, the view's own."""
    was = grid_of(own.scores[0])
    if view == MIRRORED:
        return was.flip(1).reshape(1, -1)
    moved = grid_of(seen.scores[0]).clone()
    moved[:, 1:] = was[:, :-1]
    return moved.reshape(1, -1)


def overlap(was: Tensor, now: Tensor, view: str) -> float:
    """Tokens in both over tokens in either, of those that both views show; 1 for none at all."""
    was, now = (was, now.flip(1)) if view == MIRRORED else (was[:, :-1], now[:, 1:])
    either = int((was | now).sum())
    return int((was & now).sum()) / either if either else 1.0


if __name__ == "__main__":
    command.run(main)
