"""Write the figures of docs/guides/training-costs.md: `python -m lab.studies.training.page`.

Everything between its two markers comes from the formulas of `tokensieve.cost` and the records that
`python -m lab.studies.training.rates` left in results/rates; the rest of it is written by hand.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from lab.report.markdown import table
from lab.report.page import put_block
from lab.studies.training.rates import TRAINED
from tokensieve.cost.encoders import SHAPES, EncoderShape, encode_flops
from tokensieve.cost.recipes import RECIPES, Recipe, recipe_of, training_shape
from tokensieve.cost.training import (
    GPUS,
    UTILISATION,
    Gpu,
    TrainingShape,
    extraction_bytes,
    hours,
    store_bytes,
)
from tokensieve.evaluate.records import Record, read_all
from tokensieve.nn.config import ReconstructorConfig, SelectorConfig
from tokensieve.types import Site

PICTURES = 133_000  # 115K of COCO, 9K of DocVQA, 9K of ChartQA
BATCH = 32


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, rewrite the block."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rates", type=Path, default=Path("results/rates"))
    parser.add_argument("--page", type=Path, default=Path("docs/guides/training-costs.md"))
    options = parser.parse_args(arguments)
    put_block(options.page, "training", block(list(read_all(options.rates))))


def block(rates: Sequence[Record]) -> str:
    """The generated part: crops, disk and memory, hours of encoding, hours of training."""
    assumed = ", ".join(f"{gpu.name} {gpu.peak / 1e12:.0f}" for gpu in GPUS)
    parts = [
        f"Pictures: {PICTURES:,}. GB are 10^9 bytes. Crops per picture: LLaVA-1.5 1; LLaVA-NeXT "
        "and OneVision 1 + 4, as a picture of 640 x 480 pixels gives; InternVL3 7, an assumption: "
        "a picture of 640 x 427 gives 6 tiles and a thumbnail, one of 640 x 480 12 and a "
        "thumbnail, which nearly doubles disk and hours. Qwen2.5-VL takes a picture whole, here "
        "one of 640 x 480.",
        _sizes(),
        "Qwen2.5-VL by picture size (its processor rounds each side to 28 pixels):",
        _by_size(),
        "Modules at the encoder's own width (`selector.width`, `reconstructor.width`). GPU memory "
        f"at {BATCH} crops a step in mixed precision: 18 bytes per parameter (weights, gradients, "
        "two Adam moments in float32, the copies of weights in 16 bits), the activations by "
        "formula, 1 GB for CUDA. It is an estimate, not a measurement. " + _at_full_width(),
        _memory(),
        "**Measured rates.** Whole encoders and whole training steps with random weights; GFLOP/s "
        "are the formulas' FLOPs over the time. A single CPU thread is timed by the process's own "
        "clock, which other work on the machine does not stretch.",
        _measured(rates),
        "**Hours** of one device. A column headed *estimated* is not measured: FLOPs / "
        f"({UTILISATION:.0%} of the peak of dense bfloat16, in TFLOP/s: {assumed}). The share is "
        "an assumption. Other columns are crops / measured rate. Reading is taken to keep up; the "
        "last column says what an H100 would read while training.",
        _encoding_hours(rates),
        *[_training_hours(rates, recipe) for recipe in RECIPES.values()],
    ]
    return "\n\n".join(parts)


def _sizes() -> str:
    rows = [["encoder", "checkpoint", "tokens x width of a crop, features", "embeds",
             "crops per picture", "GB, features", "GB, with pixels", "GB, embeds",
             "GFLOPs to encode a crop"]]  # fmt: skip
    for shape in SHAPES.values():
        crops = PICTURES * shape.crops
        sizes = [store_bytes(shape, crops, site, pixels=pixels) for site, pixels in (
            (Site.FEATURES, False), (Site.FEATURES, True), (Site.EMBEDS, False))]  # fmt: skip
        rows.append([
            shape.name, f"`{shape.checkpoint}`", f"{shape.tokens} x {shape.width()}",
            f"{shape.tokens} x {shape.embed_width}", str(shape.crops),
            *[_gb(size) for size in sizes], f"{encode_flops(shape) / 1e9:,.0f}",
        ])  # fmt: skip
    return table(rows)


def _by_size() -> str:
    rows = [["picture", "tokens", "GFLOPs to encode", "GB of 1,000 pictures, features"]]
    for height, width in ((480, 640), (960, 1280), (1754, 1240)):
        shape = SHAPES["qwen2.5-vl"].of_pixels(height, width)
        stored = store_bytes(shape, 1000, Site.FEATURES)
        rows.append([f"{width} x {height}", f"{shape.tokens:,}",
                     f"{encode_flops(shape) / 1e9:,.0f}", f"{stored / 1e9:.1f}"])  # fmt: skip
    return table(rows)


def _at_full_width() -> str:
    """The sentence on what the modules would be at the width of merged tokens."""
    found = []
    for name in ("internvit-300m-448", "qwen2.5-vl"):
        shape, recipe = SHAPES[name], recipe_of("default")
        positions = "learned" if shape.fixed else "sincos"
        full = TrainingShape(
            SelectorConfig(shape.info(), depth=recipe.depth),
            ReconstructorConfig(shape.info(), depth=recipe.depth, positions=positions),
            shape.tokens,
        )
        found.append(f"{name} {full.parameters() / 1e6:,.0f} M")
    return (f"Without those two settings the modules are as wide as a merged token, and `default` "
            f"has many more parameters: {', '.join(found)}.")  # fmt: skip


def _memory() -> str:
    rows = [["encoder", "GB to encode", *[f"{name}: parameters, M" for name in TRAINED],
             *[f"{name}: GB to train" for name in TRAINED],
             *[f"{name}: GFLOPs of a step per crop" for name in TRAINED]]]  # fmt: skip
    for shape in SHAPES.values():
        if shape.rates:
            continue
        sizes = [training_shape(shape, recipe_of(name)) for name in TRAINED]
        rows.append([
            shape.name, f"{extraction_bytes(shape, BATCH) / 1e9:.1f}",
            *[f"{size.parameters() / 1e6:.0f}" for size in sizes],
            *[f"{size.memory_bytes(BATCH) / 1e9:.0f}" for size in sizes],
            *[f"{size.step_flops() / 1e9:,.0f}" for size in sizes],
        ])  # fmt: skip
    return table(rows)


def _measured(rates: Sequence[Record]) -> str:
    rows = [["encoder", "what", "crops/s", "GFLOP/s", "peak GB", "measured on"]]
    for record in rates:
        for row in record["rows"]:
            rows.append([
                record["config"]["shape"], row["what"], f"{row['crops_per_s']:.3g}",
                f"{row['flops_per_s'] / 1e9:,.0f}", f"{row['peak_bytes'] / 1e9:.1f}",
                device_name(record),
            ])  # fmt: skip
    if len(rows) == 1:
        return "Not run. They are made by `python -m lab.studies.training.rates`."
    return table(rows)


def device_name(record: Record) -> str:
    """The device a record was made on, with its threads and dtype."""
    name = record.get("accelerator") or record["machine"]["cpu"]
    dtype = record["config"]["dtype"]
    if record["config"]["device"] == "cpu":
        count = record["threads"]
        return f"{name}, {count} thread{'s' if count > 1 else ''}, {dtype}"
    return f"{name}, {dtype}"


def _encoding_hours(rates: Sequence[Record]) -> str:
    rows = [["encode once, hours", *_heads(rates)]]
    for shape in SHAPES.values():
        crops, flops = PICTURES * shape.crops, encode_flops(shape)
        rows.append([shape.name, *_hours(rates, shape, "encode", crops, flops)])
    return table(rows)


def _training_hours(rates: Sequence[Record], recipe: Recipe) -> str:
    length = f"{recipe.epochs} epochs" if recipe.epochs else f"{recipe.steps:,} steps"
    title = f"train `{recipe.name}`, {length}, batch {recipe.batch}: hours"
    rows = [[title, *_heads(rates), "MB/s read"]]
    like = recipe.name if recipe.name in TRAINED else TRAINED[0]  # trains the same modules
    for shape in SHAPES.values():
        sizes = training_shape(shape, recipe)
        flops, pixels = sizes.step_flops(), bool(sizes.reconstructor.image_depth)
        crops = recipe.crops(PICTURES * shape.crops)
        rate = next(gpu for gpu in GPUS if gpu.part == "H100").rate(flops)
        crop = store_bytes(shape, 1, Site.FEATURES, pixels=pixels)
        rows.append([shape.name, *_hours(rates, shape, like, crops, flops),
                     f"{rate * crop / 1e6:,.0f}"])  # fmt: skip
    return table(rows)


def _devices(rates: Sequence[Record]) -> list[str]:
    """Devices with records, GPUs first."""
    order = sorted(rates, key=lambda record: record["config"]["device"] == "cpu")
    return list(dict.fromkeys(device_name(record) for record in order))


def _heads(rates: Sequence[Record]) -> list[str]:
    return [*[f"measured on {name}" for name in _devices(rates)],
            *[f"{gpu.name}, estimated" for gpu in _estimated(rates)]]  # fmt: skip


def _estimated(rates: Sequence[Record]) -> list[Gpu]:
    """GPUs without a record of their own: what was measured is not estimated as well."""
    seen = [record["accelerator"] for record in rates if record.get("accelerator")]
    return [gpu for gpu in GPUS if not any(gpu.part in name for name in seen)]


def _hours(
    rates: Sequence[Record], shape: EncoderShape, what: str, crops: int, flops: int
) -> list[str]:
    cells = []
    for name in _devices(rates):
        found = [
            row["crops_per_s"]
            for record in rates
            if device_name(record) == name
            and record["config"]["shape"] == (shape.rates or shape.name)
            for row in record["rows"]
            if row["what"] == what
        ]
        cells.append(_hour(hours(crops, found[0])) if found else "not run")
    return cells + [_hour(hours(crops, gpu.rate(flops))) for gpu in _estimated(rates)]


def _hour(count: float) -> str:
    return f"{count:,.0f}" if count >= 10 else f"{count:.2g}"


def _gb(size: int) -> str:
    return f"{size / 1e9:,.0f}"


if __name__ == "__main__":
    main()
