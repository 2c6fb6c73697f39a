"""Train and measure all of this study, one after another: `python -m lab.studies.claims.queue`.

It skips what is done, goes on from checkpoints, and may be stopped and started at any time. What
groups start from is chosen on the way, by the records. `background.sh` starts it at the lowest
priority.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lab import command
from lab.studies.claims.choose import Record, chosen, found_in
from lab.trained.measure import config_of, encode_pictures, measure, scores_of
from lab.trained.spec import Training, variants
from lab.trained.train import train_one
from tokensieve.data.store.features import FeatureStore
from tokensieve.errors import ConfigError, TrainingError
from tokensieve.evaluate import records
from tokensieve.evaluate.score import Batch
from tokensieve.evaluate.subject import Subject, load_subject
from tokensieve.fields import check_names
from tokensieve.files import make_folder
from tokensieve.methods.registry import method_class
from tokensieve.nn.pretrained import WEIGHTS, read_json
from tokensieve.train.console import log_to_terminal

SUITE = Path("lab/studies/claims/suite.json")
logger = logging.getLogger("tokensieve.train")


PEERS = "peers"  # the stage of methods without training of this study's


class Judge:
    """Measures on pictures that are encoded once, when they are first asked for."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self.spec = spec
        self._ready: tuple[Subject, dict[str, list[Batch]]] | None = None

    @property
    def ready(self) -> tuple[Subject, dict[str, list[Batch]]]:
        """The model, and the pictures by kind."""
        if self._ready is None:
            subject = load_subject(self.spec["model"])
            self._ready = subject, encode_pictures(subject, self.spec)
        return self._ready

    def measure(self, folder: Path) -> Record:
        """What `lab.trained.measure` says of a training."""
        return measure(*self.ready, folder, self.spec["keeps"])

    def peer(self, name: str, seed: int) -> Record:
        """The record of a method without training of ours; of one that draws, of a seed."""
        subject, pictures = self.ready
        stochastic = method_class(name).stochastic
        options = {"seed": seed} if stochastic else {}
        method, keeps = subject.bound(name, options), self.spec["keeps"]
        shown = ("model", "world", "kinds", "keeps", "pictures", "split")
        config = {"method": name, "options": options, "hashes": subject.fingerprints(options)}
        config |= {key: self.spec[key] for key in shown if key in self.spec}
        found = scores_of(subject, pictures, method, keeps)
        return {"form": "peer", "config": config, "state": "measured", "scores": found}


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and work through the queue."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spec", type=Path, default=SUITE)
    parser.add_argument("--features", type=Path, nargs="+", help="feature stores")
    parser.add_argument("--out", type=Path, default=Path("runs/claims"))
    parser.add_argument("--results", type=Path, default=Path("results/claims"))
    parser.add_argument("--list", action="store_true", help="say what is done, and train nothing")
    parser.add_argument("--folders", metavar="GROUP", help="name trained selectors of a group only")
    options = command.parse(parser, arguments)
    log_to_terminal(logging.INFO)
    spec = read_json(options.spec)
    if options.list:
        print(listing(spec, options.results))
        return
    if options.folders:
        check_names("group", [options.folders], spec["groups"])
        print("\n".join(map(str, trained(spec, options.folders, options.out, options.results))))
        return
    if not options.features:
        raise ConfigError("Expected --features, the stores to train on. Got none. Name one.")
    work(spec, FeatureStore(options.features), options.out, options.results)


def trained(spec: Mapping[str, Any], group: str, out: Path, results: Path) -> list[Path]:
    """Selectors of a group that are whole."""
    every = variants(spec, group, chosen(spec, found_in(results))).values()
    folders = [out / one.folder / "selector" for ones in every for one in ones]
    return [folder for folder in folders if (folder / WEIGHTS).exists()]


def work(spec: Mapping[str, Any], store: FeatureStore, out: Path, results: Path) -> None:
    """Train and measure what has no record, in the order of the spec."""
    judge = Judge(spec)
    make_folder(results)
    for group, number in spec["order"]:
        if group == PEERS:
            measure_peers(spec, number, results, judge)
            continue
        for name, one in stage(spec, group, number, found_in(results)):
            path = results / f"{one.folder}.json"
            if path.exists():
                continue
            started = time.process_time()
            record = made(spec, one, store, out, judge)
            records.write(path, record)
            logger.info(
                "done: %s, %s, seed %d: %s, %.0f s of CPU",
                group, name, one.seed, record["state"], time.process_time() - started,
            )  # fmt: skip


def measure_peers(spec: Mapping[str, Any], seed: int, results: Path, judge: Judge) -> None:
    """Records of the peers of which there are none."""
    for name in spec[PEERS]:
        path = results / f"{PEERS}-{name}-{seed}.json"
        if not path.exists():
            found = judge.peer(name, seed)
            identity = {"identity": records.identity(found["config"]), **records.provenance()}
            records.write(path, {**found, **identity})


def made(
    spec: Mapping[str, Any], one: Training, store: FeatureStore, out: Path, judge: Judge
) -> Record:
    """The record of a training; of one that diverged, what it said."""
    started = time.perf_counter()
    shared = {"form": "training", "features": store.fingerprint, "crops": len(store)}
    try:
        folder = train_one(one, store, out)
    except TrainingError as error:
        logger.warning("%s: %s", one.folder, error)
        config = {"preset": one.preset, "settings": dict(one.settings), "seed": one.seed}
        found: Record = {"state": "stopped", "error": str(error)}
    else:
        config, found = config_of(spec, one, folder), judge.measure(folder)
    return {
        **shared, "identity": records.identity(config), "config": config, **records.provenance(),
        "seconds": round(time.perf_counter() - started, 1), **found,
    }  # fmt: skip


def stage(
    spec: Mapping[str, Any], group: str, number: int, found: Mapping[str, Record]
) -> Iterator[tuple[str, Training]]:
    """Variants of a group with their training of the seed `number`; none where what the group
    starts from is not chosen yet."""
    for name, ones in variants(spec, group, chosen(spec, found)).items():
        if number < len(ones):
            yield name, ones[number]


def listing(spec: Mapping[str, Any], results: Path) -> str:
    """One line per training of the queue: done or not."""
    found = found_in(results)
    lines = []
    for group, number in spec["order"]:
        if group == PEERS:
            lines += [f"{PEERS}, seed {number}: {name}" for name in spec[PEERS]]
            continue
        ones = list(stage(spec, group, number, found))
        if not ones:
            lines.append(f"{group}, seed {number}: waits for what it starts from")
        for name, one in ones:
            state = found[one.folder]["state"] if one.folder in found else "to do"
            lines.append(f"{group}, seed {one.seed}, {name}: {state} ({one.folder})")
    return "\n".join(lines)


if __name__ == "__main__":
    command.run(main, "checkpoint")
