"""How a sieve shortens a prompt: before the LLM, inside it, or by merging tokens that the LLM's
attention sees unmerged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from tokensieve.errors import ConfigError, UnsupportedError
from tokensieve.hf.compress import Compressed, applied, apply_plan, stage_plan
from tokensieve.hf.families.fingerprint import patches_joined
from tokensieve.hf.families.positions import mask_of, original_positions
from tokensieve.hf.llm.stages import Stages
from tokensieve.hf.llm.unmerge import Unmerged, owners, require_unmerging
from tokensieve.hf.plan import Plan


def shorten(
    model: Any, plan: Plan, inputs: Mapping[str, Any]
) -> tuple[Compressed, Stages | Unmerged | None]:
    """What a sieve does to a prompt, and what is then at work inside the LLM."""
    if plan.stages:
        return stage_plan(model, plan, inputs)
    if plan.method.unmerges:
        return unmerge_plan(model, plan, inputs)
    return apply_plan(model, plan, inputs), None


def unmerge_plan(
    model: Any, plan: Plan, inputs: Mapping[str, Any]
) -> tuple[Compressed, Unmerged | None]:
    """The prompt shortened by merging, and what lets the LLM's attention see it unmerged.

    Raises `ConfigError` for positions="renumber", `UnsupportedError` for an LLM that does not bear
    it and an encoder that joins patches.
    """
    if plan.renumber:
        raise ConfigError(
            "Expected positions='keep' to see merged tokens unmerged, each at its place. Got "
            "'renumber'."
        )
    require_unmerging(model)
    if patches_joined(model.config) != 1:
        raise UnsupportedError(
            "Expected an encoder whose patches each become a token, to see merged ones unmerged. "
            f"Got one of '{model.config.model_type}', which joins them. Leave `unmerge` out."
        )
    merging: Any = plan.method
    plan = replace(plan, method=replace(merging, unmerge=False))
    done, choice = applied(model, plan, inputs, None)
    if done.gather is None:
        return done, None
    whole = choice.encoded.inputs
    mask = mask_of(model, whole)
    kept_BS = torch.zeros_like(mask, dtype=torch.bool)
    row, column = done.gather.real_BT.nonzero().unbind(-1)
    kept_BS[row, done.gather.index_BT[row, column]] = True
    owner_BS = owners(choice.encoded, choice.made, kept_BS)
    positions = original_positions(model, whole, mask)
    return done, Unmerged.of(model, owner_BS, done.gather, positions, done.report.calls[0])
