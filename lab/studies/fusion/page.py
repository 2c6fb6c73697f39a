"""Selection and fusion beside each other: `python -m lab.studies.fusion.page`.

Writes docs/results/fusion.md from the records of lab/studies/fusion/suite.json, the arms of
lab/studies/fusion/arms.json and the times of `lab/studies/fusion/speed.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lab.report import markdown
from lab.report.board import Board
from lab.report.draw import save
from lab.report.opened import how_to_run, open_board
from lab.report.page import NANO, document, fold
from lab.studies.fusion.rows import PAIRS, PANELS, TABLES, Row, hits_of, place
from lab.studies.fusion.summary import figure, lead, message
from tokensieve.cost.flops import stf_paper_flops
from tokensieve.cost.projectors import projector_flops, projector_parameters
from tokensieve.evaluate.config import Suite
from tokensieve.evaluate.records import Record, read_all
from tokensieve.evaluate.stats import paired_difference, seed_mean
from tokensieve.files import write_text
from tokensieve.nn.fusion import FusionConfig

FIGURE = "figures/fusion.png"
ARMS = Path("lab/studies/fusion/arms.json")
LLAVA = {"width": 1024, "out_width": 4096, "rows": 24, "columns": 24}  # LLaVA-1.5-7B


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and write the page."""
    suite, board, options = open_board(arguments, str(__doc__), "lab/studies/fusion/suite.json")
    shapes = shapes_of(json.loads(ARMS.read_text()))
    times = list(read_all(options.results / "fusion-time"))
    docs = options.root / "docs"
    write_text(docs / "results" / "fusion.md", page(board, suite, options.suite, shapes, times))
    save(figure(board), docs / FIGURE)


def shapes_of(study: dict[str, Any]) -> dict[str, FusionConfig]:
    """The projector of every arm of nano: an encoder of 16 x 16 tokens of width 128."""
    sizes = {"width": 128, "out_width": 128, "rows": 16, "columns": 16}
    return {
        arm["name"]: FusionConfig.from_dict({**sizes, **arm.get("projector", {})})
        for arm in study["arms"]
    }


def page(
    board: Board, suite: Suite, suite_file: Path, shapes: dict[str, FusionConfig],
    times: Sequence[Record],
) -> str:  # fmt: skip
    """docs/results/fusion.md."""
    pictures = sorted({record["config"]["pictures"] for record in board.records})
    count = " or ".join(f"{n:,}" for n in pictures)
    seconds = {row["key"]: row["ratio"] for record in times for row in record.get("arms", ())}
    parts = [
        f"![exact match against visual tokens](../{FIGURE})",
        markdown.table(lead(board)),
        f"Exact match in per cent on {count} held-out generated pictures per kind (split "
        f"`{suite.split}`), seeds averaged; text: mean of pages, cluttered and mixed ones; where: "
        "where a key stands; scenes and photo panels: coarse questions. Every arm has the same "
        "frozen encoder of 256 tokens, the same pictures in the same order, the same steps, and "
        "begins with the LLM of nano's control, which never saw fewer than all tokens, and a "
        "projector of its own from a seed: projector alone first, then both. It cannot show how "
        "either does with a large LLM and long training: this LLM is 128 wide.",
        "## Every arm",
        "*Tokens* are those of a picture in the LLM, *MFLOPs* projector and LLM over a prompt (two "
        "per multiply-add), *time* both as measured, with the choice of tokens, as a share of "
        "`mlp`'s, batch 1 on one thread.",
    ]
    parts += [
        fold(title, about, markdown.table(scores(board, rows, shapes, seconds)))
        for title, about, rows in TABLES
    ]
    parts += [
        "## Paired differences",
        "Points, with 95 % bootstrap interval over pictures; an interval that spans 0 is no win.",
        fold("Pair by pair", markdown.table(differences(board))),
        "## At the size of LLaVA-1.5-7B",
        "Tokens, FLOPs of the LLM over them as the paper counts (which leaves the projector out), "
        "and the projector's own, by formula; times as shares, measured with random weights.",
        markdown.table(at_7b(times)),
    ]
    made = (f"`python -m lab.studies.fusion.page` from `results/{suite.suite}/`, trained by "
            f"`make fusion` from {ARMS}")  # fmt: skip
    return document("Selection and fusion on the embedded model", message(board), parts, made,
                    how_to_run(suite_file), NANO)  # fmt: skip


