"""What a perfect encoder would say of a patch, at the encoder's width: a reader begins on this.

So finding a key and reading on is learned while the encoder is still in training, and its errors
hold up no stage of the curriculum. L = 576 patches, C encoder width, P pixels of a patch.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lab.nano.clip import normalise, pixels_of
from lab.nano2.encoder import CODES, PIXELS
from lab.nano2.labels import PATCH, SLOTS, slots
from lab.nano2.pages import Page

PIXEL_SHARE = 1.0  # of the size of one character
RIDGE = 1e-5  # of the features' mean square


def tables(width: int) -> tuple[Tensor, Tensor]:
    """One vector of length 1 for every code in every slot, (K, N, C), and a map (P, C) under which
    a patch's pixels, of spread 1, are as long; nothing for an empty slot."""
    rng = torch.Generator().manual_seed(0)
    codes = torch.randn(SLOTS, CODES, width, generator=rng) / width**0.5
    codes[:, 0] = 0
    pixels = torch.randn(PIXELS, width, generator=rng) / (width * PIXELS) ** 0.5
    return codes, pixels * PIXEL_SHARE


def truth_of(drawn: Page, width: int) -> NDArray[np.float16]:
    """Of a page (L, C): the sum over its characters, and its pixels."""
    codes_KNC, pixels_PC = tables(width)
    labels = torch.from_numpy(slots(drawn.places, drawn.codes).reshape(-1, SLOTS)).clamp_min(0)
    seen = pixels_of(normalise(torch.from_numpy(drawn.image[None].copy())), PATCH)[0]
    found = seen @ pixels_PC
    for slot in range(SLOTS):
        found = found + codes_KNC[slot][labels[:, slot]]
    return found.half().numpy()


def read_as(features_NC: Tensor, truth_NC: Tensor) -> tuple[Tensor, Tensor]:
    """The affine map (C, C), (C,) from features to the truth of least squares."""
    given, wanted = features_NC.double(), truth_NC.double()
    mean, target = given.mean(0), wanted.mean(0)
    x = given - mean
    square = x.T @ x
    square += RIDGE * square.diagonal().mean() * torch.eye(len(square), dtype=torch.float64)
    weight = torch.linalg.solve(square, x.T @ (wanted - target))
    return weight.float(), (target - mean @ weight).float()
