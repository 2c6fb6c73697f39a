"""What the viewer's server does, without the server: pictures from strangers, questions, answers.

One model, one question at work at a time. What was encoded and answered is held by content, so
that whoever asks the same of the same pictures is answered at once, and nobody gets another's.
"""

from __future__ import annotations

import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from tokensieve.data.pictures.decode import Limits
from tokensieve.data.sources.clips import Video
from tokensieve.errors import (
    ConfigError,
    PromptError,
    TokensieveError,
    UnknownNameError,
)
from tokensieve.evaluate.ask import BASELINES, Settings
from tokensieve.evaluate.overlay import write_overlay
from tokensieve.evaluate.pictures import EXAMPLE, PICTURES, open_all
from tokensieve.fields import shown
from tokensieve.hf.encoder.encode import Encoded
from tokensieve.hf.models.loaded import Loaded
from tokensieve.methods.registry import method_names
from tokensieve.view.dropped import MOST_PIXELS, Pictures, opened
from tokensieve.view.look import Look
from tokensieve.view.report import html_page, stops
from tokensieve.view.told import (
    Asked,
    Placed,
    Step,
    data_url,
    fates,
    keep_label,
    page_data,
    place,
    step_data,
)

MOST_METHODS, MOST_LETTERS = 8, 2000
_Value = TypeVar("_Value")


class Recent(Generic[_Value]):
    """The values last asked for; what was not for long goes."""

    def __init__(self, most: int) -> None:
        self.most, self.held = most, OrderedDict[Any, _Value]()

    def get(self, key: Any, make: Callable[[], _Value]) -> _Value:
        """The value of `key`, made now where it is not held."""
        if key not in self.held:
            self.held[key] = make()
        self.held.move_to_end(key)
        while len(self.held) > self.most:
            self.held.popitem(last=False)
        return self.held[key]


