"""The papers' printed TFLOPs beside what their formulas give.

[1] When Less is Enough, arXiv 2503.16660, and its follow-up, Adaptive Vision Token Selection.
[2] Learning Compact Vision Tokens, arXiv 2506.07138.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokensieve.cost.flops import sampler_macs, selector_paper_macs, stf_paper_flops


@dataclass(frozen=True)
class Figure:
    """TFLOPs of one row of a table: `printed`, and `counted` in the paper's own convention."""

    paper: str
    what: str
    printed: float
    counted: float


def printed_figures() -> list[Figure]:
    """Every figure that the papers print for a 7B LLM of 32 layers, as (printed, counted); but
    LLaVolta's 5.0 in [2], for which no formula is given."""
    selector = {2880: 20.8, 1440: 9.9, 1152: 7.8, 640: 4.2, 320: 2.1, 160: 1.0}
    fused = {576: 7.6, 288: 3.8, 144: 1.9}
    tera = 1e12
    figures = [
        Figure("[1]", f"LLM, {n} tokens", printed, selector_paper_macs(n) / tera)
        for n, printed in selector.items()
    ]
    figures.append(Figure("[1]", "sampler, 2880 tokens", 0.16, sampler_macs(2880) / tera))
    for share, printed in {0.15: 1.2, 0.1: 0.8}.items():
        macs = selector_paper_macs(round(1152 * share)) + sampler_macs(1152)
        figures.append(Figure("[1]", f"video of 1152 tokens, {share:.0%}", printed, macs / tera))
    without = selector_paper_macs(round(1152 * 0.15)) / tera
    figures.append(Figure("[1]", "video of 1152 tokens, 15%, no sampler", 1.1, without))
    figures += [
        Figure("[2]", f"LLM, {n} tokens", printed, stf_paper_flops(n) / tera)
        for n, printed in fused.items()
    ]
    return figures
