"""Stage 3: projector and Llama on cached features: `--features FOLDER --out FOLDER`; it resumes.

The curriculum is in visual tokens: a few with what is asked among them, then more, then all. The
next stage begins where the averaged weights answer enough of the val questions of this one.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from lab.nano.lm import Reader, shown_features
from lab.nano.muon import Muon
from lab.nano.packing import Packed
from lab.nano.state import Log
from lab.nano.vocabulary import IMAGE, PAD
from lab.nano2 import features as cached
from lab.nano2 import keep
from lab.nano2.asking import EOS, PATCHES, VOCABULARY, Example, askable, pack
from lab.nano2.encoder import build_encoder

SAVE_EVERY_S = 300.0


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
    text = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=recipe.width,
        intermediate_size=recipe.width * 11 // 4,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=4096,
        pad_token_id=VOCABULARY[PAD],
        bos_token_id=None,
        eos_token_id=EOS,
        tie_word_embeddings=False,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=VOCABULARY[IMAGE],
        image_seq_length=PATCHES,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    model = LlavaForConditionalGeneration(config)
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        eos_token_id=EOS, pad_token_id=VOCABULARY[PAD], max_new_tokens=24, do_sample=False
    )
    return model


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
    val = val[:100]
    vision = build_encoder(cached.encoder_of(folder)).config
    reader = Reader(build_llava(vision, recipe))
    fitted(reader, torch.from_numpy(features[:20].astype(np.float32)).flatten(0, 1))
    judged = Reader(build_llava(vision, recipe)).eval()
    optimiser = Muon(reader, recipe.matrix_rate)
    averaged = {name: value.clone() for name, value in reader.state_dict().items()}
    log, file = Log(out / "reader.jsonl"), out / "reader.safetensors"
    state: dict[str, Any] = {"step": 0, "at": 0, "recipe": asdict(recipe)}
    state = keep.load(file, reader, averaged, optimiser, state)
    log.write(stage="begin", **state)
    saved, recent = time.monotonic(), list[float]()
    while state["step"] < until:
        tokens, size = recipe.stages[state["at"]]
        rng = np.random.default_rng((recipe.seed, state["step"], state["at"]))
        some = [one for one in examples if askable(one, tokens)]
        drawn = [some[k] for k in rng.integers(0, len(some), (size,)).tolist()]
        batch = pack(rng, drawn, tokens, recipe.questions, recipe.key_weight)
        recent.append(one_step(reader, optimiser, averaged, features, batch, state["step"], recipe))
        state["step"] += 1
        if state["step"] % 25 == 0:
            log.write(stage="reader", step=state["step"], tokens=tokens, loss=np.mean(recent))
            recent.clear()
        if state["step"] % recipe.check_every == 0:
            judged.load_state_dict(averaged)
            right = exact(judged, val_features, val, tokens, recipe)
            log.write(stage="check", step=state["step"], tokens=tokens, exact=right)
            if right > recipe.enough and state["at"] + 1 < len(recipe.stages):
                state["at"] += 1
        if time.monotonic() - saved > SAVE_EVERY_S or state["step"] == until:
            keep.save(file, reader, averaged, optimiser, state)
            saved = time.monotonic()


def one_step(
    reader: Reader,
    optimiser: Muon,
    averaged: dict[str, Tensor],
    features: NDArray[np.float16],
    batch: Packed,
    step: int,
    recipe: ReaderRecipe,
) -> float:
    """One step of the optimiser and of the average; the answers' loss."""
    optimiser.set_rate(recipe.rate * min(1.0, (step + 1) / recipe.warmup))
    logits = reader(shown_features(features, batch), batch)
    each = F.cross_entropy(logits.transpose(1, 2), batch.targets, reduction="none")
    loss = (each * batch.weights).sum() / batch.weights.sum()
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
    optimiser.step()
    follow = min(recipe.average, (step + 1) / (step + 10))
    with torch.no_grad():
        for name, value in reader.state_dict().items():
            averaged[name].lerp_(value, 1 - follow)
    answers = batch.weights == 1
    return ((each.detach() * answers).sum() / answers.sum()).item()


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--features", type=Path, required=True, help="folder of stage 2")
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoint and log")
    parser.add_argument("--until", type=int, default=20_000, help="stop at this step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    train(ReaderRecipe(seed=given.seed), given.features, given.out, given.until)


if __name__ == "__main__":
    main()
