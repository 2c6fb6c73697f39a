"""Ask a model about pictures with fewer visual tokens, and say what it cost.

The use case behind `tokensieve ask` and the demo.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from tokensieve.budget import Pool, check_keep
from tokensieve.cost.flops import decode_flops_by_layer, prefill_flops_by_layer
from tokensieve.cost.kv import kv_bytes
from tokensieve.cost.shapes import TransformerShape
from tokensieve.cost.training import selector_flops
from tokensieve.errors import ConfigError, TokensieveError, UnsupportedError
from tokensieve.evaluate.answer import Answer, Refused
from tokensieve.evaluate.prepare import Pictures, prepared
from tokensieve.fields import check_fields, option
from tokensieve.hf.models.loaded import Loaded
from tokensieve.hf.report import Call, Report
from tokensieve.hf.sieve import sieve
from tokensieve.methods.registry import method_class
from tokensieve.nn.config import SelectorConfig
from tokensieve.types import Site

STAGES = ("encode", "select", "prefill", "decode")
BASELINES = {"full": 1.0, "none": 0.0}  # what they keep, whatever is asked
PLAN = ("layer", "recycle", "cover", "site", "newlines", "frames", "trusted")  # for any method


@dataclass(frozen=True)
class Settings:
    """How to ask: what `sieve` takes, and how long the answer may be.

    keep: a fraction, or the most tokens a picture keeps (pool="prompt": a prompt).
    ask_first: the question stands before the pictures too, as conditional methods need it.
    layer, recycle, cover, site, newlines, frames, trusted: as of `sieve`; the baselines "full" and
        "none" take the last alone.
    options: fields of methods (`seed`, `weights`, ...); each method gets those it has.
    by_method: the same for one method, by its name, on top.
    """

    keep: float | int = 0.4
    positions: str = option("keep", choices=("keep", "renumber"))
    pool: str = option("crop", choices=tuple(Pool))
    max_new_tokens: int = option(64, low=1)
    layer: int | None = option(None, low=1)
    recycle: bool = False
    cover: int = option(0, low=0)
    site: str | None = option(None, choices=("patches",))
    newlines: str = option("keep", choices=("keep", "drop"))
    frames: str | int | None = None
    ask_first: bool = False
    trusted: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    by_method: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_keep(self.keep)
        check_fields(self)
        for method in self.by_method:
            method_class(method)

    def plan(self, method: str) -> dict[str, Any]:
        """The arguments of `sieve` beside `method` and its keep."""
        known = method_class(method).__dataclass_fields__
        own = {name: value for name, value in self.options.items() if name in known}
        own |= self.by_method.get(method, {})
        names = ("trusted",) if method in BASELINES else PLAN
        plan = {name: getattr(self, name) for name in names}
        return {"positions": self.positions, "pool": self.pool, **plan, **own}


def ask(
    loaded: Loaded, pictures: Pictures, question: str, method: str, settings: Settings
) -> Answer:
    """The model's answer to `question` about pictures and videos, read through `method`.

    Raises `UnknownNameError` for the method, `BudgetError` for the keep, `PromptError` for a
    question that is empty or holds an image placeholder, `UnsupportedError` for several pictures
    where the model's chat template takes one or for a video that it takes none of, and whatever the
    sieve raises.
    """
    if not isinstance(loaded, Loaded) or not isinstance(settings, Settings):
        raise ConfigError(
            "Expected what `load_model` returns, and `Settings`. Got a "
            f"{type(loaded).__name__} and a {type(settings).__name__}. Pass load_model('nano')."
        )
    method_class(method)
    keep = BASELINES.get(method, check_keep(settings.keep))
    inputs = prepared(loaded, pictures, question, in_front=settings.ask_first)
    before = inputs["input_ids"].shape[1]
    with (
        torch.no_grad(),
        sieve(loaded.model, method, keep or 1.0, **settings.plan(method)) as report,
    ):
        output = loaded.model.generate(
            **inputs,
            max_new_tokens=settings.max_new_tokens,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    return answered(loaded, method, keep, (output, before, before), report)


def answered(
    loaded: Loaded, method: str, keep: float | int, said: tuple[Any, int, int], report: Report
) -> Answer:
    """The `Answer` of one call of `generate` with logits that `report` tells of.

    said: its output, where in its sequence the answer begins, and tokens of the whole prompt.
    """
    output, begins, whole = said
    new = output.sequences[0, begins:]
    text = whole - report.visual_tokens
    return Answer(
        answer=loaded.processor.decode(new, skip_special_tokens=True).strip(),
        model=loaded.name,
        method=method,
        keep=keep,
        visual_tokens=report.visual_tokens,
        kept_tokens=report.kept_tokens,
        prompt_tokens=text + report.calls[0].tokens_by_layer(1)[0],
        new_tokens=len(new),
        ms={stage: round(report.ms.get(stage, 0.0), 3) for stage in STAGES},
        sure=round(least_likely(output, new), 4),
        images=tuple(i for call in report.calls for row in call.prompts for i in row.images),
        **_cost(loaded.model, text, report, len(new)),
    )


def least_likely(output: Any, new: Tensor) -> float:
    """The smallest probability that the model gave to one of the `new` tokens of an `output` of
    `generate` with logits; of beams, on the way of the one that was taken."""
    beams = output.get("beam_indices")
    rows = [0] * len(new) if beams is None else beams[0].tolist()
    return min(
        float(step[row].float().softmax(-1)[token])
        for step, row, token in zip(output.logits, rows, new.tolist(), strict=False)
        if row >= 0
    )


def run(
    loaded: Loaded,
    pictures: Pictures,
    question: str,
    methods: Sequence[str],
    settings: Settings,
) -> list[Answer | Refused]:
    """One answer a method, each method once, in the order given.

    Where there are several, a throw-away run goes first, so that none pays for the first call; and
    one that does not fit leaves the others standing.

    Raises what `ask` raises for one method, or for all: what is wrong with model, pictures or
    question. `UnsupportedError`, with the reasons, where none of several fits for reasons that
    differ.
    """
    once = list(dict.fromkeys(methods))
    if not once:
        return []
    if len(once) == 1:
        return [ask(loaded, pictures, question, once[0], settings)]
    ask(loaded, pictures, question, "full", Settings(max_new_tokens=2))
    found: list[Answer | Refused] = []
    refused = []
    for method in once:
        try:
            found.append(ask(loaded, pictures, question, method, settings))
        except TokensieveError as error:
            refused.append(Refused(method, " ".join(str(error).split())))
            found.append(refused[-1])
            last = error
    if len(refused) == len(once):
        if len({one.reason for one in refused}) == 1:
            raise last
        reasons = " ".join(f"{one.method}: {one.reason}" for one in refused)
        raise UnsupportedError(f"Expected a method that fits. Got reasons against each. {reasons}")
    return found


def _cost(model: Any, text: int, report: Report, new: int) -> dict[str, Any]:
    """Of a prompt of `text` tokens beside the visual ones, of which each layer holds its own."""
    call = report.calls[0]
    try:
        shape = TransformerShape.of_llm(model.config)
    except UnsupportedError:
        return {"kv_bytes": None, "llm_flops": None, "flops": {}}
    prompts = [text + visual for visual in call.tokens_by_layer(shape.layers)]
    flops = {
        "prefill": prefill_flops_by_layer(shape, prompts),
        "decode": decode_flops_by_layer(shape, prompts, new),
    }
    if report.scorers:
        flops["selection"] = sum(scoring_flops(one, call) for one in report.scorers)
    single, cached = replace(shape, layers=1), max(0, new - 1)
    return {
        "kv_bytes": sum(kv_bytes(single, prompt + cached, model.dtype) for prompt in prompts),
        "llm_flops": flops["prefill"] + flops["decode"],
        "flops": flops,
    }


def scoring_flops(scorer: SelectorConfig, call: Call) -> int:
    """FLOPs of the network that scored the pictures of a call: crop by crop, inside the LLM all
    visual tokens of a prompt at once."""
    if scorer.encoder.site is Site.LLM:
        lengths = [sum(one.tokens for one in prompt.images) for prompt in call.prompts]
    else:
        images = [one for prompt in call.prompts for one in prompt.images]
        lengths = [len(crop.valid) for one in images for crop in one.crops]
    return sum(selector_flops(scorer, length) for length in lengths)
