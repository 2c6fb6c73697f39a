"""Every method beside every other: `python -m lab.studies.methods.page`.

Writes docs/results/comparison.md and its figure from the records of lab/studies/methods/suite.json.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from lab.oracle import TextOracle
from lab.report import markdown
from lab.report.board import MEAN, Board, Place
from lab.report.opened import how_to_run, open_board
from lab.report.plots import cloud
from tokensieve.evaluate.config import Suite, Variant
from tokensieve.evaluate.records import Record, read_all
from tokensieve.evaluate.stats import paired_difference
from tokensieve.files import write_text
from tokensieve.methods.registry import method_class
from tokensieve.types import Site

OURS = "selector"
RENUMBERED = "-renumbered"
ROUNDING = 1.05  # a grid or a threshold does not hit every count
CEILING = "oracle-text"  # told where the text is: no method to be compared with
GROUPS = {  # by site, in the order of the page
    Site.PIXELS: "before the encoder",
    Site.ENCODER: "inside the encoder",
    Site.FEATURES: "before the LLM",
    Site.EMBEDS: "before the LLM",
    Site.LLM: "inside the LLM",
}


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and write the page and its figure."""
    suite, board, options = open_board(arguments, str(__doc__), "lab/studies/methods/suite.json")
    times = _times(options.results / "prefill")
    docs = options.root / "docs"
    write_text(docs / "results" / "comparison.md", page(board, suite, options.suite, times))
    points = {v.name: list(_points(board, suite, v, times)) for v in kept_rows(suite)}
    cloud(
        points, {v.name: group(v) for v in kept_rows(suite)}, OURS, docs / "figures/comparison.png"
    )


def kept_rows(suite: Suite) -> list[Variant]:
    """Rows of positions "keep", of methods that go by a budget."""
    return [v for v in suite.variants if not v.name.endswith(RENUMBERED) and _budgeted(v)]


def _budgeted(variant: Variant) -> bool:
    return variant.method not in ("full", "none")


def panels(board: Board, suite: Suite) -> list[tuple[str, str]]:
    """(kind, topic) of every table. No means over topics: not every picture is asked of each."""
    return [(kind, topic) for kind, topic in board.panels(suite.kinds) if topic != MEAN]


def group(variant: Variant) -> str:
    """Where the row's method acts."""
    site = TextOracle.site if variant.method == CEILING else method_class(variant.method).site
    return GROUPS[site]


def page(board: Board, suite: Suite, suite_file: Path, times: dict[str, Record]) -> str:
    """docs/results/comparison.md."""
    pictures = sorted({record["config"]["pictures"] for record in board.records})
    count = " or ".join(f"{n:,}" for n in pictures)
    parts = [
        "# Every method on the embedded model",
        f"Made from `results/{suite.suite}/` by `python -m lab.studies.methods.page`; do not "
        f"edit. {how_to_run(suite_file)}",
        f"Exact match in per cent on {count} held-out generated pictures per kind (split "
        f"`{suite.split}`), by the share of visual tokens kept; mean over three seeds where a "
        "method draws or is trained. Every method of the registry has its row with the options "
        "it has by default, at positions as they were; a row inside the LLM says what is left "
        "behind its last cut, and *per layer* what a layer of the LLM holds on average at .2, in "
        "per cent. In bold the best of a column among rows whose layers hold no more tokens than "
        "the column says, the ceiling left out. The embedded model is small: its encoder has 4 "
        "layers, of which nothing reads the last one's CLS, so that methods that read attention "
        "have less to read than in a large one; its LLM has 4 layers and has read most of a page "
        "by the second, so that a late cut costs nothing here and saves little.",
        "![quality against tokens and time](../figures/comparison.png)",
        *(["## Who wins where", suite.reading] if suite.reading else []),
    ]
    for kind, topic in panels(board, suite):
        parts.append(f"## {markdown.title(kind, topic)}")
        parts.append(_levels(board, kind, topic))
        parts.append(markdown.table(scores(board, suite, kind, topic)))
    parts += ["## Ahead of the best peer", _lead_note(), markdown.table(leaders(board, suite))]
    parts += [
        "## Positions renumbered",
        "Points that closing the gaps in position ids adds at each share, mean over all kinds and "
        "topics; the embedded model was trained with gaps.",
        markdown.table(renumbered(board, suite)),
    ]
    if times:
        parts += ["## Time", _time_note(times), markdown.table(time_table(suite, times))]
    return "\n\n".join(parts) + "\n"


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


