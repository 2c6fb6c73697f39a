"""Rebuild every table and plot from the records: `python -m lab.studies.nano.page`.

Writes results/<suite>/scores.csv, docs/results/nano.md, docs/figures/nano.png and the README's
block of results.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

from lab.report import markdown
from lab.report.board import Board, Place
from lab.report.draw import save
from lab.report.opened import how_to_run, open_board
from lab.report.page import document, fold, put_block, words
from lab.studies.nano.figure import Times, figure, times_of
from tokensieve.errors import InputError
from tokensieve.evaluate.config import Suite
from tokensieve.evaluate.records import read_all
from tokensieve.evaluate.stats import paired_difference
from tokensieve.files import write_text
from tokensieve.methods.registry import method_class, method_names

OURS, RANKING, AT = "selector", "selector-ranking", 0.1
CONTROLS = ("full", "none")
PRESETS = ("preset-wlie", "preset-wlie-literal", "preset-two-sided")
BASELINES = ("random", "stride", "avgpool", "downsample")
PEERS = ("divprune", "pixel-variance", "feature-norm", *BASELINES, *PRESETS)
SHARED = (OURS, RANKING, "selector-features", "divprune", "random")
COLUMNS = (0.05, 0.1, 0.2, 0.4)  # of the table that matters
TIMED = 0.2
LABELS = {"full": "all tokens", "no-image": "no image", OURS: "**selector**, trained"}
LIMITS = (
    "Generated pictures and a model of its own size: it cannot show what a method keeps of real "
    "photographs or of a large model's answers, nor that time is saved, which takes a larger LLM."
)


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and write everything."""
    suite, board, options = open_board(arguments, str(__doc__), "lab/studies/nano/suite.json")
    write_text(options.results / suite.suite / "scores.csv", markdown.as_csv(board, suite))
    docs, times = options.root / "docs", times_of(options.results)
    names = present(suite, (OURS, *PEERS))
    save(figure(board, suite, names, best_peer(board, suite), times),
         docs / "figures" / f"{suite.suite}.png")  # fmt: skip
    extra = [r for name in ("timing", "receipts") for r in records_of(options.results, name)]
    write_text(docs / "results" / "nano.md", page(board, suite, options.suite, times, extra))
    readme = options.root / "README.md"
    if readme.exists():  # a folder to look at pages in has none
        put_block(readme, "results", readme_block(board, suite, times))


def present(suite: Suite, names: tuple[str, ...]) -> list[str]:
    """Those of `names` that the suite has, in the order of `names`."""
    known = {variant.name for variant in suite.variants}
    return [name for name in names if name in known]


def records_of(results: Path, form: str) -> list[dict[str, object]]:
    """Records of another form than scores, from any suite."""
    return [r for d in sorted(results.glob("*/")) for r in read_all(d) if r.get("form") == form]


def untrained(suite: Suite) -> list[str]:
    """Methods of the suite that need no training; not all that there are.

    One by options of its own, as the ceiling, is no peer.
    """
    known = set(method_names()) - set(CONTROLS)
    return [name for name in dict.fromkeys(variant.name for variant in suite.variants)
            if name in known and not method_class(name).trained]  # fmt: skip


def best_peer(board: Board, suite: Suite) -> str:
    """Of those the one that reads most at `AT`, over all kinds."""
    names = untrained(suite)
    return max(names, key=lambda name: board.overall("main", name, AT, suite.kinds) or 0.0)


def small_table(board: Board, suite: Suite, times: Times) -> str:
    """The rows a newcomer compares, a few shares across, mean of the kinds; and time at one."""
    keeps = [keep for keep in COLUMNS if keep in suite.keeps]
    peer = best_peer(board, suite)
    labels = {**LABELS, peer: f"`{peer}`, the best of {len(untrained(suite))} untrained here"}
    rows = [["right answers, %", *[f"{keep:.0%} of tokens" for keep in keeps],
             f"time at {TIMED:.0%}"]]  # fmt: skip
    methods = {variant.name: variant.method for variant in suite.variants}
    for name in dict.fromkeys(("full", OURS, peer, *BASELINES, "no-image")):
        if name not in methods:
            continue
        label = labels.get(name, f"`{name}`")
        whole = board.overall("main", name, 1.0, suite.kinds)
        if name in ("full", "no-image"):  # one score, whatever the share
            said = markdown.NOT_RUN if whole is None else markdown.percent(whole)
            rows.append([label, *[said] * len(keeps), "1.00" if name == "full" else ""])
            continue
        means = [board.overall("main", name, keep, suite.kinds) for keep in keeps]
        cells = [markdown.NOT_RUN if mean is None else markdown.percent(mean) for mean in means]
        time = times.get(methods[name], {}).get(TIMED)
        rows.append([label, *cells, "" if time is None else f"{time:.2f}"])
    return markdown.table(rows)


def readme_block(board: Board, suite: Suite, times: Times) -> str:
    """One small table, what it was measured on and what it cannot show."""
    return "\n\n".join([
        small_table(board, suite, times),
        f"{measured(board, suite)} Time: encoding, choosing and prefill on one thread, as a share "
        f"of all tokens'. {LIMITS} Kind by kind, with intervals: "
        "[docs/results/nano.md](docs/results/nano.md). Every method beside every other, on fewer "
        "pictures: [docs/results/comparison.md](docs/results/comparison.md).",
    ])  # fmt: skip


