"""Shortened inputs as a pure function: nothing patched, nothing handed in changed.

B prompts, S prompt length, N rows of a picture, R visual rows of all prompts.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokensieve.errors import ConfigError, PromptError, UnsupportedError
from tokensieve.hf.asked import Asked
from tokensieve.hf.cache.from_compress import told
from tokensieve.hf.cache.memory import Memory
from tokensieve.hf.calibrated import ALL, Calibration
from tokensieve.hf.choose import Choice, choose
from tokensieve.hf.encoder.encode import CONSUMED, Encoded, assign_prompts, encode
from tokensieve.hf.encoder.reduction import ImageReduction
from tokensieve.hf.families.positions import mask_of, original_positions
from tokensieve.hf.families.table import family_of
from tokensieve.hf.llm.stage import Before
from tokensieve.hf.llm.stages import Stages
from tokensieve.hf.plan import Plan as Plan
from tokensieve.hf.prompt.compaction import (
    Gather,
    Rows,
    gather_positions,
    gather_sequences,
    pads_left,
)
from tokensieve.hf.prompt.order import warn_of_order
from tokensieve.hf.prompt.reduce import reduce_images
from tokensieve.hf.prompt.text import without_text_mask
from tokensieve.hf.proof import prove
from tokensieve.hf.report import Call, PromptReport, Report
from tokensieve.hf.runtime.arguments import require_inputs
from tokensieve.hf.runtime.timing import timed
from tokensieve.methods.base import Method
from tokensieve.types import Site


@dataclass(frozen=True)
class Compressed:
    """Inputs of a shortened prompt. `model.generate(**compressed.inputs)` needs nothing else.

    `generate` returns the shortened prompt with its answer; `prompt_length` is where the answer
    starts. prompt_ids: (B, S) the prompt as given. gather: where each position of the shortened
    prompt comes from; None where nothing is dropped. memory: what a cache will hold then, of a
    later turn of a chat. `generate(use_cache=False)` takes position
    gaps for packed documents: there use a `sieve`, or positions="renumber".
    """

    base: dict[str, Any]
    rows: Rows | None
    report: Report
    prompt_ids: Tensor
    gather: Gather | None = None
    memory: Memory | None = None

    @property
    def shortened(self) -> bool:
        """Whether the prompt is another than was given."""
        return self.gather is not None

    @property
    def inputs(self) -> dict[str, Any]:
        """Arguments for `generate` or a forward; fresh, since `generate` changes them."""
        arguments = self.arguments
        if self.rows is not None and self.memory is not None:
            memory = self.memory
            arguments["mm_encoder_outputs"] = {
                kind: told(output, memory)
                for kind, output in arguments["mm_encoder_outputs"].items()
            }
        return arguments

    @property
    def arguments(self) -> dict[str, Any]:
        """The same for a call that notes by itself what its cache holds."""
        base = without_text_mask(self.base)
        if self.rows is None:
            return base
        return {**base, "mm_encoder_outputs": self.rows.outputs()}

    def noted(self, model: Any, inputs: Mapping[str, Any], *, renumber: bool) -> Memory:
        """What a cache holds once it has read this."""
        if self.memory is not None:
            return self.memory
        prompts = self.report.calls[0].prompts
        return Memory.of(model, inputs, self.prompt_ids, self.gather, prompts,
                         shortened=self.shortened, renumber=renumber)  # fmt: skip

    @property
    def prompt_length(self) -> int:
        """T, the length of the shortened prompt."""
        return int(self.base["input_ids"].shape[1])


def compress(
    model: Any, inputs: Mapping[str, Any] | Encoded, method: str | Method,
    keep: float | int | str = 0.4, *,
    positions: str = "keep", pool: str = "crop", newlines: str = "keep",
    keys: Sequence[int] | None = None, frames: str | int | None = None,
    recycle: bool = False, cover: int = 0, site: str | None = None,
    calibration: str | Path | Calibration | None = None, group: str = ALL,
    trusted: bool = False, **options: Any,
) -> Compressed:  # fmt: skip
    """`inputs` with fewer visual tokens; see `sieve` for the arguments.

    inputs: what the model's processor returns, or an `Encoded` of it, to run the vision encoder
        once and compress many times. Other entries (labels, generation options) stay.
    keys: one integer per prompt that seeds what is random, so that it differs between pictures.

    Raises `ConfigError`, `PromptError`, `NonFiniteError`, `UnsupportedError`; the last for methods
    of the site "llm", which shorten what is inside the model, not its inputs.
    """
    asked = Asked(
        method, keep, positions, pool, newlines, None, recycle, cover, site, options,
        calibration, group, frames, trusted,
    )  # fmt: skip
    return apply_plan(model, Plan.of(model, asked, pure=True), inputs, keys)


def apply_plan(
    model: Any, plan: Plan, inputs: Mapping[str, Any] | Encoded, keys: Sequence[int] | None = None
) -> Compressed:
    """`compress` with its arguments already checked."""
    return applied(model, plan, inputs, keys)[0]


def applied(
    model: Any, plan: Plan, inputs: Mapping[str, Any] | Encoded, keys: Sequence[int] | None
) -> tuple[Compressed, Choice]:
    """`apply_plan`, with the pictures as they were and which of their rows stay."""
    if not isinstance(inputs, Encoded):
        require_inputs(inputs)
    choice = choose(model, plan, inputs, keys)
    encoded = choice.encoded
    report = plan.report([Call(choice.prompts, choice.ms)])
    if not choice.masks:
        return Compressed(encoded.inputs, None, report, encoded.inputs["input_ids"]), choice
    if not plan.trusted:
        whole = plan.method.site in (Site.FEATURES, Site.EMBEDS)  # else its rows may be fewer
        seen = encoded if whole else replace(encoded, output=None)
        prove(model, seen, _Shorten(model, plan, report), renumber=plan.renumber)
    keep_R = choice.keep_R
    rows = choice.rows(keep_R)
    if choice.whole or bool(keep_R.all()):
        base = {k: v for k, v in encoded.inputs.items() if k not in CONSUMED}
        return Compressed(base, rows, report, encoded.inputs["input_ids"]), choice
    return _shorten(model, plan, encoded, keep_R, rows, report), choice


def stage_plan(
    model: Any, plan: Plan, inputs: Mapping[str, Any] | Encoded, keys: Sequence[int] | None = None
) -> tuple[Compressed, Stages | None]:
    """The whole prompt with its pictures encoded, and the stages that will shorten it inside.

    No stages for a prompt without pictures. Raises `UnsupportedError` for a method that makes new
    tokens before the LLM: inside it there is no place for them.
    """
    if any(stage.method.conditional for stage in plan.stages):
        warn_of_order(model, inputs.inputs if isinstance(inputs, Encoded) else inputs)
    if plan.before is not None:
        return _pair_plan(model, plan, plan.before, inputs, keys)
    if isinstance(inputs, Encoded):
        encoded = inputs
    else:
        encoded = encode(model, inputs, signals=plan.signals(model))
    ids, ms = encoded.inputs["input_ids"], dict(encoded.ms)
    calls = [Call(tuple(PromptReport(()) for _ in ids), ms)]
    report = plan.report(calls)
    if not encoded.packings:
        return Compressed(encoded.inputs, None, report, ids), None
    early: list[list[ImageReduction] | None] = []
    for stage in plan.stages:
        if stage.method.site is Site.LLM:
            early.append(None)
            continue
        with timed(ms, "select", ids.device):
            made = reduce_images(model, stage.method, encoded, stage.keep, plan.spread, keys)
        if any(reduction.rows_nLD is not None for reduction in made):
            raise UnsupportedError(
                f"Expected a method that drops tokens. Got '{plan.name}' with `layer`, which makes "
                "new ones before the LLM. Leave `layer` out."
            )
        early.append(made)
    kept_R = torch.ones(sum(encoded.image_rows), dtype=torch.bool, device=ids.device)
    prompt_of = assign_prompts(encoded.places, encoded.item_rows)
    base = {k: v for k, v in encoded.inputs.items() if k not in (*CONSUMED, "mm_encoder_outputs")}
    done = Compressed(base, Rows.of(encoded.output, kept_R, None, prompt_of), report, ids)
    mask = mask_of(model, encoded.inputs)
    policy = replace(plan.policy, keys=keys)
    return done, Stages(model, encoded, mask, plan.stages, early, policy)


def _pair_plan(
    model: Any, plan: Plan, before: Plan, inputs: Mapping[str, Any] | Encoded,
    keys: Sequence[int] | None,
) -> tuple[Compressed, Stages | None]:  # fmt: skip
    """The prompt shortened by one method, and the stages of another on what is left."""
    done, choice = applied(model, before, inputs, keys)
    encoded, masks = choice.encoded, choice.masks
    call = done.report.calls[0]
    done = replace(done, report=plan.report([call]))
    if not encoded.packings:
        return done, None
    packings = tuple(
        replace(packing, origin_N=packing.origin_N[mask.to(packing.origin_N.device)])
        for packing, mask in zip(encoded.packings, masks, strict=True)
    )
    short = replace(encoded, inputs=done.base, packings=packings, output=None, features=None)
    mask = mask_of(model, done.base)
    stages = Stages(
        model, short, mask, plan.stages, [None] * len(plan.stages),
        replace(plan.policy, keys=keys), Before(encoded.packings, call.prompts, choice.protected),
    )  # fmt: skip
    return done, stages


def _shorten(
    model: Any, plan: Plan, encoded: Encoded, keep_R: Tensor, rows: Rows | None, report: Report
) -> Compressed:
    inputs = encoded.inputs
    ids = inputs["input_ids"]
    mask = mask_of(model, inputs)
    positions = original_positions(model, inputs, mask)
    refuse_renumber(positions, plan)
    refuse_keep(model, plan)
    keep_BS = mask.bool().masked_scatter(encoded.places, keep_R.to(ids.device))
    keep_BS &= mask.bool()
    if not bool(keep_BS.any(-1).all()):
        raise PromptError("Expected text beside the picture. Got a prompt of which nothing stays.")
    gather = Gather.of(keep_BS, left=pads_left(mask))
    base = shortened_inputs(model, inputs, gather, positions, renumber=plan.renumber)
    done = Compressed(base, rows, report, ids, gather)
    return replace(done, memory=done.noted(model, inputs, renumber=plan.renumber))


@dataclass(frozen=True)
class _Shorten:
    """Arguments of a call that keeps some rows, however a method came to choose them."""

    model: Any
    plan: Plan
    report: Report

    def __call__(self, encoded: Encoded, keep_R: Tensor) -> dict[str, Any]:
        owners = assign_prompts(encoded.places, encoded.item_rows)
        rows = Rows.of(encoded.output, keep_R, None, owners)
        return _shorten(self.model, self.plan, encoded, keep_R, rows, self.report).arguments


def refuse_renumber(positions: Tensor, plan: Plan) -> None:
    """Raise `ConfigError` where position ids are places in a picture and are to be counted anew."""
    if positions.ndim == 3 and plan.renumber:
        raise ConfigError(
            "Expected positions='keep' for a model with multi-dimensional rotary positions "
            "(M-RoPE). Got 'renumber', which would move its tokens in the picture."
        )


def refuse_keep(model: Any, plan: Plan) -> None:
    """Raise `ConfigError` where `generate` of a family counts what is left, whatever it is told."""
    if family_of(model).recounts and not plan.renumber:
        raise ConfigError(
            f"Expected positions='renumber' for {type(model).__name__}, whose `generate` drops "
            "position ids and counts what is left. Got 'keep'."
        )


def shortened_inputs(
    model: Any, inputs: Mapping[str, Any], gather: Gather, positions: Tensor, *, renumber: bool
) -> dict[str, Any]:
    """Arguments of a call cut to `gather`, without pictures."""
    ids = inputs["input_ids"]
    gone = set(CONSUMED)
    for name in ("get_image_features", "get_video_features"):
        if (encoder := getattr(model.base_model, name, None)) is not None:
            gone |= set(inspect.signature(encoder).parameters)
    base = {k: v for k, v in inputs.items() if k not in gone and k != "mm_encoder_outputs"}
    base |= gather_sequences(gather, inputs, ids.shape)
    base["input_ids"] = gather.take(ids, _pad_id(model, inputs))
    base["attention_mask"] = gather.real_BT.to(mask_of(model, inputs).dtype)
    base["position_ids"] = gather_positions(
        gather, positions, renumber=renumber, axes=family_of(model).axes
    )
    return base


def _pad_id(model: Any, inputs: Mapping[str, Any]) -> int:
    pad = inputs.get("pad_token_id", getattr(model.generation_config, "pad_token_id", None))
    return int(pad) if isinstance(pad, int) else 0
