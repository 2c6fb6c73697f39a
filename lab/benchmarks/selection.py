"""What choosing tokens costs by itself: time and peak memory of every method, beside naive code.

    python -m lab.benchmarks.selection [--methods divprune] [--n 576 2880 11520] [--rounds 5]
    python -m lab.benchmarks.selection --page

Writes one record per method to results/selection/ and from all there docs/results/selection.md.
Tokens and signals are random. Times are medians; `product` is one n x n product of the tokens
(float32) in the same run, which methods that compare all tokens cannot avoid. Memory is the peak of
what torch holds on top of the inputs, from its profiler. The naive form (`naive.py`) runs once, for
one crop in float32, up to --naive-up-to tokens.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from lab import command
from lab.benchmarks.naive import NAIVE, Crop
from lab.benchmarks.selection_page import GRIDS, page
from tokensieve.evaluate import records
from tokensieve.files import write_text
from tokensieve.methods.base import Method
from tokensieve.methods.registry import get_method, method_class, method_names
from tokensieve.nn.config import SelectorConfig
from tokensieve.nn.selector import Selector
from tokensieve.nn.thresholds import Thresholds
from tokensieve.types import EncoderInfo, Kind, Reduction, Site, TextContext, VisionTokens

ENCODER = EncoderInfo("clip_vision_model", 1024, -2, 24, 16, 4096)
LLM = EncoderInfo("llama", 4096, 2, 32, 32, 11008, site=Site.LLM)
PIXELS, KEY, TEXT, HEADS, MAPS = 588, 64, 32, 32, 4
FOLDER, PAGE = Path("results/selection"), Path("docs/results/selection.md")
PRODUCT_UP_TO = 2880  # tokens; above, the product alone takes longer than all methods
ALIKE = 0.99  # of tokens kept by both forms: a greedy choice may turn on the last bit


def timed(method: str) -> bool:
    """Whether it chooses among tokens at all."""
    cls = method_class(method)
    return cls.site is not Site.PIXELS and cls.reads_picture and method != "full"


def ready(name: str) -> Method:
    """Bound to a tower or LLM of LLaVA's shape; trained ones with weights of no meaning."""
    info = LLM if method_class(name).site is Site.LLM else ENCODER
    if name == "dymu":  # thresholds by which it merges as much as it may
        lowest = Thresholds(info, (0.5,), ((-1.0,) * (info.block + 1),))
        return get_method(name, thresholds=lowest).bind(info)
    if method_class(name).trained:
        return get_method(name, weights=Selector(SelectorConfig(encoder=info)).eval()).bind(info)
    return get_method(name).bind(info)