def measured(board: Board, suite: Suite) -> str:
    """What the numbers are of."""
    pictures = sorted({record["config"]["pictures"] for record in board.records})
    count = " or ".join(f"{n:,}" for n in pictures)
    return (
        f"Measured on {count} held-out generated pictures of each kind "
        f"({words(suite.kinds)}; split `{suite.split}`), mean of the kinds and "
        "of seeds where there are several, with the embedded model."
    )


def message(board: Board, suite: Suite) -> str:
    """Who leads where."""
    peer = best_peer(board, suite)
    full = board.overall("main", "full", 1.0, suite.kinds)
    parts = []
    for keep in COLUMNS[:3]:
        ours = board.overall("main", OURS, keep, suite.kinds)
        theirs = board.overall("main", peer, keep, suite.kinds)
        if ours is not None and theirs is not None and full:
            parts.append(f"at {keep:.0%} of the tokens {ours / full:.1%} (`{peer}` "
                         f"{theirs / full:.1%})")  # fmt: skip
    if not parts:
        return "Not run yet."
    ahead, level, behind = standing(board, suite, OURS, peer)
    said = f"Of the answers that all tokens give, the selector keeps {words(parts)}."
    where = f", on {words([f'{kind} at {keep:g}' for kind, keep in behind])}" if behind else ""
    return (f"{said} Question by question and share by share it is ahead of `{peer}` in "
            f"{len(ahead)} cases, level in {len(level)} and behind in "
            f"{len(behind)}{where}.")  # fmt: skip


Spots = list[tuple[str, float]]


def standing(board: Board, suite: Suite, ours: str, peer: str) -> tuple[Spots, Spots, Spots]:
    """(kind and topic, share) where `ours` leads `peer`, is level (95 % interval), trails."""
    ahead: Spots = []
    level: Spots = []
    behind: Spots = []
    for kind in suite.kinds:
        for topic, keep in product(board.topics(kind), [keep for keep in suite.keeps if keep < 1]):
            mine = board.hits(Place("main", ours, kind, topic, keep))
            other = board.hits(Place("main", peer, kind, topic, keep))
            if mine and other:
                gap = paired_difference(mine, other)
                where = ahead if gap.low > 0 else behind if gap.high < 0 else level
                where.append((f"{kind} ({topic})", keep))
    return ahead, level, behind


def page(
    board: Board, suite: Suite, suite_file: Path, times: Times, extra: list[dict[str, object]]
) -> str:
    """docs/results/nano.md."""
    parts = [
        f"![quality against tokens and time](../figures/{suite.suite}.png)",
        small_table(board, suite, times),
        f"{measured(board, suite)} {LIMITS} Every method beside every other, on fewer pictures: "
        "[comparison](comparison.md).",
        "## Kind by kind",
        "Exact match in per cent by the share of visual tokens kept, seeds averaged, in brackets "
        "the 95 % bootstrap interval over pictures. At 1 every method is the identity. All rows, "
        f"seeds and costs as numbers: `results/{suite.suite}/scores.csv`.",
    ]
    for model in suite.models:
        names = [v.name for v in suite.variants if v.models is None or model in v.models]
        parts += [
            fold(f"{_of(model)}{markdown.title(kind, topic)}",
                 markdown.scores(board, suite, model, kind, topic, variants=names,
                                 intervals=True))
            for kind, topic in board.panels(suite.kinds)
        ]  # fmt: skip
    parts += ["## Share of what all tokens answer"]
    for model in suite.models:
        ran = [v.name for v in suite.variants if v.models is None or model in v.models]
        names = [name for name in SHARED if name in ran]
        parts.append(fold(f"{_of(model)}per cent of full",
                          markdown.of_full(board, suite, model, variants=names)))  # fmt: skip
    parts += [
        "## Paired differences",
        "Same pictures, seeds averaged per picture; an interval that spans 0 is no win.",
    ]
    for ours in present(suite, (OURS, RANKING)):
        peers = [p for p in present(suite, (*PEERS, OURS, RANKING)) if p != ours]
        parts += [
            fold(f"{ours} on {kind}, {topic}",
                 markdown.comparison(board, suite, "main", kind, topic, ours=ours, peers=peers))
            for kind, topic in board.panels(suite.kinds)
        ]  # fmt: skip
    parts += [extra_table(record) for record in extra]
    made = f"`python -m lab.studies.nano.page` from `results/{suite.suite}/`"
    return document("What the selector keeps of the answers", message(board, suite), parts,
                    made, how_to_run(suite_file))  # fmt: skip


def _of(model: str) -> str:
    return "" if model == "main" else f"Model {model}: "


def extra_table(record: dict[str, object]) -> str:
    """A record that brings its own table: {"title", "note", "table"}."""
    rows = record["table"]
    if not isinstance(rows, list):
        raise InputError("Expected a `table` of rows in this record. Re-run it.")
    return f"## {record['title']}\n\n{record['note']}\n\n{markdown.table(rows)}"


if __name__ == "__main__":
    main()
