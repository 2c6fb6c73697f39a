"""Pictures and a question, encoded once and asked by as many methods and keeps as you like.

n crops of a picture, L tokens of a crop.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from tokensieve.errors import TokensieveError
from tokensieve.evaluate.answer import Answer, Refused
from tokensieve.evaluate.ask import BASELINES, Settings, answered
from tokensieve.evaluate.prepare import Pictures, Shown, listed, prepared
from tokensieve.hf.asked import Asked
from tokensieve.hf.choose import choose
from tokensieve.hf.compress import apply_plan
from tokensieve.hf.encoder.encode import Encoded, encode
from tokensieve.hf.models.loaded import Loaded
from tokensieve.hf.plan import Plan
from tokensieve.hf.prompt.reduce import visions_of
from tokensieve.hf.prompt.text import Asked as AskedText
from tokensieve.hf.report import ImageReport, Report
from tokensieve.hf.runtime.timing import now_ms
from tokensieve.hf.sieve import sieve
from tokensieve.types import Site

_OF_ASKED = {one.name for one in fields(Asked)}
_RUN_ANEW = (Site.PIXELS, Site.PATCHES, Site.ENCODER)  # their encoder reads less


class Look:
    """A question about pictures that were encoded once.

    encoded: of the same pictures, from an earlier question, so that the encoder need not run.

    Raises what `prepared` and `encode` raise.
    """

    def __init__(
        self, loaded: Loaded, pictures: Pictures, question: str, settings: Settings,
        encoded: Encoded | None = None,
    ) -> None:  # fmt: skip
        self.loaded, self.settings, self.question = loaded, settings, question
        self.pictures: list[Shown] = listed(pictures)
        inputs = prepared(loaded, self.pictures, question, in_front=settings.ask_first)
        self.inputs: dict[str, Any] = dict(inputs)
        self._seen = None if encoded is None else encoded.with_prompt(**self.inputs)

    @property
    def encoded(self) -> Encoded:
        """The pictures with what the encoder made of them, for the next question about them."""
        if self._seen is None:
            with torch.no_grad():
                self._seen = encode(self.loaded.model, self.inputs)
        return self._seen

    @property
    def visual_tokens(self) -> int:
        """Rows of all pictures in the prompt."""
        return sum(self.encoded.image_rows)

    def ask(self, method: str, keep: float | int) -> Answer:
        """The answer read through `method`. Raises what a sieve raises."""
        keep = BASELINES.get(method, keep)
        plan = self._plan(method, keep or 1.0)
        with torch.no_grad():
            if plan.stages:
                return self._inside(method, keep)
            seen: Any = self.inputs if plan.method.site in _RUN_ANEW else self._encoded_for(plan)
            done = apply_plan(self.loaded.model, plan, seen)
            output, ms = self._generate(done.inputs)
        call = replace(done.report.calls[0], ms=done.report.calls[0].ms | ms)
        return self._told(method, keep, output, done.prompt_length, plan.report([call]))

    def try_ask(self, method: str, keep: float | int) -> Answer | Refused:
        """The same, but why a method does not fit is an answer too."""
        try:
            return self.ask(method, keep)
        except TokensieveError as error:
            return Refused(method, " ".join(str(error).split()))

    def kept(self, method: str, keep: float | int) -> tuple[ImageReport, ...] | None:
        """What `method` keeps of each picture, without an answer; None where only an answer tells:
        the encoder or the LLM must run for it. Raises what a sieve raises."""
        plan = self._plan(method, keep)
        if plan.stages or plan.method.site in _RUN_ANEW:
            return None
        with torch.no_grad():
            choice = choose(self.loaded.model, plan, self._encoded_for(plan))
        return tuple(image for prompt in choice.prompts for image in prompt.images)

    def scores(self, method: str) -> list[Tensor] | None:
        """(n, L) per picture, the scores by which `method` ranks tokens, -inf in padding; None:
        it does not rank them, or not by a score of each."""
        plan = self._plan(method, self.settings.keep)
        scoring = getattr(plan.method, "scores", None)
        if scoring is None or plan.stages or plan.method.site in _RUN_ANEW:
            return None
        encoded, model = self._encoded_for(plan), self.loaded.model
        with torch.no_grad():
            text = AskedText.of(model, encoded.inputs).context(model.get_input_embeddings(), 0)
            visions = visions_of(model, plan.method, encoded, None)
            found = [scoring(vision, text) for vision in visions]
        return [
            one.float().cpu().masked_fill(~vision.valid_BL.cpu(), -torch.inf)
            for one, vision in zip(found, visions, strict=True)
        ]

    def try_scores(self, method: str) -> list[Tensor] | None:
        """The same, None too where the method does not fit."""
        try:
            return self.scores(method)
        except TokensieveError:
            return None

    def _plan(self, method: str, keep: float | int) -> Plan:
        given = self.settings.plan(method)
        own = {name: value for name, value in given.items() if name not in _OF_ASKED}
        asked = Asked(method, keep, options=own, **{k: given[k] for k in given if k not in own})
        return Plan.of(self.loaded.model, asked)

    def _encoded_for(self, plan: Plan) -> Encoded:
        """Encoded once; once more where a method must be told of layers that none was before."""
        wanted = plan.signals(self.loaded.model)
        told = {*self.encoded.signals}
        if any(signal not in told for signal in wanted):
            every = dict.fromkeys((*self.encoded.signals, *wanted))
            with torch.no_grad():
                self._seen = encode(self.loaded.model, self.inputs, signals=tuple(every))
        return self.encoded

    def _inside(self, method: str, keep: float | int) -> Answer:
        """Where tokens are dropped inside the LLM: under a sieve, the encoder having run where the
        method reads nothing of it."""
        plan = self._plan(method, keep)
        given = self.inputs
        if all(stage.method.site is Site.LLM for stage in plan.stages) and plan.before is None:
            given = apply_plan(self.loaded.model, self._plan("full", 1.0), self.encoded).inputs
        before = self.inputs["input_ids"].shape[1]
        options = self.settings.plan(method)
        with sieve(self.loaded.model, method, keep, **options) as report:
            output, _ = self._generate(given)
        return self._told(method, keep, output, before, report)

    def _generate(self, inputs: dict[str, Any]) -> tuple[Any, dict[str, float]]:
        """The output of `generate`, and milliseconds to its first token and from there on."""
        times: list[float] = []
        device = inputs["input_ids"].device

        def clock(ids: Tensor, _scores: Any, **_: Any) -> Tensor:
            times.append(now_ms(device))
            return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

        begun = now_ms(device)
        output = self.loaded.model.generate(
            **inputs, max_new_tokens=self.settings.max_new_tokens, do_sample=False,
            output_logits=True, return_dict_in_generate=True, stopping_criteria=[clock],
        )  # fmt: skip
        ended = now_ms(device)
        first = times[0] if times else ended
        return output, {"prefill": first - begun, "decode": ended - first}

    def _told(
        self, method: str, keep: float | int, output: Any, begins: int, report: Report
    ) -> Answer:
        whole = self.inputs["input_ids"].shape[1]
        return answered(self.loaded, method, keep, (output, begins, whole), report)
