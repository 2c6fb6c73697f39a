"""Training of one arm: projector and LLM from their first weights, the encoder frozen.

As the control is, the LLM is led at first by a loss on where half of one layer's heads look, which
falls to 0. B pictures, T text tokens, N visual tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from tokensieve.errors import TrainingError
from tokensieve.hf.fingerprint import encoder_info
from tokensieve.hf.fused import fuse
from tokensieve.hf.models import Loaded
from tokensieve.hf.nano import load_nano
from tokensieve.train.nano.features import load_questions
from tokensieve.train.nano.fusion.blocks import Blocks
from tokensieve.train.nano.fusion.feed import Feed
from tokensieve.train.nano.fusion.study import Arm, Study
from tokensieve.train.nano.lm import Reader, build_llava, evaluate, look_loss
from tokensieve.train.nano.muon import Muon
from tokensieve.train.nano.state import Log, learning_rate, load_state, save_state

SAVE_EVERY = 200


def build(study: Study, arm: Arm, seed: int) -> Loaded:
    """The embedded encoder, an untrained LLM, the same for every arm, and the arm's projector."""
    trained, processor = load_nano()
    torch.manual_seed(seed)
    model: Any = build_llava(study.lm, trained.config.vision_config)
    model.model.vision_tower = trained.model.vision_tower
    shape = arm.config(encoder_info(trained).width, study.lm.width)
    return fuse(
        model, processor, blocks=shape.blocks, kernel=shape.kernel, fused=shape.fused,
        kind=shape.kind, form=shape.form, seed=seed,
    )  # fmt: skip


def export(study: Study, arm: Arm, seed: int, out: Path) -> Path:
    """Write the trained arm as a model folder and return it.

    Raises `TrainingError` if its training has not ended.
    """
    folder, loaded = place(out, arm, seed), build(study, arm, seed)
    reader = Reader(loaded.model)
    step = load_state(folder / "state", reader, Muon(reader, study.lm.matrix_rate))
    if step < study.ends[-1]:
        raise TrainingError(
            f"Expected {arm.name} of seed {seed} after {study.ends[-1]} steps in {folder}. Got "
            f"{step}. Train it first."
        )
    loaded.model.save_pretrained(folder / "model")
    loaded.processor.save_pretrained(folder / "model")
    return folder / "model"


def place(out: Path, arm: Arm, seed: int) -> Path:
    """Where state, log and model of one training lie."""
    return out / arm.name / f"seed{seed}"


def train(study: Study, arm: Arm, seed: int, data: Path, out: Path) -> Reader:
    """Train the arm, or go on; state and log in `out`/<arm>/seed<seed>."""
    folder, lm, steps = place(out, arm, seed), study.lm, study.ends[-1]
    model = build(study, arm, seed).model
    width = model.config.fusion.width
    reader = Reader(model)
    reader.train()
    optimiser = Muon(reader, lm.matrix_rate)
    step, log = load_state(folder / "state", reader, optimiser), Log(folder / "log.jsonl")
    if step == steps:
        return reader
    shards = [("train", number) for number in range(study.train_shards)]
    examples, blocks = load_questions(data, shards), Blocks(data, shards, width)
    feed = Feed(arm, blocks, study.selector)
    while step < steps:
        rng = np.random.default_rng((seed, step))
        _, share, size = study.phase(step)
        picked = [examples[i] for i in rng.integers(0, len(examples), size)]
        features, batch = feed(rng, picked, lm.questions, lm.key_weight, share)
        optimiser.set_rate(learning_rate(step, steps, lm.warmup, lm.lr))
        led = step < study.ends[0] and bool(batch.source.any())
        logits, looks = reader.watched(features, batch, lm.guide_layer if led else None)
        each = F.cross_entropy(logits.transpose(1, 2), batch.targets, reduction="none")
        loss = (each * batch.weights).sum() / batch.weights.sum()
        if looks is not None:
            loss = loss + lm.guide * (1 - step / study.ends[0]) * look_loss(looks, batch)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
        optimiser.step()
        step += 1
        if step % 50 == 0:
            answer = (each * (batch.weights == 1)).sum() / (batch.weights == 1).sum()
            log.write(step=step, tokens=batch.kept.shape[1], answer=answer.item())
        if step % SAVE_EVERY == 0 or step == steps:
            save_state(folder / "state", reader, optimiser, step)
    val = [("val", 0)]
    judged = Feed(arm, Blocks(data, val, width), study.selector)
    log.write(val=step, **evaluate(reader, load_questions(data, val), judged))
    return reader
