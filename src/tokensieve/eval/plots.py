"""Quality against kept tokens, one panel per kind and topic, bands for the intervals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokensieve.eval.board import Board, Place
from tokensieve.eval.config import Suite
from tokensieve.eval.markdown import title

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
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)
