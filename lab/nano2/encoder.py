"""Stage 1: a CLIP encoder taught what stands in every patch; nothing of what will be asked.

B batch, L patches of a crop, C encoder width, K characters a patch, N codes with "none",
P pixel values of a patch at half resolution.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from transformers import CLIPVisionModel

from lab.nano.clip import Shape, clip, normalise, pixels_of, positions
from lab.nano2.labels import GRID, IGNORE, PATCH, SLOTS, slots
from lab.nano2.pages import LEVELS, Page, page
from lab.nano2.sheet import SIZE
from lab.nano2.words import CHARS

CODES = len(CHARS) + 1
PIXELS = (PATCH // 2) ** 2 * 3


@dataclass(frozen=True)
class EncoderRecipe:
    """Shape and schedule. The rate stands still after the warm-up, the averaged weights are what
    is judged and shipped; `decay_from` on it falls to nothing until `steps`."""

    width: int = 192
    layers: int = 6
    heads: int = 6
    seed: int = 0
    steps: int = 10_000
    decay_from: int = 5_600
    warmup: int = 100
    rate: float = 1e-3
    matrix_rate: float = 5.0
    pages: int = 12  # a step, two crops of each
    crop: int = 12  # patches a side
    empty: float = 0.15  # weight of a slot without a character
    pixels: float = 0.3
    ahead: float = 0.15  # share of pages that are of the next level
    enough: float = 0.8  # accuracy at which the next level begins
    average: float = 0.995
    check_every: int = 250
    check_pages: int = 40

    def asdict(self) -> dict[str, Any]:
        """For the log."""
        return asdict(self)


def build_encoder(recipe: EncoderRecipe) -> CLIPVisionModel:
    """The untrained encoder; CLS has no position of its own."""
    hidden = 4 * recipe.width
    model = clip(Shape(recipe.width, hidden, recipe.layers, recipe.heads, side=SIZE, patch=PATCH))
    with torch.no_grad():
        positions(model)[0] = 0
    return model


class DenseEncoder(nn.Module):
    """The encoder and one linear head for characters and pixels on a layer norm of the feature."""

    def __init__(self, recipe: EncoderRecipe) -> None:
        super().__init__()
        self.encoder = build_encoder(recipe)
        self.norm = nn.LayerNorm(recipe.width)
        self.head = nn.Linear(recipe.width, SLOTS * CODES + PIXELS)

    def features(self, pixels_B3HW: Tensor, places_BL: Tensor | None = None) -> Tensor:
        """Last hidden states without CLS, (B, L, C): of whole pages, or of crops whose patches
        stand at `places_BL` of the page."""
        inner = getattr(self.encoder, "vision_model", self.encoder)
        if places_BL is None:
            hidden: Tensor = self.encoder(pixel_values=pixels_B3HW).last_hidden_state
            return hidden[:, 1:]
        embed = inner.embeddings
        patches_BLC = embed.patch_embedding(pixels_B3HW).flatten(2).mT
        patches_BLC = patches_BLC + embed.position_embedding(places_BL + 1)
        cls = embed.class_embedding + embed.position_embedding.weight[0]
        tokens = torch.cat([cls.expand(len(patches_BLC), 1, -1), patches_BLC], dim=1)
        hidden = inner.encoder(inputs_embeds=inner.pre_layrnorm(tokens)).last_hidden_state
        return hidden[:, 1:]

    def forward(self, pixels: Tensor, places_BL: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits (B, L, K, N) of the characters and pixels (B, L, P)."""
        out = self.head(self.norm(self.features(pixels, places_BL)))
        codes, seen = out.split([SLOTS * CODES, PIXELS], dim=-1)
        return codes.unflatten(-1, (SLOTS, CODES)), seen


