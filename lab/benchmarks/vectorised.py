"""Methods beside a vectorised form, as most are released: `python -m lab.benchmarks.vectorised`.

The forms are our own writing, from the papers' descriptions: all crops at once, full matrices, one
budget for all, no padding, no check of what comes in, no order among ties. Both run in turns in one
process; a row says how long ours takes of the other's time. Writes results/vectorised, from
which docs/results/selection.md has a table. `naive.py` has the same methods as obvious loops.

B crops, n tokens of each, k kept, C width.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from lab import command
from lab.benchmarks.selection import TEXT, inputs, ready
from tokensieve.evaluate import records
from tokensieve.functional.grid import cells
from tokensieve.types import Reduction, TextContext

RECORD = Path("results/vectorised/cpu.json")
ALIKE = {torch.float32: 0.98, torch.bfloat16: 0.8}  # of tokens kept by both: in bfloat16 random
# signals tie, and ties have no order in the vectorised form


@dataclass(frozen=True)
class Crops:
    """What a form is told."""

    tokens: Tensor  # (B, n, C)
    signals: Mapping[str, Tensor]
    sizes: Tensor | None  # (B, n)
    k: int
    grid: tuple[int, int]
    text: Tensor  # (T, C)


Kept = tuple[Tensor, Tensor | None]  # (B, k) places in any order; (B, k, C) values


def divprune(c: Crops) -> Kept:
    far = _distances(c.tokens)
    alone = (far + torch.diag(far.new_full((far.shape[1],), torch.inf))).amin(-1)
    return _greedy(far, alone.argmax(-1), c.k, torch.minimum), None


def todre(c: Crops) -> Kept:
    x = c.tokens.float()
    near = torch.cosine_similarity(x, x.mean(1, keepdim=True), dim=-1)
    return _greedy(_distances(c.tokens), near.argmax(-1), c.k, torch.add), None


def cdpruner(c: Crops) -> Kept:
    """The whole kernel, then a Cholesky row per step."""
    x = normalize(c.tokens.float(), dim=-1)
    cosine = (x @ normalize(c.text, dim=-1).T).mean(-1)
    low, high = cosine.amin(-1, keepdim=True), cosine.amax(-1, keepdim=True)
    told = (cosine - low) / (high - low)
    kernel = told[:, :, None] * (x @ x.mT) * told[:, None]
    gain, row = kernel.diagonal(dim1=1, dim2=2).clone(), torch.arange(len(x))
    rows, chosen = x.new_zeros(len(x), c.k, x.shape[1]), []
    for step in range(c.k):
        pick = gain.argmax(-1)
        past = (rows[row, :step, pick][:, None] @ rows[:, :step])[:, 0]
        scale = gain[row, pick].clamp_min(1e-12).rsqrt()[:, None]
        rows[:, step] = (kernel[row, pick] - past) * scale
        gain -= rows[:, step].square()
        gain[row, pick] = -torch.inf
        chosen.append(pick)
    return torch.stack(chosen, 1), None


def aim(c: Crops) -> Kept:
    return _merged_down(c, c.tokens.float())


def tome(c: Crops) -> Kept:
    return _merged_down(c, c.signals["keys"].float())


def prumerge(c: Crops) -> Kept:
    attention, keys = c.signals["attention"].float(), normalize(c.signals["keys"].float(), dim=-1)
    kept = attention.topk(c.k, -1).indices
    x, row = c.tokens.float(), torch.arange(len(kept))[:, None]
    alike = keys[row, kept] @ keys.mT
    alike.scatter_(2, kept[..., None], -torch.inf)
    near = alike.topk(min(32, alike.shape[-1]), -1).indices
    some = x[row[..., None], near] * attention[row[..., None], near][..., None]
    return kept, x[row, kept] + some.sum(2)


def visionzip(c: Crops) -> Kept:
    attention, keys = c.signals["attention"], normalize(c.signals["keys"].float(), dim=-1)
    x, B = c.tokens.float(), len(c.tokens)
    contextual = max(1, int(c.k * 10 / 64 + 0.5))
    dominant = attention.topk(c.k - contextual, -1).indices
    free = torch.ones(attention.shape, dtype=torch.bool).scatter_(1, dominant, False)
    rest = free.nonzero()[:, 1].view(B, -1)
    target = rest[:, :: max(1, rest.shape[1] // contextual)][:, :contextual]
    row = torch.arange(B)[:, None]
    others = free.scatter_(1, target, False).nonzero()[:, 1].view(B, -1)
    into = (keys[row, others] @ keys[row, target].mT).argmax(-1)
    one_hot = torch.nn.functional.one_hot(into, contextual).float()
    sums = x[row, target] + one_hot.mT @ x[row, others]
    merged = sums / (1 + one_hot.sum(1))[..., None]
    return torch.cat([dominant, target], 1), torch.cat([x[row, dominant], merged], 1)


def hiprune(c: Crops) -> Kept:
    middle, deep = c.signals["middle"].float(), c.signals["deep"].float()
    B, (H, W) = len(middle), c.grid
    first = torch.zeros(middle.shape, dtype=torch.bool)
    first.scatter_(1, middle.topk(int(c.k * 0.1 / 5 + 0.5), -1).indices, True)
    anchor, near = first.view(B, H, W), first.view(B, H, W).clone()
    near[:, 1:] |= anchor[:, :-1]
    near[:, :-1] |= anchor[:, 1:]
    near[:, :, 1:] |= anchor[:, :, :-1]
    near[:, :, :-1] |= anchor[:, :, 1:]
    return deep.masked_fill(near.view(B, -1), torch.inf).topk(c.k, -1).indices, None


def avgpool(c: Crops) -> Kept:
    label, centre = cells(c.grid, c.k)
    one_hot = torch.nn.functional.one_hot(label, c.k).float()
    means = one_hot.T @ c.tokens.float() / one_hot.sum(0)[:, None]
    return centre.expand(len(c.tokens), -1), means


def evit(c: Crops) -> Kept:
    attention, x = c.signals["attention"].float(), c.tokens.float()
    order = attention.argsort(-1, descending=True)
    row, rest = torch.arange(len(x))[:, None], order[:, c.k - 1 :]
    fused = (attention[row, rest][..., None] * x[row, rest]).sum(1, keepdim=True)
    return order[:, : c.k], torch.cat([x[row, order[:, : c.k - 1]], fused], 1)


def token_transforming(c: Crops) -> Kept:
    attention, keys = c.signals["attention"].float(), normalize(c.signals["keys"].float(), dim=-1)
    order, x = attention.argsort(-1, descending=True), c.tokens.float()
    row, kept, rest = torch.arange(len(x))[:, None], order[:, : c.k], order[:, c.k :]
    share = (keys[row, rest] @ keys[row, kept].mT / 0.1).softmax(-1)
    return kept, (x[row, kept] + share.mT @ x[row, rest]) / (1 + share.sum(1))[..., None]


def zero_tprune(c: Crops) -> Kept:
    maps = c.signals["attention"].float().permute(0, 3, 1, 2)
    keys = normalize(c.signals["keys"].float(), dim=-1)
    B, H, n, _ = maps.shape
    row = torch.arange(B)[:, None]

    def important(graph: Tensor, steps: int) -> Tensor:
        rank = graph.new_full((B, H, 1, graph.shape[-1]), 1 / graph.shape[-1])
        for _ in range(steps):
            rank = rank @ graph
            rank = rank / rank.sum(-1, keepdim=True)
        rank = rank[:, :, 0]
        spread = (rank * rank.shape[-1]).var(-1, correction=0)
        told = ((spread >= 0.01) & (spread <= 0.7))[..., None]
        told = (told | ~told.any(1, keepdim=True)).float()
        return ((rank.square() * told).sum(1) / told.sum(1)).sqrt()

    order = important(maps, 1).argsort(-1, descending=True)
    half = (n + 1) // 2
    upper, lower = order[:, :half], order[:, half:]
    alike = min((n - c.k) // 2, n - half)
    best = (keys[row, lower] @ keys[row, upper].mT).amax(-1)
    stay = lower.gather(1, best.argsort(-1, descending=True)[:, alike:])
    left = torch.cat([upper, stay], 1)
    graph = maps.gather(2, left[:, None, :, None].expand(-1, H, -1, n))
    graph = graph.gather(3, left[:, None, None].expand(-1, H, left.shape[1], -1))
    return left.gather(1, important(graph, 30).topk(c.k, -1).indices), None


FORMS: dict[str, Callable[[Crops], Kept]] = {
    "divprune": divprune, "todre": todre, "cdpruner": cdpruner, "aim": aim, "tome": tome,
    "prumerge": prumerge, "visionzip": visionzip, "hiprune": hiprune, "avgpool": avgpool,
    "evit": evit, "token-transforming": token_transforming, "zero-tprune": zero_tprune,
}  # fmt: skip


def _distances(tokens: Tensor) -> Tensor:
    unit = normalize(tokens.float(), dim=-1)
    return 1 - unit @ unit.mT


def _greedy(far: Tensor, first: Tensor, k: int, join: Callable[..., Tensor]) -> Tensor:
    row, chosen = torch.arange(len(far)), [first]
    now = far[row, first].clone()
    free = torch.zeros_like(now)
    free[row, first] = -torch.inf
    for _ in range(k - 1):
        pick = (now + free).argmax(-1)
        chosen.append(pick)
        free[row, pick] = -torch.inf
        now = join(now, far[row, pick])
    return torch.stack(chosen, 1)


def _merged_down(c: Crops, compared: Tensor) -> Kept:
    """Rounds of bipartite soft matching, every array merged in each."""
    x = c.tokens.float()
    size = torch.ones_like(x[..., :1]) if c.sizes is None else c.sizes[..., None]
    place = torch.arange(x.shape[1]).expand(len(x), -1)
    while x.shape[1] > c.k:
        r = min(x.shape[1] - c.k, x.shape[1] // 2)
        unit = normalize(compared, dim=-1)
        best, into = (unit[:, ::2] @ unit[:, 1::2].mT).max(-1)
        edge = best.argsort(-1, descending=True)
        stay, go = edge[:, r:].sort(-1).values, edge[:, :r]
        merge = partial(_merge, stay, go, into.gather(1, go))
        x, compared, new = merge(x * size), merge(compared * size), merge(size)
        x, compared, size = x / new, compared / new, new
        place = torch.cat([place[:, ::2].gather(1, stay), place[:, 1::2]], 1)
        order = place.argsort(-1)  # back in the picture's order, as ours deals them
        place = place.gather(1, order)
        x, compared, size = (
            t.gather(1, order[..., None].expand(-1, -1, t.shape[-1])) for t in (x, compared, size)
        )
    return place, x


def _merge(stay: Tensor, go: Tensor, into: Tensor, values: Tensor) -> Tensor:
    first, second = values[:, ::2], values[:, 1::2].clone()
    width = values.shape[-1]
    kept = first.gather(1, stay[..., None].expand(-1, -1, width))
    gone = first.gather(1, go[..., None].expand(-1, -1, width))
    return torch.cat([kept, second.scatter_add_(1, into[..., None].expand(-1, -1, width), gone)], 1)


def measure(name: str, n: int, batch: int, dtype: torch.dtype, keep: float, spend: float) -> Any:
    """One row: medians of both in turns, for `spend` seconds and three rounds at least."""
    method = ready(name)
    v = inputs(method, n, batch, dtype)
    k = max(1, round(keep * n))
    counts = torch.full((batch,), k)
    drawn = torch.randn(TEXT, v.tokens.shape[-1], generator=torch.Generator().manual_seed(1))
    text = TextContext(drawn) if "text" in method.needs else None
    crops = Crops(v.tokens, v.signals, v.sizes, k, v.grid or (1, n), drawn)

    def ours() -> Reduction:
        return method.reduce(v, counts, text)

    both: tuple[Callable[[], Any], ...] = (ours, partial(FORMS[name], crops))
    _require_same(name, ours(), both[1](), k, ALIKE[dtype])
    took: list[list[float]] = [[], []]
    while len(took[0]) < 3 or (sum(map(sum, took)) < spend and len(took[0]) < 50):
        for run, times in zip(both, took, strict=True):
            start = perf_counter()
            run()
            times.append(perf_counter() - start)
    s, other_s = map(median, took)
    return {
        "method": name, "n": n, "batch": batch, "dtype": str(dtype).removeprefix("torch."),
        "keep": keep, "s": s, "vectorised_s": other_s, "rounds": len(took[0]),
    }  # fmt: skip


def _require_same(name: str, got: Reduction, want: Kept, k: int, least: float) -> None:
    places = torch.zeros(got.kept.shape, dtype=torch.bool).scatter_(1, want[0], True)
    common = int((places & got.kept).sum()) / (k * len(places))
    if common < least:
        raise SystemExit(f"Expected both forms of {name} to keep the same. Got {common:.1%}.")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", default=list(FORMS))
    parser.add_argument("--keep", type=float, nargs="+", default=[0.05, 0.22, 0.5])
    parser.add_argument("--seconds", type=float, default=1.0, help="to spend on a row")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RECORD)
    o = command.parse(parser)
    rows = []
    for name in o.methods:
        for n, batch in ((576, 1), (576, 8), (2880, 1)):
            for dtype in (torch.float32, torch.bfloat16):
                for keep in o.keep:
                    with torch.inference_mode():
                        rows.append(measure(name, n, batch, dtype, keep, o.seconds))
                    print(rows[-1], flush=True)
        config = {"methods": sorted({row["method"] for row in rows}), "seconds": o.seconds,
                  "threads": o.threads}  # fmt: skip
        records.write(o.out, {"config": config, "rows": rows, "provenance": records.provenance()})


if __name__ == "__main__":
    command.run(main)
