"""A small OpenAI-compatible server of a Transformers model that reads fewer visual tokens.

    python -m tokensieve.serving.app --model nano2

Every request may say its own `method` and `keep`. Nothing of the model is patched: each prompt is
shortened by `compress`, which is a function of its inputs, so requests cannot meet.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from threading import BoundedSemaphore, Thread
from typing import Annotated, Any

import torch
from transformers import TextIteratorStreamer

from tokensieve.budget import parse_keep
from tokensieve.data.extras import need
from tokensieve.errors import ConfigError, InputError, TokensieveError
from tokensieve.hf.compress import Compressed, compress
from tokensieve.hf.load import load_model
from tokensieve.hf.models.loaded import Loaded, hush
from tokensieve.serving.chat import Asked, Served, inputs_of, read_request

need("fastapi", "serve", "in which the server runs")
from fastapi import Depends, FastAPI, Request  # noqa: E402
from fastapi.responses import JSONResponse, StreamingResponse  # noqa: E402

MOST = 32 << 20  # bytes of a request
WAITING = 64  # requests that wait for their turn


class TooLargeError(InputError):
    """A request brings more bytes than may be, or does not say how many."""


class FullError(TokensieveError, RuntimeError):
    """As many requests wait as may."""


# Of other errors of ours 400.
STATUS: dict[type[Exception], int] = {TooLargeError: 413, FullError: 503}


class _Texts(TextIteratorStreamer):
    """Over when `over` is called: `generate` ends it before its own result is there."""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.text_queue.put(text)

    def over(self) -> None:
        self.text_queue.put(self.stop_signal)


@dataclass
class Answer:
    """One request under way. texts: of the answer, as they come; when they are over, `tokens` and
    `reason` say how many and why no more, or `error` what went wrong."""

    asked: Asked
    done: Compressed
    texts: Iterator[str]
    tokens: int = 0
    reason: str = "stop"
    error: Exception | None = None


@dataclass
class Answering:
    """A model, and whose turn it is. at_once: requests that are worked on at the same time."""

    loaded: Loaded
    served: Served = field(default_factory=Served)
    at_once: int = 1

    def __post_init__(self) -> None:
        self._turn = BoundedSemaphore(self.at_once)
        self._room = BoundedSemaphore(self.at_once + WAITING)

    def begin(self, body: bytes) -> Answer:
        """The answer to a request, which goes on in a thread of its own whoever listens.

        Raises what is wrong with the request, and `FullError`.
        """
        if not self._room.acquire(blocking=False):
            raise FullError(f"Expected at most {WAITING} waiting requests. Try again in a moment.")
        try:
            with self._turn, torch.inference_mode():
                asked = read_request(_parsed(body), self.loaded.name, self.served)
                inputs = inputs_of(self.loaded, asked)
                done = compress(
                    self.loaded.model, inputs, asked.method, asked.keep, positions=asked.positions
                )
            tokenizer = self.loaded.processor.tokenizer
            texts = _Texts(tokenizer, skip_prompt=True, skip_special_tokens=True)
            answer = Answer(asked, done, texts)
            Thread(target=self._generate, args=(answer, texts), daemon=True).start()
        except BaseException:
            self._room.release()
            raise
        return answer

    def _generate(self, answer: Answer, streamer: Any) -> None:
        model = self.loaded.model
        try:
            with self._turn, torch.inference_mode():
                found = model.generate(
                    **answer.done.inputs, max_new_tokens=answer.asked.tokens, do_sample=False,
                    streamer=streamer,
                )  # fmt: skip
            new = found[0, answer.done.prompt_length :].tolist()
            ends = model.generation_config.eos_token_id
            ended = new and new[-1] in (ends if isinstance(ends, list) else [ends])
            answer.tokens, answer.reason = len(new), "stop" if ended else "length"
        except Exception as error:  # told to the one who asked
            answer.error = error
        finally:
            streamer.over()
            self._room.release()


async def body_of(request: Request) -> bytes:
    """The bytes of a request; servers read no more than its length says. Raises `TooLargeError`."""
    length = request.headers.get("content-length", "")
    if not length.isdecimal() or int(length) > MOST:
        raise TooLargeError(
            f"Expected a request that says its length, up to {MOST:,} bytes. Got "
            f"{length[:20] or 'no length'}. Send smaller pictures."
        )
    body: bytes = await request.body()
    return body


def build(loaded: Loaded, served: Served | None = None, *, at_once: int = 1) -> FastAPI:
    """The application: POST /v1/chat/completions, GET /v1/models."""
    if not getattr(loaded.processor, "chat_template", None):
        raise ConfigError(
            f"Expected a model with a chat template. Got '{loaded.name}', whose processor has none."
        )
    answering = Answering(loaded, served or Served(), at_once)
    app = FastAPI(title="tokensieve", docs_url=None, redoc_url=None, openapi_url=None)

    async def refused(request: Request, error: Exception) -> JSONResponse:
        said = {"message": " ".join(str(error).split()), "type": "invalid_request_error"}
        return JSONResponse({"error": said}, STATUS.get(type(error), 400))

    def chat(body: Annotated[bytes, Depends(body_of)]) -> Any:
        answer = answering.begin(body)
        told = _told(loaded.name, answer)
        if answer.asked.stream:
            return StreamingResponse(_events(told, answer), media_type="text/event-stream")
        text = "".join(answer.texts)
        if answer.error is not None:
            raise answer.error
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": answer.reason}
        return {"object": "chat.completion", **told, "choices": [choice], "usage": _usage(answer)}

    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": loaded.name, "object": "model"}]}

    app.add_exception_handler(TokensieveError, refused)
    app.add_api_route("/v1/chat/completions", chat, methods=["POST"], response_model=None)
    app.add_api_route("/v1/models", models)
    return app


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"Expected a request in JSON. Got: {error}.") from error


def _told(name: str, answer: Answer) -> dict[str, Any]:
    """What every answer says, with what was kept beside OpenAI's own fields."""
    report, asked = answer.done.report, answer.asked
    kept = {"visual_tokens": report.visual_tokens, "kept_tokens": report.kept_tokens}
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "created": int(time.time()),
        "model": name,
        "tokensieve": {"method": asked.method, "keep": asked.keep, **kept},
    }


