"""What an open sieve costs a forward that keeps everything: ratios of one run, in turns.

    python -m lab.benchmarks.overhead

Times are of this thread's CPU, medians over rounds in which a plain forward and one under a sieve
take turns, on the embedded model and one page. Other work on the machine widens them all the same.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from PIL import Image

from lab import command
from tokensieve import load_nano, sieve
from tokensieve.assets import asset_path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", default="full,divprune,selector,fastervlm")
    parser.add_argument("--rounds", type=int, default=60)
    arguments = command.parse(parser)
    model, processor = load_nano()
    page = Image.open(asset_path("pictures") / "cluttered.png")
    inputs = dict(processor(images=page, text="<image>What is KR?<answer>", return_tensors="pt"))

    @torch.no_grad()
    def forward() -> float:
        start = time.thread_time()
        model(**inputs)
        return time.thread_time() - start

    for _ in range(4 * arguments.rounds):  # the allocator settles late
        forward()
    for method in arguments.methods.split(","):
        plain, sieved = [], []
        for _ in range(arguments.rounds):
            plain += [forward() for _ in range(4)][1:]
            with sieve(model, method, 1.0):
                sieved += [forward() for _ in range(4)][1:]
        ratios = [b / a for a, b in zip(plain, sieved, strict=True)]
        print(
            f"{method}: {statistics.median(plain) * 1e3:.2f} ms plain, "
            f"{statistics.median(sieved) * 1e3:.2f} ms at keep=1, "
            f"median ratio {statistics.median(ratios):.3f}"
        )


if __name__ == "__main__":
    command.run(main)