def loss_of(
    codes: Tensor, seen: Tensor, labels_BLK: Tensor, pixels_B3HW: Tensor, recipe: EncoderRecipe
) -> tuple[Tensor, Tensor]:
    """The terms: characters, with little weight on empty slots, and pixels."""
    weight = torch.ones(CODES)
    weight[0] = recipe.empty
    target = labels_BLK.flatten()
    chars = F.cross_entropy(codes.flatten(0, 2), target, weight=weight, ignore_index=IGNORE)
    return chars, F.mse_loss(seen, pixels_of(pixels_B3HW, PATCH))


Crops = tuple[Tensor, Tensor, Tensor]


class Steps(Dataset[Crops]):
    """The batches of steps `first` .. `last`, each from (seed, step, level) alone."""

    def __init__(self, recipe: EncoderRecipe, first: int, last: int, level: int) -> None:
        self.recipe, self.first, self.last, self.level = recipe, first, last, level

    def __len__(self) -> int:
        return self.last - self.first

    def __getitem__(self, number: int) -> Crops:
        """Crops uint8 (B, H, W, 3), labels (B, L, K), places of their patches (B, L)."""
        recipe, step = self.recipe, self.first + number
        if step >= self.last:
            raise IndexError
        rng = np.random.default_rng((recipe.seed, step, self.level))
        crops = []
        for k in range(recipe.pages):
            ahead = min(self.level + (rng.random() < recipe.ahead), len(LEVELS) - 1)
            close = "prose" if rng.random() < LEVELS[int(ahead)].close else None
            number = step * recipe.pages + k
            drawn = page(recipe.seed, "train", number, int(ahead), kind=close)
            crops += two_crops(rng, drawn, recipe.crop)
        images, labels, places = (
            torch.from_numpy(np.stack(part)) for part in zip(*crops, strict=True)
        )
        return images, labels, places


Crop = tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]


def two_crops(rng: np.random.Generator, drawn: Page, side: int) -> list[Crop]:
    """One of the fullest of some crops of a page, and the fullest of a few others."""
    labels = slots(drawn.places, drawn.codes)
    corners = rng.integers(0, GRID - side + 1, (6, 2)).tolist()
    full = [(labels[y : y + side, x : x + side] > 0).sum() for y, x in corners]
    crops = []
    for half in (slice(0, 4), slice(4, 6)):
        y, x = corners[half][int(np.argmax(full[half]))]
        image = drawn.image[y * PATCH : (y + side) * PATCH, x * PATCH : (x + side) * PATCH]
        places = (np.arange(y, y + side)[:, None] * GRID + np.arange(x, x + side)).ravel()
        crops.append((image, labels[y : y + side, x : x + side].reshape(-1, SLOTS), places))
    return crops


@torch.no_grad()
def accuracy(model: DenseEncoder, drawn: list[Page]) -> dict[str, float]:
    """On whole pages: share of characters right in their slot, the same blind to case, share of
    patches right among those with text, and the error of the pixels."""
    hits = {"chars": 0, "caseless": 0, "patches": 0}
    count = {"chars": 0, "patches": 0}
    error = 0.0
    lower = np.array([0] + [CHARS.index(c.lower()) + 1 for c in CHARS])
    for start in range(0, len(drawn), 8):
        some = drawn[start : start + 8]
        pixels = normalise(torch.from_numpy(np.stack([p.image for p in some])))
        codes, seen = model(pixels)
        error += F.mse_loss(seen, pixels_of(pixels, PATCH)).item() * len(some)
        said = codes.argmax(-1).numpy()
        true = np.stack([slots(p.places, p.codes).reshape(-1, SLOTS) for p in some])
        known = true > 0
        text = known.any(-1)
        hits["chars"] += int((said == true)[known].sum())
        hits["caseless"] += int((lower[said] == lower[np.maximum(true, 0)])[known].sum())
        hits["patches"] += int((said == true).all(-1)[text].sum())
        count["chars"] += int(known.sum())
        count["patches"] += int(text.sum())
    return {
        "chars": hits["chars"] / max(1, count["chars"]),
        "caseless": hits["caseless"] / max(1, count["chars"]),
        "patches": hits["patches"] / max(1, count["patches"]),
        "pixels": error / len(drawn),
    }
