"""The viewer in a browser: what `Viewer` does behind gradio's queue, sessions and controls."""

from __future__ import annotations

import base64
import os
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tokensieve.data.extras import need
from tokensieve.errors import TokensieveError, brief
from tokensieve.methods.registry import method_names
from tokensieve.view.dropped import MOST_BYTES, MOST_PICTURES, Pictures
from tokensieve.view.gate import Gate
from tokensieve.view.report import read_static
from tokensieve.view.viewer import MOST_METHODS, Viewer

WAITING = 96  # questions that may stand in the queue; each of 32 askers has one or two
SESSIONS = 64
QUICK = 0.5  # seconds a method: the other stops are asked ahead
ACCEPT = "image/*,video/mp4,video/webm"
MOUNT = '<div class="ts"></div>'
_FONTS = ["system-ui", "sans-serif"]  # those of the reader: none is fetched


@dataclass(frozen=True)
class Question:
    """What one asker asked last; later stops and downloads are about it."""

    pictures: Pictures
    text: str
    methods: tuple[str, ...]
    id: str


def build(viewer: Viewer, methods: Sequence[str]) -> Any:
    """The page, as gradio's Blocks. methods: those chosen at first.

    Raises `MissingPackageError` without gradio.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    gr = need("gradio", "view", "in which the viewer runs")
    most = {"pictures": MOST_PICTURES, "bytes": MOST_BYTES, "accept": ACCEPT}
    with gr.Blocks(title="tokensieve", analytics_enabled=False, fill_width=True) as page:
        pictures, question = gr.State(None), gr.State(None)
        with gr.Row():
            with gr.Column(scale=3, min_width=300):
                drop = gr.HTML(
                    {}, html_template=MOUNT, js_on_load=read_static("drop.js"), most=most,
                    gallery=viewer.thumbnails(), apply_default_css=False, elem_id="drop",
                )  # fmt: skip
            with gr.Column(scale=3, min_width=300):
                text = gr.Textbox(
                    label="Question", placeholder="What is KR?", max_lines=4, elem_id="question"
                )
                names = gr.Dropdown(
                    list(method_names()), value=list(methods), multiselect=True, label="Methods",
                    max_choices=MOST_METHODS, elem_id="methods",
                )  # fmt: skip
                button = gr.Button("Ask", variant="primary", elem_id="ask")
        live = gr.HTML(
            {}, html_template=MOUNT, js_on_load=read_static("live.js"), apply_default_css=False,
            more={}, saved={}, outline={}, elem_id="live",
        )  # fmt: skip
        events = Events(viewer, gr)
        alone = {"concurrency_id": "model", "concurrency_limit": 1, "show_progress": "hidden",
                 "api_visibility": "private"}  # fmt: skip
        opens = alone | {"concurrency_id": "open", "concurrency_limit": 2}
        drop.upload(events.opened, [], [pictures, drop], trigger_mode="multiple", **opens)
        drop.select(events.example, [], [pictures, drop], trigger_mode="multiple", **opens)
        gr.on([button.click, text.submit], events.ask, [pictures, text, names], [question, live],
              **(alone | {"show_progress": "minimal"}))  # fmt: skip
        live.select(events.stop, [question], [live], trigger_mode="multiple", **alone)
        live.load(events.outline, [question], [live], trigger_mode="multiple", **alone)
        live.download(events.download, [question], [live], trigger_mode="multiple", **alone)
    page.queue(max_size=WAITING, default_concurrency_limit=1)
    for block in page.blocks.values():
        block.async_move_resource_to_block_cache = _no_file
    return page


async def _no_file(_path: object) -> str | None:
    """In place of gradio's way of taking a path or an address for a file."""
    raise PermissionError("The viewer takes no files by name or address.")


