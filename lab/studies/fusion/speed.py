"""Are fused tokens faster? Projector, choice and prefill of every row of docs/results/fusion.md.

    python -m lab.studies.fusion.speed [--rounds 15] [--llava-rounds 2]

Two records in results/fusion-time. "nano": projector, choice of tokens and one pass of the LLM over
prompt and picture, batch 1, one thread, as a share of LLaVA's projector on every token; all parts
are timed in turns, so that a noisy moment hits them all, and the least of the rounds counts.
"llava": the same for LLaVA-1.5-7B's shapes with random weights in float32, one decoder layer times
32. Weights do not matter to time, so arms need not be trained. On a GPU the shares differ.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from lab import command
from lab.benchmarks.decoder_layer import LAYERS, TEXT, DecoderLayer
from lab.studies.fusion.arms import Study
from lab.studies.fusion.page import llava_shapes
from lab.studies.fusion.rows import TABLES, Row
from tokensieve.data.synth import generate
from tokensieve.evaluate import records
from tokensieve.evaluate.score import prompt
from tokensieve.hf.asked import Asked
from tokensieve.hf.compress import apply_plan
from tokensieve.hf.encoder.encode import encode
from tokensieve.hf.fused import fuse
from tokensieve.hf.models.nano import load_nano
from tokensieve.hf.plan import Plan
from tokensieve.methods.registry import get_method
from tokensieve.nn.fusion import FusionProjector

STUDY = Path("lab/studies/fusion/arms.json")
OUT = Path("results/fusion-time")
FEATURES = "lab/nano/weights/selector-features"
NO_TIME = ("no-image", "downsample")  # no tokens at all; acts before the encoder


def seconds(run: Callable[[], Any]) -> float:
    """Of one call."""
    start = perf_counter()
    run()
    return perf_counter() - start


def nano(rounds: int) -> list[dict[str, Any]]:
    """Time of every row of the page that chooses between encoder and LLM, as a share."""
    study = Study.load(STUDY)
    rows = {row.key: row for _, _, table in TABLES for row in table if row.variant not in NO_TIME}
    jobs: dict[str, list[str]] = {}  # of a row: the parts that it is the sum of
    parts: dict[str, Callable[[], Any]] = {}
    base, processor = load_nano()
    picture = generate("cluttered", 0, "val")
    text = prompt(processor, picture.questions[0].text)
    for row in rows.values():
        shape = study.arm(row.arm).config(128, 128)
        loaded = fuse(
            base, processor, blocks=shape.blocks, kernel=shape.kernel, fused=shape.fused,
            kind=shape.kind, form=shape.form,
        )  # fmt: skip
        inputs = dict(loaded.processor(images=[picture.image], text=[text], return_tensors="pt"))
        features = torch.randn(1, shape.rows * shape.columns, shape.blocks * shape.width)
        projector = loaded.model.model.multi_modal_projector
        parts[f"projector {row.arm}"] = partial(projector, features)
        tokens = max(1, round(row.keep * shape.tokens))
        length = inputs["input_ids"].shape[1] - shape.tokens + tokens
        embeds = torch.randn(1, length, 128)
        parts[f"llm {length}"] = partial(base, inputs_embeds=embeds)
        jobs[row.key] = [f"projector {row.arm}", f"llm {length}"]
        if row.keep < 1:
            parts[f"select {row.key}"] = choice(loaded.model, inputs, row)
            jobs[row.key].append(f"select {row.key}")
    spent: dict[str, list[float]] = defaultdict(list)
    with torch.inference_mode():
        for number in range(rounds + 1):
            for name, run in parts.items():
                taken = seconds(run)
                if number:
                    spent[name].append(taken)
    least = {name: min(times) for name, times in spent.items()}
    total = {key: sum(least[part] for part in names) for key, names in jobs.items()}
    full = total[Row("mlp").key]
    return [
        {"key": key, "ratio": round(total[key] / full, 4),
         "ms": {part: round(1e3 * least[part], 4) for part in jobs[key]}}
        for key in jobs
    ]  # fmt: skip


def choice(model: Any, inputs: dict[str, Any], row: Row) -> Callable[[], Any]:
    """The choice of tokens alone, on pictures that are encoded already."""
    named = "selector" if "selector" in row.variant else row.variant
    options = {"weights": FEATURES} if named == "selector" and row.arm != "stf" else {}
    if row.variant in ("fused-selector", "selector-embeds"):  # one of the same size stands for it
        named, options = "selector", {"weights": untrained(model)}
    plan = Plan.of(model, Asked(get_method(named, **options), row.keep))
    with torch.inference_mode():
        encoded = encode(model, inputs)
    return lambda: apply_plan(model, plan, encoded)


def untrained(model: Any) -> Any:
    """A selector of the default sizes for the embeddings of `model`."""
    from tokensieve.hf.families.fingerprint import encoder_info
    from tokensieve.nn.config import SelectorConfig
    from tokensieve.nn.selector import Selector

    return Selector(SelectorConfig(encoder_info(model).at_embeds(), rule="diverse")).eval()


def llava(rounds: int) -> list[dict[str, Any]]:
    """Projector and prefill of LLaVA-1.5-7B's shapes."""
    decoder = DecoderLayer()
    layer = {
        n: decoder.seconds(n, rounds) for n in sorted({c.tokens for c in llava_shapes().values()})
    }
    rows: list[dict[str, Any]] = []
    for name, config in llava_shapes().items():
        projector = FusionProjector(config).eval()
        features = torch.randn(1, config.rows * config.columns, config.blocks * config.width)
        with torch.inference_mode():
            spent = min(seconds(partial(projector, features)) for _ in range(rounds + 1))
        rows.append({"name": name, "tokens": config.tokens, "projector_s": spent})
    first = rows[0]
    full = LAYERS * layer[first["tokens"]] + first["projector_s"]
    for row in rows:
        prefill = LAYERS * layer[row["tokens"]]
        row["prefill"] = round((prefill + row["projector_s"]) / full, 4)
        row["projector"] = round(row["projector_s"] / (prefill + row["projector_s"]), 4)
        row["layer_s"] = round(layer[row["tokens"]], 4)
        row["projector_s"] = round(row["projector_s"], 4)
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--llava-rounds", type=int, default=2, help="0: leave it out")
    o = command.parse(parser)
    config: dict[str, Any] = {"model": "nano", "rounds": o.rounds, "threads": 1}
    records.write(OUT / "nano.json", {
        "form": "fusion-time", "identity": records.identity(config), "config": config,
        **records.provenance(), "arms": nano(o.rounds),
    })  # fmt: skip
    if o.llava_rounds:
        config = {"model": "llava-1.5-7b", "rounds": o.llava_rounds, "text": TEXT, "threads": 1}
        records.write(OUT / "llava-1.5-7b.json", {
            "form": "fusion-time", "identity": records.identity(config), "config": config,
            **records.provenance(), "llava": llava(o.llava_rounds),
        })  # fmt: skip


if __name__ == "__main__":
    command.run(main)
