"""What each shape costs: `python -m lab.studies.payback.measure SUITE`, then the page.

Times are of this thread's CPU, in turns within one run, so that other work slows all alike; weights
are drawn, since time does not depend on them. One record says, for each model, what compressing a
page and the prefill that is left take of full's prefill; another what choosing among 2,880 tokens
of an encoder of real width takes of what `divprune` takes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from lab import command
from lab.report.asked import picture_inputs
from lab.studies.payback.page import write_page
from lab.studies.payback.spec import Shape, shapes
from tokensieve.budget import count
from tokensieve.evaluate import records
from tokensieve.evaluate.config import load_suite
from tokensieve.evaluate.subject import Subject, load_subject
from tokensieve.hf.compress import compress
from tokensieve.hf.encoder.encode import encode
from tokensieve.hf.families.fingerprint import encoder_info
from tokensieve.methods.base import Method
from tokensieve.methods.registry import get_method
from tokensieve.nn.selector import Selector
from tokensieve.types import EncoderInfo, VisionTokens

TIMES = Path("results/payback-time")
DTYPES = ("float32", "bfloat16")


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, write records and page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suite", type=Path, help="lab/studies/payback/suite.json")
    parser.add_argument("--models", nargs="*", default=["nano", "nano-next"])
    parser.add_argument("--wide", type=int, nargs="*", default=[1024, 4096], help="encoder widths")
    parser.add_argument("--tokens", type=int, default=2880)
    parser.add_argument("--dtypes", nargs="+", default=DTYPES, help="of the wide tokens")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=TIMES)
    parser.add_argument("--root", type=Path, default=Path(), help="where docs/ lies")
    parser.add_argument("--page-only", action="store_true", help="rebuild the page from records")
    options = command.parse(parser, arguments)
    suite = load_suite(options.suite)
    tried = shapes(suite)
    for name in [] if options.page_only else options.models:
        rows = whole(load_subject(name), tried, suite.keeps, options.rounds)
        save(options.out / f"{name}.json", {"model": name, "keeps": suite.keeps}, rows, options)
    for width in [] if options.page_only else options.wide:
        rows = []
        for dtype in options.dtypes:
            tokens = wide_tokens(width, options.tokens, getattr(torch, dtype))
            rows += among(tokens, tried, suite.keeps, max(1, options.rounds // 5))
        told = {"model": "", "width": width, "tokens": options.tokens, "keeps": suite.keeps}
        save(options.out / f"wide-{width}.json", told, rows, options)
    write_page(suite, options.out, options.root)


def save(path: Path, told: Mapping[str, Any], rows: list[dict[str, Any]], options: Any) -> None:
    """Write one record of times."""
    config = {**told, "rounds": options.rounds, "threads": torch.get_num_threads()}
    records.write(path, {
        "form": "payback", "identity": records.identity(config), "config": config,
        **records.provenance(), "rows": rows,
    })  # fmt: skip


def drawn(shape: Shape, info: EncoderInfo) -> Selector:
    """A selector of that shape with weights of no meaning."""
    torch.manual_seed(0)
    return Selector(shape.config(info)).eval()


def in_turns(runs: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Milliseconds of CPU of each, medians over rounds in which all take turns."""
    spent: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            start = time.thread_time()
            run()
            if number:  # the first warms up
                spent[name].append(1e3 * (time.thread_time() - start))
    return {name: median(took) for name, took in spent.items()}


@torch.inference_mode()
def whole(
    subject: Subject, tried: Sequence[Shape], keeps: Sequence[float], rounds: int
) -> list[dict[str, Any]]:
    """Compressing one page and the prefill that is left, as shares of full's prefill alone."""
    model, info = subject.model, encoder_info(subject.model).at_embeds()
    encoded = encode(model, dict(picture_inputs(subject, 0)))

    def prefill(inputs: Mapping[str, Any]) -> Callable[[], Any]:
        return lambda: model(**inputs, use_cache=True, logits_to_keep=1)

    def choosing(method: Method, keep: float) -> Callable[[], Any]:
        return lambda: compress(model, encoded, method, keep)

    methods = {"divprune": subject.bound("divprune", {})}
    for shape in tried:
        methods[shape.name] = get_method("selector", weights=drawn(shape, info)).bind(info)
    runs = {"full": prefill(compress(model, encoded, "full", 1.0).inputs)}
    for keep in keeps:
        left = compress(model, encoded, methods["divprune"], keep).inputs
        runs[f"prefill {keep:g}"] = prefill(left)
        for name, method in methods.items():
            runs[f"{name} {keep:g}"] = choosing(method, keep)
    ms = in_turns(runs, rounds)
    return [
        {"name": name, "dtype": "float32", "keep": keep, "choose_ms": round(chosen, 3),
         "full_ms": round(ms["full"], 3), "ratio": round((chosen + left_ms) / ms["full"], 4)}
        for keep in keeps
        for left_ms in [ms[f"prefill {keep:g}"]]
        for name in methods
        for chosen in [ms[f"{name} {keep:g}"]]
    ]  # fmt: skip


def wide_tokens(width: int, tokens: int, dtype: torch.dtype) -> VisionTokens:
    """Random tokens of one crop, 24 in a row where that can be."""
    g = torch.Generator().manual_seed(0)
    grid = (tokens // 24, 24) if tokens % 24 == 0 else (1, tokens)
    return VisionTokens((torch.randn(1, tokens, width, generator=g) + 0.5).to(dtype), grid=grid)


@torch.inference_mode()
def among(
    vision: VisionTokens, tried: Sequence[Shape], keeps: Sequence[float], rounds: int
) -> list[dict[str, Any]]:
    """Choosing among tokens in their own precision, as multiples of `divprune`."""
    _, tokens, width = vision.tokens.shape
    info, dtype = (
        EncoderInfo("clip_vision_model", width, -2, 24, 16, 4 * width),
        vision.tokens.dtype,
    )
    methods: dict[str, Method] = {"divprune": get_method("divprune")}
    for shape in tried:  # cast by hand: "auto" would spare a slow CPU what is to be measured
        methods[shape.name] = get_method("selector", weights=drawn(shape, info).to(dtype)).bind(
            info
        )
    rows = []
    for keep in keeps:
        counts = torch.tensor([count(keep, tokens)])
        runs = {name: partial(method.reduce, vision, counts) for name, method in methods.items()}
        ms = in_turns(runs, rounds)
        rows += [
            {"name": name, "dtype": str(dtype).removeprefix("torch."), "keep": keep,
             "choose_ms": round(took, 2), "ratio": round(took / ms["divprune"], 3)}
            for name, took in ms.items()
        ]  # fmt: skip
    return rows


if __name__ == "__main__":
    command.run(main)
