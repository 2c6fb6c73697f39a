"""Ablation records as docs/results/ablations.md and its figures."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lab.report import markdown
from lab.studies.ablations.spec import variants
from tokensieve.evaluate import records
from tokensieve.files import make_folder, write_text, written_whole

Record = dict[str, Any]
NOT_RUN = markdown.NOT_RUN
STATES = {"ranks": "some"}  # an AUC near .5 says that it ranks nothing all the same
PLOTTED = (0.1, 0.2)  # keeps between nothing and everything


def write_report(spec: Mapping[str, Any], spec_file: Path, folder: Path, docs: Path) -> None:
    """docs/results/ablations.md with its two figures."""
    found = {path.stem: records.read(path) for path in sorted(folder.glob("*.json"))}
    common = spec["settings"]
    ran = sorted({record["config"]["seed"] for record in found.values()})
    parts = [
        "# Ablations",
        f"Made from `results/{spec['suite']}/` by `python -m lab.studies.ablations "
        f"{spec_file}`; do not edit. Train a row that is not run with `make results-ablations`.",
        f"Selectors of nano's embeddings, {common['train.steps']} steps of 16 pictures unless said "
        f"otherwise (what ships has 900), seeds {', '.join(map(str, ran))}, settings of "
        f"`{spec_file}`. Exact match in "
        f"per cent under the pure ranking (the highest scores stay), on {spec['pictures']} "
        f"pictures of the split `{spec['split']}` per kind: mean, and the seeds' extremes. AUC: "
        "chance that a patch with text outranks one without, cluttered pages. kept: share of kept "
        "tokens in the training's last tenth; mask: some, all ones or all zeros.",
        "![training curves](../figures/ablation-curves.png)",
        "![by depth, length and p](../figures/ablations.png)",
    ]
    for name, group in spec["groups"].items():
        parts += [f"## {group['title']}", group["note"], table(spec, name, found)]
    write_text(docs / "results" / "ablations.md", "\n\n".join(parts) + "\n")
    curves(spec, found, docs / "figures" / "ablation-curves.png")
    axes_plot(spec, found, docs / "figures" / "ablations.png")


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
            spread([100 * r["scores"][kind][keep]["mean"] for r in of_seed], ".1f")
            for kind in spec["kinds"]
            for keep in keeps
        ]
        aucs = [r["auc"]["cluttered"] for r in of_seed if r["auc"].get("cluttered") is not None]
        states = sorted({STATES.get(str(r["state"]), str(r["state"])) for r in of_seed})
        rows.append([name, *cells, spread(aucs, ".3f"), spread([last(r) for r in of_seed], ".2f"),
                     " / ".join(states)])  # fmt: skip
    return markdown.table(rows)


def spread(values: Sequence[float], form: str) -> str:
    """Mean, and in brackets the least and the most where seeds differ."""
    if not values:
        return ""
    mean, low, high = statistics.fmean(values), min(values), max(values)
    if format(low, form) == format(high, form):
        return format(mean, form)
    return f"{mean:{form}} ({low:{form}}–{high:{form}})"


def last(record: Record) -> float:
    """Share kept in the last tenth of a training."""
    kept = [point["kept"] for point in record["curve"]]
    return statistics.fmean(kept[-max(1, len(kept) // 10) :])


def curves(spec: Mapping[str, Any], found: Mapping[str, Record], path: Path) -> None:
    """Kept share over the training of every estimator and objective: where it collapses."""
    by_name = variants(spec, "estimator-objective")

    def draw(ax: Any, name: str) -> None:
        for one in by_name[name]:
            if one.folder in found:
                points = found[one.folder]["curve"]
                ax.plot([p["step"] for p in points], [p["kept"] for p in points], lw=1.2)
        ax.set(title=name, ylim=(-0.03, 1.03), xlabel="step", ylabel="share kept")

    figure(list(by_name), draw, path)


def axes_plot(spec: Mapping[str, Any], found: Mapping[str, Record], path: Path) -> None:
    """Exact match against the number a group varies, where it varies one."""
    groups = [name for name, group in spec["groups"].items() if "axis" in group]

    def draw(ax: Any, group: str) -> None:
        for kind in spec["kinds"]:
            for keep in (f"{k:g}" for k in PLOTTED if k in spec["keeps"]):
                points = []
                for name, ones in variants(spec, group).items():
                    values = [100 * found[o.folder]["scores"][kind][keep]["mean"]
                              for o in ones if o.folder in found]  # fmt: skip
                    if values:
                        points.append((float(name), statistics.fmean(values)))
                if points:
                    ax.plot(*zip(*points, strict=True), marker=".", label=f"{kind}, keep {keep}")
        ax.set(title=spec["groups"][group]["title"], xlabel=spec["groups"][group]["axis"],
               ylabel="exact match, %", ylim=(-2, 102))  # fmt: skip
        ax.legend(fontsize=6, frameon=False)

    figure(groups, draw, path)


def figure(names: Sequence[str], draw: Callable[[Any, str], None], path: Path) -> None:
    """A grid of small panels, one per name."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    matplotlib.rcParams.update({"font.size": 8})
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    drawn, axes = plt.subplots(rows, columns, figsize=(2.8 * columns, 2.3 * rows), squeeze=False)
    for ax, name in zip(axes.flat, names, strict=False):
        draw(ax, name)
        ax.grid(alpha=0.25)
    for ax in axes.flat[len(names) :]:
        ax.axis("off")
    drawn.tight_layout()
    make_folder(path.parent)
    with written_whole(path) as part:
        drawn.savefig(part, dpi=110)
    plt.close(drawn)
