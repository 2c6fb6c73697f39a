"""The demo: shipped pictures, the embedded model, all tokens and fewer. No network.

`python -m tokensieve.evaluate.demo`, `tokensieve demo` or `make demo`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tokensieve.data.synth.shipped import Shipped, shipped_pictures
from tokensieve.evaluate.answer import Answer
from tokensieve.evaluate.ask import Settings, ask
from tokensieve.evaluate.console import COST_HEADERS, COST_NOTE, cost_cells, show
from tokensieve.evaluate.overlay import shown
from tokensieve.files import make_folder, written_whole
from tokensieve.hf.load import load_model
from tokensieve.hf.models.loaded import Loaded, hush
from tokensieve.viz.compare import overlay_rows
from tokensieve.viz.sheet import check_picture_path, sheet

METHODS = ("full", "selector", "random", "none")
LABELS = {"full": "all tokens", "none": "no image"}
WIDTHS = (13, 13, 4, 8, 9, 9, 8, 8, 8)  # of the table's columns
SETTINGS = Settings(keep=0.2, max_new_tokens=8)
Asked = tuple[Shipped, str, str, list[Answer]]  # picture, question, right answer, one per method


def main(out: Path = Path("out/demo.png")) -> None:
    """Ask every shipped question with every method; print the table, write the overlay to `out`."""
    make_folder(out.parent)
    check_picture_path(out)
    hush()
    loaded = load_model("nano")
    asked = ask_all(loaded, shipped_pictures())
    show(demo_table(asked), summary(asked))
    write_sheet(out, loaded, asked)
    show(f"What each method kept, side by side: {out}")


def ask_all(loaded: Loaded, pictures: Sequence[Shipped]) -> list[Asked]:
    """Every question of every picture, by every method, after one throw-away run of each."""
    first = pictures[0]
    for method in METHODS:
        once = replace(SETTINGS, max_new_tokens=2)
        ask(loaded, first.image, first.questions[0][0], method, once)
    return [
        (
            picture,
            question,
            right,
            [ask(loaded, picture.image, question, method, SETTINGS) for method in METHODS],
        )
        for picture in pictures
        for question, right in picture.questions
    ]


def demo_table(asked: Sequence[Asked]) -> str:
    """A block of lines a question, one line a method; at most 80 columns."""
    lines = [_line("", "answer", "", COST_HEADERS), "-" * sum(WIDTHS)]
    for picture, question, right, answers in asked:
        lines.append(f"{picture.name}: {question} ({right})")
        for one in answers:
            ok = "yes" if is_right(one, right) else "no"
            name = f"  {LABELS.get(one.method, one.method)}"
            lines.append(_line(name, one.answer, ok, cost_cells(one)))
    return "\n".join(lines)


def _line(name: str, answer: str, ok: str, costs: Sequence[str]) -> str:
    answer = answer if len(answer) < WIDTHS[1] else f"{answer[: WIDTHS[1] - 4]}..."
    cells = (name, answer, ok, *costs)
    sides = ("<", "<", "<", *(">" for _ in costs))
    parts = zip(cells, sides, WIDTHS, strict=True)
    return "".join(f"{cell:{side}{width}}" for cell, side, width in parts).rstrip()


def summary(asked: Sequence[Asked]) -> str:
    """How many questions each method got right."""
    parts = []
    for i, method in enumerate(METHODS):
        right = sum(is_right(answers[i], truth) for _, _, truth, answers in asked)
        parts.append(f"{LABELS.get(method, method)} {right}/{len(asked)}")
    return "Right: " + ", ".join(parts) + f".\n{COST_NOTE}"


def is_right(answer: Answer, right: str) -> bool:
    """Exact match but for case and surrounding space."""
    return answer.answer.strip().casefold() == right.casefold()


def write_sheet(out: Path, loaded: Loaded, asked: Sequence[Asked]) -> None:
    """One row a picture, with the answers to its first question below the panels."""
    rows, seen = [], set()
    for picture, question, _, answers in asked:
        if picture.name in seen:
            continue
        seen.add(picture.name)
        panels = [replace(one, name=LABELS.get(one.name, one.name)) for one in map(shown, answers)]
        for row in overlay_rows(loaded.processor, picture.image, panels):
            rows.append([replace(row[0], title=picture.name, lines=(question,)), *row[1:]])
    heading = f"Visual tokens kept at keep={SETTINGS.keep:g}; dark tokens never reach the LLM"
    with written_whole(out) as part:
        sheet(rows, heading=heading).save(part)


if __name__ == "__main__":
    main()
