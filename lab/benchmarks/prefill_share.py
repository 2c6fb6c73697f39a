"""Does choosing cost more than it saves? Selection against the prefill it spares a 7B LLM.

    python -m lab.benchmarks.prefill_share [--methods divprune cdpruner] [--keep 0.05 0.22 0.5]

LLaVA-NeXT's shapes: five crops of 576 tokens from a CLIP-L tower, 2,880 of them in one choice, an
LLM of 32 layers. The prefill saved is 32 times what one decoder layer takes less over fewer tokens.
What a method asks of attention (rows, keys) is timed too, from queries and keys; one inside the
encoder is charged for its steps behind all of its layers, one inside the LLM for each of its cuts,
which spare only the layers behind them. All in float32 on the same cores, in one run: ratios hold
for this machine; a GPU shifts them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from lab import command
from lab.benchmarks.decoder_layer import LAYERS, TEXT, DecoderLayer
from lab.benchmarks.selection import ENCODER, LLM, inputs, ready, timed
from lab.benchmarks.selection import TEXT as TOLD
from tokensieve.evaluate import records
from tokensieve.functional.attention import attention_rows, received_attention
from tokensieve.methods.base import Method
from tokensieve.methods.registry import method_class, method_names
from tokensieve.types import Kind, Site, TextContext

CROPS, CROP = 5, 576
TOKENS = CROPS * CROP
OUT = Path("results/prefill-share/llava-next-7b.json")


def least(run: Callable[[], Any], rounds: int) -> float:
    """Seconds of the fastest of some runs, one before them to warm up."""
    run()
    spent = []
    for _ in range(rounds):
        start = perf_counter()
        run()
        spent.append(perf_counter() - start)
    return min(spent)


def signals_seconds(method: Method, rounds: int) -> float:
    """Time to compute once what the method asks of attention layers."""
    inside = method.site is Site.LLM
    shape = (1, 32, TOKENS + TEXT, 128) if inside else (CROPS, 16, CROP + 1, 64)
    g = torch.Generator().manual_seed(0)
    q, k = (torch.randn(shape, generator=g) for _ in range(2))
    scale = shape[-1] ** -0.5
    rows = {Kind.TEXT_ATTENTION: TEXT, Kind.TEXT_PRIORITY: TEXT, Kind.HEAD_MAPS: shape[2]}
    total = 0.0
    for signal in method.signals(LLM if inside else ENCODER).values():
        if signal.kind in (Kind.KEYS, Kind.ALL_KEYS, Kind.KEYS_UNROTATED):
            total += least(partial(k.mean, 1), rounds)
        elif signal.kind is Kind.RECEIVED_ATTENTION:
            total += least(partial(received_attention, q, k, scale), rounds)
        else:
            some = q[:, :, -rows.get(signal.kind, 1) :]
            total += least(partial(attention_rows, some, k, scale), rounds)
    return total


def steps_of(method: Method, keep: float) -> list[tuple[int, int, float]]:
    """Of each choice the tokens before and after it, and the LLM's layers it spares, as a share."""
    if method.site is Site.ENCODER:
        left = method.block_counts(CROP, round(keep * CROP), ENCODER.block + 1)
        return [(n, k, 0.0) for n, k in pairwise([CROP, *left]) if k < n]
    if method.site is not Site.LLM:
        return [(TOKENS, round(keep * TOKENS), 1.0)]
    stages = sorted((method.llm_stages(LAYERS, keep) or {2: keep}).items())
    left = [TOKENS, *(round(share * TOKENS) for _, share in stages)]
    return [(n, k, 1 - at / LAYERS) for (n, k), (at, _) in zip(pairwise(left), stages, strict=True)]


def select_seconds(method: Method, keep: float, rounds: int) -> float:
    """Time of all its choices."""
    total, batch = 0.0, CROPS if method.site is Site.ENCODER else 1
    for n, left, _ in steps_of(method, keep):
        vision = inputs(method, n, batch, torch.float32)
        counts, text = torch.full((batch,), left), None
        if "text" in method.needs:
            text = TextContext(torch.randn(TOLD, vision.tokens.shape[-1]))
        total += least(partial(method.reduce, vision, counts, text), rounds)
    return total


def saved_seconds(method: Method, keep: float, layer: Callable[[int], float]) -> float:
    """Prefill of the LLM that the method spares."""
    if method.site is Site.ENCODER:
        return LAYERS * (layer(TOKENS) - layer(round(keep * TOKENS)))
    return sum(
        spared * LAYERS * (layer(n) - layer(left)) for n, left, spared in steps_of(method, keep)
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    chosen = [m for m in method_names() if timed(m) and method_class(m).budgeted]
    parser.add_argument("--methods", nargs="+", default=chosen)
    parser.add_argument("--keep", type=float, nargs="+", default=[0.05, 0.22, 0.5])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=OUT)
    o = command.parse(parser)
    decoder, known = DecoderLayer(), dict[int, float]()

    def layer(visual: int) -> float:
        """Seconds of a layer over so many visual tokens; between measured lengths a line."""
        grid = [round(TOKENS * share) for share in (0, 0.05, 0.22, 0.5, 0.75, 1)]
        for n in grid:
            if n not in known:
                known[n] = decoder.seconds(n, rounds=2)
        low = max(n for n in grid if n <= visual)
        high = min(n for n in grid if n >= visual)
        share = (visual - low) / (high - low) if high > low else 0.0
        return known[low] + share * (known[high] - known[low])

    rows = []
    for name in o.methods:
        method = ready(name)
        for keep in o.keep:
            with torch.inference_mode():
                select = select_seconds(method, keep, o.rounds)
                told = len(steps_of(method, keep)) * signals_seconds(method, o.rounds)
                saved = saved_seconds(method, keep, layer)
            rows.append({
                "method": name, "site": str(method.site), "keep": keep, "saved_s": round(saved, 3),
                "select_s": round(select, 5), "signals_s": round(told, 5),
            })  # fmt: skip
            print(rows[-1], flush=True)
    config = {"methods": o.methods, "keep": o.keep, "rounds": o.rounds, "threads": o.threads,
              "tokens": TOKENS, "text": TEXT, "layers": LAYERS}  # fmt: skip
    records.write(o.out, {
        "form": "prefill-share", "identity": records.identity(config), "config": config,
        **records.provenance(), "layer_s": {str(n): round(s, 4) for n, s in sorted(known.items())},
        "rows": rows,
    })  # fmt: skip


if __name__ == "__main__":
    command.run(main)
