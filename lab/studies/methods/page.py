"""Every method beside every other: `python -m lab.studies.methods.page`.

Writes docs/results/comparison.md and its figure from the records of lab/studies/methods/suite.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lab.report import markdown
from lab.report.board import Board, Place
from lab.report.draw import save
from lab.report.opened import how_to_run, open_board
from lab.report.page import NANO, document, fold
from lab.studies.methods.rows import (
    CEILING,
    GROUPS,
    OURS,
    RENUMBERED,
    group,
    kept_rows,
    panels,
    per_layer,
    rival,
    times_of,
    within,
)
from lab.studies.methods.summary import best_rows, figure, message
from tokensieve.evaluate.config import Suite
from tokensieve.evaluate.records import Record
from tokensieve.files import write_text


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and write the page and its figure."""
    suite, board, options = open_board(arguments, str(__doc__), "lab/studies/methods/suite.json")
    times, docs = times_of(options.results / "prefill"), options.root / "docs"
    write_text(docs / "results" / "comparison.md", page(board, suite, options.suite, times))
    save(figure(board, suite, times), docs / "figures/comparison.png")


def page(board: Board, suite: Suite, suite_file: Path, times: Mapping[str, Record]) -> str:
    """docs/results/comparison.md."""
    pictures = sorted({record["config"]["pictures"] for record in board.records})
    count = " or ".join(f"{n:,}" for n in pictures)
    parts = [
        "![quality against tokens and time](../figures/comparison.png)",
        markdown.table(best_rows(board, suite)),
        "Exact match in per cent, mean of the kinds and of their questions: the selector, and of "
        "each site the methods that read most at .1 of the tokens. *Per layer*: what a layer of "
        "the LLM holds on average when .2 is kept, in per cent; a row that holds more than the "
        "share says had more to read.",
        f"Measured on {count} held-out generated pictures per kind (split `{suite.split}`) with "
        "the embedded model; mean over three seeds where a method draws or is trained; options "
        "by default, positions as they were. It cannot show how methods that read attention do in "
        "a large model: this encoder has 4 layers, of which nothing reads the last one's CLS. Its "
        "LLM has 4 layers and has read most of a page by the second, so that a late cut costs "
        "nothing here and saves little.",
        "## Kind by kind",
        "In bold the best of a column among rows whose layers hold no more tokens than the column "
        "says, the ceiling left out. A row inside the LLM says what is left behind its last cut.",
    ]
    parts += [
        fold(markdown.title(kind, topic), _levels(board, kind, topic),
             markdown.table(scores(board, suite, kind, topic)))
        for kind, topic in panels(board, suite)
    ]  # fmt: skip
    parts += [
        "## Ahead of the best peer",
        _lead_note(),
        fold("Every kind and share", markdown.table(leaders(board, suite))),
        "## Positions renumbered",
        "Points that closing the gaps in position ids adds at each share, mean over all kinds and "
        "topics; the embedded model was trained with gaps.",
        fold("Every method", markdown.table(renumbered(board, suite))),
    ]
    if times:
        parts += ["## Time", _time_note(times),
                  fold("Every method", markdown.table(time_table(suite, times)))]  # fmt: skip
    return document(
        "Every method on the embedded model", message(board, suite), parts,
        f"`python -m lab.studies.methods.page` from `results/{suite.suite}/`",
        how_to_run(suite_file), NANO,
    )  # fmt: skip


def _levels(board: Board, kind: str, topic: str) -> str:
    shown = []
    for name, words in (("full", "all tokens"), ("no-image", "no image")):
        found = board.estimate(Place("main", name, kind, topic, 1.0))
        value = markdown.NOT_RUN if found is None else markdown.percent(found.mean)
        shown.append(f"{words} {value}")
    return f"{', '.join(shown).capitalize()}."


