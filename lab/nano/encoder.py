"""Stage 1: a small CLIP encoder, taught by dense labels what every patch shows.

B batch, L patches (256), C encoder width, N classes, P pixel values of a patch (108),
F label maps. No label describes the picture as a whole: a coarse answer can only be read
from the patches that show it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionModel

from lab.nano.clip import Shape, clip, normalise, pixels_of
from lab.nano.muon import Muon
from lab.nano.parallel import rank_and_world
from lab.nano.pool import Shard, open_shard
from lab.nano.recipe import EncoderRecipe, Recipe
from lab.nano.state import Log, learning_rate, load_state, save_state
from tokensieve.data.synth import (
    CHARS,
    COLOURS,
    IGNORE,
    KEY_LETTERS,
    LABEL_NAMES,
    MAX_OBJECTS,
    PATCH,
    PLACES,
    SHAPES,
    SIZE,
)
from tokensieve.files import written_folder

CLASSES = {
    "char": len(CHARS),
    "index": 6,
    "key1": len(KEY_LETTERS),
    "key2": len(KEY_LETTERS),
    "colour": len(COLOURS),
    "shape": len(SHAPES),
    "ordinal": MAX_OBJECTS,
    "place": len(PLACES),
    "background": len(COLOURS),
}
COARSE = [LABEL_NAMES.index(name) for name in ("index", "colour", "background")]
PIXELS = (PATCH // 2) ** 2 * 3  # of a patch, predicted at half resolution


def build_encoder(recipe: EncoderRecipe) -> CLIPVisionModel:
    """The untrained encoder."""
    sizes = (recipe.width, recipe.hidden, recipe.layers, recipe.heads)
    return clip(Shape(*sizes, side=SIZE, patch=PATCH))


class DenseEncoder(nn.Module):
    """Encoder plus one linear head for all dense labels, on a layer norm of the feature."""

    def __init__(self, recipe: EncoderRecipe) -> None:
        super().__init__()
        self.encoder = build_encoder(recipe)
        self.norm = nn.LayerNorm(recipe.width)
        self.head = nn.Linear(recipe.width, sum(CLASSES.values()) + 1 + PIXELS)

    def forward(self, pixels_B3SS: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Features (B, L, C) and, by name, logits (B, L, N), ink (B, L, 1), pixels (B, L, P)."""
        features_BLC = self.encoder(pixels_B3SS).last_hidden_state[:, 1:]
        sizes = [*CLASSES.values(), 1, PIXELS]
        parts = self.head(self.norm(features_BLC)).split(sizes, dim=-1)
        return features_BLC, dict(zip([*CLASSES, "ink", "pixels"], parts, strict=True))


def losses(
    features_BLC: Tensor,
    outputs: dict[str, Tensor],
    labels_BFL: Tensor,
    pixels_B3SS: Tensor,
    recipe: EncoderRecipe,
) -> dict[str, Tensor]:
    """Every term, each a mean over the patches that have the label."""
    terms = {}
    for name in CLASSES:
        target = labels_BFL[:, LABEL_NAMES.index(name)].long()
        known = target != IGNORE
        weight = known.float()
        if name == "char":
            weight = torch.where(target == 0, recipe.blank_weight, weight)
            document_B1 = (labels_BFL[:, COARSE] == IGNORE).all((1, 2))[:, None]
            weight = torch.where(document_B1, recipe.document_weight * weight, weight)
        logits = outputs[name].flatten(0, 1)
        loss = F.cross_entropy(logits, target.where(known, 0).flatten(), reduction="none")
        terms[name] = (loss * weight.flatten()).sum() / weight.sum().clamp_min(1)
    ink = labels_BFL[:, LABEL_NAMES.index("ink")].float() / 255
    terms["ink"] = F.mse_loss(outputs["ink"].squeeze(-1), ink) * 10
    terms["pixels"] = F.mse_loss(outputs["pixels"], pixels_of(pixels_B3SS, PATCH))
    rms_BL = features_BLC.square().mean(-1).clamp_min(1e-8).sqrt()
    terms["rms"] = (rms_BL - 1).square().mean()
    return terms


