"""Answers and methods as tables for a terminal: readable at 80 columns and when piped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rich import box
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table

from tokensieve.evaluate.answer import Answer, Refused

PLAIN_WIDTH = 80
SHORT = 17  # characters an answer may have in a table 80 wide


def show(*parts: RenderableType) -> None:
    """Print to standard output; where that is no terminal, without colours and 80 wide."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PLAIN_WIDTH, no_color=True)
    for part in parts:
        console.print(part)


def table(*headers: str, title: str = "", right: Sequence[str] = (), fold: str = "") -> Table:
    """An empty table in the house's look: columns in `right` set right, `fold` may take lines."""
    made = Table(
        box=box.SIMPLE_HEAD,
        title=title or None,
        title_justify="left",
        caption_justify="left",
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for header in headers:
        side: Literal["left", "right"] = "right" if header in right else "left"
        made.add_column(header, justify=side, overflow="fold", no_wrap=header != fold)
    return made


COST_HEADERS = ("tokens", "KV cache", "FLOPs", "select", "prefill", "decode")
COST_NOTE = "tokens: visual, kept of all. FLOPs: LLM, trained selector. The last three in ms."


def cost_cells(answer: Answer) -> list[str]:
    """The cells below `COST_HEADERS`; times in ms."""
    return [
        f"{answer.kept_tokens}/{answer.visual_tokens}",
        scaled(answer.kv_bytes, "B"),
        scaled(sum(answer.flops.values()) if answer.flops else answer.llm_flops),
        *(f"{answer.ms[stage]:.1f}" for stage in ("select", "prefill", "decode")),
    ]


def answers_table(question: str, answers: Sequence[Answer | Refused]) -> RenderableType:
    """One row a method: what was said, with how many tokens, at what cost.

    Answers too long for a column, and why a method was refused, stand in full below the table.
    """
    given = [one for one in answers if isinstance(one, Answer)]
    short = all(len(one.answer) <= SHORT for one in given)
    headers = ("method", "answer", *COST_HEADERS) if short else ("method", *COST_HEADERS)
    title = escape(f"{question} ({given[0].model})")
    made = table(*headers, title=title, right=COST_HEADERS, fold="answer")
    below = []
    for one in answers:
        if isinstance(one, Answer):
            said, costs = one.answer, cost_cells(one)
            below += [] if short else [f"{one.method}: {one.answer}"]
            if one.unsure:
                below.append(
                    f"{one.method}: not sure, a token of its answer has a probability of "
                    f"{one.sure:.2f}. It may not be able to read this."
                )
        else:
            said, costs = "(refused)", ["-"] * len(COST_HEADERS)
            below.append(f"{one.method}: refused. {one.reason}")
        made.add_row(one.method, *([escape(said)] if short else []), *costs)
    made.caption = COST_NOTE
    return Group(made, *map(escape, below)) if below else made


def methods_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The registry, one row a method: what it does, where, and what it takes."""
    made = table("name", "what it does", "site", "takes", fold="what it does")
    for row in rows:
        about = row["about"] + (f"\n[{row['paper']}]" if row["paper"] else "")
        takes = [*(["weights"] if row["trained"] else []), *row["needs"]]
        site = row["site"].replace(" or ", "\n")
        made.add_row(row["name"], escape(about), site, "\n".join(takes) or "-")
    return made


def flops_table(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """One row a `keep`: FLOPs of every stage, their sum, bytes of the cache."""
    names = list(rows[0]["stages"])
    columns = ("keep", *names, "sum", "KV cache")
    made = table(*columns, title=escape(title), right=columns)
    for row in rows:
        counts = [row["stages"][name] for name in names]
        cells = [scaled(value) for value in (*counts, sum(counts))]
        made.add_row(f"{row['keep']:g}", *cells, scaled(row["kv_bytes"], "B"))
    made.caption = "By formula, not measured: time saved is less. The cache in 16 bits."
    return made


def bench_table(one: Any, rows: Sequence[Any]) -> RenderableType:
    """One row a method and keep: times by stage, memory, and the ratios beside what FLOPs say."""
    stages = list(rows[0].ms)
    columns = ("kept", *stages, "memory", "ideal", "real", "all")
    made = table("method, keep", *columns, title=escape(one.name), right=columns)
    below = []
    for row in rows:
        if row.refused:
            below.append(f"{row.method}: refused. {row.refused}")
            continue
        times = [f"{row.ms[stage]:.{0 if row.ms[stage] >= 100 else 1}f}" for stage in stages]
        ratios = [f"{value:.2f}" for value in (row.ideal, row.measured, row.whole)]
        made.add_row(f"{row.method} {row.keep:g}", f"{row.tokens:.0f}", *times,
                     scaled(row.memory, "B"), *ratios)  # fmt: skip
    made.caption = (
        "Milliseconds a picture. Times as fast as all tokens: by FLOPs of the prefill (ideal), by "
        "its time with the selection (real), by all stages (all)."
    )
    if one.cut:
        below.append(f"Layers stand for {one.of[0]:g} (encoder) and {one.of[1]:g} (LLM) each.")
    return Group(made, *map(escape, below)) if below else made


def printed_table(figures: Sequence[Any]) -> Table:
    """The papers' figures: what is printed, and what the formula gives."""
    made = table("paper", "what", "printed", "counted", right=("printed", "counted"))
    for one in figures:
        made.add_row(escape(one.paper), one.what, f"{one.printed:g}", f"{one.counted:.3g}")
    made.caption = "TFLOPs. [1] arXiv 2503.16660 and its follow-up, multiply-adds; [2] 2506.07138."
    return made


def scaled(value: float | int | None, unit: str = "") -> str:
    """`value` in thousands, millions, ... with three digits: 12300 -> "12.3 k"; None -> "?"."""
    if value is None:
        return "?"
    for prefix in ("", "k", "M", "G", "T", "P"):
        if value < 999.5 or prefix == "P":
            break
        value /= 1000
    digits = 0 if value >= 99.95 or not prefix else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f} {prefix}{unit}".rstrip()
