"""The demo: shipped pictures, the embedded model, all tokens and fewer. No network.

`python -m tokensieve.eval.demo`, `tokensieve demo` or `make demo`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.table import Table

from tokensieve.data.files import check_picture_path, written_whole
from tokensieve.data.shipped import Shipped, shipped_pictures
from tokensieve.eval.ask import Answer, Settings, ask, shown
from tokensieve.eval.console import COST_HEADERS, cost_cells, show, table
from tokensieve.eval.models import Loaded, load_model
from tokensieve.viz.compare import overlay_rows
from tokensieve.viz.sheet import sheet

METHODS = ("full", "selector", "random", "none")
LABELS = {"full": "all tokens", "none": "no image"}
SETTINGS = Settings(keep=0.4, max_new_tokens=8)
Asked = tuple[Shipped, str, str, list[Answer]]  # picture, question, right answer, one per method


def main(out: Path = Path("out/demo.png")) -> None:
    """Ask every shipped question with every method; print the table, write the overlay to `out`."""
    out.parent.mkdir(parents=True, exist_ok=True)
    check_picture_path(out)
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


def demo_table(asked: Sequence[Asked]) -> Table:
    """A block of rows a question, one row a method."""
    made = table("", "method", "answer", "ok", *COST_HEADERS, right=COST_HEADERS)
    for picture, question, right, answers in asked:
        lead = [f"{picture.name}:", *_folded(question, 17), f"({right})"]
        for i, answer in enumerate(answers):
            ok = "yes" if is_right(answer, right) else "no"
            name = LABELS.get(answer.method, answer.method)
            text = lead[i] if i < len(answers) - 1 else " ".join(lead[i:])
            made.add_row(
                text if i < len(lead) else "", name, answer.answer, ok, *cost_cells(answer)
            )
        made.add_section()
    return made


def summary(asked: Sequence[Asked]) -> str:
    """How many questions each method got right."""
    parts = []
    for i, method in enumerate(METHODS):
        right = sum(is_right(answers[i], truth) for _, _, truth, answers in asked)
        parts.append(f"{LABELS.get(method, method)} {right}/{len(asked)}")
    return "Right: " + ", ".join(parts) + ". Times in ms; tokens are visual tokens kept of all."


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
        sheet(rows, heading=heading, width=240).save(part)


def _folded(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if len(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


if __name__ == "__main__":
    main()
