"""Transformers' Trainer under a sieve lowers the loss of a tiny model of each kind."""

from __future__ import annotations

import copy

import pytest
import torch

from families.methods import ByNorm
from families.tiny import NAMES, build
from tokensieve import sieve

pytest.importorskip("accelerate")
KINDS = [n for n in ("llava", "llava_next", "qwen2_5_vl", "internvl", "idefics3", "gemma3",
                     "paligemma") if n in NAMES]  # fmt: skip
STEPS = 6


def trained(model, inputs, folder, **more):
    """The losses of a few steps on one batch."""
    from transformers import Trainer, TrainingArguments

    options = TrainingArguments(
        str(folder), max_steps=STEPS, per_device_train_batch_size=1, learning_rate=3e-3,
        logging_steps=1, save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True,
        remove_unused_columns=False, lr_scheduler_type="constant", **more,
    )  # fmt: skip
    trainer = Trainer(
        model, options, train_dataset=[0] * STEPS, data_collator=lambda _: dict(inputs)
    )
    trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def labelled(tiny):
    inputs = tiny.inputs([1])
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    place = labels == tiny.model.config.image_token_id
    return {**inputs, "labels": labels.masked_fill(place, -100)}


@pytest.mark.parametrize("name", KINDS)
def test_the_loss_falls(name, tmp_path):
    tiny = build(name)
    model = copy.deepcopy(tiny.model).train()
    with sieve(model, ByNorm(), 0.5) as report:
        losses = trained(model, labelled(tiny), tmp_path)
    assert len(losses) == STEPS
    assert losses[-1] < 0.9 * losses[0]
    assert report.kept_tokens < report.visual_tokens


def test_lora_learns_and_nothing_else_does(tmp_path):
    peft = pytest.importorskip("peft")
    tiny = build("llava")
    model = copy.deepcopy(tiny.model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    options = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "o_proj"])
    tuned = peft.get_peft_model(model, options).train()
    with sieve(model, ByNorm(), 0.5) as report:
        losses = trained(tuned, labelled(tiny), tmp_path)
    assert losses[-1] < losses[0]
    assert report.kept_tokens < report.visual_tokens
    plain = tuned.unload().state_dict()
    assert all(torch.equal(plain[k], v) for k, v in before.items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_learns_too(dtype):
    tiny = build("llava")
    model = copy.deepcopy(tiny.model).to(dtype).train()
    inputs = labelled(tiny)
    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = []
    with sieve(model, ByNorm(), 0.5):
        for _ in range(STEPS):
            loss = model(**inputs).loss
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
            losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
