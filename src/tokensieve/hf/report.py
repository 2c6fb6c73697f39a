"""What a sieve did: tokens before and after, kept positions per crop, times.

k kept tokens of a crop, L tokens of a crop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from threading import Lock

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tokensieve.budget import Pool
from tokensieve.hf.encoder.encode import Encoded
from tokensieve.hf.encoder.reduction import ImageReduction
from tokensieve.hf.families.layout import Packing
from tokensieve.nn.config import SelectorConfig

_LOCK = Lock()  # one for all: a report can be copied and pickled


@dataclass(frozen=True)
class CropReport:
    """One crop of a picture.

    grid: (rows, columns) of its tokens, row-major; None where tokens have no grid.
    valid: (L,) False where a token never reaches the LLM, kept or not (padding of the crop).
    kept: (k,) sorted positions that reach the LLM.
    assign: (L,) position of the kept token that absorbed each token, -1 if gone; None: no merging.
    """

    grid: tuple[int, int] | None
    valid: Bool[Tensor, "L"]
    kept: Int[Tensor, "k"]
    assign: Int[Tensor, "L"] | None = None


@dataclass(frozen=True)
class ImageReport:
    """One picture: rows it takes in the prompt before and after, and its crops.

    tokens, kept: all rows, the structural ones (newline rows of LLaVA-NeXT) included.
    structural: newline rows among the `kept`.
    video: it is a video, and its crops are frames.
    """

    tokens: int
    kept: int
    structural: int
    crops: tuple[CropReport, ...]
    video: bool = False


@dataclass(frozen=True)
class PromptReport:
    """One prompt of the batch and its pictures, in order."""

    images: tuple[ImageReport, ...]


@dataclass(frozen=True)
class StageReport:
    """What a stage inside the LLM left: its prompts from decoder layer `layer` on.

    Layer 0: what a method before the LLM left, where two were composed.
    """

    layer: int
    prompts: tuple[PromptReport, ...]

    @property
    def kept_tokens(self) -> int:
        """Visual rows the prompts hold from this layer on."""
        return sum(image.kept for prompt in self.prompts for image in prompt.images)


@dataclass(frozen=True)
class Call:
    """One `generate`, forward or `compress`.

    ms: milliseconds by stage: "encode", "select" and, inside a sieve, "prefill", "decode".
    stages: what was dropped inside the LLM, in order; `prompts` is then what the last one left.
    """

    prompts: tuple[PromptReport, ...]
    ms: dict[str, float] = field(default_factory=dict)
    stages: tuple[StageReport, ...] = ()

    def tokens_by_layer(self, layers: int) -> list[int]:
        """Visual rows that each of the LLM's `layers` layers holds."""
        out = []
        whole = self.visual_tokens if self.stages else self.kept_tokens
        for number in range(layers):
            past = [stage.kept_tokens for stage in self.stages if stage.layer <= number]
            out.append(past[-1] if past else whole)
        return out

    @property
    def visual_tokens(self) -> int:
        """Visual rows the prompts held before."""
        return sum(image.tokens for prompt in self.prompts for image in prompt.images)

    @property
    def kept_tokens(self) -> int:
        """Visual rows the prompts hold after."""
        return sum(image.kept for prompt in self.prompts for image in prompt.images)


@dataclass
class _Totals:
    """Sums over calls. layers: where tokens were dropped inside the LLM."""

    calls: int = 0
    visual_tokens: int = 0
    kept_tokens: int = 0
    ms: dict[str, float] = field(default_factory=dict)
    layers: set[int] = field(default_factory=set)

    def add(self, call: Call) -> None:
        self.calls += 1
        self.visual_tokens += call.visual_tokens
        self.kept_tokens += call.kept_tokens
        for stage, spent in call.ms.items():
            self.ms[stage] = self.ms.get(stage, 0.0) + spent
        self.layers |= {stage.layer for stage in call.stages if stage.layer}


