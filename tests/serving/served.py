"""Models that vLLM and Transformers are both asked about, and pictures for them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from serving.checkpoints import build
from serving.engine import TOKENS
from tokensieve import load_model, sieve
from tokensieve.hf.models.loaded import Loaded
from tokensieve.hf.prompt.template import picture_prompt

CLOSE = 2e-3  # of logits


def scrambled(name: str) -> Loaded:
    """A model of the package whose LLM says anything at all: random weights there, so that an
    answer changes with each token that is kept."""
    found = load_model(name)
    torch.manual_seed(0)
    for parameter in found.model.model.language_model.parameters():
        parameter.data.normal_(0, 0.2) if parameter.ndim > 1 else None
    torch.nn.init.normal_(found.model.lm_head.weight, 0, 0.2)
    return found


@cache
def model(name: str) -> Loaded:
    """nano, its "llava" that says anything at all, or a tiny model of another family."""
    if name == "nano":
        return load_model(name)
    return scrambled("nano") if name == "llava" else build(name)


def pictures(folder: Path, sizes: list[tuple[int, int]]) -> list[str]:
    """Paths of pictures of noise."""
    made, rng = [], np.random.default_rng(0)
    for i, (width, height) in enumerate(sizes):
        path = folder / f"{i}.png"
        Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(path)
        made.append(str(path))
    return made


def prompt(loaded: Loaded, question: str, images: int) -> str:
    """Text as a processor wants it; special tokens are added when it is read."""
    return picture_prompt(loaded.processor, question, images)[0]


def by_sieve(
    loaded: Loaded, request: dict[str, Any], method: str, keep: float | int, **options: Any
) -> tuple[int, list[int]]:
    """(prompt length under the sieve, new tokens) of one request by Transformers."""
    images = [Image.open(path).convert("RGB") for path in request["images"]]
    inputs = loaded.processor(images=images, text=request["prompt"], return_tensors="pt")
    length = inputs["input_ids"].shape[1]
    with sieve(loaded.model, method, keep=keep, **options) as report:
        out = loaded.model.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=TOKENS,
            min_new_tokens=TOKENS,
            return_dict_in_generate=True,
            output_logits=True,
        )
    (read,) = report.calls[-1].prompts
    gone = sum(image.tokens - image.kept for image in read.images)
    return length - gone, out.sequences[0, length : length + sure(out.logits)].tolist()


def sure(logits: tuple[torch.Tensor, ...]) -> int:
    """Tokens before the first whose rival is so near that rounding decides."""
    for step, row in enumerate(logits):
        best, second = row[0].topk(2).values.tolist()
        if best - second < CLOSE:
            return step
    return len(logits)
