"""Why a question that all tokens answer is answered wrong with fewer: was the answer's place
dropped, or kept and misread?
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import ImageDraw

from tokensieve.errors import UnsupportedError
from tokensieve.evaluate.ask import Settings, ask
from tokensieve.evaluate.questions import Question, Questions
from tokensieve.evaluate.records import Record, read
from tokensieve.evaluate.shown import masks_of
from tokensieve.files import make_folder, written_whole
from tokensieve.hf.models.loaded import Loaded
from tokensieve.viz.overlay import dim, enlarge
from tokensieve.viz.sheet import Panel, sheet

RIGHT = 0.5  # a score from which on an answer counts as right
WHOLE, LITTLE = 0.9, 0.5  # shares of the answer's place: all of it is there; it is gone
CAUSES = {
    "dropped": "place dropped",
    "part": "kept in part",
    "merged": "merged, misread",
    "misread": "kept, misread",
    "unknown": "not told",
}
SHOWN, BOX = 384, (230, 40, 60)  # pixels an overlay has at least; the colour of the answer's box
Row = dict[str, Any]


@dataclass
class Lost:
    """A method at one keep: of `answered` questions that all tokens answer, those it loses, by
    cause. Seeds are counted each."""

    method: str
    keep: float
    kind: str
    answered: int = 0
    causes: Counter[str] = field(default_factory=Counter)


def cause_of(seen: Sequence[float] | None) -> str:
    """One of `CAUSES` for the shares of the answer's place under kept tokens, and with those that
    were merged into them."""
    if seen is None:
        return "unknown"
    own, with_merged = seen
    if own >= WHOLE:
        return "misread"
    if with_merged >= WHOLE:
        return "merged"
    return "part" if with_merged >= LITTLE else "dropped"


def lost_of(files: Sequence[Path]) -> list[Lost]:
    """By method, keep and group, where all tokens were asked and places are known."""
    told = list(map(read, files))
    found: dict[tuple[str, float, str], Lost] = {}
    for record in told:
        for full, row in _pairs(told, record):
            if full["seen"] is None:
                continue  # nobody knows where its answer stands
            key = (record["config"]["method"], float(record["config"]["keep"]), row["group"])
            one = found.setdefault(key, Lost(*key))
            one.answered += 1
            if row["score"] < RIGHT:
                one.causes[cause_of(row["seen"])] += 1
    return list(found.values())


def _pairs(told: Sequence[Record], record: Record) -> Iterator[tuple[Row, Row]]:
    """Rows of all tokens that are right, and of `record`, question by question."""
    full = next((one for one in told if one["config"]["method"] == "full"), None)
    if full is None or record["config"]["method"] in ("full", "none") or record["refused"]:
        return
    for whole, row in zip(full["rows"], record["rows"], strict=True):
        if whole["score"] >= RIGHT and "seen" in whole:
            yield whole, row


def markdown(files: Sequence[Path]) -> str:
    """The section of a table's page; empty where no place is known."""
    found = lost_of(files)
    if not found:
        return ""
    lost = sum((one.causes for one in found), Counter[str]())
    known = sum(lost.values()) - lost["unknown"]
    message = (
        f"Of {known} answers that were lost, {lost['dropped'] / known:.0%} had their place "
        f"dropped, {lost['misread'] / known:.0%} had it whole and were misread."
        if known else "No answer was lost whose place is known."
    )  # fmt: skip
    head = " | ".join(CAUSES.values())
    parts = [
        f"\n## Why answers were lost\n\n{message}\n\n",
        f"| method | keep | kind | all tokens answer | lost | {head} |\n"
        "| :-- | --: | :-- | --: | --: |" + " --: |" * len(CAUSES) + "\n",
    ]
    for one in found:
        counts = " | ".join(str(one.causes[name]) for name in CAUSES)
        parts.append(
            f"| `{one.method}` | {one.keep:g} | {one.kind} | {one.answered} | "
            f"{one.causes.total()} | {counts} |\n"
        )
    parts.append(
        f"\nQuestions that all tokens answer, of which the answer's place is known; seeds count "
        f"each. *Dropped*: less than {LITTLE:.0%} of the place is left; *kept*: {WHOLE:.0%} or "
        "more; *merged*: with tokens that live on in others; *not told*: the whole picture was "
        "made smaller, or nobody knows which part of it a token shows.\n"
    )
    return "".join(parts)


def table(files: Sequence[Path]) -> str:
    """The same as CSV."""
    out = io.StringIO()
    sheet_ = csv.writer(out, lineterminator="\n")
    sheet_.writerow(["method", "keep", "kind", "answered", "lost", *CAUSES])
    for one in lost_of(files):
        counts = [one.causes[name] for name in CAUSES]
        sheet_.writerow(
            [one.method, f"{one.keep:g}", one.kind, one.answered, one.causes.total(), *counts]
        )
    return out.getvalue()


def overlays(
    loaded: Loaded, questions: Questions, files: Sequence[Path], settings: Settings, out: Path,
    most: int,
) -> int:  # fmt: skip
    """Pictures of the first `most` lost questions of each record, dropped tokens dimmed and the
    answer's place framed; how many. They are asked again."""
    told, made = list(map(read, files)), 0
    for file, record in zip(files, told, strict=True):
        config, done = record["config"], 0
        own = replace(settings, keep=config["keep"] or settings.keep,
                      options={**settings.options, "seed": config["seed"]})  # fmt: skip
        numbers = {id(row): number for number, row in enumerate(record["rows"])}
        for _, row in _pairs(told, record):
            if done == most:
                break
            if row["score"] >= RIGHT or row["seen"] is None:
                continue
            number = numbers[id(row)]
            panel = _panel(loaded, questions.items[number], config["method"], own, row["seen"])
            if panel is not None:
                make_folder(out)
                question = questions.items[number]
                with written_whole(out / f"{file.stem}--{number}.png") as part:
                    heading = f"{question.text} ({' / '.join(question.answers)})"
                    sheet([[panel]], heading=heading, width=panel.picture.width).save(part, "PNG")
                done += 1
        made += done
    return made


def _panel(
    loaded: Loaded, question: Question, method: str, settings: Settings, seen: Sequence[float]
) -> Panel | None:
    picture = question.open()
    answer = ask(loaded, picture, question.text, method, settings)
    try:
        masks = masks_of(loaded.processor, picture.size, answer.images)
    except UnsupportedError:
        return None
    large, masks = enlarge(picture, masks, SHOWN)
    shown, scale = dim(large, masks), large.width / picture.width
    draw = ImageDraw.Draw(shown)
    for boxes in question.regions:
        left, top = (min(box[axis] for box in boxes) * scale for axis in (0, 1))
        right, bottom = (max(box[axis] for box in boxes) * scale for axis in (2, 3))
        draw.rectangle((left - 2, top - 2, right + 1, bottom + 1), outline=BOX, width=2)
    lines = (
        f"Answer: {answer.answer or '(nothing)'}",
        f"{CAUSES[cause_of(seen)]}: {seen[0]:.0%} of the answer's place is kept",
        f"{answer.kept_tokens} of {answer.visual_tokens} tokens",
    )
    return Panel(shown, method, lines)