class Viewer:
    """A loaded model that answers about pictures.

    settings: of every question; their keep is where the slider begins.
    """

    def __init__(self, loaded: Loaded, settings: Settings) -> None:
        self.loaded, self.settings = loaded, settings
        self.limits = Limits(MOST_PIXELS)
        self._lock = threading.Lock()
        self._encoded: Recent[Encoded] = Recent(8)
        self._looks: Recent[Look] = Recent(32)
        self._steps: Recent[Step] = Recent(2048)
        self._scores: Recent[Any] = Recent(128)
        self._placed: Recent[Placed] = Recent(32)

    # -- pictures

    def open(self, files: Any) -> Pictures:
        """As `opened`, within the limits of a viewer."""
        return opened(files, self.loaded, self.limits)

    def example(self, name: Any) -> Pictures:
        """A picture that ships. Raises `UnknownNameError` for another name."""
        if not isinstance(name, str) or name not in PICTURES:
            raise UnknownNameError.of("example", name, PICTURES)
        return Pictures.of(open_all([EXAMPLE + name]))

    # -- questions

    def start(self) -> int:
        """The stop that the slider begins at."""
        return stops(self.settings.keep, 0x7FFF)[1]

    def ask(self, pictures: Pictures, question: Any, methods: Any, stop: Any) -> dict[str, Any]:
        """The data of a page of which one stop of the slider is asked; the others' steps are None.

        Raises `PromptError` for the question, `ConfigError` for methods and stop, and what `Look`
        raises.
        """
        names, keeps = _methods(methods), self.keeps()
        stop = _stop(stop, keeps)
        with self._lock:
            look = self._look(pictures, question)
            asked = [
                Asked(name, (self._step(look, pictures, name, keeps[stop]),),
                      self._ranked(look, pictures, name))
                for name in names
            ]  # fmt: skip
            placed = self._placed.held.get(pictures.digest) or place(look, asked)
            if not placed[1]:
                self._placed.get(pictures.digest, lambda: placed)
        data = page_data(look, asked, [keeps[stop]], placed=placed)
        for method in data["methods"]:
            if not method["baseline"]:
                steps: list[Any] = [None] * len(keeps)
                steps[stop] = method["steps"][0]
                method["steps"] = steps
        return data | {"keeps": [keep_label(keep) for keep in keeps], "start": stop}

    def step(self, pictures: Pictures, question: Any, methods: Any, stop: Any) -> dict[str, Any]:
        """Another stop of the same question: {"stop": number, "steps": one a method}; None of
        baselines, which have one for all. Raises what `ask` raises."""
        names, keeps = _methods(methods), self.keeps()
        stop = _stop(stop, keeps)
        with self._lock:
            look = self._look(pictures, question)
            found = [
                None if name in BASELINES else self._step(look, pictures, name, keeps[stop])
                for name in names
            ]
            drawn = pictures.digest in self._placed.held
        steps = [None if one is None else step_data(one, drawn=drawn) for one in found]
        return {"stop": stop, "steps": steps}

    def outline(self, pictures: Pictures, question: Any, methods: Any) -> list[Any]:
        """A method's kept tokens at every stop, without answers, so that overlays follow a slider
        before the LLM does. None: of a method that only an answer tells, or where none is drawn.

        Raises what `ask` raises.
        """
        found: list[Any] = []
        for name in _methods(methods):
            with self._lock:  # between two of them others are answered
                look = self._look(pictures, question)
                known = name not in BASELINES and pictures.digest in self._placed.held
                found.append([self._fates(look, name, k) for k in self.keeps()] if known else None)
        return found

    def _fates(self, look: Look, name: str, keep: float | int) -> list[str] | None:
        try:
            kept = look.kept(name, keep)
        except TokensieveError:  # its answer will say why
            return None
        return None if kept is None else fates(kept)

    def sheet(self, pictures: Pictures, question: Any, methods: Any, stop: Any) -> bytes:
        """The sheet that `ask --overlay` writes, as a PNG. Raises what `ask` and it raise."""
        names, keeps = _methods(methods), self.keeps()
        keep = keeps[_stop(stop, keeps)]
        with self._lock:
            look = self._look(pictures, question)
            answers = [self._step(look, pictures, name, keep) for name in names]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "sheet.png"
            processor = self.loaded.processor
            write_overlay(path, processor, list(pictures.items), look.question, answers)
            return path.read_bytes()

    def page(self, pictures: Pictures, question: Any, methods: Any, stop: Any) -> bytes:
        """The page of `ask --report`, every stop asked."""
        names, keeps = _methods(methods), self.keeps()
        stop, asked = _stop(stop, keeps), []
        for name in names:
            found = []
            for keep in keeps[:1] if name in BASELINES else keeps:
                with self._lock:  # between two of them others are answered
                    look = self._look(pictures, question)
                    found.append(self._step(look, pictures, name, keep))
            with self._lock:
                asked.append(Asked(name, tuple(found), self._ranked(look, pictures, name)))
        return html_page(page_data(look, asked, keeps, stop)).encode()

    def keeps(self) -> list[float | int]:
        """The slider's stops, from fewest tokens to most."""
        return stops(self.settings.keep, 0x7FFF)[0]

    def warm(self) -> None:
        """Answer once, so that nobody waits for what is done once."""
        pictures = self.example(PICTURES[0])
        self.ask(pictures, "What is this?", ["full"], 0)

    def thumbnails(self, pictures: Pictures | None = None) -> list[dict[str, str]]:
        """Small pictures: of what was dropped, or of what ships, with their names."""
        if pictures is None:
            every = [(name, self.example(name).items[0]) for name in PICTURES]
        else:
            every = [("", one) for one in pictures.items]
        made = []
        for name, one in every:
            first = one.frames[0] if isinstance(one, Video) else one
            made.append({"name": name, "src": data_url(first, 192)})
        return made

    def _look(self, pictures: Pictures, question: Any) -> Look:
        if not isinstance(question, str) or len(question) > MOST_LETTERS:
            raise PromptError(
                f"Expected a question of at most {MOST_LETTERS} letters. Got "
                f"{shown(question)[:80]}. Shorten it."
            )

        def make() -> Look:
            items = list(pictures.items)
            old = self._encoded.held.get(pictures.digest)
            look = Look(self.loaded, items, question, self.settings, old)
            self._encoded.get(pictures.digest, lambda: look.encoded)
            return look

        return self._looks.get((pictures.digest, question), make)

    def _step(self, look: Look, pictures: Pictures, name: str, keep: float | int) -> Step:
        key = (pictures.digest, look.question, name, None if name in BASELINES else keep)
        return self._steps.get(key, lambda: look.try_ask(name, keep))

    def _ranked(self, look: Look, pictures: Pictures, name: str) -> Any:
        key = (pictures.digest, look.question, name)
        return self._scores.get(key, lambda: look.try_scores(name))


def _methods(names: Any) -> list[str]:
    if not isinstance(names, list) or not 1 <= len(names) <= MOST_METHODS:
        raise ConfigError(
            f"Expected 1 to {MOST_METHODS} methods. Got {shown(names)[:80]}. Choose from the list."
        )
    for name in names:
        if not isinstance(name, str) or name not in method_names():
            raise UnknownNameError.of("method", name, method_names())
    return list(dict.fromkeys(names))


def _stop(stop: Any, keeps: Sequence[Any]) -> int:
    if isinstance(stop, bool) or not isinstance(stop, int) or not 0 <= stop < len(keeps):
        raise ConfigError(
            f"Expected a stop of the slider, 0 to {len(keeps) - 1}. Got {shown(stop)[:80]}."
        )
    return stop
