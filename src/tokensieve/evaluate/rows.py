"""Rows of a record: outcomes of many pictures as one, a shorter row and its rest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tokensieve.evaluate.score import Batch, Outcome
from tokensieve.evaluate.stats import pack_hits, unpack_hits, wilson


def totals(batches: Sequence[Batch], outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Outcomes of all batches as one row."""
    items = [item for batch in batches for item in batch.items]
    hits = np.array([hit for outcome in outcomes for hit in outcome.hits], dtype=bool)
    n = len(hits)
    groups: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for item, hit in zip(items, hits, strict=True):
        for group in (item.question.topic, *item.groups):
            groups[group][0] += int(hit)
            groups[group][1] += 1
    interval = wilson(int(hits.sum()), n).rounded()
    return {
        "n": n,
        "right": int(hits.sum()),
        "exact_match": interval.pop("mean"),
        **interval,
        "visual_tokens": sum(o.visual_tokens for o in outcomes) / n,
        "kept_tokens": round(sum(o.kept_tokens for o in outcomes) / n, 3),
        "layer_tokens": round(sum(o.layer_tokens for o in outcomes) / n, 3),
        "prompt_tokens": round(sum(sum(o.prompt_tokens) for o in outcomes) / n, 3),
        "llm_prefill_flops": round(sum(sum(o.flops) for o in outcomes) / n),
        "select_ms": round(sum(o.select_ms for o in outcomes) / n, 4),
        "groups": dict(sorted(groups.items())),
        "hits": pack_hits(hits),
    }


def merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """One row of a shorter record and the row of the pictures that it lacked."""
    n = old["n"] + new["n"]
    right = old["right"] + new["right"]
    interval = wilson(right, n).rounded()
    hits = [unpack_hits(row["hits"], row["n"]) for row in (old, new)]
    groups = {name: [0, 0] for name in sorted({*old["groups"], *new["groups"]})}
    for name, group in groups.items():
        for row in (old, new):
            for i in range(2):
                group[i] += row["groups"].get(name, [0, 0])[i]
    means = ["visual_tokens", "kept_tokens", "prompt_tokens", "llm_prefill_flops", "select_ms"]
    if "layer_tokens" in old:  # records made before it was counted
        means.append("layer_tokens")
    return {
        **old,
        "n": n,
        "right": right,
        "exact_match": interval.pop("mean"),
        **interval,
        **{key: round((old[key] * old["n"] + new[key] * new["n"]) / n, 4) for key in means},
        "groups": groups,
        "hits": pack_hits(np.concatenate(hits)),
    }


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """Exact match by topic for the progress line."""
    out: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        out[row["topic"]].append(f"{row['exact_match']:.3f}")
    return "  ".join(f"{topic} {' '.join(values)}" for topic, values in out.items())
