"""What a method leaves of the pictures of a call, before anything is shortened.

B prompts, N rows of a picture, R visual rows of all prompts, D LLM width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tokensieve.errors import BudgetError, UnsupportedError
from tokensieve.hf.encoder.encode import Encoded, assign_prompts, encode
from tokensieve.hf.encoder.inside import encode_inside
from tokensieve.hf.encoder.patches import encode_fewer
from tokensieve.hf.encoder.places import lay_out
from tokensieve.hf.encoder.reduction import ImageReduction
from tokensieve.hf.encoder.resize import blank_rows
from tokensieve.hf.families.table import family_of
from tokensieve.hf.plan import Plan
from tokensieve.hf.prompt.compaction import Rows
from tokensieve.hf.prompt.reduce import reduce_images
from tokensieve.hf.report import PromptReport, prompt_reports, row_mask
from tokensieve.hf.runtime.arguments import require_keys
from tokensieve.hf.runtime.timing import timed
from tokensieve.hf.steady import Steady
from tokensieve.types import Site


@dataclass(frozen=True)
class Choice:
    """The pictures as they were, and what stays of them.

    masks: (N,) per picture, which of its rows stay. new_rows: (R, D) all rows with the values a
    method made; None where it made none. whole: that all rows stay is known beforehand. protected:
    (n, L) per picture, as of `ImageReduction`; empty where nothing is. made: of each picture, where
    something was chosen.
    """

    encoded: Encoded
    masks: list[Tensor]
    new_rows: Tensor | None
    prompts: tuple[PromptReport, ...]
    ms: dict[str, float]
    whole: bool = False
    protected: tuple[Tensor, ...] = ()
    made: tuple[ImageReduction, ...] = ()

    @property
    def keep_R(self) -> Tensor:
        """Which of all visual rows stay."""
        return torch.cat(self.masks)

    def rows(self, keep_R: Tensor) -> Rows | None:
        """The rows in `keep_R` as the model takes them; None if that is none."""
        if not self.whole and not bool(keep_R.any()):
            return None
        encoded = self.encoded
        prompt_of = assign_prompts(encoded.places, encoded.item_rows)
        return Rows.of(encoded.output, keep_R, self.new_rows, prompt_of)


def choose(
    model: Any, plan: Plan, inputs: Mapping[str, Any] | Encoded, keys: Sequence[int] | None = None,
    read: Mapping[int, int] | None = None,
) -> Choice:  # fmt: skip
    """Run the encoder where that is still to be done, and `plan`'s method on what it gives.

    read: crops of each prompt that an earlier turn has read.
    """
    if plan.method.unmerges:
        raise UnsupportedError(
            f"Expected '{plan.name}' with unmerge in a `sieve`, by itself and in a chat's first "
            "turn, since it is at work inside the LLM. Leave `unmerge` out."
        )
    if plan.steady is not None:
        return _steadied(model, plan, plan.steady, inputs, keys, read)
    if _keeps_all(plan):
        return _all(model, plan, inputs, keys)
    inside = None
    if plan.method.site is Site.ENCODER and plan.keep != 1:
        given = inputs.inputs if isinstance(inputs, Encoded) else inputs
        encoded, inside = encode_inside(model, plan.method, plan.keep, given, keys, read)
    elif plan.method.site is Site.PATCHES:
        encoded, inside = _before_encoder(model, plan, inputs, keys, read)
    else:
        encoded = inputs if isinstance(inputs, Encoded) else _encode(model, plan, inputs)
        encoded = replace(encoded, read=read or {})
        if plan.watch is not None and encoded.output is not None and not encoded.blank:
            plan.watch.see(encoded.images)
    ids, ms = encoded.inputs["input_ids"], dict(encoded.ms)
    require_keys(keys, len(ids))
    if not encoded.packings:  # prompts without pictures
        return Choice(encoded, [], None, tuple(PromptReport(()) for _ in ids), ms)
    stage = "encode" if plan.method.site is Site.PIXELS else "select"
    with timed(ms, stage, ids.device):
        reductions = inside or reduce_images(
            model, plan.method, encoded, plan.keep, plan.spread, keys
        )
        masks = [
            row_mask(packing, reduction.kept_nL, drop_newlines=plan.drop_newlines)
            for packing, reduction in zip(encoded.packings, reductions, strict=True)
        ]
        new_rows = changed_rows(encoded, reductions)
    if encoded.blank and new_rows is None:  # nothing to resize after all
        return choose(model, plan, encode(model, encoded.inputs), keys, read)
    prompts = prompt_reports(encoded, reductions, masks)
    protected = tuple(r.protected_nL for r in reductions if r.protected_nL is not None)
    return Choice(
        encoded, masks, new_rows, prompts, ms, protected=protected, made=tuple(reductions)
    )


def _steadied(
    model: Any, plan: Plan, steady: Steady, inputs: Mapping[str, Any] | Encoded,
    keys: Sequence[int] | None, read: Mapping[int, int] | None,
) -> Choice:  # fmt: skip
    """The same with a `keep` that makes up for what earlier calls kept."""
    try:
        corrected = replace(plan, keep=steady.now, steady=None)
        choice = choose(model, corrected, inputs, keys, read)
    except BudgetError:  # beyond what the method can reach, which what was asked may not be
        choice = choose(model, replace(plan, steady=None), inputs, keys, read)
    steady.saw(choice.prompts)
    return choice


def _before_encoder(
    model: Any, plan: Plan, inputs: Mapping[str, Any] | Encoded, keys: Sequence[int] | None,
    read: Mapping[int, int] | None,
) -> tuple[Encoded, list[ImageReduction]]:  # fmt: skip
    """What the method chooses by pixels, and the pictures encoded without the rest."""
    given = inputs.inputs if isinstance(inputs, Encoded) else inputs
    laid_out, ms = replace(lay_out(model, given), read=read or {}), dict[str, float]()
    require_keys(keys, len(laid_out.inputs["input_ids"]))
    if not laid_out.packings:
        return laid_out, []
    with timed(ms, "select", laid_out.inputs["input_ids"].device):
        made = reduce_images(model, plan.method, laid_out, plan.keep, plan.spread, keys)
    encoded = encode_fewer(model, laid_out, [one.kept_nL for one in made])
    return replace(encoded, ms={**encoded.ms, **ms}), made


def _keeps_all(plan: Plan) -> bool:
    """Whether nothing is to be chosen: every method keeps all when it is asked to."""
    method = plan.method
    return plan.keep == 1 and method.budgeted and method.exact and method.reads_picture


def _all(
    model: Any, plan: Plan, inputs: Mapping[str, Any] | Encoded, keys: Sequence[int] | None
) -> Choice:
    """The pictures as they are; no attention need be read for that."""
    encoded = inputs if isinstance(inputs, Encoded) else encode(model, inputs, features=False)
    require_keys(keys, len(encoded.inputs["input_ids"]))
    reductions = [ImageReduction(packing.valid_nL) for packing in encoded.packings]
    masks = [
        row_mask(packing, packing.valid_nL, drop_newlines=True)
        if plan.drop_newlines
        else torch.ones_like(packing.origin_N, dtype=torch.bool)
        for packing in encoded.packings
    ]
    prompts = prompt_reports(encoded, reductions, masks)
    whole = bool(masks) and not plan.drop_newlines
    return Choice(encoded, masks, None, prompts, dict(encoded.ms), whole)


def _encode(model: Any, plan: Plan, inputs: Mapping[str, Any]) -> Encoded:
    """The encoder is run here, unless the method looks at no picture or runs it itself."""
    resizes = plan.method.site is Site.PIXELS and plan.keep != 1
    laid_out = plan.method.reads_picture and resizes and family_of(model).resizable
    if not laid_out:
        asked = plan.signals(model)
        return encode(model, inputs, run=plan.method.reads_picture, signals=asked)
    encoded = encode(model, inputs, run=False)
    ready = encoded.output is None and all(p.grid is not None for p in encoded.packings)
    return blank_rows(model, encoded) if ready else encode(model, inputs)


def changed_rows(encoded: Encoded, reductions: Sequence[ImageReduction]) -> Tensor | None:
    """(R, D) the rows with new values where a method made any; None if none did."""
    if all(reduction.rows_nLD is None for reduction in reductions):
        return None
    rows = []
    for old_ND, packing, reduction in zip(
        encoded.images, encoded.packings, reductions, strict=True
    ):
        new = old_ND
        if reduction.rows_nLD is not None:
            origin_N = packing.origin_N.to(old_ND.device)
            values = reduction.rows_nLD.flatten(0, 1).to(old_ND)[origin_N.clamp(min=0)]
            new = torch.where((origin_N >= 0)[:, None], values, old_ND)
        rows.append(new)
    return torch.cat(rows)
