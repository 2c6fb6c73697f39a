"""docs/results/selection.md from the records of `selection.py` and `prefill_share.py`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lab.report.markdown import table
from lab.report.page import document, fold, words
from tokensieve.evaluate import records

GRIDS = {576: (24, 24), 2880: (48, 60), 11520: (96, 120)}  # by number of tokens
LIMIT = 15  # per cent of the saved prefill
SAME, MIDDLE = 1.05, 0.22
SHARES = Path("results/prefill-share/llava-next-7b.json")
VECTORISED = Path("results/vectorised")


def page(folder: Path) -> str:
    """docs/results/selection.md from the records."""
    found = list(records.read_all(folder))
    made = {
        f"{r['provenance']['machine']['cpu']}, {r['config']['threads']} thread(s), commit "
        f"{r['provenance']['commit'][:9]}"
        for r in found
    }
    parts = [
        *_shares(),
        *_beside(),
        "## Time and memory of the choice alone",
        'On random tokens and signals; attention itself is not counted. "of one product": '
        'against one n x n product of the tokens in float32, timed in turns with it. "naive / '
        'ours": how many times longer an obvious form takes, loops over tokens '
        "(`lab/benchmarks/naive.py`), which keeps the same tokens; empty where there is none or it "
        "was not run. Peak memory: on top of the inputs.",
        fold("At a glance: one crop, float32, .22 kept", table(_glance(found))),
        fold("Every size, batch, share and dtype", table(_everything(found))),
        fold("Measured on", f"{'; '.join(sorted(made))}.") if made else "Not run.",
    ]
    return document(
        "What choosing costs", _message(), parts,
        "`python -m lab.benchmarks.selection` and `python -m lab.benchmarks.prefill_share`",
    )  # fmt: skip


def _costs() -> dict[str, dict[float, float]]:
    """Selection and what it asks of attention, in per cent of the prefill it saves."""
    if not SHARES.exists():
        return {}
    found: dict[str, dict[float, float]] = {}
    for row in records.read(SHARES)["rows"]:
        share = 100 * (row["select_s"] + row["signals_s"]) / row["saved_s"]
        found.setdefault(row["method"], {})[row["keep"]] = share
    return found


def _message() -> str:
    """Whether choosing pays at the size of a real LLM."""
    costs = _costs()
    if not costs:
        return "Not run yet."
    over = [f"`{name}`" for name, of in costs.items() if max(of.values()) > LIMIT]
    middle = sorted(next(iter(costs.values())))[1]
    cheap = sum(of[middle] < 1 for of in costs.values())
    beyond = f"; above {LIMIT} % somewhere: {words(over)}" if over else f"; none above {LIMIT} %"
    return (
        f"At LLaVA-NeXT-7B's shapes on one CPU thread, with {middle:g} of the tokens kept, "
        f"{cheap} of {len(costs)} methods cost less than 1 % of the prefill they save"
        f"{beyond}."
    )


def _glance(found: Sequence[records.Record]) -> list[list[str]]:
    rows = [["method", *[f"ms at {n:,}" for n in GRIDS], "of one product at 2,880",
             "naive / ours at 2,880", f"peak MB at {max(GRIDS):,}"]]  # fmt: skip
    for record in found:
        of = {
            r["n"]: r
            for r in record["rows"]
            if (r["batch"], r["keep"], r["dtype"]) == (1, 0.22, "float32")
        }
        middle, largest = of.get(2880, {}), of.get(max(GRIDS), {})
        rows.append([
            f"`{record['config']['method']}`",
            *[f"{1e3 * of[n]['s']:.1f}" if n in of else "not run" for n in GRIDS],
            _ratio(middle, "s", "product_s"), _ratio(middle, "naive_s", "s"),
            f"{largest['peak_mb']:.0f}" if largest else "not run",
        ])  # fmt: skip
    return rows


def _everything(found: Sequence[records.Record]) -> list[list[str]]:
    rows = [["method", "n", "batch", "keep", "dtype", "ms", "of one product", "naive / ours",
             "peak, MB"]]  # fmt: skip
    for record in found:
        rows += [
            [f"`{record['config']['method']}`", str(r["n"]), str(r["batch"]), f"{r['keep']:g}",
             r["dtype"], f"{1e3 * r['s']:.1f}", _ratio(r, "s", "product_s"),
             _ratio(r, "naive_s", "s"), f"{r['peak_mb']:.0f}"]
            for r in record["rows"]
        ]  # fmt: skip
    return rows


def _ratio(row: records.Record, above: str, below: str) -> str:
    """Empty where one of both was not measured."""
    return f"{row[above] / row[below]:.2f}" if above in row and below in row else ""


def _shares() -> list[str]:
    """What choosing takes of the prefill it saves, from the record of `prefill_share.py`."""
    if not SHARES.exists():
        return ["Not run: `python -m lab.benchmarks.prefill_share`."]
    record = records.read(SHARES)
    keeps = record["config"]["keep"]
    rows = [["selection, % of the prefill it saves", "site", *[f"{keep:g}" for keep in keeps],
             "of that attention, at .22"]]  # fmt: skip
    for name in dict.fromkeys(row["method"] for row in record["rows"]):
        of = {row["keep"]: row for row in record["rows"] if row["method"] == name}
        cells = [100 * (of[k]["select_s"] + of[k]["signals_s"]) / of[k]["saved_s"] for k in keeps]
        told = of[keeps[len(keeps) // 2]]
        part = told["signals_s"] / (told["select_s"] + told["signals_s"])
        rows.append([
            f"`{name}`", of[keeps[0]]["site"],
            *[f"**{c:.1f}**" if c > LIMIT else f"{c:.1f}" for c in cells], f"{100 * part:.0f} %",
        ])  # fmt: skip
    layer = ", ".join(f"{1e3 * s:.0f} ms at {n}" for n, s in record["layer_s"].items())
    return [
        table(_few(rows)),
        f"LLaVA-NeXT-7B's shapes: {record['config']['tokens']:,} visual tokens and "
        f"{record['config']['text']} of text, float32, {record['config']['threads']} thread(s) of "
        f"{record['machine']['cpu']}, commit {record['commit'][:9]}, load "
        f"{record['machine']['load']}. The prefill is {record['config']['layers']} times one "
        f"measured decoder layer ({layer} visual tokens). What a method asks of attention is "
        "computed from queries and keys and counted; a method inside the encoder is charged for "
        "all its steps, one inside the LLM for all its cuts, which save only the layers behind "
        f"them. In bold what is above {LIMIT} %. Trained methods are timed with the default "
        "selector of that width and weights of no meaning. On a GPU the prefill shrinks far more "
        "than a choice that takes one token after the other and is bound by launches: these shares "
        "are not to be carried over, and none was lent to measure them.",
        fold("Every method", table(rows)),
    ]


def _beside() -> list[str]:
    """Ours against vectorised forms, from the record of `vectorised.py`."""
    title = "## Beside a vectorised form"
    if not VECTORISED.exists():
        return [title, "Not run: `python -m lab.benchmarks.vectorised`."]
    made = list(records.read_all(VECTORISED))
    found = [row for record in made for row in record["rows"]]
    asked = list(dict.fromkeys((r["n"], r["batch"], r["dtype"]) for r in found))
    names = [f"{batch} x {n:,} {dtype}" for n, batch, dtype in asked]
    glance, every = [["method", *names]], [["method", "keep", *names]]
    slower = []
    for name in dict.fromkeys(row["method"] for row in found):
        for keep in sorted({r["keep"] for r in found}):
            of = {
                (r["n"], r["batch"], r["dtype"]): r["s"] / r["vectorised_s"]
                for r in found
                if (r["method"], r["keep"]) == (name, keep)
            }
            cells = [_bold(of[a], SAME) if a in of else "not run" for a in asked]
            every.append([f"`{name}`", f"{keep:g}", *cells])
            if keep == MIDDLE:
                glance.append([f"`{name}`", *cells])
        behind = [r for r in found if r["method"] == name and r["s"] > SAME * r["vectorised_s"]]
        if behind:
            most = max(1e3 * (r["s"] - r["vectorised_s"]) for r in behind)
            slower.append(f"`{name}` ({len(behind)} rows, by up to {most:.2f} ms a call)")
    said = {
        f"{r['provenance']['machine']['cpu']}, {r['config']['threads']} thread(s), commit "
        f"{r['provenance']['commit'][:9]}, {r['config']['seconds']:g} s a row, three rounds at "
        "least, on a machine busy with other work"
        for r in made
    }
    return [
        title,
        f"Time of ours over that of the form most are released in, written anew "
        f"(`lab/benchmarks/vectorised.py`): all crops at once, no padding, one budget, nothing "
        f"checked. In turns in one run, medians; below 1 ours is faster, in bold above {SAME}. "
        f"{MIDDLE:g} kept; slower somewhere: {words(slower) if slower else 'none'}.",
        table(glance),
        fold("Every share", table(every)),
        fold("Measured on", f"{'; '.join(sorted(said))}."),
    ]  # fmt: skip


def _bold(ratio: float, above: float) -> str:
    return f"**{ratio:.2f}**" if ratio > above else f"{ratio:.2f}"


def _few(rows: list[list[str]]) -> list[list[str]]:
    """Of each site the cheapest and the dearest method at the middle share."""
    by_site: dict[str, list[list[str]]] = {}
    for row in rows[1:]:
        by_site.setdefault(row[1], []).append(row)
    out = [rows[0]]
    for those in by_site.values():
        those = sorted(those, key=lambda row: float(row[3].strip("*")))
        out += [those[0], *those[1:][-1:]]
    return out
