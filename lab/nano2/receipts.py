"""Lines of real receipts, asked of encoder and reader: what of scans a model of drawn pages reads.

`python -m lab.nano2.receipts --data DIR --encoder FILE --reader FILE --out RECORD.json`. DIR holds
img/*.jpg and box/*.json, a list of {"box": [left, top, right, bottom], "text": ...}. Asked
is what stands at the right of a key: alone on blank paper ("line"), or with what is above and below
it, as wide as the receipt ("window").
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import LlavaForConditionalGeneration

from lab import command
from lab.nano.clip import normalise
from lab.nano.lm import Reader
from lab.nano2.asking import PATCHES, VOCABULARY, Example, example, pack
from lab.nano2.assemble import model_of
from lab.nano2.judge import write_record
from lab.nano2.keep import state_of
from lab.nano2.sheet import SIZE
from tokensieve.errors import PictureError

Box = tuple[float, float, float, float]
KEY = re.compile(r"[A-Za-z][A-Za-z /()]{1,19}")
ONE_BOX = re.compile(rf"({KEY.pattern}?) ?: ?(\S.*)")
VALUE = re.compile(r"(RM ?)?[^A-Za-z]+")  # the labels are in capitals, the scans are not
TEXT_HEIGHT = 20.0  # pixels of a line set alone


@dataclass(frozen=True)
class Line:
    """A key and the value at its right, as asked; `box` around both, in pixels of the scan."""

    key: str
    value: str
    box: Box


def read_boxes(path: Path) -> list[tuple[Box, str]]:
    """Boxes and texts of one receipt."""
    left_to_right = []
    for entry in json.loads(path.read_text()):
        a, b, c, d = (float(side) for side in entry["box"])
        left_to_right.append(((a, b, c, d), str(entry["text"]).strip()))
    return left_to_right


def lines_of(boxes: list[tuple[Box, str]]) -> list[Line]:
    """Keys with their values: "KEY: value" in one box, or the next box of the row. Keys that stand
    twice, and what has a character that the model does not know, are left out."""
    found = []
    for box, text in boxes:
        if whole := ONE_BOX.fullmatch(text):
            found.append(Line(whole[1].strip(), whole[2], box))
        elif KEY.fullmatch(text.rstrip(" :")):
            row = [
                (other, said)
                for other, said in boxes
                if other[0] > box[2] - 2
                and min(box[3], other[3]) - max(box[1], other[1]) > 0.6 * (box[3] - box[1])
            ]
            (_, b, c, d), said = min(row, default=(box, ""))
            said = said.lstrip(": ")
            if re.search(r"\d", said):
                around = (box[0], min(b, box[1]), c, max(d, box[3]))
                found.append(Line(text.rstrip(" :"), said, around))
    keys = [line.key.lower() for line in found]
    return [
        line
        for line in found
        if keys.count(line.key.lower()) == 1
        and len(line.value) <= 16
        and VALUE.fullmatch(line.value)
        and set(line.key + line.value) <= set(VOCABULARY)
    ]


def on_paper(part: Image.Image, scale: float) -> NDArray[np.uint8]:
    """`part` at `scale` in the middle of a page of its own ground."""
    size = (max(1, round(part.width * scale)), max(1, round(part.height * scale)))
    part = part.resize(size, Image.Resampling.LANCZOS)
    ground = np.median(np.asarray(part).reshape(-1, 3), axis=0).astype(int).tolist()
    page = Image.new("RGB", (SIZE, SIZE), tuple(ground))
    page.paste(part, ((SIZE - size[0]) // 2, (SIZE - size[1]) // 2))
    return np.asarray(page)


def alone(scan: Image.Image, line: Line) -> NDArray[np.uint8]:
    """The line by itself, its text TEXT_HEIGHT high where the page is wide enough."""
    a, b, c, d = line.box
    edge = 0.3 * (d - b)
    part = scan.crop((round(a - edge), round(b - edge / 2), round(c + edge), round(d + edge / 2)))
    return on_paper(part, min(SIZE / part.width, TEXT_HEIGHT / (d - b)))


def among(scan: Image.Image, line: Line, boxes: list[tuple[Box, str]]) -> NDArray[np.uint8]:
    """The line with its neighbours: all text from left to right, as high as the page is."""
    a, c = min(box[0] for box, _ in boxes) - 4, max(box[2] for box, _ in boxes) + 4
    scale = SIZE / (c - a)
    middle, half = (line.box[1] + line.box[3]) / 2, SIZE / scale / 2
    top, bottom = max(0.0, middle - half), min(float(scan.height), middle + half)
    part = scan.crop((round(max(0, a)), round(top), round(min(c, scan.width)), round(bottom)))
    return on_paper(part, min(SIZE / part.width, SIZE / part.height))


@torch.no_grad()
def said(model: LlavaForConditionalGeneration, image: NDArray[np.uint8], line: Line) -> bool:
    """Whether all of the value is the most likely answer."""
    entry = {"kind": "receipt", "text": [], "asked": [[line.key, line.value, [0]]]}
    one: Example = example(0, entry)
    features = model.model.vision_tower(
        pixel_values=normalise(torch.from_numpy(image[None].copy()))
    ).last_hidden_state[:, 1:]
    batch = pack(np.random.default_rng(0), [one], PATCHES, 1, 0.0, renumber=0.0)
    right = Reader(model)(features, batch).argmax(-1) == batch.targets
    return bool(right[batch.weights == 1].all())


def judge(model: LlavaForConditionalGeneration, data: Path, most: int) -> dict[str, Any]:
    """Shares of lines read, alone and among others, and how many were asked."""
    hits: dict[str, list[bool]] = {"line": [], "window": []}
    for path in sorted((data / "box").glob("*.json"))[:most]:
        boxes = read_boxes(path)
        with Image.open(data / "img" / f"{path.stem}.jpg") as file:
            scan = file.convert("RGB")
        for line in lines_of(boxes):
            hits["line"].append(said(model, alone(scan, line), line))
            hits["window"].append(said(model, among(scan, line, boxes), line))
    if not hits["line"]:
        raise PictureError(
            f"Expected receipts with keys and values in {data}/box. Got none. Pass --data."
        )
    shares = {name: round(float(np.mean(all_)), 4) for name, all_ in hits.items()}
    return {**shares, "lines": len(hits["line"])}


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, ask, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with img/ and box/")
    parser.add_argument("--encoder", type=Path, required=True, help="checkpoint of stage 1")
    parser.add_argument("--reader", type=Path, required=True, help="checkpoint of stage 3")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--most", type=int, default=120, help="receipts")
    given = command.parse(parser, arguments)
    found = judge(model_of(given.encoder, given.reader), given.data, given.most)
    told = {"receipts": given.most, "reader": state_of(given.reader)}
    write_record(given.out, "receipt-lines", told, found)
    print(found)


if __name__ == "__main__":
    command.run(main, "file")
