"""Answer with few tokens, and ask again with all of them when unsure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tokensieve.errors import ConfigError
from tokensieve.evaluate.answer import Answer
from tokensieve.evaluate.ask import Settings, ask
from tokensieve.evaluate.calibrate import plan_told
from tokensieve.evaluate.prepare import Pictures
from tokensieve.evaluate.records import read
from tokensieve.evaluate.stats import Estimate, paired_difference
from tokensieve.hf.calibrated import ALL, Calibration
from tokensieve.hf.models.loaded import Loaded

SURE = (0.5, 0.8, 0.95)  # probabilities of an answer's least likely token to be content with


def ask_until_sure(
    loaded: Loaded, pictures: Pictures, question: str, method: str, settings: Settings,
    sure: float | Calibration = 0.8, group: str = ALL,
) -> list[Answer]:  # fmt: skip
    """The answer with few tokens and, where its least likely token has a probability below `sure`,
    the one with all of them; the last one counts, both were paid for.

    sure: also a calibration of `tokensieve calibrate --sure`, which says the `keep` for its `group`
        (instead of the settings') and the bound: then answers agree with those of all tokens as
        often as it promises.

    Raises what `ask` raises, `ConfigError` for a `sure` outside [0, 1] and a calibration for
    another model, method or settings, `UnknownNameError` for a group that it has not.
    """
    if isinstance(sure, Calibration):
        sure.check(loaded.model, method, plan_told(method, settings), again=True)
        settings, sure = replace(settings, keep=sure.keep_for(group)), sure.sure or 0.0
    if not 0 <= sure <= 1:
        raise ConfigError(f"Expected `sure` in [0, 1]. Got {sure}. Take 0.8.")
    first = ask(loaded, pictures, question, method, settings)
    if first.sure >= sure:
        return [first]
    return [first, ask(loaded, pictures, question, "full", settings)]


@dataclass(frozen=True)
class Again:
    """What asking again comes to.

    tokens: visual ones a question on average, of both times; of: with all tokens at once.
    asked_again: share of the questions. to_full: score less that of all tokens.
    """

    method: str
    keep: float
    sure: float
    score: float
    to_full: Estimate
    tokens: float
    of: float
    asked_again: float


def again_of(files: Sequence[Path]) -> Iterator[Again]:
    """For every record and `SURE`, from answers that are there: nothing is asked."""
    told = list(map(read, files))
    full = next((one for one in told if one["config"]["method"] == "full"), None)
    if full is None or not all("sure" in row for one in told for row in one["rows"]):
        return
    whole, all_ = (_column(full, name) for name in ("score", "kept"))
    for record in told:
        config = record["config"]
        if config["method"] in ("full", "none") or not record["rows"] or config["seed"]:
            continue
        few, kept, found = (_column(record, name) for name in ("score", "kept", "sure"))
        for sure in SURE:
            unsure = found < sure
            score = np.where(unsure, whole, few)
            yield Again(
                config["method"], float(config["keep"]), sure, float(score.mean()),
                paired_difference([score], [whole]), float((kept + unsure * all_).mean()),
                float(all_.mean()), float(unsure.mean()),
            )  # fmt: skip


def _column(record: dict[str, Any], name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([row[name] for row in record["rows"]], dtype=np.float64)


def markdown(files: Sequence[Path]) -> str:
    """The section of a table's page; empty where answers do not say how sure they were."""
    found = list(again_of(files))
    if not found:
        return ""
    level = [one for one in found if one.to_full.high >= 0 and one.tokens < one.of]
    best = min(level, key=lambda one: one.tokens, default=None)
    message = (
        f"{best.method} at keep {best.keep:g}, asking again below {best.sure:g}, reads "
        f"{best.tokens / best.of:.0%} of the tokens on average and loses "
        f"{-100 * best.to_full.mean:.1f} points."
        if best else "Nowhere does it save tokens at equal accuracy."
    )  # fmt: skip
    parts = [
        f"\n## Asking again when unsure\n\n{message}\n\n",
        "| method | keep | sure | score, % | to full, points | tokens, % of all | asked again, % "
        "|\n"
        "| :-- | --: | --: | --: | --: | --: | --: |\n",
    ]
    for one in found:
        to = one.to_full
        parts.append(
            f"| `{one.method}` | {one.keep:g} | {one.sure:g} | {100 * one.score:.1f} | "
            f"{100 * to.mean:+.1f} [{100 * to.low:+.1f}, {100 * to.high:+.1f}] | "
            f"{100 * one.tokens / one.of:.1f} | {100 * one.asked_again:.1f} |\n"
        )
    parts.append(
        "\nWith few tokens first and, where an answer's least likely token has a probability below "
        "*sure*, with all; tokens of both times count. First seed of each.\n"
    )
    return "".join(parts)