def scores(board: Board, suite: Suite, kind: str, topic: str) -> list[list[str]]:
    """Variants down, keeps across; the best of each column in bold."""
    variants = sorted(kept_rows(suite), key=lambda v: list(GROUPS.values()).index(group(v)))
    keeps = [keep for keep in suite.keeps if keep < 1]
    means = {
        (v.name, keep): found.mean
        for v in variants
        for keep in keeps
        if (found := board.estimate(Place("main", v.name, kind, topic, keep))) is not None
    }
    best = {
        keep: max(
            (
                mean
                for (name, k), mean in means.items()
                if k == keep and name != CEILING and within(board, name, kind, keep)
            ),
            default=None,
        )
        for keep in keeps
    }
    rows = [["exact match, %", "acts", *[f"{keep:g}" for keep in keeps], "per layer"]]
    for variant in variants:
        cells = []
        for keep in keeps:
            mean = means.get((variant.name, keep))
            text = "" if mean is None else markdown.percent(mean)
            fair = variant.name != CEILING and within(board, variant.name, kind, keep)
            bold = fair and mean is not None and mean == best[keep]
            cells.append(f"**{text}**" if bold else text)
        if any(cells):
            layer = per_layer(board, variant.name, kind, 0.2)
            shown = "" if layer is None else f"{100 * layer:.0f}"
            rows.append([variant.name, group(variant), *cells, shown])
    return rows


def leaders(board: Board, suite: Suite) -> list[list[str]]:
    """Panels down, keeps across: the best peer at no more tokens a layer, and by how much."""
    keeps = [keep for keep in suite.keeps if keep < 1]
    rows = [[f"{OURS} minus best peer, points", *[f"{keep:g}" for keep in keeps]]]
    for kind, topic in panels(board, suite):
        cells = []
        for keep in keeps:
            found = rival(board, suite, kind, topic, keep)
            if found is None:
                cells.append(markdown.NOT_RUN)
                continue
            name, gap = found
            ends = f"{100 * gap.low:+.1f} to {100 * gap.high:+.1f}"
            cells.append(f"{name} {100 * gap.mean:+.1f} ({ends})")
        rows.append([f"{kind} ({topic})", *cells])
    return rows


def _lead_note() -> str:
    return (
        f"Points by which `{OURS}` leads the best other method that leaves no more tokens to a "
        "layer of the LLM than the share says (so a late cut does not compete with an early one), "
        "over the same pictures, with 95 % bootstrap ends. The best of many is picked after the "
        "fact, which favours the peer."
    )


def renumbered(board: Board, suite: Suite) -> list[list[str]]:
    """What renumbering changes, method by method: keeps across."""
    keeps = [keep for keep in suite.keeps if keep < 1]
    rows = [["points", *[f"{keep:g}" for keep in keeps]]]
    names = {v.name for v in suite.variants}
    for variant in kept_rows(suite):
        other = f"{variant.name}{RENUMBERED}"
        if other not in names:
            continue
        cells = []
        for keep in keeps:
            gaps = [
                closed.mean - left.mean
                for kind, topic in panels(board, suite)
                if (closed := board.estimate(Place("main", other, kind, topic, keep)))
                and (left := board.estimate(Place("main", variant.name, kind, topic, keep)))
            ]
            cells.append(f"{100 * sum(gaps) / len(gaps):+.1f}" if gaps else "")
        if any(cells):
            rows.append([variant.name, *cells])
    return rows


def _time_note(times: Mapping[str, Record]) -> str:
    one = next(iter(times.values()))
    return str(one["note"])


def time_table(suite: Suite, times: Mapping[str, Record]) -> list[list[str]]:
    """Encode, select and prefill together as a share of full's, keeps across."""
    keeps = [keep for keep in suite.keeps if keep < 1]
    rows = [["time of the whole pass, of full's", *[f"{keep:g}" for keep in keeps]]]
    for variant in kept_rows(suite):
        if variant.method in times:
            by_keep = {row["keep"]: row for row in times[variant.method]["rows"]}
            cells = [f"{by_keep[k]['whole']:.2f}" if k in by_keep else "" for k in keeps]
            rows.append([variant.name, *cells])
    return rows


if __name__ == "__main__":
    main()