class Events:
    """What the page's controls do: arguments and results are gradio's, the work is the viewer's."""

    def __init__(self, viewer: Viewer, gr: Any) -> None:
        self.viewer, self.gr = viewer, gr
        for name in ("opened", "example", "stop", "outline", "download"):
            setattr(self, name, _with_data(getattr(self, name), gr.EventData))

    def opened(self, event: Any) -> Any:
        """Pictures were dropped."""
        return self._open(lambda: self.viewer.open(_told(event, "files")), "")

    def example(self, event: Any) -> Any:
        """A picture of the gallery was chosen."""
        name = _told(event, "example")
        return self._open(lambda: self.viewer.example(name), name)

    def _open(self, make: Callable[[], Pictures], example: Any) -> Any:
        try:
            found = make()
        except TokensieveError as error:
            return self.gr.skip(), {"error": str(error), "id": secrets.token_hex(4)}
        mine = [] if example else self.viewer.thumbnails(found)
        return found, {"mine": mine, "example": example, "id": secrets.token_hex(4)}

    def ask(self, pictures: Pictures | None, text: Any, methods: Any) -> Any:
        """A question: the first stop of its page."""
        key = secrets.token_hex(4)
        if pictures is None:
            return self.gr.skip(), {"error": "Choose a picture first.", "again": key}
        began = time.monotonic()
        try:
            page = self.viewer.ask(pictures, text, methods, self.viewer.start())
        except TokensieveError as error:
            return self.gr.skip(), {"error": str(error), "again": key}
        page["ahead"] = (time.monotonic() - began) / len(methods) < QUICK
        return Question(pictures, text, tuple(methods), key), {"page": page, "id": key}

    def stop(self, question: Question | None, event: Any) -> Any:
        """Another stop of the slider."""
        return self._more(question, event, "more", self._stop)

    def _stop(self, question: Question, event: Any) -> dict[str, Any]:
        stop = _told(event, "stop")
        return self.viewer.step(question.pictures, question.text, [*question.methods], stop)

    def outline(self, question: Question | None, event: Any) -> Any:
        """What is kept at every stop, before it is asked."""
        return self._more(question, event, "outline", self._outline)

    def _outline(self, question: Question, event: Any) -> dict[str, Any]:
        del event
        methods = [*question.methods]
        return {"methods": self.viewer.outline(question.pictures, question.text, methods)}

    def download(self, question: Question | None, event: Any) -> Any:
        """The sheet or the page, as bytes that the browser saves."""
        return self._more(question, event, "saved", self._download)

    def _download(self, question: Question, event: Any) -> dict[str, Any]:
        sheet = _told(event, "kind") == "sheet"
        make = self.viewer.sheet if sheet else self.viewer.page
        stop = _told(event, "stop")
        made = make(question.pictures, question.text, [*question.methods], stop)
        name, kind = ("tokensieve.png", "image/png") if sheet else ("tokensieve.html", "text/html")
        return {"name": name, "type": kind, "data": base64.b64encode(made).decode()}

    def _more(
        self, question: Question | None, event: Any, what: str,
        make: Callable[[Question, Any], dict[str, Any]],
    ) -> Any:  # fmt: skip
        if question is None or _told(event, "id") != question.id:
            return self.gr.skip()  # of a question before the last
        try:
            told = make(question, event)
        except TokensieveError as error:
            told = {"error": str(error)}
        again = secrets.token_hex(4)  # the same twice is two
        return self.gr.update(**{what: told | {"id": question.id, "again": again}})


def _with_data(act: Callable[..., Any], kind: Any) -> Callable[..., Any]:
    """`act`, whose last argument gradio fills with an event's data by its annotation."""
    if act.__code__.co_argcount == 2:

        def alone(event: Any) -> Any:
            return act(event)

        alone.__annotations__ = {"event": kind}
        return alone

    def beside(question: Any, event: Any) -> Any:
        return act(question, event)

    beside.__annotations__ = {"event": kind}
    return beside


def _told(event: Any, name: str) -> Any:
    data = getattr(event, "_data", None)
    return data.get(name) if isinstance(data, dict) else None


def launch(page: Any, host: str, port: int | None, *, wait: bool) -> str:
    """Serve `page` and give its address. wait: until it is stopped; else it runs on in a thread.

    Raises `ConfigError` for a port that is taken.
    """
    from starlette.middleware import Middleware

    from tokensieve.errors import ConfigError

    gr = need("gradio", "view", "in which the viewer runs")
    colour = gr.themes.colors.teal
    theme = gr.themes.Base(primary_hue=colour, font=_FONTS, font_mono=["ui-monospace"])
    try:
        _, address, _ = page.launch(
            server_name=host, server_port=port, share=False, quiet=True, inbrowser=False,
            show_error=False, prevent_thread_lock=True, ssr_mode=False, allowed_paths=[],
            max_file_size=1, enable_monitoring=False, footer_links=[], mcp_server=False,
            state_session_capacity=SESSIONS, theme=theme,
            css=read_static("view.css") + read_static("app.css"),
            head=f"<script>{read_static('view.js')}</script>",
            app_kwargs={"middleware": [Middleware(Gate, most=MOST_BYTES * 4 // 3 + (1 << 20))],
                        "docs_url": None, "redoc_url": None},
        )  # fmt: skip
    except OSError as error:
        raise ConfigError(
            f"Expected a free port. Got: {brief(error)}. Pass another one: --port 7861."
        ) from error
    if wait:
        page.block_thread()
    return str(address)