def _usage(answer: Answer) -> dict[str, int]:
    prompt = answer.done.prompt_length
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answer.tokens,
        "total_tokens": prompt + answer.tokens,
    }


def _events(told: dict[str, Any], answer: Answer) -> Iterator[str]:
    """Server-sent events of a streamed answer."""

    def event(delta: dict[str, str], reason: str | None = None, **more: Any) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        chunk = {"object": "chat.completion.chunk", **told, "choices": [choice], **more}
        return f"data: {json.dumps(chunk)}\n\n"

    yield event({"role": "assistant", "content": ""})
    for text in answer.texts:
        if text:
            yield event({"content": text})
    if answer.error is not None:
        said = {"message": f"The answer broke off: {type(answer.error).__name__}.", "type": "error"}
        yield f"data: {json.dumps({'error': said})}\n\n"
    else:
        yield event({}, answer.reason, usage=_usage(answer))
    yield "data: [DONE]\n\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m tokensieve.serving.app")
    parser.add_argument("--model", default="nano2", help="nano, nano2, a folder or a hub name")
    parser.add_argument("--device", help="cpu, cuda:0, ... (a GPU if there is one)")
    parser.add_argument("--method", default="selector", help="where a request says none")
    parser.add_argument("--keep", default="0.4", help="where a request says none")
    parser.add_argument("--least", type=float, default=0.0, help="share below which none may ask")
    parser.add_argument("--tokens", type=int, default=256, help="the longest answer")
    parser.add_argument("--at-once", type=int, default=1, help="requests at work at a time")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args(arguments)
    try:
        uvicorn = need("uvicorn", "serve", "which serves the application")
        served = Served(
            options.method, parse_keep(options.keep), least=options.least, tokens=options.tokens
        )
        hush()
        app = build(
            load_model(options.model, "auto", options.device), served, at_once=options.at_once
        )
    except TokensieveError as error:
        sys.exit(" ".join(str(error).split()))
    uvicorn.run(app, host=options.host, port=options.port)


if __name__ == "__main__":
    main()