def batches(recipe: Recipe, root: Path, first: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Images (B, S, S, 3) and labels (B, F, L) of step `first` and on, for ever.

    The first pass takes shards in order, four at a time, so that training can start while
    the pool grows; later passes mix all of it. The order depends on the step alone.
    """
    size, total = recipe.encoder.batch, recipe.train_shards * recipe.shard
    shards: dict[int, Shard] = {}
    step, (rank, world) = first, rank_and_world()
    while True:
        per_pass = total // size
        turn, at = divmod(step, per_pass)
        window = min(total, (4 if turn == 0 else recipe.train_shards) * recipe.shard)
        per_window = window // size
        block, inside = divmod(at, per_window)
        order = np.random.default_rng((recipe.seed, turn, block)).permutation(window)
        picked = block * window + order[inside * size : (inside + 1) * size]
        rows = []
        for index in picked[rank::world] % total:
            number = int(index) // recipe.shard
            if number not in shards:
                shards[number] = open_shard(root, "train", number, wait_s=600.0)
            shard, row = shards[number], int(index) % recipe.shard
            rows.append((shard.images[row], shard.labels[row]))
        images = torch.from_numpy(np.stack([image for image, _ in rows]))
        labels = torch.from_numpy(np.stack([label for _, label in rows]))
        yield images, labels.flatten(2)
        step += 1


@torch.no_grad()
def evaluate(model: DenseEncoder, shard: Shard, count: int) -> dict[str, float]:
    """Accuracy per kind and label on the first `count` pictures; blank patches do not count
    for characters. Also the feature RMS of text patches and of the rest."""
    model.eval()
    hits: dict[str, list[float]] = {}
    for start in range(0, count, 50):
        stop = min(start + 50, count)
        pixels = normalise(torch.from_numpy(shard.images[start:stop].copy()))
        labels_BFL = torch.from_numpy(shard.labels[start:stop].copy()).flatten(2)
        features_BLC, outputs = model(pixels)
        rms_BL = features_BLC.square().mean(-1).sqrt()
        for row in range(stop - start):
            kind = shard.pictures[start + row]["kind"]
            for name in CLASSES:
                target = labels_BFL[row, LABEL_NAMES.index(name)].long()
                known = (target != IGNORE) & ((target != 0) | (name != "char"))
                right = (outputs[name][row].argmax(-1) == target)[known].float()
                hits.setdefault(f"{kind}.{name}", []).extend(right.tolist())
            text = torch.from_numpy(shard.text[start + row].copy()).flatten().bool()
            if kind == "cluttered":
                hits.setdefault("rms.text", []).extend(rms_BL[row][text].tolist())
                hits.setdefault("rms.rest", []).extend(rms_BL[row][~text].tolist())
    model.train()
    return {name: float(np.mean(values)) for name, values in sorted(hits.items()) if values}


def train_encoder(recipe: Recipe, out: Path, log: Log) -> None:
    """Train (or go on training) the encoder; its last checkpoint is `out/encoder`."""
    torch.manual_seed(recipe.seed)
    part, model = recipe.encoder, DenseEncoder(recipe.encoder)
    optimiser = Muon(model, part.matrix_rate)
    step = load_state(out / "encoder-state", model, optimiser)
    val = open_shard(out / "pool", "val", 0, wait_s=600.0)
    stream = batches(recipe, out / "pool", step)
    while step < part.steps:
        images, labels_BFL = next(stream)
        rate = learning_rate(step, part.steps, part.warmup, part.lr)
        optimiser.set_rate(rate)
        pixels = normalise(images)
        features_BLC, outputs = model(pixels)
        terms = losses(features_BLC, outputs, labels_BFL, pixels, part)
        loss = torch.stack([part.weights[name] * term for name, term in terms.items()]).sum()
        optimiser.descend(model, loss)
        step += 1
        if rank_and_world()[0] != 0:
            continue
        if step % 50 == 0:
            named = {name: term.item() for name, term in terms.items()}
            log.write(stage="encoder", step=step, lr=rate, loss=loss.item(), **named)
        if step % recipe.checkpoint_every == 0 or step == part.steps:
            save_state(out / "encoder-state", model, optimiser, step)
            with written_folder(out / "encoder", replace=True) as folder:
                model.encoder.save_pretrained(folder)
            seen = evaluate(model, val, min(100, len(val.images)))
            log.write(stage="encoder-val", step=step, **seen)