@dataclass
class Report:
    """Everything a sieve did while it was open.

    keep: as asked; a whole number is the most tokens of a picture, or with pool "prompt" of all
    pictures of a prompt together.
    calls: the last `history` calls of the model, in the order they ended; None: all of them.
    Counts and times are of all calls, those no longer held included.
    trained_by: how the method's weights were trained, "not said" included; None: it has none.
    scorers: sizes of the networks that scored.
    """

    method: str
    keep: float | int
    calls: list[Call] = field(default_factory=list)
    pool: Pool = Pool.CROP
    history: int | None = None
    trained_by: str | None = None
    scorers: tuple[SelectorConfig, ...] = ()
    _past: _Totals = field(default_factory=_Totals)

    def add(self, call: Call) -> None:
        """Note a call, from any thread; the oldest one goes where there are too many."""
        with _LOCK:
            self.calls.append(call)
            while self.history is not None and len(self.calls) > self.history:
                self._past.add(self.calls.pop(0))

    @property
    def totals(self) -> _Totals:
        """Counts and times over all calls."""
        with _LOCK:
            total = replace(self._past, ms=dict(self._past.ms), layers=set(self._past.layers))
            for call in self.calls:
                total.add(call)
        return total

    @property
    def visual_tokens(self) -> int:
        """Visual rows before, over all calls."""
        return self.totals.visual_tokens

    @property
    def kept_tokens(self) -> int:
        """Visual rows after, over all calls."""
        return self.totals.kept_tokens

    @property
    def ms(self) -> dict[str, float]:
        """Milliseconds by stage, summed over all calls."""
        return self.totals.ms

    def __str__(self) -> str:
        all_ = self.totals
        share = f" ({all_.kept_tokens / all_.visual_tokens:.0%})" if all_.visual_tokens else ""
        times = ", ".join(f"{stage} {spent:.1f} ms" for stage, spent in all_.ms.items())
        calls = f"{all_.calls} call" + ("" if all_.calls == 1 else "s")
        layers = " and ".join(map(str, sorted(all_.layers)))
        where = f" from layer {layers} of the LLM on" if layers else ""
        text = (
            f"{self.method} at keep={self._budget()}: {all_.kept_tokens} of {all_.visual_tokens} "
            f"visual tokens{share}{where} in {calls}"
        )
        told = f"; weights trained by: {self.trained_by}" if self.trained_by else ""
        return f"{text}; {times}{told}" if times else f"{text}{told}"

    def _budget(self) -> str:
        return (
            f"{self.keep} a {self.pool.total_of}" if isinstance(self.keep, int) else f"{self.keep}"
        )


def row_mask(
    packing: Packing, kept_nL: Bool[Tensor, "n L"], *, drop_newlines: bool
) -> Bool[Tensor, "N"]:
    """(N,) which rows of a picture stay. A picture without tokens has no newlines either."""
    origin_N = packing.origin_N
    kept = kept_nL.flatten().to(origin_N.device)
    mask = kept[origin_N.clamp(min=0)]
    structural = bool(kept.any()) and not drop_newlines
    return torch.where(origin_N >= 0, mask, torch.full_like(mask, structural))


def prompt_reports(
    encoded: Encoded, reductions: Sequence[ImageReduction], masks: Sequence[Tensor]
) -> tuple[PromptReport, ...]:
    """What a reduction left of every picture, by prompt; masks: which rows of it stay."""
    images: list[list[ImageReport]] = [[] for _ in encoded.inputs["input_ids"]]
    kinds = encoded.kinds or ("image",) * len(masks)
    for prompt, packing, reduction, mask, kind in zip(
        encoded.prompt_of, encoded.packings, reductions, masks, kinds, strict=True
    ):
        valid = packing.valid_nL
        crops = tuple(
            CropReport(
                packing.grid,
                valid[c],
                reduction.kept_nL[c].nonzero()[:, 0],
                None if reduction.assign_nL is None else reduction.assign_nL[c],
            )
            for c in range(packing.crops)
        )
        counts = torch.stack([mask, mask & (packing.origin_N < 0)]).sum(-1)
        kept, structural = counts.tolist()
        video = kind == "video"
        images[prompt].append(ImageReport(len(mask), kept, structural, crops, video))
    return tuple(PromptReport(tuple(of_prompt)) for of_prompt in images)


def since(first: Sequence[PromptReport], then: Sequence[PromptReport]) -> tuple[PromptReport, ...]:
    """The second report of prompts that had been shortened before, told of the whole pictures."""
    done = []
    for before, after in zip(first, then, strict=True):
        images = []
        for was, now in zip(before.images, after.images, strict=True):
            crops = tuple(
                replace(crop, valid=whole.valid)
                for whole, crop in zip(was.crops, now.crops, strict=True)
            )
            images.append(replace(now, tokens=was.tokens, crops=crops))
        done.append(PromptReport(tuple(images)))
    return tuple(done)
