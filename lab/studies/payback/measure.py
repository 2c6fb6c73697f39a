"""What each shape costs: `python -m lab.studies.payback.measure SUITE`, then the page.

Times are of this thread's CPU, in turns within one run, so that other work slows all alike; weights
are drawn, since time does not depend on them; a row has those that ship. One record says, for each
model, what compressing a page and the prefill that is left take of full's prefill; another what
choosing among 2,880 tokens of an encoder of real width takes of what `divprune` takes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch

from lab import command
from lab.report.asked import picture_inputs
from lab.studies.payback.page import write_page
from lab.studies.payback.spec import BESIDE, SHIPPED, Shape, shapes
from lab.world import NANO2
from tokensieve.budget import count
from tokensieve.errors import WeightsError
from tokensieve.evaluate import records
from tokensieve.evaluate.config import load_suite
from tokensieve.evaluate.subject import Subject, load_subject
from tokensieve.hf.compress import compress
from tokensieve.hf.encoder.encode import Encoded, encode
from tokensieve.hf.families.fingerprint import encoder_info
from tokensieve.methods.base import Method
from tokensieve.methods.registry import get_method
from tokensieve.nn.config import SelectorConfig
from tokensieve.nn.selector import Selector
from tokensieve.types import EncoderInfo, VisionTokens

TIMES = Path("results/payback-time")
Name = TypeVar("Name", str, tuple[str, str])
DTYPES = ("float32", "bfloat16", "float16")
WHOLE_NETWORK_UP_TO = 1024  # width of an encoder up to which layers as wide as it are timed, too


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, write records and page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suite", type=Path, help="lab/studies/payback/suite.json")
    parser.add_argument("--models", nargs="*", default=["nano2", "nano2-next"])
    parser.add_argument("--wide", type=int, nargs="*", default=[1024, 4096], help="encoder widths")
    parser.add_argument("--tokens", type=int, default=2880)
    parser.add_argument("--dtypes", nargs="+", default=DTYPES, help="of the layers alone")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=TIMES)
    parser.add_argument("--root", type=Path, default=Path(), help="where docs/ lies")
    parser.add_argument("--page-only", action="store_true", help="rebuild the page from records")
    options = command.parse(parser, arguments)
    suite = load_suite(options.suite)
    tried = shapes(suite)
    for name in [] if options.page_only else options.models:
        subject = load_subject(name)
        encoded = page_of(subject)
        told = {"model": name, "tokens": tokens_of(subject, encoded), "keeps": suite.keeps}
        rows = whole(subject, encoded, tried, suite.keeps, options.rounds)
        save(options.out / f"{name}.json", told, {"rows": rows}, options)
    for width in [] if options.page_only else options.wide:
        rounds, vision = max(1, options.rounds // 5), wide_tokens(width, options.tokens)
        told = {"model": "", "width": width, "tokens": options.tokens, "keeps": suite.keeps}
        measured = {
            "rows": among(vision, tried, suite.keeps, rounds),
            "layers": layers(vision, tried, options.dtypes, rounds),
        }
        save(options.out / f"wide-{width}.json", told, measured, options)
    write_page(suite, options.out, options.root)


def save(path: Path, told: Mapping[str, Any], measured: Mapping[str, Any], options: Any) -> None:
    """Write one record of times."""
    config = {**told, "rounds": options.rounds, "threads": torch.get_num_threads()}
    records.write(path, {
        "form": "payback", "identity": records.identity(config), "config": config,
        **records.provenance(), **measured,
    })  # fmt: skip


def drawn(shape: Shape, info: EncoderInfo) -> Selector:
    """A selector of that shape with weights of no meaning."""
    torch.manual_seed(0)
    return Selector(shape.config(info)).eval()


def in_turns(runs: Mapping[Name, Callable[[], Any]], rounds: int) -> dict[Name, float]:
    """Milliseconds of CPU of each, medians over rounds in which all take turns."""
    spent: dict[Name, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            start = time.thread_time()
            run()
            if number:  # the first warms up
                spent[name].append(1e3 * (time.thread_time() - start))
    return {name: median(took) for name, took in spent.items()}


def page_of(subject: Subject) -> Encoded:
    """A receipt as processor and encoder hand it on."""
    with torch.inference_mode():
        return encode(subject.model, dict(picture_inputs(subject, 0, "receipt", NANO2)))


@torch.inference_mode()
def tokens_of(subject: Subject, encoded: Encoded) -> int:
    """How many visual tokens there are to choose from."""
    prompt = compress(subject.model, encoded, "full", 1.0).report.calls[0].prompts[0]
    return sum(len(crop.kept) for crop in prompt.images[0].crops)


@torch.inference_mode()
def whole(
    subject: Subject, encoded: Encoded, tried: Sequence[Shape], keeps: Sequence[float], rounds: int
) -> list[dict[str, Any]]:
    """Compressing one page and the prefill that is left, as shares of full's prefill alone; with
    the selector that ships for the model, where one does."""
    model, info = subject.model, encoder_info(subject.model)

    def prefill(inputs: Mapping[str, Any]) -> Callable[[], Any]:
        return lambda: model(**inputs, use_cache=True, logits_to_keep=1)

    def choosing(method: Method, keep: float) -> Callable[[], Any]:
        return lambda: compress(model, encoded, method, keep)

    methods = {BESIDE: subject.bound(BESIDE, {})}
    with suppress(WeightsError):
        methods[SHIPPED] = subject.bound("selector", {})
    for shape in tried:
        methods[shape.name] = get_method("selector", weights=drawn(shape, info)).bind(info)
    runs = {"full": prefill(compress(model, encoded, "full", 1.0).inputs)}
    for keep in keeps:
        left = compress(model, encoded, methods[BESIDE], keep).inputs
        runs[f"prefill {keep:g}"] = prefill(left)
        for name, method in methods.items():
            runs[f"{name} {keep:g}"] = choosing(method, keep)
    ms = in_turns(runs, rounds)
    return [
        {"name": name, "keep": keep, "choose_ms": round(chosen, 3), "left_ms": round(left_ms, 3),
         "full_ms": round(ms["full"], 3), "ratio": round((chosen + left_ms) / ms["full"], 4)}
        for keep in keeps
        for left_ms in [ms[f"prefill {keep:g}"]]
        for name in methods
        for chosen in [ms[f"{name} {keep:g}"]]
    ]  # fmt: skip


def wide_tokens(width: int, tokens: int) -> VisionTokens:
    """Random tokens of one crop, 24 in a row where that can be."""
    g = torch.Generator().manual_seed(0)
    grid = (tokens // 24, 24) if tokens % 24 == 0 else (1, tokens)
    return VisionTokens(torch.randn(1, tokens, width, generator=g) + 0.5, grid=grid)


def encoder_of(width: int) -> EncoderInfo:
    """An encoder of that width, otherwise LLaVA's."""
    return EncoderInfo("clip_vision_model", width, -2, 24, 16, 4 * width)


