"""How long a pass takes under every method: `python -m lab.benchmarks.whole_pass`.

One picture at a time through `sieve` and `generate` with a single new token; a record per method,
keeps and full interleaved so that a noisy moment hits all.
"""

from __future__ import annotations

import argparse
import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lab import command
from lab.report.asked import picture_inputs
from lab.world import NANO2
from tokensieve.errors import BudgetError
from tokensieve.evaluate import records
from tokensieve.evaluate.subject import Subject, load_subject
from tokensieve.evaluate.tasks import SYNTH, World
from tokensieve.hf.sieve import sieve
from tokensieve.methods.registry import get_method, method_class, method_names

KEEPS = (1.0, 0.5, 0.3, 0.2, 0.1, 0.05)
STAGES = ("encode", "select", "prefill")
WORLDS = {"synth": (SYNTH, "cluttered"), "nano2": (NANO2, "receipt")}
SHIPPED = ("selector",)  # trained, with weights in the package


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, measure every method, write one record each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", help="separated by commas; all of the registry by default")
    parser.add_argument("--model", default="nano", help="a name or a folder")
    parser.add_argument("--name", help="of the model, for records")
    parser.add_argument("--world", choices=WORLDS, default="synth", help="where pages come from")
    parser.add_argument("--weights", help="of the method `selector`, instead of those that ship")
    parser.add_argument("--pictures", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("results/prefill"))
    options = command.parse(parser, arguments)
    subject = load_subject(options.model)
    name_of, pages = options.name or Path(options.model).name, WORLDS[options.world]
    named = options.methods.split(",") if options.methods else _timeable()
    for name in named:
        own = {"weights": options.weights} if options.weights and name == "selector" else {}
        case = Case(name_of, subject, pages, name, own)
        record = measure(case, options.pictures, options.rounds)
        records.write(options.out / f"{name_of}--{name}.json", record)
        shares = "  ".join(f"{row['keep']:g}: {row['whole']:.2f}" for row in record["rows"])
        print(f"{name}  {shares}", flush=True)


def _timeable() -> list[str]:
    """Methods with a budget that need no weights of one's own."""
    return [
        name
        for name in method_names()
        if method_class(name).reads_picture and (not method_class(name).trained or name in SHIPPED)
    ]


@dataclass(frozen=True)
class Case:
    """A model by its name, pages (a world and a kind), a method and its options."""

    model: str
    subject: Subject
    pages: tuple[World, str]
    method: str
    options: Mapping[str, Any]


def measure(case: Case, pictures: int, rounds: int) -> records.Record:
    """Times of the stages at every keep, and of the whole pass as a share of full's."""
    subject, (world, kind) = case.subject, case.pages
    config = {"model": case.model, "method": case.method, "pictures": pictures, "rounds": rounds,
              "keeps": list(KEEPS), "weights": subject.fingerprints(case.options)}  # fmt: skip
    shares: dict[float, list[float]] = defaultdict(list)
    ms: dict[tuple[float, str], list[float]] = defaultdict(list)
    method = get_method(case.method, **case.options)
    for ordinal in range(pictures):
        inputs = picture_inputs(subject, ordinal, kind, world)
        found = _medians(subject, inputs, method, rounds)
        for keep in found:
            shares[keep].append(sum(found[keep].values()) / sum(found[1.0].values()))
            for stage in STAGES:
                ms[keep, stage].append(found[keep][stage])
    return {
        "form": "prefill", "identity": records.identity(config), "config": config,
        **records.provenance(), "threads": torch.get_num_threads(),
        "note": "Encode, select and prefill of one picture, batch 1, one thread, as a share of the "
        f"same pass with all tokens; {pictures} {kind} pages, median of {rounds} rounds. The "
        "model is so small that fixed costs of a call weigh more than in a large one, and "
        "its encoder as much as its LLM: what selecting costs beside a prefill of real size is in "
        "docs/results/selection.md.",
        "load": round(os.getloadavg()[0], 1),
        "rows": [
            {"keep": keep, "whole": round(float(np.mean(shares[keep])), 4),
             **{stage: round(float(np.mean(ms[keep, stage])), 3) for stage in STAGES}}
            for keep in shares
        ],
    }  # fmt: skip


def _medians(
    subject: Subject, inputs: dict[str, Any], method: Any, rounds: int
) -> dict[float, dict[str, float]]:
    """Median milliseconds by keep that the method can reach, and stage; the first round is left
    out."""
    seen: dict[tuple[float, str], list[float]] = defaultdict(list)
    for number in range(rounds + 1):
        for keep in KEEPS:
            try:
                with torch.inference_mode(), sieve(subject.model, method, keep) as report:
                    subject.model.generate(**inputs, max_new_tokens=1, do_sample=False)
            except BudgetError:
                continue  # a budget this method cannot reach here
            for stage in STAGES:
                if number:
                    seen[keep, stage].append(report.ms.get(stage, 0.0))
    return {
        keep: {stage: float(np.median(seen[keep, stage])) for stage in STAGES}
        for keep in KEEPS
        if seen[keep, STAGES[0]]
    }


if __name__ == "__main__":
    command.run(main)
