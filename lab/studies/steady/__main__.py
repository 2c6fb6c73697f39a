"""Do adaptive counts come to what was asked? `python -m lab.studies.steady`.

Streams of nano's pictures, four a call, of mixes that thresholds were not measured on: what is kept
on average as it is, and with steady=True.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from lab import command
from lab.report.markdown import table
from lab.report.page import NANO, document
from tokensieve.data.synth import generate
from tokensieve.evaluate import records
from tokensieve.files import write_text
from tokensieve.hf.asked import Asked
from tokensieve.hf.compress import apply_plan
from tokensieve.hf.encoder.encode import encode
from tokensieve.hf.families.fingerprint import state_hash
from tokensieve.hf.load import load_model
from tokensieve.hf.models.loaded import Loaded
from tokensieve.hf.plan import Plan
from tokensieve.hf.steady import Steady

METHODS: dict[str, Mapping[str, Any]] = {"selector": {"counts": "adaptive"}, "dymu": {}}
KEEPS = (0.1, 0.3)
MIXES: dict[str, tuple[str, ...]] = {  # each kind an equal part of the stream, one after another
    "scenes": ("scene",), "cluttered pages": ("cluttered",), "dense pages": ("dense",),
    "scenes, then cluttered pages": ("scene", "cluttered"),
}  # fmt: skip
SEEN = (40, 80, 160)  # pictures after which averages are told
AT_ONCE = 4
ASKED = "<image>What is KR?<answer>"


@dataclass(frozen=True)
class Stream:
    """Calls of `AT_ONCE` pictures: inputs as the processor gives them, and encoded once."""

    mix: str
    inputs: Sequence[Mapping[str, Any]]
    encoded: Sequence[Any]


def main(arguments: list[str] | None = None) -> None:
    """Measure, write record and page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=SEEN[-1], help="of a stream")
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--root", type=Path, default=Path("."), help="where docs/ lies")
    options = command.parse(parser, arguments)
    torch.set_num_threads(1)
    record = measure(options.pictures)
    records.write(options.results / "steady" / "nano.json", record)
    write_text(options.root / "docs" / "results" / "steady.md", page(record))


def measure(pictures: int) -> records.Record:
    """The record: every mix, method and keep."""
    loaded, started = load_model("nano"), perf_counter()
    config = {
        "model": loaded.name, "methods": {name: dict(own) for name, own in METHODS.items()},
        "keeps": list(KEEPS), "mixes": {name: list(kinds) for name, kinds in MIXES.items()},
        "pictures": pictures, "hashes": {"model": state_hash(loaded.model)},
    }  # fmt: skip
    rows = [row for mix in MIXES for row in _rows(loaded, stream(loaded, mix, pictures))]
    return {
        "form": "steady", "identity": records.identity(config), "config": config,
        **records.provenance(), "seconds": round(perf_counter() - started, 1), "rows": rows,
    }  # fmt: skip


def stream(loaded: Loaded, mix: str, pictures: int) -> Stream:
    """So many pictures of a mix, of the split "test"."""
    kinds = MIXES[mix]
    each = -(-pictures // len(kinds))
    order = [(kind, i) for kind in kinds for i in range(each)][:pictures]
    calls = [order[start : start + AT_ONCE] for start in range(0, len(order), AT_ONCE)]
    inputs = [
        dict(loaded.processor(images=[generate(kind, i, "test").image for kind, i in call],
                              text=[ASKED] * len(call), return_tensors="pt"))
        for call in calls
    ]  # fmt: skip
    with torch.inference_mode():
        return Stream(mix, inputs, [encode(loaded.model, one) for one in inputs])


def _rows(loaded: Loaded, pictures: Stream) -> Iterator[dict[str, Any]]:
    for method, own in METHODS.items():
        for keep in KEEPS:
            plan = Plan.of(loaded.model, Asked(method, keep, options=own))
            corrected = replace(plan, steady=Steady(keep, plan.pool))
            shares = [kept(loaded, one, pictures) for one in (plan, corrected)]
            yield {
                "mix": pictures.mix, "method": method, "keep": keep,
                **{name: [_average(found, n) for n in (*SEEN[:-1], len(found))]
                   for name, found in zip(("plain", "steady"), shares, strict=True)},
            }  # fmt: skip


def kept(loaded: Loaded, plan: Plan, pictures: Stream) -> list[float]:
    """The share that each picture keeps, call after call."""
    inside = plan.method.site == "encoder"  # runs the encoder itself
    found = list[float]()
    with torch.inference_mode():
        for given in pictures.inputs if inside else pictures.encoded:
            call = apply_plan(loaded.model, plan, given).report.calls[0]
            rows = (image for prompt in call.prompts for image in prompt.images)
            found += [image.kept / image.tokens for image in rows]
    return found


def _average(shares: Sequence[float], number: int) -> float:
    some = shares[:number]
    return round(sum(some) / len(some), 4)


def page(record: records.Record) -> str:
    """docs/results/steady.md."""
    config, rows = record["config"], record["rows"]
    note = (
        f"Share of visual tokens kept on average over {config['pictures']} pictures of the split "
        f"`test`, {AT_ONCE} a call; the last columns: with steady=True after so many of them. "
        '`selector` with counts="adaptive", `dymu` as it ships; both were measured on the training '
        "mix, of which none of these is one."
    )
    return document("Do adaptive counts keep their average?", message(rows, config["pictures"]),
                    [_table(rows), note], "`python -m lab.studies.steady`", on=NANO)  # fmt: skip


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    head = ["mix", "method", "keep", "as it is", "steady=True", *[f"after {n}" for n in SEEN[:-1]]]
    return table([head, *[[
        row["mix"], f"`{row['method']}`", f"{row['keep']:g}", _share(row["plain"][-1]),
        _share(row["steady"][-1]), *map(_share, row["steady"][:-1]),
    ] for row in rows]])  # fmt: skip


def message(rows: Sequence[Mapping[str, Any]], pictures: int) -> str:
    """How far from what was asked, at most, without and with the correction, and where none was to
    be had: at the end of what a method can reach."""
    stuck = {f"`{row['method']}` at {row['keep']:g}" for row in rows if _is_stuck(row)}
    free = [row for row in rows if f"`{row['method']}` at {row['keep']:g}" not in stuck]
    plain, steady = (max((_off(row, name) for row in free), default=0.0)
                     for name in ("plain", "steady"))  # fmt: skip
    end = ""
    if stuck:
        end = (
            f" The end of what a method can reach is not corrected: {', '.join(sorted(stuck))}, up "
            f"to {max(_off(row, 'steady') for row in rows if row not in free):.0%} off."
        )
    return (
        f"On mixes that they were not measured for, adaptive counts keep up to {plain:.0%} more or "
        f"fewer tokens than asked; with steady=True at most {steady:.1%} over {pictures} pictures."
        + end
    )


def _off(row: Mapping[str, Any], name: str) -> float:
    return abs(float(row[name][-1]) / float(row["keep"]) - 1)


def _is_stuck(row: Mapping[str, Any]) -> bool:
    """Whether a correction was due and changed next to nothing."""
    return _off(row, "plain") > 0.02 and _off(row, "steady") > 0.9 * _off(row, "plain")


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


if __name__ == "__main__":
    command.run(main)