@torch.inference_mode()
def among(
    vision: VisionTokens, tried: Sequence[Shape], keeps: Sequence[float], rounds: int
) -> list[dict[str, Any]]:
    """Choosing among tokens, as multiples of `divprune`."""
    _, tokens, width = vision.tokens.shape
    info = encoder_of(width)
    methods: dict[str, Method] = {BESIDE: get_method(BESIDE)}
    for shape in tried:
        methods[shape.name] = get_method("selector", weights=drawn(shape, info)).bind(info)
    rows = []
    for keep in keeps:
        counts = torch.tensor([count(keep, tokens)])
        runs = {name: partial(method.reduce, vision, counts) for name, method in methods.items()}
        ms = in_turns(runs, rounds)
        rows += [
            {"name": name, "keep": keep, "choose_ms": round(took, 2),
             "ratio": round(took / ms[BESIDE], 3)}
            for name, took in ms.items()
        ]  # fmt: skip
    return rows


@torch.inference_mode()
def layers(
    vision: VisionTokens, tried: Sequence[Shape], dtypes: Sequence[str], rounds: int
) -> list[dict[str, Any]]:
    """Milliseconds of the layers alone, by precision of tokens and weights: cast by hand, since
    "auto" would spare a slow CPU what is to be measured; in the first precision also layers as
    wide as the encoder, which no shape of the suite has."""
    width = vision.tokens.shape[-1]
    info, runs = encoder_of(width), {}
    for shape in tried:
        for dtype in dtypes:
            cast = getattr(torch, dtype)
            selector = drawn(shape, info).to(cast)
            runs[shape.name, dtype] = partial(selector.scores, vision.tokens.to(cast))
    ms = in_turns(runs, rounds)
    if width <= WHOLE_NETWORK_UP_TO:
        torch.manual_seed(0)
        full = Selector(SelectorConfig(encoder=info)).eval()
        key = (f"{width} x {full.config.depth}", "float32")
        ms |= in_turns({key: partial(full.scores, vision.tokens)}, 1)
    return [
        {"name": name, "dtype": dtype, "ms": round(took, 2)} for (name, dtype), took in ms.items()
    ]


if __name__ == "__main__":
    command.run(main)
