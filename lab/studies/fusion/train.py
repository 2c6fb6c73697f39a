"""Training of one arm: its projector from the first weights, then the LLM with it; the encoder is
frozen.

B pictures, T text tokens, N visual tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lab.nano.features import load_questions
from lab.nano.lm import Reader, evaluate, mean_of, token_losses
from lab.nano.muon import Muon
from lab.nano.state import Log, learning_rate, load_state, save_state
from lab.studies.fusion.arms import Arm, Study
from lab.studies.fusion.blocks import Blocks
from lab.studies.fusion.feed import Feed
from tokensieve.errors import TrainingError
from tokensieve.files import written_folder
from tokensieve.folders import Kind, lies_in
from tokensieve.hf.families.fingerprint import encoder_info
from tokensieve.hf.fused import fuse
from tokensieve.hf.models.loaded import Loaded
from tokensieve.hf.models.nano import load_nano

SAVE_EVERY = 200
RUN = Kind("the training of an arm", lies_in("state/step.json"))


def build(study: Study, arm: Arm, seed: int) -> Loaded:
    """The control's encoder and LLM, the same for every arm, and the arm's untrained projector."""
    model, processor = load_nano("control")
    shape = arm.config(encoder_info(model).width, study.lm.width)
    return fuse(
        model, processor, blocks=shape.blocks, kernel=shape.kernel, fused=shape.fused,
        kind=shape.kind, form=shape.form, seed=seed,
    )  # fmt: skip


def export(study: Study, arm: Arm, seed: int, out: Path) -> Path:
    """Write the trained arm as a model folder and return it; an MLP of every token as a LLaVA.

    Raises `TrainingError` if its training has not ended.
    """
    folder, loaded = place(out, arm, seed), build(study, arm, seed)
    reader = Reader(loaded.model)
    step = load_state(folder / "state", reader, Muon(reader, study.lm.matrix_rate))
    if step < (steps := arm.steps or study.steps):
        raise TrainingError(
            f"Expected {arm.name} of seed {seed} after {steps} steps in {folder}. Got "
            f"{step}. Train it first."
        )
    shape = loaded.model.config.fusion
    plain = shape.kind == "mlp" and shape.blocks == 1
    model, processor = as_llava(loaded.model) if plain else (loaded.model, loaded.processor)
    with written_folder(folder / "model", replace=True) as part:
        model.save_pretrained(part)
        processor.save_pretrained(part)
    return folder / "model"


def as_llava(fused: Any) -> tuple[Any, Any]:
    """The plain LLaVA and processor of a model that fuses nothing, so that every method fits it."""
    model, processor = load_nano()
    parts: Any = model.base_model
    layers = fused.model.multi_modal_projector.spatial.mlp
    parts.language_model.load_state_dict(fused.model.language_model.state_dict())
    parts.multi_modal_projector.linear_1.load_state_dict(layers[0].state_dict())
    parts.multi_modal_projector.linear_2.load_state_dict(layers[2].state_dict())
    head: Any = model.lm_head
    head.load_state_dict(fused.lm_head.state_dict())
    return model, processor


def place(out: Path, arm: Arm, seed: int) -> Path:
    """Where state, log and model of one training lie."""
    return out / arm.name / f"seed{seed}"


def train(study: Study, arm: Arm, seed: int, data: Path, out: Path) -> Reader:
    """Train the arm, or go on; state and log in `out`/<arm>/seed<seed>."""
    folder, lm, steps = place(out, arm, seed), study.lm, arm.steps or study.steps
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
        picked = [examples[i] for i in rng.integers(0, len(examples), study.batch)]
        features, batch = feed(rng, picked, lm.questions, lm.key_weight)
        optimiser.set_rate(learning_rate(step, steps, lm.warmup, lm.lr))
        for part in (reader.language_model, reader.lm_head):
            part.requires_grad_(step >= study.align)
        each = token_losses(reader(features, batch), batch)
        optimiser.descend(reader, mean_of(each, batch.weights))
        step += 1
        if step % 50 == 0:
            answer = mean_of(each, batch.weights == 1).item()
            log.write(step=step, tokens=batch.kept.shape[1], answer=answer)
        if step % SAVE_EVERY == 0 or step == steps:
            save_state(folder / "state", reader, optimiser, step)
    val = [("val", 0)]
    judged = Feed(arm, Blocks(data, val, width), study.selector)
    log.write(val=step, **evaluate(reader, load_questions(data, val), judged))
    return reader
