"""How fast are real encoders and trainings on this machine? `python -m lab.studies.training.rates`

Real shapes with random weights: nothing is downloaded. One record per shape and device, from which
`python -m lab.studies.training.page` computes the hours of docs/guides/training-costs.md.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

import torch

from lab import command
from lab.benchmarks.towers import build_tower, tower_inputs
from tokensieve.cost.encoders import SHAPES, EncoderShape, encode_flops, encoder_shape
from tokensieve.cost.memory import peak, reset_peak
from tokensieve.cost.recipes import recipe_of, training_shape
from tokensieve.errors import ConfigError
from tokensieve.evaluate import records
from tokensieve.nn.autoencoder import SelectorAutoencoder

MEASURED = tuple(name for name, shape in SHAPES.items() if not shape.rates)
TRAINED = ("default", "adaptive")  # when-less-is-enough trains the modules of default
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, write one record per shape."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", choices=DTYPES, help="default: float32 on cpu, else bfloat16")
    parser.add_argument("--shapes", nargs="+", default=list(MEASURED), metavar="NAME")
    parser.add_argument("--crops", type=int, help="at a time; default: 1 on cpu, else 32")
    parser.add_argument("--repeats", type=int, help="default: 2 on cpu, else 10")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--out", type=Path, default=Path("results/rates"))
    options = command.parse(parser, arguments)
    slow = options.device == "cpu"
    for name in options.shapes:
        record = measure(
            encoder_shape(name),
            device=options.device,
            dtype=options.dtype or ("float32" if slow else "bfloat16"),
            crops=options.crops or (1 if slow else 32),
            repeats=options.repeats or (2 if slow else 10),
        )
        records.write(options.out / f"{name}--{record['config']['device']}.json", record)
        for row in record["rows"]:
            print(f"{name}  {row['what']}  {row['crops_per_s']:.3g} crops/s  "
                  f"{row['flops_per_s'] / 1e9:.0f} GFLOP/s")  # fmt: skip


def measure(
    shape: EncoderShape, *, device: str, dtype: str, crops: int, repeats: int
) -> records.Record:
    """Rates of encoding and of training steps for one encoder, as a record.

    Raises `ConfigError` for a device that is not there.
    """
    where = _device(device)
    rows = [_encoding(shape, where, DTYPES[dtype], crops, repeats)]
    rows += [_training(shape, name, where, DTYPES[dtype], crops, repeats) for name in TRAINED]
    config = {"shape": shape.name, "device": where.type, "dtype": dtype, "crops": crops,
              "repeats": repeats, "rows": shape.rows, "cols": shape.cols}  # fmt: skip
    return {
        "form": "rates",
        "identity": records.identity(config),
        "config": config,
        **records.provenance(),
        "accelerator": torch.cuda.get_device_name(where) if where.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "clock": "process" if _alone(where) else "wall",
        "note": "Random weights, random inputs, whole depth. A step is the recipe's batch: so many "
        "forward and backward passes of `crops` crops as it takes, and one Adam step. Peak bytes "
        "are allocated on cuda, resident in the process on cpu. On one CPU thread the clock counts "
        "the process's own time, which other work on the machine does not stretch.",
        "rows": rows,
    }


def _device(name: str) -> torch.device:
    device = torch.device(name)
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"Expected the device cpu or cuda. Got '{name}'.")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("Expected a CUDA device. Got none that PyTorch sees. Use --device cpu.")
    return device


def _encoding(
    shape: EncoderShape, device: torch.device, dtype: torch.dtype, crops: int, repeats: int
) -> records.Record:
    tower = build_tower(shape).to(device, dtype).eval()
    inputs = {
        name: value.to(device, dtype) if value.is_floating_point() else value.to(device)
        for name, value in tower_inputs(shape, crops).items()
    }
    with torch.inference_mode():
        seconds, peak = _timed(lambda: tower(**inputs), device, repeats)
    return _row("encode", median(seconds) / crops, encode_flops(shape), seconds, peak)


def _training(
    shape: EncoderShape, name: str, device: torch.device, dtype: torch.dtype, crops: int,
    repeats: int,
) -> records.Record:  # fmt: skip
    recipe = recipe_of(name)
    sizes = training_shape(shape, recipe)
    model = SelectorAutoencoder(sizes.selector, sizes.reconstructor, recipe.objective_config())
    model.to(device).train()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-5)
    grid = (shape.rows // shape.merge, shape.cols // shape.merge)
    features = torch.randn(crops, shape.tokens, shape.width(), device=device)
    pixels = None
    if sizes.reconstructor.image_depth:
        pixels = torch.rand(crops, 3, *shape.size, device=device)
    # the sampler draws on the CPU: a generator of another device would be refused
    generator = torch.Generator().manual_seed(0)

    def passes() -> None:
        half = dtype != torch.float32
        with torch.autocast(device.type, dtype) if half else nullcontext():
            losses = model(features, grid=grid, pixels=pixels, generator=generator)
        torch.autograd.backward(losses["loss"])

    seconds, peak = _timed(passes, device, repeats)
    update, higher = _timed(optimiser.step, device, repeats)
    rounds = recipe.batch / crops
    per_crop = (rounds * median(seconds) + median(update)) / recipe.batch
    row = _row(name, per_crop, sizes.step_flops(), seconds, max(peak, higher))
    return {**row, "parameters": sizes.parameters(), "update_s": [round(s, 5) for s in update]}


def _row(what: str, per_crop: float, flops: int, seconds: list[float], peak: int) -> records.Record:
    return {
        "what": what,
        "crops_per_s": 1 / per_crop,
        "flops_per_crop": flops,
        "flops_per_s": flops / per_crop,
        "pass_s": [round(s, 5) for s in seconds],
        "peak_bytes": peak,
    }


def _timed(run: Callable[[], Any], device: torch.device, repeats: int) -> tuple[list[float], int]:
    """Seconds of each repeat after a warm-up, and the peak bytes of all."""
    gc.collect()
    reset_peak(device)
    clock, seconds = process_time if _alone(device) else perf_counter, []
    for number in range(repeats + 1):
        _wait(device)
        start = clock()
        run()
        _wait(device)
        if number:
            seconds.append(clock() - start)
    return seconds, peak(device)


def _alone(device: torch.device) -> bool:
    """Whether the process's own time is the time a run takes."""
    return device.type == "cpu" and torch.get_num_threads() == 1


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    command.run(main)
