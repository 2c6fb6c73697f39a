"""What every family does at every site in every way of calling a model.

A cell holds a call under a sieve against what it must equal: the model on a prompt that `compress`
made shorter (which `sites.py` holds against blocked keys), or that may not look at what is dropped
(inside the LLM). Where it does not, and the model without a sieve is as wrong in that mode, the
cell says "upstream".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationMixin
from transformers.generation.streamers import BaseStreamer

from families import checks, fewer, inside
from families.checks import CLOSE, STATEFUL
from families.fewer import Lively
from families.methods import ByFeatureNorm, ByNorm, Inside, Smaller
from families.said import require_same, require_tokens
from families.sites import (
    ALL,
    CHECKS,
    EXACT,
    REFUSED,
    WORKS,
    check_once,
    check_shorter,
    videos_refused,
)
from families.steps import Norm
from families.tiny import BEGIN, END, IMAGE, VIDEO, Tiny, build
from families.videos import NAMES as VIDEO_NAMES
from families.videos import PROMPTS, build_video, check_before, check_inside
from tokensieve.errors import TokensieveError, UnsupportedError
from tokensieve.hf.sieve import compress, sieve

UPSTREAM = "upstream"
KEEP, NEW = 0.4, 3
METHODS = {
    "pixels": Smaller(), "patches": Lively(), "encoder": Norm(),
    "features": ByFeatureNorm(), "embeds": ByNorm(), "llm": Inside(),
}  # fmt: skip


@dataclass(frozen=True)
class Ways:
    """How a tiny model is called: with a method at a site, or as it is (site "")."""

    tiny: Tiny
    site: str

    @property
    def options(self) -> dict[str, Any]:
        recounted = self.tiny.name in checks.RECOUNTED and self.site != "llm"
        return {**({"layer": 1} if self.site == "llm" else {}),
                **({"positions": "renumber"} if recounted else {})}  # fmt: skip

    @contextmanager
    def open(self):
        """A sieve, or nothing."""
        if not self.site:
            yield None
            return
        keep = 0.5 if self.site == "llm" else KEEP  # as `inside.cut`
        with sieve(self.tiny.model, METHODS[self.site], keep, **self.options) as report:
            yield report

    def run(self, inputs: dict[str, Any], **options: Any):
        """Tokens and logits of a call as users make it."""
        with self.open() as report:
            out = told(self.tiny.model, inputs, **options)
        assert report is None or 0 < report.kept_tokens < report.visual_tokens
        return out

    @contextmanager
    def shorter(self, inputs: dict[str, Any]):
        """The model's own way to the same answer: inputs, while it holds."""
        if self.stateful:
            yield inputs
            return
        if self.site != "llm":
            method, keep = (METHODS[self.site], KEEP) if self.site else (ByNorm(), 1.0)
            yield compress(self.tiny.model, inputs, method, keep, **self.options).inputs
            return
        _, report = inside.cut(self.tiny.model, inputs, Inside(), 1, told)
        with inside.blocked(self.tiny.model, inputs, report.stages):
            yield inputs

    @property
    def stateful(self) -> bool:
        """Layers that hold a state, cut inside the LLM: there is no whole prompt to be equal to."""
        return self.site == "llm" and self.tiny.name in STATEFUL

    def own(self, inputs: dict[str, Any], **options: Any):
        """Tokens and logits that way."""
        if self.stateful:
            return self.run(inputs, **options)
        with self.shorter(inputs) as short, pictures_in_order(self.tiny.model):
            return told(self.tiny.model, short, **options)


def told(model: Any, inputs: dict[str, Any], **options: Any) -> Any:
    """New tokens, their logits, and the cache."""
    given = {"max_new_tokens": NEW, "do_sample": False, **options}
    suppressed = [t for t in (IMAGE, VIDEO, BEGIN, END) if t is not None]
    out = model.generate(**inputs, **given, output_logits=True, return_dict_in_generate=True,
                         suppress_tokens=suppressed)  # fmt: skip
    return out.sequences[:, -NEW:], torch.stack(out.logits, 1), out.past_key_values


@contextmanager
def pictures_in_order(model: Any) -> Iterator[None]:
    """Beams of a prompt each get its pictures in their order, as Transformers' own code has it,
    whatever a family's does (GLM-4V's hands the first picture to the first beams)."""
    model._expand_multimodal_outputs = GenerationMixin._expand_multimodal_outputs.__get__(model)
    try:
        yield
    finally:
        del model._expand_multimodal_outputs


def _same(ways: Ways, got: Any, wanted: Any, *, logits: bool = True) -> None:
    claim = f"{ways.tiny.name} with a method at '{ways.site}' does not answer as it should"
    close = fewer.CLOSE if ways.site == "patches" else CLOSE
    if logits:
        require_same(got[1], wanted[1], claim, **close)
    require_tokens(got[0], wanted[0], claim)


def beams(ways: Ways) -> None:
    """Two prompts, two beams each."""
    inputs = ways.tiny.inputs([1, 2])
    options = {"num_beams": 2}
    _same(ways, ways.run(inputs, **options), ways.own(inputs, **options), logits=False)


def static(ways: Ways) -> None:
    """A cache of a fixed size."""
    inputs = ways.tiny.inputs([1, 2])
    _same(ways, ways.run(inputs, cache_implementation="static"), ways.own(inputs))


def without(ways: Ways) -> None:
    """No cache: every token reads the whole prompt again."""
    inputs = ways.tiny.inputs([1, 2])
    _same(ways, ways.run(inputs, use_cache=False), ways.own(inputs))


