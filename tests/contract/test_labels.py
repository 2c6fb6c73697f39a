"""Labels and logits stand beside each other: evaluation by Transformers' Trainer."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from families.methods import ByNorm, Ragged
from families.tiny import REQUIRED, build
from tokensieve.hf.sieve import compress, sieve

every_family = pytest.mark.parametrize("name", REQUIRED)


def labelled(tiny, pictures=(1, 2)):
    inputs = tiny.inputs(list(pictures))
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    return {
        **inputs,
        "labels": labels.masked_fill(labels == tiny.model.config.image_token_id, -100),
    }


@every_family
@pytest.mark.parametrize("return_dict", [True, False])
@pytest.mark.one_of_each
def test_logits_in_evaluation_are_as_long_as_the_labels(name, return_dict):
    tiny = build(name)
    inputs = labelled(tiny)
    with torch.no_grad():
        short = compress(tiny.model, inputs, Ragged(), 0.4)
        wanted = tiny.model(**short.inputs)
        with sieve(tiny.model, Ragged(), 0.4):
            got = tiny.model(**inputs, return_dict=return_dict)
    loss, logits = (got.loss, got.logits) if return_dict else got[:2]
    assert logits.shape[:2] == inputs["labels"].shape
    assert_close(loss, wanted.loss)
    at_BS = torch.zeros_like(inputs["labels"], dtype=torch.bool)
    for b, (index, real) in enumerate(
        zip(short.gather.index_BT, short.gather.real_BT, strict=True)
    ):
        at_BS[b, index[real]] = True
    assert bool(at_BS[inputs["labels"] != -100].all())
    assert_close(logits[at_BS], wanted.logits[short.gather.real_BT], rtol=1e-4, atol=1e-4)
    assert not logits[~at_BS].any()


def test_in_training_they_are_those_of_the_shortened_prompt():
    tiny = build("llava")
    model, inputs = copy.deepcopy(tiny.model).train(), labelled(tiny)
    with sieve(model, ByNorm(), 0.4) as report:
        out = model(**inputs)
    assert out.logits.shape[1] < inputs["labels"].shape[1]
    assert report.kept_tokens < report.visual_tokens


def test_trainer_predict(tmp_path):
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    tiny = build("llava")
    row = {name: value[0] for name, value in labelled(tiny, (1,)).items()}
    arguments = TrainingArguments(
        str(tmp_path), report_to="none", use_cpu=True, remove_unused_columns=False,
        disable_tqdm=True,
    )  # fmt: skip
    with warnings.catch_warnings(), sieve(tiny.model, ByNorm(), 0.4):
        warnings.simplefilter("ignore")
        found = Trainer(tiny.model, arguments).predict([row] * 3)
    logits = found.predictions[0] if isinstance(found.predictions, tuple) else found.predictions
    assert logits.shape[:2] == found.label_ids.shape
    counted = found.label_ids != -100
    assert np.abs(logits[counted]).sum(-1).all()
