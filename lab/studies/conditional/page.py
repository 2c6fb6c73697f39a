"""Selection inside the LLM, from its records: `python -m lab.studies.conditional.page`.

Writes docs/results/conditional.md. Two comparisons, since a method at layer K leaves every token
in the layers before it: equal tokens kept after the cut, and equal tokens of a layer on average.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lab.report import markdown
from lab.report.board import MEAN, Board, Place
from lab.report.opened import how_to_run, open_board
from lab.report.page import NANO, document, fold
from tokensieve.evaluate.config import Suite, Variant
from tokensieve.evaluate.stats import paired_difference
from tokensieve.files import write_text

PROMPT = (
    "Prompts are question + image + question: a causal LLM knows of the text at its visual tokens "
    "only if the question precedes the image."
)
OURS, PEER = "conditional-at-1", "selector-at-1"


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and write the page."""
    suite, board, options = open_board(
        arguments, str(__doc__), "lab/studies/conditional/suite.json"
    )
    write_text(options.root / "docs/results/conditional.md", page(board, suite, options.suite))


def page(board: Board, suite: Suite, suite_file: Path) -> str:
    """docs/results/conditional.md."""
    pictures = sorted({record["config"]["pictures"] for record in board.records})
    count = " or ".join(f"{n:,}" for n in pictures)
    inside = inside_of(suite)
    before = [v for v in suite.variants if v.layer is None and v.method != "full"]
    parts = [
        markdown.table(small(board, suite, inside, before)),
        f"Exact match in per cent on {count} held-out generated pictures per kind (split "
        f"`{suite.split}`). {PROMPT} The model is the embedded one with a language model taught "
        "such prompts (`python -m lab.studies.conditional.ask_first`). All tokens pass the layers "
        "before the cut: the last columns say what a method before the LLM reaches with as many "
        "tokens in every layer as the other has on average. It cannot show how late a large LLM "
        "may be cut.",
        'A row "-at-K" drops tokens where decoder layer K begins (counted from 0); before it, all '
        "tokens remain. *Kept* is the share left from there on, *per layer* what a layer of the "
        "LLM holds on average, both in per cent of all visual tokens. `selector` is the shipped, "
        "unconditioned one, before the LLM; `selector-at-K` its choice, taking effect at layer K; "
        "`-ranking` takes the highest scores, the others weigh them with distances (rule "
        '"diverse").'
        " Not equal in training: see docs/lab.md.",
        "## Equal tokens after the cut",
        "In brackets 95 % bootstrap intervals over pictures, behind @ the share per layer.",
    ]
    for kind, topic in board.panels(suite.kinds):
        parts.append(
            fold(
                markdown.title(kind, topic),
                full_line(board, kind, topic),
                markdown.table(rows(board, suite, [*inside, *before], kind, topic)),
            )
        )
    if any(v.name == OURS for v in inside):
        parts.append(fold(
            "Paired differences",
            f"Points by which `{OURS}` leads over the same pictures, at equal tokens after the "
            "cut.",
            markdown.table(differences(board, suite, inside)),
        ))  # fmt: skip
    parts += [
        "## Equal tokens of a layer on average",
        "This is the honest price of a late cut.",
        fold("Kind by kind", markdown.table(equal_mean(board, suite, inside, before))),
    ]
    return document(
        "Conditional selection: dropping tokens inside the LLM",
        message(board, suite, inside, before),
        parts,
        f"`python -m lab.studies.conditional.page` from `results/{suite.suite}/`",
        how_to_run(suite_file),
        NANO,
    )


def lowest(suite: Suite) -> float | None:
    """The smallest share that `OURS` was asked for."""
    ours = next((v for v in suite.variants if v.name == OURS), None)
    return None if ours is None else min(ours.keeps or suite.keeps)


def small(
    board: Board, suite: Suite, inside: Sequence[Variant], before: Sequence[Variant]
) -> list[list[str]]:
    """Kinds down, at the smallest share: those that cut at one layer, and before the LLM."""
    keep = lowest(suite)
    names = [v.name for v in inside if "-ranking" not in v.name]
    equal = {row[0]: row for row in equal_mean(board, suite, inside, before)[1:]
             if row[2].endswith(f"({keep:g})")} if keep else {}  # fmt: skip
    out = [[f"right answers, %, {keep or 0:g} kept", "all tokens", *[f"`{n}`" for n in names],
            *[f"`{v.name}`, equal on average" for v in before]]]  # fmt: skip
    for kind, topic in board.panels(suite.kinds):
        found = [board.estimate(Place("main", name, kind, topic, keep or 0)) for name in names]
        full = board.estimate(Place("main", "full", kind, topic, 1.0))
        out.append([
            f"{kind} ({topic})",
            *[markdown.NOT_RUN if e is None else markdown.percent(e.mean) for e in (full, *found)],
            *equal.get(f"{kind} ({topic})", ["", "", "", *[""] * len(before)])[3:],
        ])  # fmt: skip
    return out


