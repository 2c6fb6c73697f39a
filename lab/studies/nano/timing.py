"""Is a shorter prompt a faster one? `python -m lab.studies.nano.timing`

One picture at a time through `sieve` and `generate`, keeps interleaved so that a noisy moment hits
them all; each time is the median of the rounds, each ratio is taken within its picture.
"""

from __future__ import annotations

import argparse
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lab import command
from lab.report.asked import picture_inputs
from tokensieve.cost.flops import prefill_flops
from tokensieve.cost.shapes import TransformerShape
from tokensieve.evaluate import records
from tokensieve.evaluate.stats import bootstrap_mean
from tokensieve.evaluate.subject import Subject, load_subject
from tokensieve.hf.sieve import sieve

KEEPS = (1.0, 0.7, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05)


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, measure, write one record per model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="nano,nano-next", help="separated by commas")
    parser.add_argument("--method", default="selector")
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("results/timing"))
    options = command.parse(parser, arguments)
    for name in options.models.split(","):
        subject = load_subject(name)
        record = measure(subject, name, options.method, options.pictures, options.rounds)
        records.write(options.out / f"{name}--{options.method}.json", record)
        for row in record["table"]:
            print("  ".join(row))


def measure(subject: Subject, name: str, method: str, pictures: int, rounds: int) -> records.Record:
    """Stage times of one model under one method at every keep, as a record."""
    config = {"model": name, "method": method, "pictures": pictures, "rounds": rounds,
              "keeps": list(KEEPS), "weights": subject.fingerprints({})}  # fmt: skip
    times: dict[tuple[float, str], list[float]] = defaultdict(list)
    tokens: dict[float, int] = {}
    for ordinal in range(pictures):
        inputs = picture_inputs(subject, ordinal)
        found = _one_picture(subject, inputs, method, rounds, tokens)
        for keep in KEEPS:
            for stage in ("encode", "select", "prefill"):
                times[keep, stage].append(found[keep, stage])
            full = found[1.0, "prefill"]
            times[keep, "ratio"].append(found[keep, "prefill"] / full)
            times[keep, "whole"].append((found[keep, "select"] + found[keep, "prefill"]) / full)
    shape = TransformerShape.of_llm(subject.model.config)
    flops = {keep: prefill_flops(shape, n) for keep, n in tokens.items()}
    table = [["keep", "prompt tokens", "LLM prefill FLOPs, of full", "prefill time, of full",
              "selecting and prefill, of full's prefill", "prefill ms", "select ms",
              "encode ms"]]  # fmt: skip
    for keep in KEEPS:
        ratio, whole = (bootstrap_mean(np.array(times[keep, s])) for s in ("ratio", "whole"))
        table.append([
            f"{keep:g}", str(tokens[keep]), f"{flops[keep] / flops[1.0]:.2f}",
            f"{ratio.mean:.2f} ({ratio.low:.2f}–{ratio.high:.2f})",
            f"{whole.mean:.2f} ({whole.low:.2f}–{whole.high:.2f})",
            *[f"{np.mean(times[keep, s]):.2f}" for s in ("prefill", "select", "encode")],
        ])  # fmt: skip
    return {
        "form": "timing",
        "identity": records.identity(config),
        "config": config,
        **records.provenance(),
        "threads": torch.get_num_threads(),
        "title": f"Time and FLOPs: {name}, {method}",
        "note": f"Batch 1, one thread, {pictures} cluttered pages, median of {rounds} rounds, mean "
        "over pictures with 95 % bootstrap interval of the ratio. In a model this small fixed "
        "costs of a call weigh more than in a large one. Load average of the machine at the time: "
        f"{os.getloadavg()[0]:.1f}.",
        "rows": [{"keep": k, "stage": s, "values": np.round(v, 4).tolist()}
                 for (k, s), v in times.items()],
        "table": table,
    }  # fmt: skip


def _one_picture(
    subject: Subject, inputs: dict[str, Any], method: str, rounds: int, tokens: dict[float, int]
) -> dict[tuple[float, str], float]:
    """Median milliseconds by (keep, stage); prompt lengths go to `tokens`."""
    seen: dict[tuple[float, str], list[float]] = defaultdict(list)
    length = inputs["input_ids"].shape[1]
    bound = subject.bound(method, {})
    for number in range(rounds + 1):
        for keep in KEEPS:
            with torch.no_grad(), sieve(subject.model, bound, keep) as report:
                subject.model.generate(**inputs, max_new_tokens=1, do_sample=False)
            if number == 0:  # warm-up
                tokens[keep] = length - report.visual_tokens + report.kept_tokens
                continue
            for stage in ("encode", "select", "prefill"):
                seen[keep, stage].append(report.ms[stage])
    return {place: float(np.median(values)) for place, values in seen.items()}


if __name__ == "__main__":
    command.run(main)
