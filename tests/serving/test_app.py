"""The server of a Transformers model: answers that belong to their askers, and reasons."""

import base64
import json
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("fastapi")
from fastapi.testclient import TestClient

from tokensieve import load_model
from tokensieve.assets import asset_path
from tokensieve.data.pictures.decode import open_picture
from tokensieve.errors import ConfigError
from tokensieve.evaluate.ask import Settings, ask
from tokensieve.serving.app import MOST, build
from tokensieve.serving.chat import Served

URL = "/v1/chat/completions"
PICTURES = asset_path("pictures")


@pytest.fixture(scope="module")
def loaded():
    return load_model("nano")


@pytest.fixture(scope="module")
def client(loaded):
    served = Served(tokens=16, least=0.1, pictures=1, pixels=1_000_000)
    return TestClient(build(loaded, served, at_once=4))


def uri(name):
    return "data:image/png;base64," + base64.b64encode((PICTURES / name).read_bytes()).decode()


def request(picture="cluttered.png", question="What is KR?", **more):
    image = {"type": "image_url", "image_url": {"url": uri(picture)}}
    content = [image, {"type": "text", "text": question}]
    return {"messages": [{"role": "user", "content": content}], **more}


def test_an_answer_is_that_of_ask(client, loaded):
    picture = open_picture(PICTURES / "cluttered.png")
    for method, keep in (("selector", 0.2), ("divprune", 0.4), ("random", 64)):
        found = client.post(URL, json=request(method=method, keep=keep))
        assert found.status_code == 200, found.text
        told = found.json()
        want = ask(loaded, picture, "What is KR?", method, Settings(keep, max_new_tokens=16))
        assert told["choices"][0]["message"]["content"].strip() == want.answer
        assert told["tokensieve"] == {
            "method": method, "keep": keep,
            "visual_tokens": want.visual_tokens, "kept_tokens": want.kept_tokens,
        }  # fmt: skip
        assert told["usage"]["prompt_tokens"] == want.prompt_tokens
        assert told["usage"]["completion_tokens"] == want.new_tokens
        assert told["choices"][0]["finish_reason"] == "stop"
    assert client.get("/v1/models").json()["data"][0]["id"] == "nano"


def test_together_is_as_alone(client):
    """Different pictures, methods and keeps at the same time, four at work at once."""
    bodies = [
        request(picture, question, method=method, keep=keep)
        for picture, question in (("cluttered.png", "What is KR?"), ("page.png", "What is MW?"))
        for method in ("selector", "divprune", "random", "full")
        for keep in (0.1, 0.5)
    ]

    def answer(body):
        told = client.post(URL, json=body).json()
        return told["choices"], told["usage"], told["tokensieve"]

    alone = [answer(body) for body in bodies]
    assert len({json.dumps(one) for one in alone}) > 8
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(answer, bodies)) == alone


def test_a_stream_is_the_same_answer(client):
    whole = client.post(URL, json=request(keep=0.3)).json()
    with client.stream("POST", URL, json=request(keep=0.3, stream=True)) as response:
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert lines.pop() == "[DONE]"
    chunks = [json.loads(line) for line in lines]
    text = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks)
    assert text == whole["choices"][0]["message"]["content"]
    assert chunks[-1]["usage"] == whole["usage"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_an_answer_that_is_cut_says_so(client):
    told = client.post(URL, json=request(max_tokens=1)).json()
    assert told["choices"][0]["finish_reason"] == "length"
    assert told["usage"]["completion_tokens"] == 1


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (request(keep=1.7), "Expected `keep` as a fraction"),
        (request(keep=0.05), "Expected `keep` from 0.1"),
        (request(method="divprun"), "Did you mean 'divprune'?"),
        (request(method="fastv"), "a method that acts before the LLM"),
        (request(method=["selector"]), "Unknown method"),
        (request(positions="gone"), "Unknown positions 'gone'"),
        (request(kep=0.4), "Did you mean 'keep'?"),
        (request(model="gpt"), "Expected `model` 'nano'"),
        (request(temperature=0.7), "Expected `temperature` 0"),
        (request(n=2), "Expected `n` 1"),
        (request(max_tokens=17), "from 1 to 16"),
        (request(max_tokens=8, max_completion_tokens=8), "Got both"),
        (request(stream="yes"), "`stream` true or false"),
        (request(question="<image>"), "without the placeholder"),
        ({"messages": []}, "a list of one or more"),
        ({"messages": [{"role": "robot", "content": "Hello"}]}, "Unknown role 'robot'"),
        ({"messages": [{"role": "user", "content": []}]}, "as text or a list of parts"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "Expected parts"),
        ([1], "Expected a JSON object"),
    ],
)
def test_what_is_wrong_is_said(client, body, said):
    found = client.post(URL, json=body)
    assert (found.status_code, found.json()["error"]["type"]) == (400, "invalid_request_error")
    assert said in found.json()["error"]["message"]
    assert client.post(URL, json=request(max_tokens=1)).status_code == 200


def test_pictures_come_through_the_one_door(client):
    def said(url, status=400):
        content = [{"type": "image_url", "image_url": {"url": url}}]
        found = client.post(URL, json={"messages": [{"role": "user", "content": content}]})
        assert found.status_code == status
        return found.json()["error"]["message"]

    assert "no address is fetched" in said("http://127.0.0.1/a.png")
    assert "no address is fetched" in said("file:///etc/passwd")
    assert "Expected base64 in picture 1" in said("data:image/png;base64,???")
    assert "picture 1" in said("data:image/png;base64,AAAA")
    bomb = base64.b64encode(b"P6 4000 4000 255\n").decode()
    assert "picture 1" in said(f"data:image/x-portable-pixmap;base64,{bomb}")
    assert "up to 33,554,432 bytes" in said("data:image/png;base64," + "A" * MOST, 413)
    two = request()
    two["messages"][0]["content"].append(two["messages"][0]["content"][0])
    assert "at most 1 pictures" in client.post(URL, json=two).json()["error"]["message"]


def test_a_body_of_unknown_length_or_none_is_refused(client):
    found = client.post(URL, content=iter([b"{}"]))
    assert found.status_code == 413
    assert "that says its length" in found.json()["error"]["message"]
    assert "in JSON" in client.post(URL, content=b"{").json()["error"]["message"]


def test_a_model_without_a_chat_template_is_refused(loaded):
    processor = type(loaded.processor)(loaded.processor.image_processor, loaded.processor.tokenizer)
    with warnings.catch_warnings(), pytest.raises(ConfigError, match="with a chat template"):
        build(type(loaded)("bare", loaded.model, processor))
