"""What a page shows, as plain data: numbers and text that `static/view.js` draws.

Nothing here is HTML: the page puts text in as text.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from tokensieve.data.sources.clips import Video
from tokensieve.errors import UnsupportedError
from tokensieve.evaluate.answer import Answer, Refused
from tokensieve.evaluate.ask import BASELINES
from tokensieve.evaluate.console import scaled
from tokensieve.hf.report import CropReport, ImageReport
from tokensieve.methods.registry import method_class
from tokensieve.view.look import Look
from tokensieve.viz.geometry import Box, crop_boxes, frame_crops, whole_first

SIDE = 1280  # pixels of the longer side that a page shows
_DIGITS = 4  # of a score
LABELS = {"full": "all tokens", "none": "no picture"}
Step = Answer | Refused
Placed = tuple[list[dict[str, Any]], str]  # pictures, and why nothing can be drawn on them


@dataclass(frozen=True)
class Asked:
    """One method at every keep of a page, in its order. scores: as of `Look.scores`.

    Of a baseline, which knows no keep, there is one step."""

    method: str
    steps: tuple[Step, ...]
    scores: list[Tensor] | None = None


def ask_all(
    look: Look, methods: Sequence[str], keeps: Sequence[float | int], *, scores: bool = True
) -> list[Asked]:
    """Every method at every keep; baselines, which know no keep, once."""
    found = []
    for method in dict.fromkeys(methods):
        if method in BASELINES:
            steps: tuple[Step, ...] = (look.try_ask(method, 1.0),)
        else:
            steps = tuple(look.try_ask(method, keep) for keep in keeps)
        ranked = scores and method not in BASELINES and isinstance(steps[0], Answer)
        found.append(Asked(method, steps, look.scores(method) if ranked else None))
    return found


def page_data(
    look: Look, asked: Sequence[Asked], keeps: Sequence[float | int], start: int = 0,
    placed: Placed | None = None,
) -> dict[str, Any]:  # fmt: skip
    """All that a page needs. start: the keep of `keeps` that it begins with. placed: as of
    `place`, from an earlier page of the same pictures."""
    shots, why = placed or place(look, asked)
    return {
        "question": look.question,
        "model": look.loaded.name,
        "keeps": [keep_label(keep) for keep in keeps],
        "start": start,
        "noOverlay": why,
        "pictures": shots,
        "methods": [_method(one, drawn=not why) for one in asked],
    }


def keep_label(keep: float | int) -> str:
    """What a keep is called: "40%", or "64 tokens"."""
    return f"{keep} tokens" if isinstance(keep, int) and keep > 1 else f"{100 * keep:.3g}%"


def _method(asked: Asked, *, drawn: bool) -> dict[str, Any]:
    cls = method_class(asked.method)
    scores = asked.scores if drawn else None
    return {
        "name": asked.method,
        "title": LABELS.get(asked.method, asked.method),
        "paper": cls.paper,
        "baseline": asked.method in BASELINES,
        "steps": [step_data(step, drawn=drawn) for step in asked.steps],
        "scores": None if scores is None else _numbers(scores),
    }


def step_data(step: Step, *, drawn: bool) -> dict[str, Any]:
    """What a page says of one answer. drawn: what was kept can be drawn."""
    if isinstance(step, Refused):
        return {"refused": step.reason}
    flops = sum(step.flops.values()) if step.flops else step.llm_flops
    told: dict[str, Any] = {
        "answer": step.answer,
        "unsure": step.unsure,
        "sure": step.sure,
        "kept": step.kept_tokens,
        "of": step.visual_tokens,
        "costs": {
            "KV cache": scaled(step.kv_bytes, "B"),
            "FLOPs": scaled(flops),
            **{stage: f"{step.ms[stage]:.1f} ms" for stage in ("select", "prefill", "decode")},
        },
    }
    if drawn:
        told["fate"] = fates(step.images)
    return told


def fates(images: Sequence[ImageReport]) -> list[str]:
    """What became of the tokens of every crop of all pictures."""
    return [_packed(_fate(crop)) for image in images for crop in image.crops]


def _fate(crop: CropReport) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """(2, L) of each token: whether it was kept, whether it lives on in another one."""
    fate = np.zeros((2, len(crop.valid)), np.uint8)
    fate[0, crop.kept.tolist()] = 1
    if crop.assign is not None:
        fate[1] = (crop.assign >= 0).cpu().numpy()
    return fate


def _packed(fate: np.ndarray[Any, np.dtype[np.uint8]]) -> str:
    """Bits as base64: of what was kept, and behind them, if any, of what was merged."""
    rows = fate if fate[1].any() else fate[:1]
    return base64.b64encode(np.packbits(rows, axis=1, bitorder="little").tobytes()).decode()


def _numbers(scores: Sequence[Tensor]) -> list[list[float | None]]:
    """Scores of every crop of all pictures, with few digits; None where there is no token."""
    return [
        [float(f"{value:.{_DIGITS}g}") if value > float("-inf") else None for value in crop]
        for picture in scores
        for crop in picture.tolist()
    ]


def place(look: Look, asked: Sequence[Asked]) -> Placed:
    """The pictures, and of videos the frames, each with its crops, their grids and the views that a
    page offers of them; or without crops, and why none can be drawn."""
    grids = next(
        (
            [crop.grid for image in step.images for crop in image.crops]
            for one in asked
            for step in one.steps
            if isinstance(step, Answer) and step.images
        ),
        [],
    )
    try:
        return _placed(look, grids), ""
    except UnsupportedError as error:
        plain = []
        for one in look.pictures:
            frames = one.frames if isinstance(one, Video) else [one]
            plain += [_shot(frame) for frame in frames]
        return plain, str(error)


def _placed(look: Look, grids: Sequence[Any]) -> list[dict[str, Any]]:
    """Raises `UnsupportedError` where it is not known what part of a picture each token shows."""
    processor, alone = look.loaded.processor, len(look.pictures) == 1
    found: list[tuple[Image.Image, list[Box], str]] = []
    for one in look.pictures:
        if isinstance(one, Video):
            box, firsts = frame_crops(processor, one.frames[0].size, len(one.frames))
            found += [(one.frames[n], [box], f"{one.seconds[n]:.1f} s") for n in firsts]
        else:
            boxes = crop_boxes(processor.image_processor, one.size, alone=alone)
            found.append((one, boxes, ""))
    total = sum(len(boxes) for _, boxes, _ in found)
    if len(grids) != total or None in grids:
        raise UnsupportedError(
            f"Expected {total} crops whose tokens each show a place. Got "
            f"{len(grids) - list(grids).count(None)}: no overlay of this model."
        )
    rest = iter(grids)
    return [
        _shot(picture, name, [(box, next(rest)) for box in boxes], _views(boxes, picture.size))
        for picture, boxes, name in found
    ]


def _shot(
    picture: Image.Image, name: str = "", crops: Sequence[tuple[Box, Any]] = (),
    views: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:  # fmt: skip
    return {
        "name": name,
        "src": data_url(picture),
        "size": picture.size,
        "crops": [{"box": [round(edge, 3) for edge in box], "grid": grid} for box, grid in crops],
        "views": [*views],
    }


def _views(boxes: list[Box], size: tuple[int, int]) -> list[dict[str, Any]]:
    if len(boxes) == 1:
        return [{"name": "picture", "crops": [0]}]
    base, tiles = whole_first(boxes, size)
    return [
        {"name": "whole picture", "crops": [base]},
        {"name": f"{len(tiles)} tile{'s' * (len(tiles) > 1)}", "crops": tiles},
    ]


def data_url(picture: Image.Image, side: int = SIDE) -> str:
    """`picture`, no longer side above `side`, as an address that holds it: PNG or JPEG, whichever
    is smaller by much."""
    if max(picture.size) > side:
        scale = side / max(picture.size)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    png, jpeg = BytesIO(), BytesIO()
    picture.save(png, "PNG", optimize=True)
    picture.save(jpeg, "JPEG", quality=88, optimize=True)
    sharp = png.tell() < 2 * jpeg.tell() or png.tell() < 60_000
    kind, file = ("png", png) if sharp else ("jpeg", jpeg)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