def sampling(ways: Ways) -> None:
    """Tokens drawn by chance, with one seed."""
    inputs, found = ways.tiny.inputs([1, 2]), []
    for call in (ways.run, ways.own):
        with torch.random.fork_rng():
            torch.manual_seed(5)
            found.append(call(inputs, do_sample=True, temperature=0.7))
    _same(ways, *found)


class Heard(BaseStreamer):
    """A streamer that keeps what it is put."""

    def __init__(self) -> None:
        self.chunks: list[list[Any]] = []

    def put(self, value: torch.Tensor) -> None:
        self.chunks.append(value.tolist())

    def end(self) -> None:
        self.chunks.append(["end"])


def streaming(ways: Ways) -> None:
    """The prompt as given, then token by token."""
    inputs, heard = ways.tiny.inputs([1]), Heard()
    got = ways.run(inputs, streamer=heard)
    _same(ways, got, ways.own(inputs))
    wanted = [inputs["input_ids"].tolist(), *[[t] for t in got[0][0].tolist()], ["end"]]
    assert heard.chunks == wanted, f"{ways.tiny.name} streams {heard.chunks}. Expected {wanted}."


def chat(ways: Ways) -> None:
    """A second turn on the first one's cache, as if the whole conversation were given."""
    tiny, inputs = ways.tiny, ways.tiny.inputs([1])
    with ways.open():
        answer, _, past = told(tiny.model, inputs)
        whole = torch.cat([inputs["input_ids"], answer, torch.tensor([[11, 12, 13]])], 1)
        again = {**inputs, "input_ids": whole, "attention_mask": torch.ones_like(whole),
                 **tiny.types(whole)}  # fmt: skip
        wanted = told(tiny.model, again)
        if not ways.site:  # the model itself wants no pixels twice
            again = {k: v for k, v in again.items() if "pixel" not in k and "grid" not in k}
        _same(ways, told(tiny.model, again, past_key_values=past), wanted)


def labels(ways: Ways) -> None:
    """The loss of the words behind the pictures."""
    tiny, inputs = ways.tiny, ways.tiny.inputs([1, 2])
    own = inputs["input_ids"].clone()
    for row in own:
        row[: int((row == IMAGE).nonzero().max()) + 2] = -100
    given = {**inputs, "labels": own}
    with torch.no_grad():
        with ways.open():
            got = tiny.model(**given).loss
        if ways.stateful:
            assert bool(got.isfinite())
            return
        with ways.shorter(inputs if ways.site == "llm" else given) as short:
            wanted = tiny.model(**{**short, "labels": short.get("labels", own)}).loss
    claim = f"the loss of {tiny.name} with a method at '{ways.site}' is not what it should be"
    require_same(got, wanted, claim, **CLOSE)


CALLS: dict[str, Callable[[Ways], None]] = {
    "beams": beams, "static": static, "without": without, "sampling": sampling,
    "streaming": streaming, "chat": chat, "labels": labels,
}  # fmt: skip
MODES = {
    "one": "one", "batch": "batch", "two": "two pictures", "video": "video", "beams": "beams",
    "static": "static cache", "without": "no cache", "sampling": "sampling",
    "streaming": "streaming", "chat": "chat turn", "labels": "labels",
}  # fmt: skip


def state_of(name: str, site: str) -> str:
    """What a right answer is called there."""
    stateful = name in STATEFUL and site == "llm"
    return WORKS if site == "pixels" or stateful else EXACT


def video(name: str, site: str) -> None:
    """A video alone, and one beside a picture."""
    if name not in VIDEO_NAMES:
        raise UnsupportedError(videos_refused(name))
    videos = build_video(name)
    if site == "llm":
        return check_inside(videos)

    def shorten(model: Any, inputs: dict[str, Any], **options: Any) -> dict[str, Any]:
        return compress(model, inputs, METHODS[site], KEEP, **options).inputs

    return check_before(videos, shorten) if site in ("features", "embeds") else shorten(
        videos.model, videos.inputs(PROMPTS)
    )  # fmt: skip


def plain_is_right(name: str, mode: str) -> bool:
    """Whether the model without a sieve, all its tokens kept, is right in that mode."""
    try:
        CALLS[mode](Ways(build(name), ""))
    except Exception:  # an error of the model's own is as wrong as another answer
        return False
    return True


def cell(name: str, site: str, mode: str) -> tuple[str, str]:
    """What a family does at a site in a mode, and the reason where it is refused.

    Raises what else a check raises: a cell that is wrong has no page.
    """
    try:
        if mode == "video":
            video(name, site)
        elif mode in CALLS:
            CALLS[mode](Ways(build(name), site))
        elif mode == "batch":
            CHECKS[site](build(name))
        elif site == "llm" and name in STATEFUL:
            check_shorter(build(name))
        else:
            check_once(build(name), site, 1 if mode == "one" else 2)
    except TokensieveError as error:
        return REFUSED, str(error)
    except Exception as error:
        if mode not in CALLS or plain_is_right(name, mode):
            raise
        said = " ".join(str(error).split())
        return UPSTREAM, f"without a sieve too: {said[:160]}"
    return state_of(name, site), ""


def row(name: str, site: str) -> dict[str, tuple[str, str]]:
    """All modes of a family at a site."""
    return {mode: cell(name, site, mode) for mode in MODES}


PLACES = [(name, site) for name in ALL for site in CHECKS]
