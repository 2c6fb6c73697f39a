"""DyMU's thresholds for an encoder, measured on pictures.

`python -m tokensieve.train.calibration.dymu --model NAME --images SRC --out FILE`
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from tokensieve.data.sources import Listing, open_source
from tokensieve.errors import InputError, TokensieveError
from tokensieve.hf.encoder.dymu import calibrate_dymu
from tokensieve.hf.load import load_encoder
from tokensieve.hf.models.loaded import Loaded, hush
from tokensieve.hf.prompt.template import picture_prompt
from tokensieve.hf.runtime.devices import input_device


def prompts(loaded: Loaded, listing: Listing, count: int, batch: int) -> Iterator[dict[str, Any]]:
    """Up to `count` pictures at even distances, `batch` prompts of one picture at a time.

    Raises `InputError` if none of them can be read.
    """
    chosen = [i * len(listing) // count for i in range(count)] if count < len(listing) else None
    read = [listing.read(index).picture for index in chosen or range(len(listing))]
    pictures = [picture for picture in read if picture is not None]
    if not pictures:
        raise InputError("Expected pictures to calibrate on. Got none that can be read.")
    text, special = picture_prompt(loaded.processor)
    for start in range(0, len(pictures), batch):
        part = pictures[start : start + batch]
        yield loaded.processor(
            images=[[picture] for picture in part], text=[text] * len(part), padding=True,
            return_tensors="pt", add_special_tokens=special,
        ).to(input_device(loaded.model), loaded.model.dtype)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code, 2 for an error of the caller's making."""
    parser = argparse.ArgumentParser(
        prog="python -m tokensieve.train.calibration.dymu",
        description="Measure DyMU's thresholds for the vision encoder of a model.",
    )
    parser.add_argument("--model", required=True, help="nano, a directory or a hub name")
    parser.add_argument(
        "--images", required=True, nargs="+", help="as of `tokensieve extract`: synth:mix:64, ..."
    )
    parser.add_argument("--out", required=True, help="file to write: thresholds='FILE'")
    parser.add_argument("--pictures", type=int, default=256, help="pictures to measure on, at most")
    parser.add_argument("--batch", type=int, default=32, help="pictures of one threshold")
    options = parser.parse_args(arguments)
    hush()
    try:
        listing = Listing([open_source(spec) for spec in options.images])
        loaded = load_encoder(options.model)
        batches = list(prompts(loaded, listing, max(options.pictures, 1), max(options.batch, 1)))
        found = calibrate_dymu(loaded.model, batches)
        found.save(options.out)
    except TokensieveError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    for share, row in zip(found.shares, found.values, strict=True):
        said = " ".join(f"{value:.3f}" for value in row)
        sys.stdout.write(f"keep {share:g}: cosines above {said}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
