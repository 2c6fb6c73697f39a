"""docs/results/adaptive.md and its figure from the records of `lab.studies.adaptive.measure`.

N pictures; records of several seeds are averaged per picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lab.report.markdown import percent, table
from tokensieve.errors import InputError
from tokensieve.evaluate.records import Record, read_all
from tokensieve.evaluate.stats import Estimate, bootstrap_mean, spearman, unpack_counts, unpack_hits
from tokensieve.files import make_folder, write_text, written_whole

Values = NDArray[np.float64]
MIX = {"cluttered": 7, "plain": 5, "mixed": 4, "scene": 3, "dense": 2}  # of 21 in the training pool
TEXT_KINDS = ("plain", "cluttered", "dense")
COLOURS = {"plain": "#1f77b4", "cluttered": "#c1121f", "dense": "#2ca02c", "mixed": "#9467bd",
           "scene": "#f4a261"}  # fmt: skip


def write_page(folder: Path, root: Path, suite: Path) -> None:
    """Page and figure. Raises `InputError` where there are no records."""
    found = [record for record in read_all(folder) if record.get("form") == "adaptive"]
    if not found:
        raise InputError(
            f"Expected records in {folder}. Run python -m lab.studies.adaptive.measure."
        )
    figure = root / "docs" / "figures" / "adaptive.png"
    make_folder(figure.parent)
    draw(found, figure)
    write_text(root / "docs" / "results" / "adaptive.md", page(found, suite))


def page(found: Sequence[Record], suite: Path) -> str:
    """The whole of docs/results/adaptive.md."""
    config = found[0]["config"]
    pictures, split = config["pictures"], config["split"]
    parts = [
        "# Adaptive counts",
        f"Made from the records beside it by `python -m lab.studies.adaptive.measure {suite}`; do "
        f"not edit. {len(found)} training seeds, {pictures} pictures a kind of the split `{split}`"
        "; exact match in per cent, seeds averaged per picture, 95 % bootstrap intervals over "
        "pictures.",
        "With `counts=\"adaptive\"` a picture keeps tokens until the next one is worth less than a "
        "threshold, from half to twice the budget. The threshold is measured on training pictures, "
        "so that these keep the budget on average. A *fixed* count is compared at the average that "
        "the adaptive one came to over all kinds alike, to the fraction of a token.",
        "![kept tokens against text, and exact match](../figures/adaptive.png)",
        "## All kinds together",
        population_table(found),
        "## Kind by kind",
        "The same budget as above: it moves from scenes to pages.",
        kinds_table(found),
        "## Kept tokens and text",
        f"Spearman correlation of kept tokens with patches under ink, {pictures} pictures a kind; "
        "plain and cluttered pages have 1 to 14 lines in equal parts. In brackets: mean number of "
        "tokens kept by the fifth of the pages with least and with most text.",
        text_table(found),
        "## Is the budget kept?",
        "Share of tokens kept on average. Training mix: the kinds as often as in the pool on which "
        "thresholds are measured (of 21: 7 cluttered, 5 plain, 4 mixed, 3 scenes, 2 dense; there "
        "plain and cluttered pages as generated, not of 1 to 14 lines).",
        budget_table(found),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def keeps_of(found: Sequence[Record]) -> list[float]:
    """Budgets of the records."""
    return list(found[0]["config"]["keeps"])


def rows_of(found: Sequence[Record], keep: float) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    """Rows of one budget by (kind, topic), one per seed."""
    out: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for record in found:
        for row in record["rows"]:
            if row["keep"] == keep:
                out.setdefault((row["kind"], row["topic"]), []).append(row)
    return out


def scores_of(rows: Sequence[Mapping[str, Any]]) -> tuple[Values, Values]:
    """(N,) adaptive and fixed exact match per picture, averaged over seeds."""
    ours, fixed = [], []
    for row in rows:
        ours.append(unpack_hits(row["hits"], row["n"]).astype(np.float64))
        low, high = (
            unpack_hits(row["fixed_hits"][n], row["n"]).astype(np.float64)
            for n in sorted(row["fixed_hits"], key=int)
        )
        part = row["average_tokens"] % 1
        fixed.append((1 - part) * low + part * high)
    return np.mean(ours, axis=0), np.mean(fixed, axis=0)


def population(found: Sequence[Record], keep: float) -> tuple[Values, Values]:
    """(N,) the mean of all kinds: the first picture of each, the second, ..."""
    kinds: dict[str, list[tuple[Values, Values]]] = {}
    for (kind, _), rows in rows_of(found, keep).items():
        kinds.setdefault(kind, []).append(scores_of(rows))
    pairs = [np.mean(topics, axis=0) for topics in kinds.values()]
    ours, fixed = np.mean(pairs, axis=0)
    return ours, fixed


def interval(found: Estimate, *, sign: bool = False) -> str:
    """Per cent or points with the interval's ends."""
    form = "{:+.1f} ({:+.1f} to {:+.1f})" if sign else "{:.1f} ({:.1f}–{:.1f})"
    return form.format(100 * found.mean, 100 * found.low, 100 * found.high)


def population_table(found: Sequence[Record]) -> str:
    """Budgets down."""
    rows = [["keep", "tokens, average", "share", "adaptive", "fixed, same average", "points"]]
    for keep in keeps_of(found):
        ours, fixed = population(found, keep)
        first = next(iter(rows_of(found, keep).values()))
        tokens = float(np.mean([row["average_tokens"] for row in first]))
        rows.append([
            f"{keep:g}", f"{tokens:.1f}", percent(tokens / 256) + " %",
            interval(bootstrap_mean(ours)), interval(bootstrap_mean(fixed)),
            interval(bootstrap_mean(ours - fixed), sign=True),
        ])  # fmt: skip
    return table(rows)


