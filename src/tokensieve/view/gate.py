"""What of the server can be reached at all: a list of what is needed, and nothing else.

Gradio's own routes for files, uploads, proxies and named calls are shut: pictures come as bytes in
an event, and no file goes in or out.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

PAGES = frozenset({
    "/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt",
    "/gradio_api/theme.css", "/gradio_api/queue/join", "/gradio_api/queue/data",
    "/gradio_api/startup-events", "/gradio_api/app_id", "/gradio_api/cancel",
    "/gradio_api/reset",
})  # fmt: skip
FOLDERS = ("/static/", "/assets/", "/svelte/", "/gradio_api/heartbeat/")
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self'; object-src 'none'; base-uri 'self'; form-action 'self'; "
    "frame-ancestors 'self'"
)
_HEADERS = {
    b"content-security-policy": POLICY.encode(),
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
}
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class Gate:
    """An ASGI application in front of another. most: bytes that a request may bring."""

    def __init__(self, app: App, most: int) -> None:
        self.app, self.most = app, most

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Let a request through, or answer 404 (nothing there) or 413 (too large)."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http" or not allowed(scope["path"]):
            await _refuse(scope, send, 404, b"Not found")
            return
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self.most:
            await _refuse(scope, send, 413, b"Too large")
            return
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self.most:  # of a body whose length was not said
                return {"type": "http.disconnect"}
            return message

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                rest = [(k, v) for k, v in message["headers"] if k.lower() not in _HEADERS]
                message = {**message, "headers": [*rest, *_HEADERS.items()]}
            await send(message)

        await self.app(scope, counted, sent)


def allowed(path: str) -> bool:
    """Whether anything is to be had there."""
    if ".." in path or "\\" in path:
        return False
    return path in PAGES or path.startswith(FOLDERS)


async def _refuse(scope: Message, send: Send, status: int, text: bytes) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    headers = [(b"content-type", b"text/plain"), *_HEADERS.items()]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text})
