"""Quality against kept tokens, one panel per kind and topic, bands for the intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lab.report.board import Board, Place
from lab.report.markdown import title
from tokensieve.evaluate.config import Suite
from tokensieve.files import make_folder, written_whole

_STRONG = {"selector": "#c1121f", "selector-ranking": "#f4a261", "full": "#000000"}
_OTHERS = ("#1f77b4", "#17becf", "#2ca02c", "#9467bd", "#8c564b", "#7f7f7f", "#bcbd22", "#e377c2")


def quality(board: Board, suite: Suite, model: str, variants: Sequence[str], path: Path) -> None:
    """Write an SVG or PNG of every panel of the suite to `path`."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    matplotlib.rcParams.update({"svg.hashsalt": "tokensieve", "font.size": 8})
    panels = board.panels(suite.kinds)
    rows = -(-len(panels) // 2)
    figure, axes = plt.subplots(rows, 2, figsize=(9, 3.1 * rows), squeeze=False)
    for ax, (kind, topic) in zip(axes.flat, panels, strict=False):
        ax.set_prop_cycle(color=_OTHERS)
        ax.set_xscale("log")  # methods differ where little is kept
        ax.set_xticks(suite.keeps, [f"{keep:g}" for keep in suite.keeps])
        ax.minorticks_off()
        for name in variants:
            points = [
                (keep, found)
                for keep in suite.keeps
                if (found := board.estimate(Place(model, name, kind, topic, keep))) is not None
            ]
            if not points:
                continue
            keeps = [keep for keep, _ in points]
            style = {"color": _STRONG[name], "zorder": 3} if name in _STRONG else {"alpha": 0.8}
            if len(points) == 1:  # full, no image: a level, not a curve
                ax.axhline(100 * points[0][1].mean, ls=":", lw=1, label=name, **style)
                continue
            line = ax.plot(
                keeps, [100 * f.mean for _, f in points], marker=".", lw=1.3, label=name, **style
            )[0]
            ax.fill_between(
                keeps,
                [100 * f.low for _, f in points],
                [100 * f.high for _, f in points],
                color=line.get_color(),
                alpha=0.15,
            )
        ax.set(
            title=title(kind, topic),
            xlabel="visual tokens kept",
            ylabel="exact match, %",
            ylim=(-2, 102),
        )
        ax.grid(alpha=0.25)
    for ax in axes.flat[len(panels) :]:
        ax.axis("off")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=6, frameon=False)
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    make_folder(path.parent)
    told = {"Date": None} if path.suffix == ".svg" else None
    with written_whole(path) as part:
        figure.savefig(part, dpi=110, metadata=told)
    plt.close(figure)


_SITES = {
    "before the encoder": "#8c564b",
    "inside the encoder": "#9467bd",
    "before the LLM": "#1f77b4",
    "inside the LLM": "#2ca02c",
}


def cloud(
    points: Mapping[str, Sequence[tuple[float, float | None, float]]],
    groups: Mapping[str, str],
    ours: str,
    path: Path,
) -> None:
    """Quality of many methods against tokens a layer holds and against time, coloured by site.

    points: by method (tokens, time or None, quality), each a share of full's. Names stand at the
    curves' left ends, where methods differ.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D

    matplotlib.rcParams.update({"svg.hashsalt": "tokensieve", "font.size": 8})
    timed = any(time is not None for found in points.values() for _, time, _ in found)
    figure, axes = plt.subplots(1, 1 + timed, figsize=(6 + 6 * timed, 6), squeeze=False)
    for column, ax in enumerate(axes.flat):
        ends = []
        for name, found in points.items():
            xy = [(p[column], p[2]) for p in found if p[column] is not None]
            if not xy:
                continue
            x, y = zip(*xy, strict=True)  # by share kept
            strong = name == ours
            color = "#c1121f" if strong else _SITES[groups[name]]
            ax.plot(x, [100 * v for v in y], color=color, marker=".", lw=2.4 if strong else 0.9,
                    alpha=1.0 if strong else 0.55, zorder=3 if strong else 2)  # fmt: skip
            ends.append((100 * y[0], x[0], name, color))
        _label(ax, ends)
        ax.set(
            xlabel=("visual tokens in a layer of the LLM, of full's",
                    "time to encode, select and prefill, of full's")[column],
            ylabel="exact match, % of full's, mean of all kinds and topics",
        )  # fmt: skip
        ax.grid(alpha=0.25)
        if column == 0:
            ax.set_xscale("log")
    handles = [
        Line2D([], [], color=color, label=label)
        for label, color in {ours: "#c1121f", **_SITES}.items()
        if label == ours or label in groups.values()
    ]
    figure.legend(handles=handles, loc="lower center", ncols=5 if timed else 3, frameon=False)
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    make_folder(path.parent)
    with written_whole(path) as part:
        figure.savefig(part, dpi=110)
    plt.close(figure)


def by_tokens(
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]],
    styles: Mapping[str, Mapping[str, Any]],
    path: Path,
) -> None:
    """Quality against visual tokens of a picture in the LLM: curves by name, a panel each.

    panels: by heading and name (tokens, share right). styles: of `plot`, by name.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullLocator

    matplotlib.rcParams.update({"svg.hashsalt": "tokensieve", "font.size": 8})
    rows = -(-len(panels) // 3)
    figure, axes = plt.subplots(rows, 3, figsize=(11, 3 * rows), squeeze=False)
    for ax, (heading, curves) in zip(axes.flat, panels.items(), strict=False):
        for name, found in curves.items():
            if found:
                x, y = zip(*sorted(found), strict=True)
                ax.plot(x, [100 * v for v in y], label=name, **styles.get(name, {}))
        ax.set_xscale("log", base=2)
        ticks = sorted({x for found in curves.values() for x, _ in found})
        ax.set_xticks(ticks, [f"{x:g}" for x in ticks])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set(title=heading, xlabel="visual tokens", ylabel="exact match, %", ylim=(-3, 103))
        ax.grid(alpha=0.25)
    for ax in axes.flat[len(panels) :]:
        ax.axis("off")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=5, frameon=False)
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    make_folder(path.parent)
    with written_whole(path) as part:
        figure.savefig(part, dpi=110)
    plt.close(figure)


def _label(ax: Any, ends: list[tuple[float, float, str, str]]) -> None:
    """Names left of the axis, pushed apart so that none covers another."""
    last = -float("inf")
    for y, x, name, color in sorted(ends):
        at = max(y, last + 2.2)
        last = at
        ax.annotate(
            name, xy=(x, y), xytext=(-0.02, at), textcoords=("axes fraction", "data"),
            ha="right", va="center", fontsize=6, color=color,
            arrowprops={"arrowstyle": "-", "color": color, "lw": 0.3, "alpha": 0.5},
        )  # fmt: skip
    ax.yaxis.tick_right()
    ax.yaxis.set_label_position("right")
