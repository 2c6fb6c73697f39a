"""Several questions about one picture in a single sequence, equal to asking one at a time.

    [visual tokens][question 1, answer 1][question 2, answer 2] ...

Every question sees the visual tokens and itself only (block-diagonal mask), and its
positions begin after the visual tokens again. B batch, V visual tokens shown, T text
tokens of all questions of a picture (padded), S = V + T, L = 256 patches, K questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from tokensieve.data.synth import GRID, IGNORE, LABEL_NAMES

PATCHES = GRID * GRID
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Asked:
    """One question: `ids` of question, marker, answer and end; `answer_at` the index of the
    answer's first token; `keys` where the key's letters stand; `topic`, `about`, `line`."""

    ids: list[int]
    answer_at: int
    keys: list[int]
    topic: str
    about: str
    line: int


@dataclass(frozen=True)
class Example:
    """A picture of the pool for this stage: `row` of its features, kind, questions, and
    `needs`: per question the patches of which some must be shown to answer it."""

    row: int
    kind: str
    asked: list[Asked]
    needs: list[list[Ints]]


@dataclass(frozen=True)
class Packed:
    """A batch: rows of features, kept (B, V), and for the text ids, targets, weights,
    question number and position inside the question, all (B, T); `start` (B,) is the
    position of a question's first token and `places` (B, V) those of the visual tokens;
    `source` (B, T, V) says which visual tokens a token of an answer is read from."""

    rows: Ints
    kept: Tensor
    places: Tensor
    start: Tensor
    ids: Tensor
    targets: Tensor
    weights: Tensor
    segment: Tensor
    offset: Tensor
    source: Tensor


def needed(picture: dict[str, Any], labels: NDArray[np.uint8], asked: Asked) -> list[Ints]:
    """Groups of patches; from every group some must be shown for `asked` to be answerable.

    A line's digits need each of their patches; of an object or the background four do, and of
    a line whose place is asked for.
    """
    if asked.line >= 0 and asked.topic == "where":
        return [np.array(picture["values"][asked.line], dtype=np.int64)]
    if asked.line >= 0:
        return [np.array([patch], dtype=np.int64) for patch in picture["values"][asked.line]]
    if asked.topic == "background":
        return [np.flatnonzero(labels[LABEL_NAMES.index("background")].ravel() != IGNORE)]
    ordinal = labels[LABEL_NAMES.index("ordinal")].ravel()
    return [np.flatnonzero(ordinal == i) for i in np.unique(ordinal[ordinal != IGNORE])]


def show(rng: Generator, example: Example, tokens: int, questions: int) -> tuple[Ints, list[int]]:
    """Which `tokens` patches to show (ascending) and which questions to ask.

    Questions are taken in random order while the patches they need still fit; what is left
    is filled at random. With all patches shown every question fits.
    """
    order = rng.permutation(len(example.asked)).tolist()
    if tokens >= PATCHES:
        return np.arange(PATCHES), order[:questions]
    shown: set[int] = set()
    chosen: list[int] = []
    for number in order:
        wanted: set[int] = set()
        for group in example.needs[number]:
            wanted.update(rng.permutation(group)[:4].tolist())
        if len(shown | wanted) <= tokens:
            shown |= wanted
            chosen.append(number)
        if len(chosen) == questions:
            break
    rest = np.setdiff1d(np.arange(PATCHES), np.array(sorted(shown), dtype=np.int64))
    fill = rng.permutation(rest)[: tokens - len(shown)].tolist()
    return np.array(sorted(shown.union(fill)), dtype=np.int64), chosen or order[:1]


@dataclass(frozen=True)
class Text:
    """One question as it is read: its T ids but the last, how much each of them weighs as it says
    the next, and which of the V visual tokens shown it is said from, (T, V)."""

    ids: list[int]
    weights: NDArray[np.float32]
    source: NDArray[np.bool_]


def text_of(asked: Asked, needs: list[Ints], kept: Ints, key_weight: float) -> Text:
    """All of an answer counts, and a little the letters of a key."""
    size = len(asked.ids) - 1
    weights, source = np.zeros(size, np.float32), np.zeros((size, len(kept)), bool)
    weights[asked.answer_at - 1 :] = 1
    weights[[key - 1 for key in asked.keys if key > 0]] = key_weight
    source[asked.answer_at - 1 : size - 1] = np.isin(kept, np.concatenate(needs))
    return Text(asked.ids, weights, source)


def pack(
    rng: Generator,
    examples: list[Example],
    tokens: int,
    questions: int,
    key_weight: float,
    renumber: float = 0.5,
) -> Packed:
    """A batch of `examples`, `tokens` patches each; visual positions are renumbered from 0
    for a share `renumber` of the pictures and else the patch numbers."""
    texts, kept_rows, anew = [], [], []
    for example in examples:
        kept, chosen = show(rng, example, tokens, questions)
        asked = [(example.asked[number], example.needs[number]) for number in chosen]
        texts.append([text_of(*one, kept, key_weight) for one in asked])
        kept_rows.append(kept)
        anew.append(rng.random() < renumber)
    return laid_out([one.row for one in examples], kept_rows, anew, texts, PATCHES)


def laid_out(
    rows: list[int], kept: list[Ints], anew: Sequence[bool], texts: list[list[Text]], patches: int
) -> Packed:
    """The batch of pictures `rows`, each with the patches kept of `patches` and its questions.

    Where `anew`, visual tokens are numbered from 0 and not by their patch.
    """
    tokens = len(kept[0])
    width = max(sum(len(one.ids) - 1 for one in text) for text in texts)
    blank = np.zeros((len(rows), width), dtype=np.int64)
    ids, targets, offset, segment = blank.copy(), blank.copy(), blank.copy(), blank - 1
    weights = np.zeros(blank.shape, dtype=np.float32)
    source = np.zeros((*blank.shape, tokens), dtype=bool)
    for row, text in enumerate(texts):
        at = 0
        for number, one in enumerate(text):
            size = len(one.ids) - 1
            area = np.s_[row, at : at + size]
            ids[area], targets[area] = one.ids[:-1], one.ids[1:]
            offset[area], segment[area] = np.arange(size), number
            weights[area], source[area] = one.weights, one.source
            at += size
    places = [np.arange(tokens) if new else one for one, new in zip(kept, anew, strict=True)]
    start = np.where(anew, tokens, patches)
    arrays = (np.stack(kept), np.stack(places), start, ids, targets, weights, segment, offset,
              source)  # fmt: skip
    return Packed(np.array(rows), *(torch.from_numpy(array) for array in arrays))


def attention_mask(batch: Packed) -> Tensor:
    """True where a query may look, (B, 1, S, S): back in its own question or at visual
    tokens; padding looks at itself, so that no row is empty."""
    visual = torch.full(batch.kept.shape, -2)
    segment = torch.cat([visual, batch.segment], dim=1)
    size = segment.shape[1]
    back = torch.ones(size, size, dtype=torch.bool).tril()
    same = segment[:, :, None] == segment[:, None, :]
    to_visual = (segment == -2)[:, None, :]
    return (back & (same | to_visual))[:, None]


def position_ids(batch: Packed) -> Tensor:
    """Positions of visual and text tokens, (B, S)."""
    return torch.cat([batch.places, batch.start[:, None] + batch.offset], dim=1)