def message(
    board: Board, suite: Suite, inside: Sequence[Variant], before: Sequence[Variant]
) -> str:
    """What knowing the question is worth, and where it is worth nothing."""
    keep = lowest(suite)
    peer = next((v.name for v in inside if v.name == PEER), None)
    if keep is None or peer is None:
        return "Not run yet."
    gaps = {}
    for kind, topic in board.panels(suite.kinds):
        mine, other = (board.hits(Place("main", n, kind, topic, keep)) for n in (OURS, peer))
        if mine and other and topic != MEAN:
            gaps[f"{kind} ({topic})"] = paired_difference(mine, other)
    if not gaps:
        return "Not run yet."
    most = max(gaps, key=lambda name: gaps[name].mean)
    ahead = sum(gap.low > 0 for gap in gaps.values())
    return (f"A selector that has read the question answers more than one that has not, at the "
            f"same layer and {keep:g} of the tokens from there on: ahead on {ahead} of {len(gaps)} "
            f"kinds of questions, by {100 * gaps[most].mean:.0f} points on {most}."
            f"{price(equal_mean(board, suite, inside, before), keep)}")  # fmt: skip


def price(equal: Sequence[Sequence[str]], keep: float) -> str:
    """What the first method before the LLM reads with as many tokens a layer on average."""
    pairs = []
    for row in equal[1:]:
        mine, _, kept = row[2].partition(" ")
        if (
            kept == f"({keep:g})"
            and not row[0].endswith(f"({MEAN})")
            and len(row) > 3
            and row[3] != markdown.NOT_RUN
        ):
            pairs.append((float(mine), float(row[3])))
    if not pairs:
        return ""
    ours, theirs = (sum(side) / len(pairs) for side in zip(*pairs, strict=True))
    return (f" With as many tokens in every layer on average, `{equal[0][3]}` before the LLM reads "
            f"{theirs:.1f} % where it reads {ours:.1f} %.")  # fmt: skip


def full_line(board: Board, kind: str, topic: str) -> str:
    """What the model scores with all its tokens."""
    found = board.estimate(Place("main", "full", kind, topic, 1.0))
    return "All tokens: " + (markdown.NOT_RUN if found is None else markdown.percent(found.mean))


def rows(
    board: Board, suite: Suite, variants: Sequence[Variant], kind: str, topic: str
) -> list[list[str]]:
    """Variants down, keeps across; a column holds exact match and tokens per layer."""
    keeps = [keep for keep in suite.keeps if any(keep in (v.keeps or ()) for v in inside_of(suite))]
    out = [["exact match, % (per layer)", *[f"{keep:g} kept" for keep in keeps]]]
    for variant in variants:
        cells = []
        for keep in keeps:
            found = board.estimate(Place("main", variant.name, kind, topic, keep))
            if found is None:
                asked = keep in (variant.keeps or suite.keeps)
                cells.append(markdown.NOT_RUN if asked else "")
                continue
            ends = f"{markdown.percent(found.low)}–{markdown.percent(found.high)}"
            share = per_layer(board, suite, variant, kind, keep)
            cells.append(f"{markdown.percent(found.mean)} ({ends}) @ {share:.0%}")
        out.append([variant.name, *cells])
    return out


def inside_of(suite: Suite) -> list[Variant]:
    """The variants that drop tokens inside the LLM."""
    return [v for v in suite.variants if v.layer is not None]


def per_layer(board: Board, suite: Suite, variant: Variant, kind: str, keep: float) -> float:
    """Share of the visual tokens that a layer holds on average, as recorded."""
    for topic in board.topics(kind):
        cell = board.cell(Place("main", variant.name, kind, topic, keep))
        if cell is not None:
            return cell.average("layer_tokens") / cell.average("visual_tokens")
    return keep


def differences(board: Board, suite: Suite, inside: Sequence[Variant]) -> list[list[str]]:
    """`OURS` against each other variant at its layer: panels and peers down, keeps across."""
    ours = next(v for v in inside if v.name == OURS)
    keeps = list(ours.keeps or suite.keeps)
    out = [["points", *[f"{keep:g} kept" for keep in keeps]]]
    peers = [v for v in inside if v.name != OURS and v.layer == ours.layer]
    for kind, topic in board.panels(suite.kinds):
        for peer in peers:
            cells = []
            for keep in keeps:
                mine = board.hits(Place("main", OURS, kind, topic, keep))
                other = board.hits(Place("main", peer.name, kind, topic, keep))
                if not mine or not other:
                    cells.append(markdown.NOT_RUN)
                    continue
                gap = paired_difference(mine, other)
                ends = f"{100 * gap.low:+.1f} to {100 * gap.high:+.1f}"
                cells.append(f"{100 * gap.mean:+.1f} ({ends})")
            out.append([f"{kind} ({topic}), minus {peer.name}", *cells])
    return out


def equal_mean(
    board: Board, suite: Suite, inside: Sequence[Variant], before: Sequence[Variant]
) -> list[list[str]]:
    """Each budget of `OURS` beside the method before the LLM at the same mean per layer."""
    head = ["panel", "per layer", f"{OURS} (kept after)"]
    out = [[*head, *[v.name for v in before]]]
    ours = next((v for v in inside if v.name == OURS), None)
    for kind, topic in board.panels(suite.kinds) if ours else ():
        for keep in ours.keeps or suite.keeps if ours else ():
            mine = board.estimate(Place("main", OURS, kind, topic, keep))
            if ours is None or mine is None:
                continue
            share = per_layer(board, suite, ours, kind, keep)
            cells = []
            for peer in before:
                near = min(peer.keeps or suite.keeps, key=lambda k: abs(k - share))
                found = board.estimate(Place("main", peer.name, kind, topic, near))
                same = found is not None and abs(near - share) < 0.005
                cells.append(markdown.percent(found.mean) if found and same else markdown.NOT_RUN)
            label = f"{markdown.percent(mine.mean)} ({keep:g})"
            out.append([f"{kind} ({topic})", f"{share:.1%}", label, *cells])
    return out


if __name__ == "__main__":
    main()
