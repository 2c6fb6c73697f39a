"""Exact match of greedy answers without a generate loop.

A greedy answer equals the gold one exactly when, with the gold answer appended to the prompt, the
arg-max before each of its tokens (the end-of-sequence token included) is that token. One forward
pass per batch then scores it; `tests/unit/test_eval_score.py` holds it against `generate`.

N prompts of a batch, T tokens of a prompt, A tokens of an answer.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tokensieve.cost.flops import prefill_flops_by_layer
from tokensieve.cost.shapes import TransformerShape
from tokensieve.errors import PromptError
from tokensieve.evaluate.tasks import Item
from tokensieve.hf.asked import Asked
from tokensieve.hf.compress import apply_plan, compress, stage_plan
from tokensieve.hf.encoder.encode import Encoded, encode
from tokensieve.hf.plan import Plan
from tokensieve.hf.prompt.template import picture_prompt
from tokensieve.hf.report import Call
from tokensieve.hf.runtime.devices import input_device
from tokensieve.methods.base import Method
from tokensieve.types import Signal

IGNORE = -100


@dataclass(frozen=True)
class Batch:
    """Encoded pictures with questions and gold answers: compressed many times."""

    items: tuple[Item, ...]
    encoded: Encoded


@dataclass(frozen=True)
class Outcome:
    """One batch under one method and `keep`; lists are per prompt.

    select_ms is of the whole batch.
    """

    hits: list[bool]
    visual_tokens: int
    kept_tokens: int
    prompt_tokens: list[int]
    flops: list[int]
    select_ms: float
    layer_tokens: float  # visual tokens of all prompts in a layer of the LLM, the layers' mean


def prepare(
    model: Any, processor: Any, items: Sequence[Item], form: str = "image-first",
    signals: Collection[Signal] = (),
) -> Batch:  # fmt: skip
    """Encode the pictures once, gold answers appended as labels; `form`: see `prompt`.

    signals: what methods will ask of the encoder's attention.
    """
    inputs = processor(
        images=[item.image for item in items],
        text=[prompt(processor, item.question.text, form) for item in items],
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )
    answers = [answer_ids(processor, item.question.answer) for item in items]
    with torch.no_grad():
        encoded = encode(
            model, append(dict(inputs.to(input_device(model))), answers), signals=signals
        )
    for layers in ("hidden_states", "attentions", "last_hidden_state"):
        if getattr(encoded.output, layers, None) is not None:
            setattr(encoded.output, layers, None)  # 0.7 GB per 1,000 pictures that nothing reads
    return Batch(tuple(items), encoded)


def prompt(processor: Any, question: str, form: str = "image-first") -> str:
    """The chat prompt of one picture and a question; "ask-first" has the question in front too."""
    return picture_prompt(processor, question, in_front=form == "ask-first")[0]


def answer_ids(processor: Any, answer: str) -> list[int]:
    """Tokens a model must produce for `answer`, the end of the sequence included.

    Raises `PromptError` where the answer has a word the vocabulary lacks.
    """
    tokenizer = processor.tokenizer
    ids = list(tokenizer(answer, add_special_tokens=False)["input_ids"])
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids:
        raise PromptError(f"Expected an answer within the vocabulary. Got '{answer}'.")
    return [*ids, tokenizer.eos_token_id]


def append(inputs: dict[str, Any], answers: Sequence[list[int]]) -> dict[str, Any]:
    """Left-padded prompt inputs with answers to their right, as ids and as labels.

    inputs["input_ids"]: (N, T) -> (N, T + A); every other (N, T) tensor is continued by zeros,
    the mask by ones over the answer.
    """
    ids_NT: Tensor = inputs["input_ids"]
    shape, longest = ids_NT.shape, max(map(len, answers))
    right_NA = torch.full((shape[0], longest), IGNORE, dtype=ids_NT.dtype)
    for row, ids in zip(right_NA, answers, strict=True):
        row[: len(ids)] = torch.tensor(ids, dtype=ids_NT.dtype)
    real_NA = right_NA != IGNORE
    out = dict(inputs)
    for name, value in inputs.items():
        if isinstance(value, Tensor) and value.shape == shape:
            out[name] = torch.cat([value, torch.zeros_like(right_NA).to(value.dtype)], 1)
    out["input_ids"] = torch.cat([ids_NT, right_NA.where(real_NA, ids_NT.new_zeros(()))], 1)
    mask_NT = inputs.get("attention_mask", torch.ones_like(ids_NT))
    out["attention_mask"] = torch.cat([mask_NT, real_NA.to(mask_NT.dtype)], 1)
    out["labels"] = torch.cat([torch.full_like(ids_NT, IGNORE), right_NA], 1)
    return out


def score(
    model: Any,
    batch: Batch,
    method: Method,
    keep: float | int,
    *,
    positions: str,
    layer: int | None = None,
) -> Outcome:
    """Shorten the batch with the library's own code, and mark each answer.

    layer: the LLM's layer from which on only kept tokens remain; None: the method's own, or they
        never reach it.
    """
    keys = [item.ordinal for item in batch.items]
    with torch.no_grad():
        plan = Plan.of(model, Asked(method, keep, positions, layer=layer))
        stages = None
        if plan.stages:
            short, stages = stage_plan(model, plan, batch.encoded, keys)
        else:
            short = apply_plan(model, plan, batch.encoded, keys)
        inputs = dict(short.inputs)
        labels_NT = inputs.pop("labels")
        with nullcontext() if stages is None else stages.at_work():
            logits = model(**inputs, use_cache=False).logits
        hits_N = all_right(logits, labels_NT)
    call = short.report.calls[0] if stages is None else stages.call(short.report.calls[0].ms)
    lengths_N = inputs["attention_mask"].sum(1) - (labels_NT != IGNORE).sum(1)
    shape = TransformerShape.of_llm(model.config)
    dropped_N = [
        [0] * shape.layers if stages is None else dropped_by_layer(call, i, shape.layers)
        for i in range(len(batch.items))
    ]
    lengths = [
        [n - gone for gone in dropped]
        for n, dropped in zip(lengths_N.tolist(), dropped_N, strict=True)
    ]
    return Outcome(
        hits=hits_N.tolist(),
        visual_tokens=call.visual_tokens,
        kept_tokens=call.kept_tokens,
        prompt_tokens=[round(sum(of_prompt) / shape.layers) for of_prompt in lengths],
        flops=[prefill_flops_by_layer(shape, of_prompt) for of_prompt in lengths],
        select_ms=call.ms.get("select", 0.0),
        layer_tokens=sum(call.tokens_by_layer(shape.layers)) / shape.layers,
    )


def dropped_by_layer(call: Call, prompt: int, layers: int) -> list[int]:
    """Visual rows that prompt number `prompt` lacks in each layer of the LLM."""
    out = []
    for number in range(layers):
        past = [stage for stage in call.stages if stage.layer <= number]
        images = past[-1].prompts[prompt].images if past else ()
        out.append(sum(image.tokens - image.kept for image in images))
    return out


def is_identity(model: Any, batch: Batch, method: Method) -> bool:
    """Whether `method` at keep 1 hands the LLM exactly, bit for bit, what "full" hands it."""
    with torch.no_grad():
        ours, full = (compress(model, batch.encoded, m, 1.0).inputs for m in (method, "full"))
    if set(ours) != set(full) or not torch.equal(ours["input_ids"], full["input_ids"]):
        return False
    rows = [x["mm_encoder_outputs"]["image"]["pooler_output"] for x in (ours, full)]
    return len(rows[0]) == len(rows[1]) and all(map(torch.equal, *rows))


def all_right(logits: Tensor, labels: Int[Tensor, "N T"]) -> Bool[Tensor, "N"]:
    """Whether every labelled token of each prompt is the arg-max just before it.

    logits: (N, T, vocabulary).
    """
    guess, gold = logits[:, :-1].argmax(-1), labels[:, 1:]
    return ((guess == gold) | (gold == IGNORE)).all(-1)
