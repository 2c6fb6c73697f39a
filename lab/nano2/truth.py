"""What a perfect encoder would say of a patch, at the encoder's width: a reader begins on this.

So finding a key and reading on is learned while the encoder is still in training, and its errors
hold up no stage of the curriculum. And characters can be exchanged for others, on the page and in
what is asked of it: no page is learned by heart. B batch, V visual tokens shown, L = 576 patches,
K characters a patch, C encoder width, P pixels of a patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lab.nano.clip import normalise, pixels_of
from lab.nano.packing import Packed
from lab.nano2.asking import VOCABULARY
from lab.nano2.encoder import CODES, PIXELS
from lab.nano2.labels import PATCH, SLOTS, slots
from lab.nano2.pages import Page
from lab.nano2.words import CHARS, CODE

PIXEL_SHARE = 1.0  # of the size of one character
RIDGE = 1e-5  # of the features' mean square


@cache
def tables(width: int) -> tuple[Tensor, Tensor]:
    """One vector of length 1 for every code in every slot, (K, N, C), and a map (P, C) under which
    a patch's pixels, of spread 1, are as long; nothing for an empty slot."""
    rng = torch.Generator().manual_seed(0)
    codes = torch.randn(SLOTS, CODES, width, generator=rng) / width**0.5
    codes[:, 0] = 0
    pixels = torch.randn(PIXELS, width, generator=rng) / (width * PIXELS) ** 0.5
    return codes, pixels * PIXEL_SHARE


def codes_of(drawn: Page) -> NDArray[np.uint8]:
    """Of a page (L, K): the codes of its characters; what nobody is sure of is none."""
    return slots(drawn.places, drawn.codes).reshape(-1, SLOTS).clip(0).astype(np.uint8)


def said(codes_LK: Tensor, width: int) -> Tensor:
    """The sum over the characters of patches (..., K), (..., C)."""
    codes_KNC, _ = tables(width)
    each = [codes_KNC[slot][codes_LK[..., slot].long()] for slot in range(SLOTS)]
    return torch.stack(each).sum(0)


def truth_of(drawn: Page, width: int) -> NDArray[np.float16]:
    """Of a page (L, C): its characters and its pixels."""
    seen = pixels_of(normalise(torch.from_numpy(drawn.image[None].copy())), PATCH)[0]
    found = seen @ tables(width)[1] + said(torch.from_numpy(codes_of(drawn)), width)
    return found.half().numpy()


def another_alphabet(rng: np.random.Generator) -> list[int]:
    """For every code another: digits for digits and, every other time, letters for letters, small
    and capital alike."""
    digits, letters = rng.permutation(10), np.arange(26)
    if rng.random() < 0.5:
        letters = rng.permutation(26)
    groups = (("0", digits), ("A", letters), ("a", letters))
    found = dict(CODE)
    for first, order in groups:
        for k, other in enumerate(order.tolist()):
            found[chr(ord(first) + k)] = CODE[chr(ord(first) + other)]
    return [0, *(found[char] for char in CHARS)]


def exchanged(
    rng: np.random.Generator,
    shown_BVC: Tensor,
    codes_BVK: Tensor,
    batch: Packed,
    rows: Sequence[int],
) -> tuple[Tensor, Packed]:
    """The batch with the characters of `rows` exchanged, in features and texts alike."""
    shown, ids, targets = shown_BVC.clone(), batch.ids.clone(), batch.targets.clone()
    first = VOCABULARY[CHARS[0]] - 1  # of a code in the vocabulary
    for row in rows:
        change = torch.tensor(another_alphabet(rng))
        codes = codes_BVK[row].long()
        width = shown.shape[-1]
        shown[row] += said(change[codes], width) - said(codes, width)
        words = torch.arange(len(VOCABULARY))
        words[first + 1 :] = change[1:] + first
        ids[row], targets[row] = words[ids[row]], words[targets[row]]
    return shown, replace(batch, ids=ids, targets=targets)


def read_as(features_NC: Tensor, truth_NC: Tensor) -> tuple[Tensor, Tensor]:
    """The affine map (C, C), (C,) from features to the truth of least squares."""
    given, wanted = features_NC.double(), truth_NC.double()
    mean, target = given.mean(0), wanted.mean(0)
    x = given - mean
    square = x.T @ x
    square += RIDGE * square.diagonal().mean() * torch.eye(len(square), dtype=torch.float64)
    weight = torch.linalg.solve(square, x.T @ (wanted - target))
    return weight.float(), (target - mean @ weight).float()
