"""Answers and methods as tables for a terminal: readable at 80 columns and when piped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table

from tokensieve.eval.ask import Answer

PLAIN_WIDTH = 80


def show(*parts: RenderableType) -> None:
    """Print to standard output; where that is no terminal, without colours and 80 wide."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PLAIN_WIDTH, no_color=True)
    for part in parts:
        console.print(part)


def table(*headers: str, title: str = "", right: Sequence[str] = ()) -> Table:
    """An empty table in the house's look; the columns named in `right` are set right."""
    made = Table(box=box.SIMPLE_HEAD, title=title or None, title_justify="left", pad_edge=False)
    for header in headers:
        made.add_column(header, justify="right" if header in right else "left", overflow="fold")
    return made


COST_HEADERS = ("tokens", "KV cache", "LLM FLOPs", "select", "prefill", "decode")


def cost_cells(answer: Answer) -> list[str]:
    """The cells below `COST_HEADERS`; times in ms."""
    return [
        f"{answer.kept_tokens}/{answer.visual_tokens}",
        scaled(answer.kv_bytes, "B"),
        scaled(answer.llm_flops),
        *(f"{answer.ms[stage]:.1f}" for stage in ("select", "prefill", "decode")),
    ]


def answers_table(question: str, answers: Sequence[Answer]) -> Table:
    """One row an answer: what was said, with how many tokens, at what cost."""
    first = answers[0]
    made = table(
        "method", "answer", *COST_HEADERS, title=f"{question}  ({first.model})", right=COST_HEADERS
    )
    for answer in answers:
        made.add_row(answer.method, answer.answer, *cost_cells(answer))
    made.caption = "tokens: visual, kept of all. Times in ms."
    made.caption_justify = "left"
    return made


def methods_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The registry, one row a method."""
    made = table("name", "site", "trained", "needs", "about")
    for row in rows:
        trained = "trained" if row["trained"] else "no"
        about = row["about"] + (f" [{row['paper']}]" if row["paper"] else "")
        needs = ", ".join(row["needs"]) or "-"
        made.add_row(row["name"], row["site"], trained, needs, about.replace("[", "\\["))
    return made


def scaled(value: float | int, unit: str = "") -> str:
    """`value` in thousands, millions, ... with three digits: 12300 -> "12.3 k"."""
    for prefix in ("", "k", "M", "G", "T", "P"):
        if value < 999.5 or prefix == "P":
            break
        value /= 1000
    digits = 0 if value >= 99.95 or not prefix else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f} {prefix}{unit}".rstrip()
