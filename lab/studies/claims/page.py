"""docs/results/claims.md and its figure from records: `python -m lab.studies.claims.page`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from lab import command
from lab.report import markdown
from lab.report.draw import NAMED, OURS, Plot, Scale, Series, compose, save
from lab.report.page import document, fold, words
from lab.studies.claims.choose import Record, chosen, found_in
from lab.studies.claims.evidence import (
    CLAIMS,
    FULL_LENGTH,
    NAMES,
    NOT_RUN,
    Evidence,
    last,
)
from lab.studies.claims.queue import SUITE
from lab.trained.spec import variants
from tokensieve.files import write_text
from tokensieve.nn.pretrained import read_json

PAPERS_STEPS = 415_625  # 100 epochs of the follow-up's 133,000 pictures, 32 a step
TERMS = ("two-sided", "max(L, p)", "plain", "plain, a1=1")


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spec", type=Path, default=SUITE)
    parser.add_argument("--results", type=Path, default=Path("results/claims"))
    parser.add_argument("--stability", type=Path, default=Path("results/claims-stability"))
    parser.add_argument("--root", type=Path, default=Path(), help="where docs/ lies")
    options = command.parse(parser, arguments)
    spec = read_json(options.spec)
    shown = list(found_in(options.stability).values())
    write_page(Evidence(spec, found_in(options.results), shown), options.root / "docs")


def write_page(e: Evidence, docs: Path) -> None:
    """docs/results/claims.md with its figure."""
    write_text(docs / "results" / "claims.md", text_of(e))
    save(figure(e), docs / "figures" / "claims.png")


def text_of(e: Evidence) -> str:
    """The whole page."""
    found = [(who, claim, *judge(e)) for who, claim, judge in CLAIMS]
    rows = [["claim", "paper", "what we saw", "numbers"]]
    rows += [[claim, who, state, numbers] for who, claim, state, numbers in found]
    parts = [
        markdown.table(rows),
        circumstances(e),
        "![masks and reconstruction during training](../figures/claims.png)",
        "## What the papers leave unsaid",
        choices(e),
        "## Everything",
        "Exact match in per cent, mean and the seeds' extremes; kept: the share of tokens that the "
        "mask keeps in the last tenth of the training; mask: what became of it.",
        *[fold(group["title"], group["note"], table(e, name))
          for name, group in e.spec["groups"].items()],
        fold("Without training of this study", "Shipped weights under `selector`.", peers(e)),
    ]  # fmt: skip
    return document(
        "The papers' claims", message([state for _, _, state, _ in found]), parts,
        "`python -m lab.studies.claims.page` from the records",
        "What is not run is trained by `make claims`, hours in the background.",
    )  # fmt: skip


def message(states: Sequence[str]) -> str:
    """How many claims were seen."""
    ran = [state for state in states if state != NOT_RUN]
    if not ran:
        return f"None of the {len(states)} claims is measured yet: the trainings take hours."
    counted = [f"{ran.count(s)} {s}" for s in dict.fromkeys(sorted(ran, reverse=True))]
    rest = f"; {len(states) - len(ran)} are not measured yet" if len(ran) < len(states) else ""
    return f"Of {len(states)} claims of the two papers: {words(counted)}{rest}."


def circumstances(e: Evidence) -> str:
    """What was trained and asked, and how far that is from the papers."""
    ran = [record for record in e.found.values() if "crops" in record]
    crops = sorted({record["crops"] for record in ran})
    steps = [record["curve"][-1]["step"] + 1 for record in ran if "curve" in record]
    pictures = f"{words([str(n) for n in crops])} generated pictures" if crops else "few pictures"
    most = f", at most {max(steps):,} steps" if steps else ""
    return (
        f"Trained on the frozen encoder's features of {pictures} of the embedded model "
        f"`{e.spec['model']}`{most}; the follow-up takes {PAPERS_STEPS:,}, and its rate, 1e-5, is "
        "meant for them: what `printed` shows here says little of it. Asked on "
        f"{e.spec['pictures']} pictures a kind of the split `{e.spec['split']}`, the highest "
        f"scores kept; `{e.text}` pages are read, of `{e.calm}` pictures coarse things are asked. "
        f"With so few pictures differences below {margin(e):.0f} points mean nothing."
    )


def margin(e: Evidence) -> float:
    """Twice the standard error of a difference of two shares near one half, in points."""
    return float(100 * 2 * (0.5 / e.spec["pictures"]) ** 0.5)


def choices(e: Evidence) -> str:
    """Reading and rate, chosen on the split that choices are made on."""
    picked = chosen(e.spec, e.found)
    if not picked:
        return "Not chosen yet."
    told = [f"{e.spec['groups'][group]['title'].lower()}: **{name}**"
            for group, name in picked.items()]  # fmt: skip
    by = e.spec["choose"]
    kinds, keeps = (words([f"{one}" for one in by[name]]) for name in ("kinds", "keeps"))
    return (
        f"By exact match on {kinds} pictures of `{e.spec['split']}`, mean of the keeps {keeps}, "
        f"one seed: {'; '.join(told)}."
    )


def table(e: Evidence, group: str) -> str:
    """One row per variant of a group."""
    keeps = [f"{keep:g}" for keep in e.spec["keeps"]]
    heads = [f"{kind} {keep}" for kind in e.spec["kinds"] for keep in keeps]
    rows = [["variant", "seeds", *heads, "kept", "mask"]]
    for name in e.spec["groups"][group]["variants"]:
        ran = e.runs(group, name)
        if not ran:
            rows.append([name, state_of_missing(e, group, name), *[""] * (len(heads) + 2)])
            continue
        cells = [markdown.spread([100 * r["scores"][kind][keep]["mean"] for r in ran], ".1f")
                 for kind in e.spec["kinds"] for keep in keeps]  # fmt: skip
        states = " / ".join(sorted({str(r["state"]) for r in ran}))
        ends = markdown.spread([last(r) for r in ran], ".2f")
        rows.append([name, str(len(ran)), *cells, ends, states])
    return markdown.table(rows)


def state_of_missing(e: Evidence, group: str, name: str) -> str:
    """Why a variant has no row: not run, or stopped because it diverged."""
    ones = variants(e.spec, group, chosen(e.spec, e.found)).get(name, [])
    stopped = any(e.found.get(one.folder, {}).get("state") == "stopped" for one in ones)
    return "diverged" if stopped else markdown.NOT_RUN


def peers(e: Evidence) -> str:
    """Methods that this study does not train, on the same pictures."""
    keeps = [f"{keep:g}" for keep in e.spec["keeps"]]
    rows = [["method", *[f"{kind} {keep}" for kind in e.spec["kinds"] for keep in keeps]]]
    for name in e.spec["peers"]:
        ran = e.peer(name)
        cells = [markdown.spread([100 * r["scores"][kind][keep]["mean"] for r in ran], ".1f")
                 for kind in e.spec["kinds"] for keep in keeps]  # fmt: skip
        rows.append([name, *cells] if ran else [name, NOT_RUN, *[""] * (len(cells) - 1)])
    return markdown.table(rows)


def figure(e: Evidence) -> Figure:
    """Share kept and reconstruction of the four systems; share kept by mask term and estimator."""
    share = Scale("share of tokens kept", (0, 0.25, 0.5, 0.75, 1), (-0.03, 1.12))
    error = Scale("error, share of the first", (0, 0.5, 1), (-0.03, 1.3))
    systems = {NAMES[group].replace(" reading", ""): e.system(group) for group in FULL_LENGTH}
    plots = [
        Plot("The four systems: mask", across(systems), share, lines(systems, "kept")),
        Plot("The four systems: error", across(systems), error, lines(systems, "reconstruction")),
    ]
    for estimator in ("gumbel", "straight-through"):
        terms = {term: e.runs("objective", variant_of(term, estimator)) for term in TERMS}
        plots.append(Plot(f"Follow-up, {estimator}", across(terms), share, lines(terms, "kept")))
    ran = any(plot.series for plot in plots)
    said = "Masks and reconstruction while the papers' systems are trained." if ran else NOT_RUN
    return compose(said[0].upper() + said[1:], plots, 2, 2.7)


def variant_of(term: str, estimator: str) -> str:
    """The name of a variant of the group `objective`."""
    name, _, more = term.partition(", a1")
    return f"{name}, {estimator}" + (f", a1{more}" if more else "")


def across(ran: Mapping[str, Sequence[Record]]) -> Scale:
    """Steps, with room for the names behind the lines."""
    steps = [p["step"] + 1 for of in ran.values() for r in of for p in r["curve"]]
    end = max(steps, default=2)
    return Scale("optimiser step", (0, end // 2, end), (0, 2.1 * end))


def lines(ran: Mapping[str, Sequence[Record]], name: str) -> list[Series]:
    """A line for each that ran, of its first seed."""
    drawn: list[Series] = []
    for (label, of), color in zip(ran.items(), (OURS, *NAMED), strict=False):
        if not of:
            continue
        points: list[dict[str, Any]] = of[0]["curve"]
        scale = points[0][name] if name == "reconstruction" else 1.0
        values = [point[name] / scale for point in points]
        drawn.append(Series([p["step"] for p in points], values, label, color))
    return drawn


if __name__ == "__main__":
    command.run(main)
