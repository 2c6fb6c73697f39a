"""Stage 2: pages with their questions and the frozen encoder's features, kept in fp16.

`python -m lab.nano2.features --encoder FILE --out FOLDER --pages N --level K` adds what is missing;
without `--encoder` they are the truth's (`truth.py`), for a reader to begin on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lab import command
from lab.nano.clip import normalise
from lab.nano2.asking import Example, example, questions_of
from lab.nano2.encoder import DenseEncoder, EncoderRecipe
from lab.nano2.keep import averaged_in, state_of
from lab.nano2.pages import Page, page
from lab.nano2.truth import codes_of, truth_of
from tokensieve.errors import TrainingError
from tokensieve.files import make_folder, write_text, written_whole

CHUNK = 50


def trained(file: Path) -> tuple[DenseEncoder, dict[str, Any]]:
    """The encoder with the averaged weights of a checkpoint, and the checkpoint's state."""
    state = state_of(file)
    model = DenseEncoder(EncoderRecipe(**state["recipe"]))
    model.load_state_dict(averaged_in(file))
    return model.eval(), state


Encode = Callable[[Page], NDArray[np.float16]]


def encode_by(encoder: Path | None) -> tuple[Encode, dict[str, Any]]:
    """What gives the features (L, C) of a page, and where it stands: a trained encoder's
    checkpoint, or the truth at the same width."""
    if encoder is None:
        recipe = EncoderRecipe()
        return lambda drawn: truth_of(drawn, recipe.width), {"step": 0, "recipe": recipe.asdict()}
    model, state = trained(encoder)

    def encode(drawn: Page) -> NDArray[np.float16]:
        found = model.features(normalise(torch.from_numpy(drawn.image[None].copy())))
        encoded: NDArray[np.float16] = found[0].half().numpy()
        return encoded

    return encode, state


@torch.no_grad()
def cache(encoder: Path | None, out: Path, split: str, pages: int, level: int, seen: bool) -> None:
    """Write `out/<split>-<number>.npy`, (CHUNK, 576, C), and `.json` for the chunks not there; of
    fewer than CHUNK pages one smaller chunk.

    Raises `TrainingError` if the folder was begun with another encoder or level.
    """
    encode, state = encode_by(encoder)
    make_folder(out)
    mark, file = {"level": level, "encoder": state}, out / "made.json"
    if file.exists() and json.loads(file.read_text()) != mark:
        raise TrainingError(
            f"Expected {out} empty, or begun with the encoder of step {state['step']} at level "
            f"{level}. Got {file.read_text()} in it. Name another folder."
        )
    write_text(file, json.dumps(mark))
    for number in range(-(-pages // CHUNK)):
        path = out / f"{split}-{number:04d}.npy"
        if path.exists():
            continue
        entries, features, codes = [], [], []
        first = number * CHUNK
        for index in range(first, first + min(CHUNK, pages)):
            drawn = page(0, split, index, level, seen)
            features.append(encode(drawn))
            codes.append(codes_of(drawn))
            entries.append(questions_of(drawn))
        write_text(path.with_suffix(".json"), json.dumps(entries))
        if encoder is None:
            with written_whole(codes_beside(path)) as part:
                np.save(part, np.stack(codes))
        with written_whole(path) as part:
            np.save(part, np.stack(features))


def codes_beside(path: Path) -> Path:
    """Where the characters of the pages of a chunk lie."""
    return path.with_name("codes-" + path.name)


def encoder_of(out: Path) -> EncoderRecipe:
    """The recipe of the encoder whose features these are."""
    return EncoderRecipe(**json.loads((out / "made.json").read_text())["encoder"]["recipe"])


def level_of(out: Path) -> int:
    """How hard the pages of `out` are."""
    return int(json.loads((out / "made.json").read_text())["level"])


def load(
    out: Path, split: str, pages: int | None = None
) -> tuple[NDArray[np.float16], list[Example]]:
    """Cached features (N, L, C) of a split, all or those of its first pages (whole chunks), and the
    examples with anything to ask."""
    files = sorted(out.glob(f"{split}-[0-9]*[0-9].npy"))[: pages and -(-pages // CHUNK)]
    if not files:
        raise TrainingError(
            f"Expected features of {split} in {out}. Got none. Run lab.nano2.features first."
        )
    entries = [one for file in files for one in json.loads(file.with_suffix(".json").read_text())]
    examples = [example(row, entry, vary=True) for row, entry in enumerate(entries)]
    return np.concatenate([np.load(file) for file in files]), [e for e in examples if e.asked]


def load_codes(out: Path, split: str) -> NDArray[np.uint8] | None:
    """The characters (N, L, K) of the pages of a split, where `out` is the truth's."""
    files = sorted(out.glob(f"codes-{split}-[0-9]*[0-9].npy"))
    return np.concatenate([np.load(file) for file in files]) if files else None


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and encode."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", type=Path, help="checkpoint of stage 1; without: the truth")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pages", type=int, default=4000, help="of train")
    parser.add_argument("--val", type=int, default=200, help="pages of val")
    parser.add_argument("--level", type=int, default=3)
    parser.add_argument("--unseen", action="store_true", help="val: fonts and layouts never seen")
    given = command.parse(parser, arguments)
    cache(given.encoder, given.out, "val", given.val, given.level, not given.unseen)
    cache(given.encoder, given.out, "train", given.pages, given.level, True)


if __name__ == "__main__":
    command.run(main, "file")
