"""A request of OpenAI's chat completions, read into what a model is asked.

Whoever sends it is a stranger: pictures come as bytes in it and through the one door, no address is
fetched, no file is named, and what is not known is refused, never passed over.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from tokensieve.budget import check_keep
from tokensieve.data.pictures.decode import Limits, decode_picture
from tokensieve.errors import BudgetError, ConfigError, PictureError, PromptError, brief
from tokensieve.fields import check_names, shown
from tokensieve.hf.models.loaded import Loaded
from tokensieve.hf.prompt.template import placeholder_of
from tokensieve.hf.runtime.devices import input_device
from tokensieve.methods.registry import method_class

ROLES = ("system", "user", "assistant")
TAKEN = ("model", "messages", "max_tokens", "max_completion_tokens", "stream", "n", "temperature",
         "user", "method", "keep", "positions")  # fmt: skip
_URI = re.compile(r"data:image/[\w.+-]+;base64,", re.ASCII)


@dataclass(frozen=True)
class Served:
    """What a server allows, and what it does where a request says nothing.

    least: the smallest share that a request may keep, and with a whole number the smallest number.
    pictures, pixels: the most of a request, and of each picture. tokens: the longest answer.
    """

    method: str = "selector"
    keep: float | int = 0.4
    positions: str = "keep"
    least: float = 0.0
    tokens: int = 256
    pictures: int = 8
    pixels: int = 40_000_000

    def __post_init__(self) -> None:
        method_class(self.method)
        check_keep(self.keep)


@dataclass(frozen=True)
class Asked:
    """One request: a conversation with its pictures, and how it is to be read and answered."""

    messages: list[dict[str, Any]]
    pictures: list[Image.Image] = field(repr=False)
    method: str
    keep: float | int
    positions: str
    tokens: int
    stream: bool


def read_request(body: Any, name: str, served: Served) -> Asked:
    """What the JSON `body` asks of the model `name`.

    Raises `ConfigError`, `BudgetError`, `UnknownNameError`, `PromptError` or `PictureError`.
    """
    if not isinstance(body, Mapping):
        raise ConfigError(f"Expected a JSON object. Got {shown(body)}.")
    check_names("field of the request", [str(key) for key in body], TAKEN)
    for key, only in (("model", name), ("n", 1), ("temperature", 0)):
        if (got := body.get(key)) is not None and (got != only or isinstance(got, bool)):
            raise ConfigError(f"Expected `{key}` {only!r}, or none. Got {shown(got)}.")
    if not isinstance(stream := body.get("stream") or False, bool):
        raise ConfigError(f"Expected `stream` true or false. Got {shown(stream)}.")
    method, positions = body.get("method", served.method), body.get("positions", served.positions)
    method_class(method if isinstance(method, str) else shown(method))
    check_names("positions", [str(positions)], ("keep", "renumber"))
    keep = check_keep(body.get("keep", served.keep))
    if isinstance(keep, float) and keep < served.least:
        raise BudgetError(f"Expected `keep` from {served.least:g}, which is the least that this "
                          f"server keeps. Got {keep:g}.")  # fmt: skip
    messages, pictures = _conversation(body.get("messages"), served)
    return Asked(messages, pictures, method, keep, positions, _tokens(body, served), stream)


def _tokens(body: Mapping[str, Any], served: Served) -> int:
    names = [name for name in ("max_tokens", "max_completion_tokens") if body.get(name) is not None]
    if len(names) > 1:
        raise ConfigError("Expected one of max_tokens and max_completion_tokens. Got both.")
    got = body[names[0]] if names else served.tokens
    if isinstance(got, bool) or not isinstance(got, int) or not 1 <= got <= served.tokens:
        raise ConfigError(
            f"Expected `{names[0]}` as a whole number from 1 to {served.tokens}. Got {shown(got)}."
        )
    return got


def _conversation(messages: Any, served: Served) -> tuple[list[dict[str, Any]], list[Image.Image]]:
    """Messages as chat templates want them, and the pictures in order."""
    if not isinstance(messages, list) or not messages:
        raise PromptError(f"Expected `messages`, a list of one or more. Got {shown(messages)}.")
    talk: list[dict[str, Any]] = []
    pictures: list[Image.Image] = []
    for message in messages:
        if not isinstance(message, Mapping) or set(message) - {"role", "content", "name"}:
            raise PromptError(f"Expected messages of role and content. Got {shown(message)}.")
        check_names("role", [str(message.get("role"))], ROLES)
        content = message.get("content")
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(parts, list) or not parts:
            raise PromptError(
                f"Expected `content` as text or a list of parts. Got {shown(content)}."
            )
        read = [_part(part, pictures, served) for part in parts]
        talk.append({"role": message["role"], "content": read})
    return talk, pictures


def _part(part: Any, pictures: list[Image.Image], served: Served) -> dict[str, str]:
    """A part of a message; its picture goes to `pictures`."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    held = part.get("image_url") if kind == "image_url" else None
    url = held.get("url") if isinstance(held, Mapping) else None
    if not isinstance(url, str):
        raise PromptError(
            'Expected parts {"type": "text", "text": ...} and {"type": "image_url", "image_url": '
            f'{{"url": "data:image/png;base64,..."}}}}. Got {shown(part)}.'
        )
    if len(pictures) >= served.pictures:
        raise PictureError(f"Expected at most {served.pictures} pictures. Got more.")
    pictures.append(_picture(url, f"picture {len(pictures) + 1}", served))
    return {"type": "image"}


def _picture(url: str, name: str, served: Served) -> Image.Image:
    if not (begin := _URI.match(url)):
        raise PictureError(
            f"Expected {name} as data:image/...;base64,... Got '{brief(url, 40)}'. Send its bytes: "
            "no address is fetched."
        )
    try:
        data = base64.b64decode(url[begin.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise PictureError(f"Expected base64 in {name}. Got: {brief(error)}.") from error
    return decode_picture(data, name, Limits(pixels=served.pixels))


def inputs_of(loaded: Loaded, asked: Asked) -> Any:
    """The processor's output for a conversation, on the model's device.

    Raises `PromptError` where its text holds a placeholder of pictures, or the model's template
    does not take such a conversation.
    """
    processor, place = loaded.processor, placeholder_of(loaded.processor)
    for message in asked.messages:
        if any(place in part.get("text", "") for part in message["content"]):
            raise PromptError(f"Expected text without the placeholder {place}. Leave it out.")
    try:
        text = processor.apply_chat_template(asked.messages, add_generation_prompt=True)
    except Exception as error:  # a template is a stranger's program and raises anything
        raise PromptError(
            f"Expected a conversation that the chat template of '{loaded.name}' takes. Got: "
            f"{brief(error)}."
        ) from error
    if text.count(place) != len(asked.pictures):
        raise PromptError(
            f"Expected a chat template that shows {len(asked.pictures)} pictures. That of "
            f"'{loaded.name}' shows {text.count(place)}. Ask about fewer, one message each."
        )
    begun = (bos := getattr(processor.tokenizer, "bos_token", None)) and text.startswith(bos)
    given = {"images": asked.pictures} if asked.pictures else {}
    made = processor(text=[text], return_tensors="pt", add_special_tokens=not begun, **given)
    return made.to(input_device(loaded.model), dtype=loaded.model.dtype)