def per_layer(board: Board, variant: str, kind: str, keep: float) -> float | None:
    """Share of the visual tokens that a layer holds on average; None where not run."""
    for topic in board.topics(kind):
        cell = board.cell(Place("main", variant, kind, topic, keep))
        if cell is not None:
            return cell.average("layer_tokens") / cell.average("visual_tokens")
    return None


def within(board: Board, variant: str, kind: str, keep: float) -> bool:
    """Whether a layer of the LLM holds no more tokens, on average, than `keep` says (rounding
    apart): a late cut that reads all tokens first is no rival of an early one."""
    return (per_layer(board, variant, kind, keep) or 0.0) <= ROUNDING * keep


def leaders(board: Board, suite: Suite) -> list[list[str]]:
    """Panels down, keeps across: the best peer at no more tokens a layer, and by how much."""
    keeps = [keep for keep in suite.keeps if keep < 1]
    rows = [[f"{OURS} minus best peer, points", *[f"{keep:g}" for keep in keeps]]]
    for kind, topic in panels(board, suite):
        cells = []
        for keep in keeps:
            mine = board.hits(Place("main", OURS, kind, topic, keep))
            peers = {
                v.name: hits
                for v in kept_rows(suite)
                if v.name not in (OURS, CEILING)
                and within(board, v.name, kind, keep)
                and (hits := board.hits(Place("main", v.name, kind, topic, keep)))
            }
            if not mine or not peers:
                cells.append(markdown.NOT_RUN)
                continue
            gaps = {name: paired_difference(mine, hits) for name, hits in peers.items()}
            name = min(gaps, key=lambda name: gaps[name].mean)
            gap = gaps[name]
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


def _times(folder: Path) -> dict[str, Record]:
    """Measured times by variant, where there are any."""
    found = read_all(folder) if folder.exists() else []
    return {r["config"]["method"]: r for r in found if r.get("form") == "prefill"}


def _time_note(times: dict[str, Record]) -> str:
    one = next(iter(times.values()))
    return str(one["note"])


def time_table(suite: Suite, times: dict[str, Record]) -> list[list[str]]:
    """Encode, select and prefill together as a share of full's, keeps across."""
    keeps = [keep for keep in suite.keeps if keep < 1]
    rows = [["time of the whole pass, of full's", *[f"{keep:g}" for keep in keeps]]]
    for variant in kept_rows(suite):
        if variant.method in times:
            by_keep = {row["keep"]: row for row in times[variant.method]["rows"]}
            cells = [f"{by_keep[k]['whole']:.2f}" if k in by_keep else "" for k in keeps]
            rows.append([variant.name, *cells])
    return rows


def _points(
    board: Board, suite: Suite, variant: Variant, times: dict[str, Record]
) -> Iterator[tuple[float, float | None, float]]:
    """(tokens a layer holds, time of the whole pass, exact match), shares of full's, by keep; the
    mean over all panels."""
    by_keep = (
        {r["keep"]: r for r in times[variant.method]["rows"]} if variant.method in times else {}
    )
    everywhere = panels(board, suite)
    for keep in (keep for keep in suite.keeps if keep < 1):
        shares, layers = [], []
        for kind, topic in everywhere:
            ours = board.estimate(Place("main", variant.name, kind, topic, keep))
            full = board.estimate(Place("main", "full", kind, topic, 1.0))
            layer = per_layer(board, variant.name, kind, keep)
            if ours is not None and full is not None and full.mean and layer is not None:
                shares.append(ours.mean / full.mean)
                layers.append(layer)
        if len(shares) == len(everywhere):
            time = by_keep[keep]["whole"] if keep in by_keep else None
            yield _mean(layers), time, _mean(shares)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    main()
