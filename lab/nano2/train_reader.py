"""Stage 3: projector and Llama on cached features: `--features FOLDER --out FOLDER`; it resumes.

The curriculum is in visual tokens: a few with what is asked among them, then more, then all. The
next stage begins where the averaged weights answer enough of the val questions of this one.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import CLIPVisionConfig, LlavaForConditionalGeneration

from lab import command
from lab.nano.llava import Shape, llava
from lab.nano.lm import Reader, mean_of, shown_features, token_losses
from lab.nano.muon import Muon
from lab.nano.packing import Packed
from lab.nano.state import Log
from lab.nano2 import features as cached
from lab.nano2.asking import VOCABULARY, Example, askable, pack
from lab.nano2.encoder import build_encoder
from lab.nano2.keep import Training


@dataclass(frozen=True)
class ReaderRecipe:
    """Shape and schedule; `stages` are visual tokens and pages a step."""

    width: int = 192
    layers: int = 4
    heads: int = 6
    seed: int = 0
    stages: tuple[tuple[int, int], ...] = (
        (16, 32),
        (32, 24),
        (64, 16),
        (128, 12),
        (288, 8),
        (576, 6),
    )
    questions: int = 4
    key_weight: float = 0.2
    warmup: int = 100
    rate: float = 1.5e-3
    matrix_rate: float = 1.5
    average: float = 0.99
    enough: float = 0.9
    check_every: int = 200


def build_llava(vision: CLIPVisionConfig, recipe: ReaderRecipe) -> LlavaForConditionalGeneration:
    """The untrained model around an encoder of that shape."""
    hidden = recipe.width * 11 // 4
    return llava(
        vision, Shape(recipe.width, hidden, recipe.layers, recipe.heads, answer=24), VOCABULARY
    )


@torch.no_grad()
def fitted(reader: Reader, sample_NC: Tensor) -> None:
    """Begin with a projector that sees standardised features, at the size of the characters'
    embeddings."""
    first, second = reader.projector.linear_1, reader.projector.linear_2
    spread = sample_NC.std(0).clamp_min(1e-3)
    nn.init.normal_(first.weight, std=first.in_features**-0.5)
    first.weight.div_(spread)
    first.bias.copy_(-(first.weight @ sample_NC.mean(0)))
    nn.init.normal_(second.weight, std=second.in_features**-0.5)
    nn.init.normal_(reader.language_model.get_input_embeddings().weight, std=0.5)


@torch.no_grad()
def exact(
    reader: Reader,
    features: NDArray[np.float16],
    examples: list[Example],
    tokens: int,
    recipe: ReaderRecipe,
) -> float:
    """Share of questions of which every token of the answer is the most likely one."""
    rng, hits = np.random.default_rng(0), list[bool]()
    some = [one for one in examples if askable(one, tokens)]
    for start in range(0, len(some), 20):
        batch = pack(rng, some[start : start + 20], tokens, recipe.questions, 0.0, renumber=0.0)
        right = reader(shown_features(features, batch), batch).argmax(-1) == batch.targets
        for row in range(len(batch.rows)):
            for number in range(int(batch.segment[row].max()) + 1):
                mine = (batch.segment[row] == number) & (batch.weights[row] == 1)
                hits.append(bool(right[row][mine].all()))
    return float(np.mean(hits))


def train(recipe: ReaderRecipe, folder: Path, out: Path, until: int) -> None:
    """Train to step `until`; the checkpoint is out/reader.safetensors."""
    torch.manual_seed(recipe.seed)
    features, examples = cached.load(folder, "train")
    val_features, val = cached.load(folder, "val")
    vision = build_encoder(cached.encoder_of(folder)).config
    reader = Reader(build_llava(vision, recipe))
    fitted(reader, torch.from_numpy(features[:20].astype(np.float32)).flatten(0, 1))
    judged = Reader(build_llava(vision, recipe)).eval()
    state: dict[str, Any] = {"step": 0, "at": 0, "recipe": asdict(recipe)}
    run = Training(out / "reader.safetensors", reader, Muon(reader, recipe.matrix_rate), state)
    log, recent = Log(out / "reader.jsonl"), list[float]()
    log.write(stage="begin", **run.state)
    while run.step < until:
        tokens, _ = recipe.stages[run.state["at"]]
        batch = draw(recipe, run, examples)
        recent.append(one_step(run, shown_features(features, batch), batch, recipe))
        if run.step % 25 == 0:
            log.write(stage="reader", step=run.step, tokens=tokens, loss=np.mean(recent))
            recent.clear()
        if run.step % recipe.check_every == 0:
            judged.load_state_dict(run.averaged)
            right = exact(judged, val_features, val[:100], tokens, recipe)
            log.write(stage="check", step=run.step, tokens=tokens, exact=right)
            if right > recipe.enough and run.state["at"] + 1 < len(recipe.stages):
                run.state["at"] += 1
        if run.step == until:
            run.save()
        run.save_in_time()


def draw(recipe: ReaderRecipe, run: Training, examples: list[Example]) -> Packed:
    """The batch of the next step: it depends on seed, step and stage alone."""
    tokens, size = recipe.stages[run.state["at"]]
    rng = np.random.default_rng((recipe.seed, run.step, run.state["at"]))
    some = [one for one in examples if askable(one, tokens)]
    drawn = [some[k] for k in rng.integers(0, len(some), (size,)).tolist()]
    return pack(rng, drawn, tokens, recipe.questions, recipe.key_weight)


def one_step(run: Training, shown_BVC: Tensor, batch: Packed, recipe: ReaderRecipe) -> float:
    """One step of the optimiser and of the average; the answers' loss."""
    each = token_losses(run.model(shown_BVC, batch), batch)
    rate = recipe.rate * min(1.0, (run.step + 1) / recipe.warmup)
    run.descend(mean_of(each, batch.weights), rate, recipe.average)
    return mean_of(each.detach(), batch.weights == 1).item()


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--features", type=Path, required=True, help="folder of stage 2")
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoint and log")
    parser.add_argument("--until", type=int, default=20_000, help="stop at this step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    given = command.parse(parser, arguments)
    train(ReaderRecipe(seed=given.seed), given.features, given.out, given.until)


if __name__ == "__main__":
    command.run(main, "checkpoint")
