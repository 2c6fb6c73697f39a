"""Stage 2: features of the frozen encoder for every picture with questions, kept in fp16.

N pictures with questions of a shard, L = 256 patches, C encoder width.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import CLIPVisionModel

from lab.nano.clip import normalise
from lab.nano.packing import Asked, Example, needed
from lab.nano.parallel import rank_and_world
from lab.nano.pool import Shard, open_shard
from lab.nano.vocabulary import build_tokenizer, encode_question, key_positions
from tokensieve.files import make_folder, written_whole

CHUNK = 50


def with_questions(shard: Shard) -> list[int]:
    """Rows of a shard that have questions."""
    return [row for row, picture in enumerate(shard.pictures) if picture["questions"]]


@torch.no_grad()
def encode(encoder: CLIPVisionModel, images: NDArray[np.uint8]) -> NDArray[np.float16]:
    """Features (N, L, C) of images (N, S, S, 3)."""
    parts = []
    for start in range(0, len(images), CHUNK):
        pixels = normalise(torch.from_numpy(images[start : start + CHUNK]))
        features = encoder(pixels).last_hidden_state[:, 1:]
        parts.append(features.half().numpy())
    return np.concatenate(parts)


def cache_features(out: Path, shards: list[tuple[str, int]]) -> None:
    """Write `out/features/<split>-<number>.npy` for each shard that has none; processes of a
    group share the work."""
    encoder = CLIPVisionModel.from_pretrained(out / "encoder", trust_remote_code=False)
    encoder.train(False)
    make_folder(out / "features")
    rank, world = rank_and_world()
    for split, number in shards[rank::world]:
        path = out / "features" / f"{split}-{number:04d}.npy"
        if path.exists():
            continue
        shard = open_shard(out / "pool", split, number, wait_s=600.0)
        found = encode(encoder, shard.images[with_questions(shard)])
        with written_whole(path) as part:
            np.save(part, found)


def load_examples(
    out: Path, shards: list[tuple[str, int]]
) -> tuple[NDArray[np.float16], list[Example]]:
    """All cached features (N, L, C) and the examples that point into them."""
    names = [f"{split}-{number:04d}.npy" for split, number in shards]
    features = np.concatenate([np.load(out / "features" / name) for name in names])
    return features, load_questions(out, shards)


def load_questions(out: Path, shards: list[tuple[str, int]]) -> list[Example]:
    """The examples of the pool's pictures with questions, their rows counted over all shards."""
    tokenizer = build_tokenizer()
    memo: dict[str, list[int]] = {}
    examples: list[Example] = []
    for split, number in shards:
        shard = open_shard(out / "pool", split, number)
        for row in with_questions(shard):
            picture, asked = shard.pictures[row], []
            for question in picture["questions"]:
                text, answer = question["text"], question["answer"]
                if text not in memo:
                    memo[text] = encode_question(tokenizer, text)
                if answer not in memo:
                    memo[answer] = tokenizer(answer)["input_ids"]
                ids = [*memo[text], *memo[answer], tokenizer.eos_token_id]
                begin = len(memo[text])
                keys = key_positions(memo[text])
                about = (question["topic"], question["about"], question["line"])
                asked.append(Asked(ids, begin, keys, *about))
            needs = [needed(picture, shard.labels[row], item) for item in asked]
            examples.append(Example(len(examples), picture["kind"], asked, needs))
    return examples