def scores(
    board: Board, rows: Iterable[Row], shapes: dict[str, FusionConfig], seconds: dict[str, float]
) -> list[list[str]]:
    """Rows down, costs and panels across; the best of each panel in bold."""
    rows = list(rows)
    found = {
        (row, panel): hits
        for row in rows
        for panel in PANELS
        if (hits := hits_of(board, row, panel))
    }
    means = {key: float(seed_mean(hits).mean()) for key, hits in found.items()}
    best = {
        panel: max((means[r, p] for r, p in means if p == panel), default=None) for panel in PANELS
    }
    head = ["exact match, %", "seeds", "tokens", "parameters", "MFLOPs", "time"]
    out = [[*head, *PANELS]]
    for row in rows:
        cell = board.cell(place(row, *PANELS["pages"][0]))
        if cell is None:
            out.append([row.label, markdown.NOT_RUN, *[""] * (len(head) - 2 + len(PANELS))])
            continue
        shape = shapes[row.arm]
        flops = cell.average("llm_prefill_flops") + projector_flops(shape)
        ratio = seconds.get(row.key)
        costs = [
            str(len(cell.rows)),
            f"{cell.average('kept_tokens'):.0f}",
            f"{projector_parameters(shape) / 1e6:.2f} M",
            f"{flops / 1e6:.0f}",
            "" if ratio is None else f"{ratio:.2f}",
        ]
        texts = []
        for panel in PANELS:
            mean = means.get((row, panel))
            text = markdown.NOT_RUN if mean is None else markdown.percent(mean)
            texts.append(f"**{text}**" if mean is not None and mean == best[panel] else text)
        out.append([row.label, *costs, *texts])
    return out


def differences(board: Board) -> list[list[str]]:
    """`PAIRS` down, panels across."""
    out = [["points", *PANELS]]
    for ours, theirs in PAIRS:
        cells = []
        for panel in PANELS:
            mine, other = hits_of(board, ours, panel), hits_of(board, theirs, panel)
            if not mine or not other:
                cells.append(markdown.NOT_RUN)
                continue
            gap = paired_difference(mine, other)
            cells.append(f"{100 * gap.mean:+.1f} ({100 * gap.low:+.1f} to {100 * gap.high:+.1f})")
        out.append([f"{_named(ours)} minus {_named(theirs)}", *cells])
    return out


def _named(row: Row) -> str:
    return row.label if row.keep == 1 else f"{row.label} at {row.keep:g}"


def at_7b(times: Sequence[Record]) -> list[list[str]]:
    """Projectors at LLaVA-1.5-7B's shapes: formulas, and what `speed.py` measured."""
    measured = {row["name"]: row for record in times for row in record.get("llava", ())}
    out = [["projector", "tokens", "parameters", "LLM, TFLOPs", "projector, TFLOPs",
            "prefill, of mlp's", "projector, of its prefill"]]  # fmt: skip
    for name, config in llava_shapes().items():
        row = measured.get(name)
        shown = ["", ""] if row is None else [f"{row['prefill']:.2f}", f"{row['projector']:.3f}"]
        out.append([
            name, str(config.tokens), f"{projector_parameters(config) / 1e6:.2f} M",
            f"{stf_paper_flops(config.tokens) / 1e12:.1f}",
            f"{projector_flops(config) / 1e12:.3f}", *shown,
        ])  # fmt: skip
    return out


def llava_shapes() -> dict[str, FusionConfig]:
    """The paper's arms at the size of LLaVA-1.5-7B."""
    fields: dict[str, dict[str, Any]] = {
        "mlp": {"kind": "mlp", "kernel": 1},
        "mbtf": {"kind": "mlp", "kernel": 1, "blocks": 8},
        "stf": {},
        "mbtf-stf": {"blocks": 8},
        "mbtf-stf, release": {"blocks": 8, "form": "release"},
        "release, k 2, E 2": {"blocks": 8, "form": "release", "fused": 2},
        "release, k 8, E 16": {"blocks": 8, "form": "release", "kernel": 8, "fused": 16},
        "concat": {"kind": "concat"},
        "avgpool": {"kind": "avgpool"},
    }
    return {name: FusionConfig.from_dict({**LLAVA, **given}) for name, given in fields.items()}


if __name__ == "__main__":
    main()