def kinds_table(found: Sequence[Record]) -> str:
    """Kinds, topics and budgets down."""
    rows = [["kind, question", "keep", "tokens", "adaptive", "fixed", "points"]]
    for kind, topic in rows_of(found, keeps_of(found)[0]):
        for keep in keeps_of(found):
            seeds = rows_of(found, keep)[kind, topic]
            ours, fixed = scores_of(seeds)
            tokens = np.concatenate([unpack_counts(row["kept"]) for row in seeds])
            spread = f"{tokens.mean():.1f} ({tokens.min()}–{tokens.max()})"
            rows.append([
                f"{kind}, {topic}", f"{keep:g}", spread, percent(float(ours.mean())),
                percent(float(fixed.mean())), interval(bootstrap_mean(ours - fixed), sign=True),
            ])  # fmt: skip
    return table(rows)


def text_of(found: Sequence[Record], kind: str, keep: float) -> tuple[Values, Values]:
    """(N,) patches under text, and kept tokens averaged over seeds."""
    rows = [
        row
        for record in found
        for row in record["text"]
        if (row["kind"], row["keep"]) == (kind, keep)
    ]
    kept = np.mean([unpack_counts(row["kept"]) for row in rows], axis=0)
    return unpack_counts(rows[0]["text"]).astype(np.float64), kept


def text_table(found: Sequence[Record]) -> str:
    """Kinds down, budgets across."""
    keeps = keeps_of(found)
    rows = [["pages", *[f"{keep:g}" for keep in keeps]]]
    for name, kinds in [*((kind, (kind,)) for kind in TEXT_KINDS), ("all three", TEXT_KINDS)]:
        cells = []
        for keep in keeps:
            pairs = [text_of(found, kind, keep) for kind in kinds]
            text, kept = (np.concatenate(side) for side in zip(*pairs, strict=True))
            rho, order = spearman(text, kept), np.argsort(text, kind="stable")
            fifth = max(1, len(text) // 5)
            few, many = kept[order[:fifth]].mean(), kept[order[-fifth:]].mean()
            cells.append(f"{rho.mean:.2f}, {rho.low:.2f}–{rho.high:.2f} ({few:.0f}, {many:.0f})")
        rows.append([name, *cells])
    return table(rows)


def budget_table(found: Sequence[Record]) -> str:
    """Where the share comes out, kind by kind and together."""
    keeps = keeps_of(found)
    shares = {kind: [_share(found, kind, keep) for keep in keeps] for kind in MIX}
    mix = [
        sum(MIX[kind] * shares[kind][i] for kind in MIX) / sum(MIX.values())
        for i in range(len(keeps))
    ]
    rows = [["share kept, %", *[f"{keep:g}" for keep in keeps]]]
    rows += [[kind, *map(percent, shares[kind])] for kind in shares]
    return table([*rows, ["training mix", *map(percent, mix)]])


def _share(found: Sequence[Record], kind: str, keep: float) -> float:
    asked = [rows for (k, _), rows in rows_of(found, keep).items() if k == kind]
    if asked:
        return float(np.mean([row["kept_tokens"] for row in asked[0]])) / 256
    return float(text_of(found, kind, keep)[1].mean()) / 256


def draw(found: Sequence[Record], path: Path) -> None:
    """Kept tokens against text at the two middle budgets, and exact match against the average."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    matplotlib.rcParams.update({"font.size": 8})
    keeps = keeps_of(found)
    shown = keeps[1:3] or keeps
    figure, axes = plt.subplots(1, len(shown) + 1, figsize=(3.6 * (len(shown) + 1), 3.3))
    for ax, keep in zip(axes, shown, strict=False):
        for kind in ("dense", "cluttered", "plain", "scene"):
            text, kept = text_of(found, kind, keep)
            ax.scatter(text, kept, s=5, alpha=0.35, color=COLOURS[kind], label=kind, lw=0)
        budget = round(256 * keep)
        ax.axhline(budget, color="black", lw=0.8, ls=":")
        ax.set(title=f"budget {budget} of 256 tokens on average", xlabel="patches under ink",
               ylabel="tokens kept, mean of seeds", ylim=(0, None))  # fmt: skip
        ax.grid(alpha=0.25)
    for handle in axes[0].legend(frameon=False, markerscale=3).legend_handles:
        handle.set_alpha(1)
    _draw_scores(axes[-1], found, keeps)
    figure.tight_layout()
    with written_whole(path) as part:
        figure.savefig(part, dpi=110)
    plt.close(figure)


def _draw_scores(ax: Any, found: Sequence[Record], keeps: Sequence[float]) -> None:
    tokens, ours, fixed = [], [], []
    for keep in keeps:
        first = next(iter(rows_of(found, keep).values()))
        tokens.append(float(np.mean([row["average_tokens"] for row in first])))
        pair = population(found, keep)
        ours.append(100 * pair[0].mean())
        fixed.append(100 * pair[1].mean())
    ax.plot(tokens, ours, marker=".", color="#c1121f", label="adaptive counts")
    ax.plot(tokens, fixed, marker=".", color="#7f7f7f", label="fixed counts")
    ax.set(title="all kinds, one average", xlabel="tokens kept, average", ylabel="exact match, %")
    ax.legend(frameon=False)
    ax.grid(alpha=0.25)
