"""The front door: shorten what a VLM reads, for a while (`sieve`) or purely (`compress`).

with sieve(model, "selector", keep=0.4) as report:
    model.generate(**inputs)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokensieve.hf.asked import Asked
from tokensieve.hf.calibrated import ALL, Calibration
from tokensieve.hf.compress import Compressed, compress
from tokensieve.hf.encoder.encode import Encoded, encode
from tokensieve.hf.families.fingerprint import encoder_info
from tokensieve.hf.plan import Plan
from tokensieve.hf.report import Report
from tokensieve.hf.session import Session
from tokensieve.hf.steady import Steady
from tokensieve.methods.base import Method
from tokensieve.schedules import Schedule

__all__ = ["Compressed", "Encoded", "Report", "compress", "encode", "encoder_info", "sieve"]


@contextmanager
def sieve(
    model: Any, method: str | Method | Sequence[str | Method],
    keep: float | int | str | Sequence[float | int] = 0.4, *, positions: str = "keep",
    pool: str = "crop", newlines: str = "keep", frames: str | int | None = None,
    layer: int | Mapping[int, float | int] | Schedule | None = None,
    recycle: bool = False, cover: int = 0, site: str | None = None, history: int | None = 1000,
    calibration: str | Path | Calibration | None = None, group: str = ALL, trusted: bool = False,
    steady: bool = False, **options: Any,
) -> Iterator[Report]:  # fmt: skip
    """Inside, `model.generate(**inputs)` and `model(**inputs)` read fewer visual tokens.

    model: a loaded Transformers VLM; only this one is touched, and put back.
    method: a name of `method_names()` with its `options`, or an instance. Or a pair of them: one
        before the LLM, one inside it.
    keep: fraction in (0, 1], or a whole number from 2: at most so many tokens of each picture, all
        of one that has fewer. With pool="prompt" it is the total of all pictures of a prompt. For a
        pair of methods a pair, both of all tokens. "auto": the least that a `calibration` allows.
    positions: "keep" leaves gaps where tokens went; "renumber" closes them (1-D RoPE only).
    pool: "crop", "image" or "prompt": over what the budget is spent; frames: the same of a video,
        over "each" frame, all of them "together" or N at a time. None: as `pool` says of crops.
    newlines: "keep" or "drop" the rows that end a line of tokens (LLaVA-NeXT).
    layer: the LLM's decoder layer from which on only kept tokens remain, or {layer: keep} for
        several, or a schedule of tokensieve.schedules; None: the method's own, or before the LLM. A
        method of another site chooses where it always does, to take effect at the layer.
    recycle: merge each dropped token into the kept one most like it (cosine): their mean.
    cover: keep a token or more of every cell of a `cover` x `cover` grid over each crop; 0: no such
        floor. For methods that score tokens. Of a pair of methods both are about the first.
    site: "patches" lets a method that reads pixels or nothing choose what is encoded at all.
    calibration: a file of `tokensieve calibrate` for this model, method and settings; group: of its
        groups of questions the one asked now. Pictures that look otherwise are told by a warning.
    steady: of adaptive counts, calls keep `keep` on average over any mix of pictures: each makes up
        for those before it, and a picture keeps from a fifth to five times as many.
    trusted: a model of a family that tokensieve does not know need not show on its first prompt, in
        the time of four prefills, that it reads shortened prompts rightly.
    history: of how many calls the report holds what was kept (None: all); it counts all of them.

    Methods that choose by text are told the question: what stands behind the last picture, less
    special tokens, padding and answers that `labels` mark. An entry `text_mask` of the inputs, 1 at
    the question's tokens, says so where template words ("ASSISTANT:") or a question in front of the
    picture matter; the model never gets it. See `tokensieve.hf.prompt.text`.

    `generate` returns the prompt as given and the answer; a forward logits of the shortened prompt,
    with labels and in evaluation of the whole one, zeros where a token was dropped. Training works.

    With `layer` prompts keep their length, and so do logits, which mean nothing where a token was
    dropped; each layer's cache holds what is left there: a `DynamicCache`, of no use outside. Not
    with use_cache=False or assisted decoding.

    It holds in every thread; a call begun under it ends under it. A chat goes on with its cache.

    Raises `ConfigError` for wrong use and a second sieve on the model, `UnsupportedError` for what
    cannot be shortened (some videos, `inputs_embeds`, pictures behind a cache).
    """
    plan = Plan.of(model, Asked(
        method, keep, positions, pool, newlines, layer, recycle, cover, site, options,
        calibration, group, frames, trusted,
    ))  # fmt: skip
    plan = _steadied(plan, auto=calibration is not None) if steady else plan
    with Session(model, plan, report := plan.report(history=history)):
        yield report


def _steadied(plan: Plan, *, auto: bool) -> Plan:
    """The plan with a running correction of its own. auto: a calibration said its `keep`."""
    told = (plan.name, plan.method, plan.keep, plan.pool)
    return replace(plan, steady=Steady.of(*told, inside=bool(plan.stages), calibrated=auto))
