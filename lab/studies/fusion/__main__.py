"""`python -m lab.studies.fusion lab/studies/fusion/arms.json --data DATA --out OUT`"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from lab import command
from lab.nano.pool import RUN as MAKING
from lab.studies.fusion.arms import Study
from lab.studies.fusion.blocks import cache_blocks
from lab.studies.fusion.train import RUN, export, place, train
from tokensieve.folders import check_ours, claimed


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the arms that are not trained, from where they were cut off, and write their models."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("study", type=Path, help="JSON of the arms")
    parser.add_argument("--data", type=Path, required=True, help="folder of `make nano`: pool, ...")
    parser.add_argument("--out", type=Path, required=True, help="states, logs and models")
    parser.add_argument("--arms", nargs="+", help="only these")
    parser.add_argument("--shard", default="0/1", help="i/n: every n-th training, from the i-th")
    options = command.parse(parser, arguments)
    study = Study.load(options.study)
    wanted = {study.arm(name).name for name in options.arms or [arm.name for arm in study.arms]}
    runs = [(arm, seed) for arm, seed in study.runs() if arm.name in wanted]
    mine = command.share(runs, options.shard)
    shards = [("train", number) for number in range(study.train_shards)]
    check_ours(options.data, MAKING)
    cache_blocks(options.data, [*shards, ("val", 0)])
    for arm, seed in mine:
        with claimed(place(options.out, arm, seed), RUN):
            train(study, arm, seed, options.data, options.out)
            export(study, arm, seed, options.out)


if __name__ == "__main__":
    command.run(main, "checkpoint")
