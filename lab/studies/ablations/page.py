"""Ablation records as docs/results/ablations.md and its figures."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from lab.report import markdown
from lab.report.draw import MARKS, NAMED, OURS, Plot, Scale, Series, compose, save
from lab.report.page import NANO, document, fold, words
from lab.trained.spec import Training, variants
from tokensieve.evaluate import records
from tokensieve.files import write_text

Record = dict[str, Any]
NOT_RUN = markdown.NOT_RUN
STATES = {"ranks": "some"}  # an AUC near .5 says that it ranks nothing all the same
AT = 0.1  # the share between nothing and everything that the small table goes by
ESTIMATORS = ("ours", "gumbel", "straight-through", "soft-topk")
NAMES = {"straight-through": "straight"}  # as short as a panel asks


def write_report(spec: Mapping[str, Any], spec_file: Path, folder: Path, docs: Path) -> None:
    """docs/results/ablations.md with its two figures."""
    found = {path.stem: records.read(path) for path in sorted(folder.glob("*.json"))}
    common = spec["settings"]
    ran = sorted({record["config"]["seed"] for record in found.values()})
    parts = [
        "![by depth, length and p](../figures/ablations.png)",
        markdown.table(spans(spec, found)),
        f"Selectors of nano's embeddings, {common['train.steps']} steps of 16 pictures unless said "
        f"otherwise, seeds {words([str(seed) for seed in ran])}. Exact match in per cent under the "
        f"pure ranking (the highest scores stay), on {spec['pictures']} pictures of the split "
        f"`{spec['split']}` per kind. It cannot show what longer trainings change: what ships has "
        "900 steps.",
        "![training curves](../figures/ablation-curves.png)",
        "## Everything",
        "Mean, and the seeds' extremes. AUC: chance that a patch with text outranks one without, "
        "cluttered pages. kept: share of kept tokens in the training's last tenth; mask: some, all "
        "ones or all zeros.",
    ]
    for name, group in spec["groups"].items():
        parts.append(fold(group["title"], group["note"], table(spec, name, found)))
    made = f"`python -m lab.studies.ablations {spec_file}` from `results/{spec['suite']}/`"
    write_text(docs / "results" / "ablations.md", document(
        "Ablations", message(spec, found), parts, made,
        "A row that is not run is trained by `make results-ablations`.", NANO))  # fmt: skip
    save(curves(spec, found), docs / "figures" / "ablation-curves.png")
    save(axes_plot(spec, found), docs / "figures" / "ablations.png")


def mean_of(ones: Sequence[Training], found: Mapping[str, Record], kind: str, keep: str
            ) -> float | None:  # fmt: skip
    """Exact match of a variant in per cent, mean over the seeds that ran; None where none did."""
    values = [100 * found[o.folder]["scores"][kind][keep]["mean"] for o in ones
              if o.folder in found]  # fmt: skip
    return statistics.fmean(values) if values else None


def ranked(spec: Mapping[str, Any], group: str, found: Mapping[str, Record]
           ) -> list[tuple[float, str]]:  # fmt: skip
    """Variants of a group that ran, by exact match on the first kind at `AT`, the best first."""
    kind, keep = spec["kinds"][0], told(spec)
    means = {name: mean_of(ones, found, kind, keep) for name, ones in variants(spec, group).items()}
    return sorted(((m, name) for name, m in means.items() if m is not None), reverse=True)


def told(spec: Mapping[str, Any]) -> str:
    """The share that the small table goes by."""
    return f"{AT if AT in spec['keeps'] else spec['keeps'][0]:g}"


def spans(spec: Mapping[str, Any], found: Mapping[str, Record]) -> list[list[str]]:
    """Groups down: the best and the worst variant of each, and how far apart they are."""
    kind, keep = spec["kinds"][0], told(spec)
    rows = [[f"{kind} pages at {keep}, %", "best", "worst", "points between"]]
    for name, group in spec["groups"].items():
        order = ranked(spec, name, found)
        if not order:
            rows.append([group["title"], NOT_RUN, "", ""])
            continue
        (high, best), (low, worst) = order[0], order[-1]
        rows.append([group["title"], f"{best}: {high:.1f}", f"{worst}: {low:.1f}",
                     f"{high - low:.1f}"])  # fmt: skip
    return rows


def message(spec: Mapping[str, Any], found: Mapping[str, Record]) -> str:
    """What the first group says, and how far the numbers varied move it."""
    groups = {name: order for name in spec["groups"] if (order := ranked(spec, name, found))}
    if not groups:
        return "Not run yet."
    (best, name), *others = next(iter(groups.values()))
    said = f"At {told(spec)} of the tokens `{name}` reads {best:.1f} % of {spec['kinds'][0]} pages"
    if others:
        said += f", the next of the estimators, `{others[0][1]}`, {others[0][0]:.1f}"
    axes = {group: spec["groups"][group].get("axis") for group in groups}
    moved = [f"{axis} by {groups[group][0][0] - groups[group][-1][0]:.1f} points"
             for group, axis in axes.items() if axis]  # fmt: skip
    return f"{said}. Over the values tried, it moves with {words(moved)}." if moved else f"{said}."


def table(spec: Mapping[str, Any], group: str, found: Mapping[str, Record]) -> str:
    """One row per variant: exact match by kind and keep, AUC, what became of the mask."""
    keeps = [f"{keep:g}" for keep in spec["keeps"]]
    heads = [f"{kind} {keep}" for kind in spec["kinds"] for keep in keeps]
    rows = [["variant", *heads, "AUC", "kept", "mask"]]
    for name, ones in variants(spec, group).items():
        of_seed = [found[one.folder] for one in ones if one.folder in found]
        if not of_seed:
            rows.append([name, NOT_RUN, *[""] * (len(heads) + 2)])
            continue
        cells = [
            markdown.spread([100 * r["scores"][kind][keep]["mean"] for r in of_seed], ".1f")
            for kind in spec["kinds"]
            for keep in keeps
        ]
        aucs = [r["auc"]["cluttered"] for r in of_seed if r["auc"].get("cluttered") is not None]
        states = sorted({STATES.get(str(r["state"]), str(r["state"])) for r in of_seed})
        found_text, kept = (
            markdown.spread(aucs, ".3f"),
            markdown.spread([last(r) for r in of_seed], ".2f"),
        )
        rows.append([name, *cells, found_text, kept, " / ".join(states)])
    return markdown.table(rows)


def last(record: Record) -> float:
    """Share kept in the last tenth of a training."""
    kept = [point["kept"] for point in record["curve"]]
    return statistics.fmean(kept[-max(1, len(kept) // 10) :])


def curves(spec: Mapping[str, Any], found: Mapping[str, Record]) -> Figure:
    """Kept share over the training of every estimator, a panel for each mask term."""
    by_name = variants(spec, "estimator-objective")
    terms = list(dict.fromkeys(name.split(", ")[1] for name in by_name if ", " in name))
    styles = dict(zip(ESTIMATORS, zip((OURS, *NAMED), MARKS, strict=False), strict=False))
    ran = {name: [found[one.folder] for one in ones if one.folder in found]
           for name, ones in by_name.items()}  # fmt: skip
    end = max((p["step"] + 1 for of in ran.values() for r in of for p in r["curve"]), default=2)
    step = Scale("optimiser step", (0, end // 2, end), (0, 1.7 * end))  # names stand behind
    share = Scale("share of tokens kept", (0, 0.25, 0.5, 0.75, 1), (-0.03, 1.12))
    plots = []
    for term in terms or [""]:
        drawn = []
        for name, those in ran.items():
            estimator, _, of = name.partition(", ")
            runs = [record["curve"] for record in those]
            if runs and (of == term or not of):
                kept = np.mean([[p["kept"] for p in run] for run in runs], axis=0)
                label, color = NAMES.get(estimator, estimator), styles[estimator][0]
                drawn.append(Series([p["step"] for p in runs[0]], kept.tolist(), label, color))
        plots.append(Plot(f"Mask term: {term}" if term else "Share kept", step, share, drawn))
    if not any(plot.series for plot in plots):
        return compose("Not run yet.", [Plot("Share kept", step, share, [])], 1, 2.6)
    ends = {name: statistics.fmean(map(last, those)) for name, those in ran.items() if those}
    ours = f"; ours {ends.pop('ours'):.0%}" if "ours" in ends else ""
    said = "Share of tokens that a mask keeps as it is trained."
    if ends:
        said = (f"Sampled masks end with {min(ends.values()):.0%} to {max(ends.values()):.0%} of "
                f"the tokens kept, by estimator and term{ours}.")  # fmt: skip
    return compose(said, plots, len(plots), 2.7)


def axes_plot(spec: Mapping[str, Any], found: Mapping[str, Record]) -> Figure:
    """Exact match against the number a group varies, where it varies one."""
    keep, plots, moved = told(spec), [], []
    for name, group in spec["groups"].items():
        if "axis" not in group:
            continue
        drawn, ticks = [], sorted(float(value) for value in variants(spec, name))
        for kind, color, mark in zip(spec["kinds"], (OURS, *NAMED), MARKS, strict=False):
            points = [
                (float(value), mean)
                for value, ones in variants(spec, name).items()
                if (mean := mean_of(ones, found, kind, keep)) is not None
            ]
            if points:
                x, y = zip(*sorted(points), strict=True)
                drawn.append(Series(x, y, kind, color, mark))
        if order := ranked(spec, name, found):
            moved.append(f"{group['axis']} {order[0][0] - order[-1][0]:.0f} points")
        ends = (ticks[0] / 1.3, ticks[-1] * 1.3)
        across = Scale(group["axis"], ticks, ends, log=True)
        up = Scale("exact match, %", range(0, 101, 20), (-3, 112))
        plots.append(Plot(group["title"].split(":")[0], across, up, drawn))
    said = (f"What cluttered pages gain or lose at {keep} of the tokens: {words(moved)}."
            if moved else "Not run yet.")  # fmt: skip
    return compose(said, plots, min(3, max(1, len(plots))), 2.7)
