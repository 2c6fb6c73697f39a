"""Rebuild every table and plot from the records: `python -m lab.studies.nano.page`.

Writes results/<suite>/scores.csv, docs/results/nano.md, docs/figures/*.png and the README's block.
"""

from __future__ import annotations

from pathlib import Path

from lab.report import markdown
from lab.report.board import MEAN, Board
from lab.report.opened import how_to_run, open_board
from lab.report.plots import quality
from tokensieve.errors import InputError
from tokensieve.evaluate.config import Suite
from tokensieve.evaluate.records import read_all
from tokensieve.files import write_text

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
NEW_RULE, RANKING = "selector", "selector-ranking"
PEERS = ("feature-norm", "pixel-variance", "stride", "avgpool", "random", "downsample", "divprune",
         "preset-wlie", "preset-wlie-literal", "preset-two-sided")  # fmt: skip
SHARED = (NEW_RULE, RANKING, "selector-features", "divprune", "random")
README_ROWS = ("full", NEW_RULE, RANKING, "feature-norm", "pixel-variance", "stride", "avgpool",
               "downsample", "random", "divprune", "preset-wlie", "preset-wlie-literal",
               "preset-two-sided", "no-image")  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and write everything."""
    suite, board, options = open_board(arguments, str(__doc__), "lab/studies/nano/suite.json")
    folder = options.results / suite.suite
    write_text(folder / "scores.csv", markdown.as_csv(board, suite))
    docs = options.root / "docs"
    figure = docs / "figures" / f"{suite.suite}.png"
    quality(board, suite, "main", present(suite, README_ROWS), figure)
    extra = [r for name in ("timing", "receipts") for r in records_of(options.results, name)]
    write_text(docs / "results" / "nano.md", page(board, suite, options.suite, extra))
    put_block(options.root / "README.md", readme_block(board, suite))


def present(suite: Suite, names: tuple[str, ...]) -> list[str]:
    """Those of `names` that the suite has, in the order of `names`."""
    known = {variant.name for variant in suite.variants}
    return [name for name in names if name in known]


def records_of(results: Path, form: str) -> list[dict[str, object]]:
    """Records of another form than scores, from any suite."""
    return [r for d in sorted(results.glob("*/")) for r in read_all(d) if r.get("form") == form]


def readme_block(board: Board, suite: Suite) -> str:
    """Means only, the rows a newcomer compares."""
    parts = [header(board, suite)]
    for kind, topic in board.panels(suite.kinds):
        if kind == "mixed" and topic != MEAN:
            continue
        names = present(suite, README_ROWS)
        parts.append(f"**{markdown.title(kind, topic)}**")
        parts.append(
            markdown.scores(board, suite, "main", kind, topic, variants=names, intervals=False)
        )
    parts.append("Intervals, every seed, paired differences and the control: [docs/results/nano.md]"
                 "(docs/results/nano.md).")  # fmt: skip
    return "\n\n".join(parts)


def header(board: Board, suite: Suite) -> str:
    """What the numbers are about."""
    pictures = sorted({record["config"]["pictures"] for record in board.records})
    count = " or ".join(f"{n:,}" for n in pictures)
    return (
        f"Exact match in per cent on {count} held-out generated pictures per kind (split "
        f"`{suite.split}`), by the share of visual tokens kept; mean over seeds where there are "
        "several. At 1 every method is the identity."
    )


def page(board: Board, suite: Suite, suite_file: Path, extra: list[dict[str, object]]) -> str:
    """docs/results/nano.md."""
    everything = [variant.name for variant in suite.variants]
    parts = [
        "# Results",
        f"Made from `results/{suite.suite}/` by `python -m lab.studies.nano.page`; do not edit. "
        + how_to_run(suite_file),
        header(board, suite) + " In brackets: 95 % bootstrap interval over pictures.",
        f"![quality against kept tokens](../figures/{suite.suite}.png)",
    ]
    for model in suite.models:
        parts.append(f"## Model: {model}")
        for kind, topic in board.panels(suite.kinds):
            parts.append(f"### {markdown.title(kind, topic)}")
            names = [v.name for v in suite.variants if v.models is None or model in v.models]
            parts.append(markdown.scores(board, suite, model, kind, topic, variants=names,
                                         intervals=True))  # fmt: skip
    for model in suite.models:
        parts.append(f"## Share of full: {model}")
        ran = [v.name for v in suite.variants if v.models is None or model in v.models]
        names = [name for name in SHARED if name in ran]
        parts.append(markdown.of_full(board, suite, model, variants=names))
    parts.append("## Paired differences")
    parts.append("Same pictures, seeds averaged per picture; an interval that spans 0 is no win.")
    for ours in present(suite, (NEW_RULE, RANKING)):
        for kind, topic in board.panels(suite.kinds):
            peers = [p for p in (*PEERS, NEW_RULE, RANKING) if p in everything and p != ours]
            parts.append(f"### {ours} on {kind}, {topic}")
            parts.append(markdown.comparison(board, suite, "main", kind, topic, ours=ours,
                                             peers=peers))  # fmt: skip
    parts += [extra_table(record) for record in extra]
    return "\n\n".join(parts) + "\n"


def extra_table(record: dict[str, object]) -> str:
    """A record that brings its own table: {"title", "note", "table"}."""
    rows = record["table"]
    if not isinstance(rows, list):
        raise InputError("Expected a `table` of rows in this record. Re-run it.")
    return f"## {record['title']}\n\n{record['note']}\n\n{markdown.table(rows)}"


def put_block(readme: Path, block: str) -> None:
    """Replace what stands between the markers of the README; leave a README without them alone."""
    text = readme.read_text() if readme.exists() else ""
    if BEGIN not in text or END not in text:
        return
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    write_text(readme, f"{before}{BEGIN}\n{block}\n{END}{after}")


if __name__ == "__main__":
    main()
