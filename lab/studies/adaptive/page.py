"""docs/results/adaptive.md and its figure from the records of `lab.studies.adaptive.measure`.

N pictures; records of several seeds are averaged per picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from lab.report.draw import MARKS, NAMED, OURS, Plot, Scale, Series, compose, save
from lab.report.markdown import percent, table
from lab.report.page import NANO, document, fold, words
from tokensieve.errors import InputError
from tokensieve.evaluate.records import Record, read_all
from tokensieve.evaluate.stats import Estimate, bootstrap_mean, spearman, unpack_counts, unpack_hits
from tokensieve.files import write_text

Values = NDArray[np.float64]
MIX = {"cluttered": 7, "plain": 5, "mixed": 4, "scene": 3, "dense": 2}  # of 21 in the training pool
TEXT_KINDS = ("plain", "cluttered", "dense")


def write_page(folder: Path, root: Path, suite: Path) -> None:
    """Page and figure. Raises `InputError` where there are no records."""
    found = [record for record in read_all(folder) if record.get("form") == "adaptive"]
    if not found:
        raise InputError(
            f"Expected records in {folder}. Run python -m lab.studies.adaptive.measure."
        )
    figure = root / "docs" / "figures" / "adaptive.png"
    save(draw(found), figure)
    write_text(root / "docs" / "results" / "adaptive.md", page(found, suite))


def page(found: Sequence[Record], suite: Path) -> str:
    """The whole of docs/results/adaptive.md."""
    config = found[0]["config"]
    pictures, split = config["pictures"], config["split"]
    parts = [
        "![exact match, and kept tokens against text](../figures/adaptive.png)",
        population_table(found),
        f"Measured on {pictures} pictures a kind of the split `{split}` with {len(found)} training "
        "seeds; exact match in per cent, seeds averaged per picture, all kinds alike, 95 % "
        "bootstrap intervals over pictures. It cannot show what other mixes of pictures gain: the "
        "gain comes from pages and scenes in one pool.",
        "With `counts=\"adaptive\"` a picture keeps tokens until the next one is worth less than a "
        "threshold, from half to twice the budget. The threshold is measured on training pictures, "
        "so that these keep the budget on average. A *fixed* count is compared at the average that "
        "the adaptive one came to over all kinds alike, to the fraction of a token.",
        "## Kind by kind",
        "The budget moves from scenes to pages.",
        fold("Every kind, question and budget", kinds_table(found)),
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
    made = f"`python -m lab.studies.adaptive.measure {suite}` from the records beside its suite"
    return document("Adaptive counts", message(found), parts, made, on=NANO)


def message(found: Sequence[Record]) -> str:
    """Where letting pictures decide pays."""
    won, rest = [], []
    for keep in keeps_of(found):
        ours, fixed = population(found, keep)
        gap = bootstrap_mean(ours - fixed)
        if gap.low > 0:
            won.append(f"{100 * gap.mean:.1f} at a budget of {keep:g}")
        else:
            rest.append(f"{keep:g}")
    if not won:
        return "Letting every picture decide how many tokens it keeps answers no more questions."
    level = f" At {words(rest)} it makes no difference." if rest else ""
    return (f"At the same number of tokens on average, letting every picture decide how many it "
            f"keeps answers more questions: points {words(won)}.{level}")  # fmt: skip


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


def draw(found: Sequence[Record]) -> Figure:
    """Exact match against the average, and kept tokens against text at a middle budget."""
    keeps = keeps_of(found)
    keep = keeps[1] if len(keeps) > 1 else keeps[0]
    tokens, ours, fixed = [], [], []
    for one in keeps:
        first = next(iter(rows_of(found, one).values()))
        tokens.append(float(np.mean([row["average_tokens"] for row in first])))
        pair = population(found, one)
        ours.append(100 * float(pair[0].mean()))
        fixed.append(100 * float(pair[1].mean()))
    ends = (0.0, 1.1 * max(tokens))
    low = min(0.9 * min(*ours, *fixed), 60.0)
    scores = [Series(tokens, ours, "every picture decides", OURS, MARKS[0]),
              Series(tokens, fixed, "all keep as many", NAMED[4], MARKS[1])]  # fmt: skip
    dots, most = [], 0.0
    for kind, color in zip(("dense", "cluttered", "scene"), (NAMED[0], NAMED[2], NAMED[1]),
                           strict=True):  # fmt: skip
        text, kept = text_of(found, kind, keep)
        order = np.argsort(text, kind="stable")
        most = max(most, float(kept.max()))
        dots.append(Series(text[order].tolist(), kept[order].tolist(), kind, color, "o", dots=True))
    inked = max(max(series.x) for series in dots)
    budget = round(256 * keep)
    dots.append(Series([0, 1.02 * inked], [budget, budget], dashed=True))
    plots = [
        Plot("Right answers, all kinds", Scale("tokens kept on average", _ticks(ends[1]), ends),
             Scale("exact match, %", range(0, 101, 10), (low, 102)), scores),
        Plot(f"Where a budget of {budget} tokens goes",
             Scale("patches under ink", _ticks(inked), (-2, 1.05 * inked)),
             Scale("tokens kept", _ticks(most), (0, 1.15 * most)), dots),
    ]  # fmt: skip
    gains = [a - b for a, b in zip(ours, fixed, strict=True)]
    best = int(np.argmax(gains))
    said = (f"Pages take tokens from scenes: at {tokens[best]:.0f} tokens on average "
            f"{gains[best]:.1f} points more right answers.")  # fmt: skip
    return compose(said, plots, 2, 3.2)


def _ticks(most: float) -> list[float]:
    step = next((s for s in (5, 10, 20, 25, 50, 100, 200) if most / s <= 6), 500)
    return [float(n) for n in range(0, int(most) + 1, step)]
