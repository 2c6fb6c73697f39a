"""vLLM's OpenAI server with a setting, and a real client: `make serve-test`."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("vllm")

import openai

from lab.serving.server import NAME, message, serving
from serving.engine import TOKENS
from serving.served import by_sieve, model, prompt
from tokensieve.assets import asset_path
from tokensieve.serving.folder import write_folder

pytestmark = pytest.mark.slow
SETTING = {"method": "selector", "keep": 0.4, "least": 0.1}
QUESTION = "What is the total?"
PICTURES = [asset_path("pictures") / f"{name}.png" for name in ("page", "mixed", "scene")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    nano = model("nano")
    return write_folder(nano.model, nano.processor, tmp_path_factory.mktemp("nano"))


@pytest.fixture(scope="module")
def client(folder):
    """Of a server that lives as long as this file's tests: none of them may bring it down."""
    log = folder / "server.log"
    with serving(folder, SETTING, log, "--trust-request-mm-kwargs") as address:
        yield openai.OpenAI(base_url=address, api_key="none", max_retries=0)


def ask(client, pictures, told=None, **more):
    """(text, tokens of the prompt) of a streamed answer."""
    body = {"min_tokens": TOKENS, "skip_special_tokens": False}
    if told is not None:
        body["mm_processor_kwargs"] = {"tokensieve": told}
    stream = client.chat.completions.create(
        model=NAME, messages=message(QUESTION, *pictures), temperature=0, stream=True,
        max_completion_tokens=TOKENS, stream_options={"include_usage": True}, extra_body=body,
        **more,
    )  # fmt: skip
    text, tokens = "", 0
    for chunk in stream:
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
        tokens = chunk.usage.prompt_tokens if chunk.usage else tokens
    return text, tokens


def wanted(pictures, keep):
    """The same by Transformers under a sieve."""
    nano = model("nano")
    request = {"prompt": prompt(nano, QUESTION, len(pictures)), "images": pictures}
    length, tokens = by_sieve(nano, request, "selector", keep, positions="renumber")
    return nano.processor.tokenizer.decode(tokens), length


def test_answers_are_those_of_a_sieve(client):
    for pictures in ([PICTURES[0]], PICTURES):
        text, length = wanted(pictures, 0.4)
        got = ask(client, pictures)
        assert got[1] == length
        assert got[0].startswith(text)
        assert text


def test_one_picture_at_several_keeps_shares_nothing(client):
    """Both caches are on: of rows by picture, of blocks by prompt."""
    for keep in (0.4, 0.2, 0.4, 0.1, 0.2):
        text, length = wanted(PICTURES[:1], keep)
        got = ask(client, PICTURES[:1], {"keep": keep})
        assert got[1] == length
        assert got[0].startswith(text)


def test_many_at_once_get_their_own(client):
    asked = [([PICTURES[i % 3]], (0.4, 0.3, 0.2, 0.1)[i % 4]) for i in range(24)]
    with ThreadPoolExecutor(12) as pool:
        got = list(pool.map(lambda one: ask(client, one[0], {"keep": one[1]}), asked))
    for (pictures, keep), (text, length) in zip(asked, got, strict=True):
        start, tokens = wanted(pictures, keep)
        assert length == tokens
        assert text.startswith(start)


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"keep": 0.05}, "from 0.1 to 0.4"),
        ({"keep": 0.9}, "from 0.1 to 0.4"),
        ({"keep": 5}, "from 0.1 to 0.4"),
        ({"keep": "all"}, "Expected `keep`"),
        ({"method": "full"}, "of a request as"),
        (0.2, "of a request as"),
    ],
)
def test_a_bad_request_gets_400_and_the_reason(client, told, words):
    with pytest.raises(openai.BadRequestError, match=words):
        ask(client, PICTURES[:1], told)
    assert ask(client, PICTURES[:1])[0]


def test_text_alone_is_answered(client):
    assert ask(client, [])[0]


def test_a_bad_setting_stops_the_start(folder, tmp_path):
    setting = {"method": "fastv", "keep": 0.4}
    with (
        pytest.raises(RuntimeError, match="drops tokens inside the LLM"),
        serving(folder, setting, tmp_path / "log"),
    ):
        pass
