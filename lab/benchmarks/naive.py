"""Published methods as loops: one picture, full matrices. What is released is rarely so slow:
`vectorised.py` has that.

Written from the papers' descriptions, to be obvious. `selection.py` times them beside ours and
asserts that both keep the same tokens with the same values.

n tokens, C width, K width of keys. Each takes the tokens of one crop (float32), the signals the
method asks for, how many to keep, the grid and the prompt's text; each gives the kept positions,
in order, and their values (None: unchanged).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from tokensieve.functional.grid import cells

Chosen = tuple[list[int], Tensor | None]


@dataclass(frozen=True)
class Crop:
    """What a naive method is told."""

    tokens: Tensor  # (n, C)
    signals: Mapping[str, Tensor]
    count: int
    grid: tuple[int, int]
    text: Tensor  # (T, C)


def divprune(crop: Crop) -> Chosen:
    distance = _distances(crop.tokens)
    alone = distance.clone().fill_diagonal_(torch.inf).min(1).values
    chosen = [int(alone.argmax())]
    return _farthest(distance, chosen, crop.count, lambda far: far.min(0).values), None


def todre(crop: Crop) -> Chosen:
    x = crop.tokens
    near = cosine_similarity(x, x.mean(0, keepdim=True))
    chosen = [int(near.argmax())]
    return _farthest(_distances(x), chosen, crop.count, lambda far: far.sum(0)), None


def cdpruner(crop: Crop) -> Chosen:
    """The whole kernel, then a Cholesky row per step."""
    x = normalize(crop.tokens, dim=-1)
    cosines = (x @ normalize(crop.text, dim=-1).T).mean(1)
    relevance = (cosines - cosines.min()) / (cosines.max() - cosines.min())
    kernel = relevance[:, None] * (x @ x.T) * relevance
    gain, rows, chosen = kernel.diag().clone(), torch.zeros(crop.count, len(x)), list[int]()
    for step in range(crop.count):
        pick = int(gain.argmax())
        row = (kernel[pick] - rows[:step, pick] @ rows[:step]) / gain[pick].clamp_min(1e-12).sqrt()
        rows[step] = row
        gain -= row.square()
        gain[pick] = -torch.inf
        chosen.append(pick)
    return sorted(chosen), None


def aim(crop: Crop) -> Chosen:
    """Groups of tokens compared by their means."""
    return _merged_down(crop, crop.tokens)


def tome(crop: Crop) -> Chosen:
    """Groups of tokens compared by their mean keys."""
    return _merged_down(crop, crop.signals["keys"])


def _merged_down(crop: Crop, compared: Tensor) -> Chosen:
    """Groups as lists; each round every pair of the two halves in turn."""
    groups = [[i] for i in range(len(crop.tokens))]
    while len(groups) > crop.count:
        unit = normalize(torch.stack([compared[group].mean(0) for group in groups]), dim=-1)
        pairs = []
        for a in range(0, len(groups), 2):
            best, goal = -2.0, -1
            for b in range(1, len(groups), 2):
                if (cosine := float(unit[a] @ unit[b])) > best:
                    best, goal = cosine, b
            pairs.append((best, a, goal))
        pairs.sort(key=lambda pair: -pair[0])
        for _, a, b in pairs[: min(len(groups) - crop.count, len(groups) // 2)]:
            groups[b] += groups[a]
            groups[a] = []
        groups = [group for group in groups if group]
    return _places(crop.tokens, groups)


def prumerge(crop: Crop) -> Chosen:
    """For each kept token, all others sorted."""
    attention, keys = crop.signals["attention"], normalize(crop.signals["keys"], dim=-1)
    kept = _top(attention, crop.count)
    values = []
    for i in kept:

        def far(j: int, i: int = i) -> float:
            return -float(keys[i] @ keys[j])

        near = sorted(_others([i], len(attention)), key=far)[:32]
        values.append(crop.tokens[i] + (attention[near, None] * crop.tokens[near]).sum(0))
    return kept, torch.stack(values)


def visionzip(crop: Crop) -> Chosen:
    """For each token that is not dominant, all targets in turn."""
    attention, keys = crop.signals["attention"], normalize(crop.signals["keys"], dim=-1)
    contextual = max(1, int(crop.count * 10 / 64 + 0.5))
    dominant = _top(attention, crop.count - contextual)
    rest = _others(dominant, len(attention))
    targets = rest[:: max(1, len(rest) // contextual)][:contextual]
    groups = {i: [i] for i in [*dominant, *targets]}
    for i in rest:
        if i in groups:
            continue
        best, goal = -2.0, -1
        for target in targets:
            if (cosine := float(keys[i] @ keys[target])) > best:
                best, goal = cosine, target
        groups[goal].append(i)
    kept = sorted(groups)
    return kept, torch.stack([crop.tokens[groups[i]].mean(0) for i in kept])


def hiprune(crop: Crop) -> Chosen:
    """Each token held against each anchor."""
    W = crop.grid[1]
    middle, deep = crop.signals["middle"], crop.signals["deep"]
    anchors = _top(middle, int(crop.count * 0.1 / 5 + 0.5))
    order = deep.argsort(descending=True, stable=True).tolist()
    buffers: list[int] = []
    others: list[int] = []
    for i in order:
        if i in anchors:
            continue
        steps = [abs(i // W - a // W) + abs(i % W - a % W) for a in anchors]
        (buffers if 1 in steps else others).append(i)
    return sorted([*anchors, *buffers, *others][: crop.count]), None


def avgpool(crop: Crop) -> Chosen:
    """Cell by cell."""
    label, centre = cells(crop.grid, crop.count)
    groups = [(label == cell).nonzero()[:, 0].tolist() for cell in range(crop.count)]
    order = centre.argsort().tolist()
    values = [crop.tokens[groups[cell]].mean(0) for cell in order]
    return centre.sort().values.tolist(), torch.stack(values)


NAIVE: dict[str, Callable[[Crop], Chosen]] = {
    "avgpool": avgpool,
    "divprune": divprune,
    "todre": todre,
    "cdpruner": cdpruner,
    "aim": aim,
    "tome": tome,
    "prumerge": prumerge,
    "visionzip": visionzip,
    "hiprune": hiprune,
}


def _distances(x: Tensor) -> Tensor:
    unit = normalize(x, dim=-1)
    return 1 - unit @ unit.T


def _farthest(
    distance: Tensor, chosen: list[int], count: int, join: Callable[[Tensor], Tensor]
) -> list[int]:
    """The distances to all chosen tokens looked at anew at each step."""
    while len(chosen) < count:
        far = join(distance[chosen])
        far[chosen] = -torch.inf
        chosen.append(int(far.argmax()))
    return sorted(chosen)


def _top(scores: Tensor, count: int) -> list[int]:
    return sorted(scores.argsort(descending=True, stable=True)[:count].tolist())


def _places(tokens: Tensor, groups: list[list[int]]) -> Chosen:
    """Groups, in order, at their first member: the one that others joined."""
    return [group[0] for group in groups], torch.stack([tokens[group].mean(0) for group in groups])


def _others(kept: list[int], n: int) -> list[int]:
    gone = set(kept)
    return [i for i in range(n) if i not in gone]