def inputs(method: Method, n: int, batch: int, dtype: torch.dtype) -> VisionTokens:
    """Random tokens and the signals the method asks for."""
    g = torch.Generator().manual_seed(n + batch)
    width = ENCODER.width if method.site in (Site.FEATURES, Site.ENCODER) else LLM.width
    grid = GRIDS.get(n) or ((n // 8, 8) if n % 8 == 0 else None)
    info = LLM if method.site is Site.LLM else ENCODER
    return VisionTokens(
        torch.randn(batch, n, width, generator=g).add_(0.5).to(dtype),
        grid=grid,
        patches=torch.rand(batch, n, PIXELS, generator=g) if "pixels" in method.needs else None,
        keys=tuple(range(batch)),
        signals={
            name: _signal(signal.kind, batch, n, g).to(dtype)
            for name, signal in method.signals(info).items()
        },
        sizes=torch.ones(batch, n) if method.site is Site.ENCODER else None,
    )


def _signal(kind: Kind, B: int, n: int, g: torch.Generator) -> Tensor:
    if kind is Kind.HEAD_MAPS:
        return torch.randn(B, n, n, MAPS, generator=g).softmax(2)
    width = {Kind.KEYS: KEY, Kind.ALL_KEYS: KEY * HEADS, Kind.KEYS_UNROTATED: KEY * HEADS,
             Kind.TEXT_ATTENTION: TEXT,
             Kind.TEXT_KEY_NORMS: TEXT, Kind.TEXT_PRIORITY: TEXT}.get(kind)  # fmt: skip
    if width is None:
        return torch.randn(B, n, generator=g).softmax(-1)
    drawn = torch.randn(B, n, width, generator=g)
    return drawn if "keys" in kind else drawn.softmax(-1)


def measure(
    method: Method, name: str, v: VisionTokens, keep: float, rounds: int, naive: bool
) -> Any:
    """One row of a record."""
    B, n, C = v.tokens.shape
    counts = torch.full((B,), max(1, round(keep * n)))
    text = TextContext(torch.randn(TEXT, C, generator=torch.Generator().manual_seed(1)))

    def ours() -> Reduction:
        return method.reduce(v, counts, text if "text" in method.needs else None)

    x = v.tokens[0].float()
    beside = [lambda: x @ x.T] if n <= PRODUCT_UP_TO else []
    ours()
    seconds, *product_s = _medians((ours, *beside), rounds)
    row: dict[str, Any] = {
        "n": n,
        "batch": B,
        "keep": keep,
        "dtype": str(v.tokens.dtype).removeprefix("torch."),
        "s": seconds,
        "peak_mb": round(peak_bytes(ours) / 1e6, 1),
    }
    if product_s:
        row["product_s"] = B * product_s[0]
    if naive and name in NAIVE:
        crops = [
            Crop(v.tokens[b].float(), {k: s[b].float() for k, s in v.signals.items()},
                 int(counts[b]), v.grid or (1, n), text.embeds)
            for b in range(B)
        ]  # fmt: skip
        start = perf_counter()
        want = [NAIVE[name](crop) for crop in crops]
        row["naive_s"] = perf_counter() - start
        _require_same(ours(), v, want)
    return row


def _require_same(got: Reduction, v: VisionTokens, want: list[Any]) -> None:
    for b, (index, tokens) in enumerate(zip(got.indices(), got.apply(v.tokens), strict=True)):
        places, values = want[b]
        common = len(set(places) & set(index.tolist())) / max(len(places), 1)
        if len(places) != len(index) or common < ALIKE:
            raise SystemExit(f"Expected both forms to keep the same. Got {common:.1%} in common.")
        if values is not None and places == index.tolist():
            tolerance = 2e-4 if v.tokens.dtype == torch.float32 else 2e-2
            torch.testing.assert_close(tokens.float(), values, atol=tolerance, rtol=tolerance)


def _medians(runs: Sequence[Callable[[], Any]], rounds: int) -> list[float]:
    """Seconds of each, in turns, so that what else runs on the machine slows both alike."""
    times: list[list[float]] = [[] for _ in runs]
    while len(times[0]) < rounds and sum(map(sum, times)) < 60:
        for run, took in zip(runs, times, strict=True):
            start = perf_counter()
            run()
            took.append(perf_counter() - start)
    return [median(took) for took in times]


def peak_bytes(run: Any) -> int:
    """The most that torch's CPU allocator held at once during `run`, what was there before not
    counted."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        held = run()
    del held
    events, allocations = list(seen.profiler.kineto_results.experimental_event_tree()), []
    while events:
        event = events.pop()
        events += event.children
        if type(event.extra_fields).__name__ == "_ExtraFields_Allocation":
            allocations.append((event.start_time_ns, event.extra_fields))
    total = peak = 0
    alive = set[int]()
    for _, fields in sorted(allocations, key=lambda pair: pair[0]):
        pointer = int(fields.ptr)
        if fields.alloc_size > 0:
            alive.add(pointer)
        elif pointer not in alive:  # from before
            continue
        else:
            alive.discard(pointer)
        total += fields.alloc_size
        peak = max(peak, total)
    return peak


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", default=[m for m in method_names() if timed(m)])
    parser.add_argument("--n", type=int, nargs="+", default=[576, 2880, 11520])
    parser.add_argument("--keep", type=float, nargs="+", default=[0.05, 0.22, 0.5])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--naive-up-to", type=int, default=2880)
    parser.add_argument("--most", type=int, default=100_000, help="tokens of all crops at most")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--page", action="store_true", help="only write the page from the records")
    o = command.parse(parser)
    for name in [] if o.page else o.methods:
        rows, method = [], ready(name)
        for n in o.n:
            for batch in (b for b in o.batch if b * n <= o.most):
                for dtype in o.dtype:
                    v = inputs(method, n, batch, getattr(torch, dtype))
                    for keep in o.keep:
                        naive = n <= o.naive_up_to and batch == 1 and dtype == "float32"
                        with torch.inference_mode():
                            rounds = o.rounds if n <= PRODUCT_UP_TO else 1
                            row = measure(method, name, v, keep, rounds, naive)
                        rows.append(row)
                        print(name, json.dumps(row), flush=True)
        config = {"method": name, "n": o.n, "keep": o.keep, "batch": o.batch, "dtype": o.dtype,
                  "rounds": o.rounds, "most": o.most, "threads": o.threads}  # fmt: skip
        record = {"config": config, "rows": rows, "provenance": records.provenance()}
        records.write(o.out / f"{name}.json", record)
    if o.out == FOLDER:
        write_text(PAGE, page(o.out))
    else:
        print(page(o.out))


if __name__ == "__main__":
    command.run(main)
