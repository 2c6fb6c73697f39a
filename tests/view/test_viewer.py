"""What the viewer's server does, without a server: strangers' pictures, questions, answers."""

import asyncio
import threading

import pytest
from PIL import Image

from tokensieve.errors import (
    ConfigError,
    PictureError,
    PromptError,
    TokensieveError,
    UnknownNameError,
)
from tokensieve.view.dropped import MOST_BYTES, MOST_PIXELS, Pictures
from tokensieve.view.gate import Gate, allowed
from tokensieve.view.viewer import Recent, Viewer

QUESTION = "What is KR?"
METHODS = ["selector", "random", "full"]


def test_a_question_has_one_stop_and_later_ones_are_merged(viewer):
    pictures = viewer.example("cluttered")
    page = viewer.ask(pictures, QUESTION, METHODS, viewer.start())
    assert page["keeps"][viewer.start()] == "20%"
    selector, random, full = page["methods"]
    assert [one is None for one in selector["steps"]].count(False) == 1
    assert len(full["steps"]) == 1
    assert selector["steps"][viewer.start()]["answer"] == "620"
    more = viewer.step(pictures, QUESTION, METHODS, 0)
    assert more["stop"] == 0
    assert more["steps"][0]["kept"] < random["steps"][viewer.start()]["kept"]
    assert more["steps"][2] is None


def test_overlays_are_known_before_answers(viewer):
    pictures, methods = viewer.example("cluttered"), ["selector", "tome", "fastv", "full"]
    page = viewer.ask(pictures, QUESTION, methods, 4)
    selector, tome, fastv, full = viewer.outline(pictures, QUESTION, methods)
    assert selector[4] == page["methods"][0]["steps"][4]["fate"]
    assert selector[0] == viewer.step(pictures, QUESTION, methods, 0)["steps"][0]["fate"]
    assert not any(fastv)  # only the LLM knows
    assert full is None
    assert len(tome) == len(viewer.keeps())


def test_the_encoder_runs_once_for_all_questions_of_a_picture(viewer, loaded):
    runs = []
    tower = loaded.model.base_model.vision_tower
    with tower.register_forward_hook(lambda *_: runs.append(1)):
        for question in (QUESTION, "What is XR?"):
            for stop in (0, 4):
                viewer.ask(viewer.example("cluttered"), question, METHODS, stop)
    assert len(runs) == 1


def test_askers_at_once_get_their_own_answers(viewer, loaded):
    asks = [("cluttered", QUESTION), ("cluttered", "What is XR?"), ("page", "What is MR?")] * 4
    alone = {
        ask: Viewer(loaded, viewer.settings).ask(viewer.example(ask[0]), ask[1], METHODS, 4)
        for ask in dict.fromkeys(asks)
    }
    got = [None] * len(asks)

    def one(i):
        name, question = asks[i]
        got[i] = viewer.ask(viewer.example(name), question, METHODS, 4)

    threads = [threading.Thread(target=one, args=(i,)) for i in range(len(asks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    said = [[method["steps"][-1 if len(method["steps"]) == 1 else 4]["answer"]
             for method in page["methods"]] for page in got]  # fmt: skip
    for ask, page, answers in zip(asks, got, said, strict=True):
        assert page["question"] == ask[1]
        assert page["pictures"][0]["src"] == alone[ask]["pictures"][0]["src"]
        assert answers == [m["steps"][-1 if len(m["steps"]) == 1 else 4]["answer"]
                           for m in alone[ask]["methods"]]  # fmt: skip
    assert len({tuple(one) for one in said}) == 3


def test_pictures_are_told_apart_by_their_pixels():
    one, other = Image.new("RGB", (6, 4)), Image.new("RGB", (4, 6))
    assert Pictures.of([one]).digest == Pictures.of([one.copy()]).digest
    assert Pictures.of([one]).digest != Pictures.of([other]).digest
    assert Pictures.of([one, one]).digest != Pictures.of([one]).digest


@pytest.mark.parametrize(
    ("files", "told"),
    [
        (None, "Expected 1 to 4 pictures"),
        ([], "Expected 1 to 4 pictures"),
        ([{}] * 5, "Got 5"),
        (["/etc/passwd"], "Expected a picture's bytes"),
        ([{"name": "a", "path": "/etc/passwd"}], "Expected a picture's bytes"),
        ([{"name": "a.png", "data": "@@"}], "Expected base64 for a.png"),
        ([{"name": "a.png", "data": ""}], "Got no bytes"),
        ([{"name": "a.svg", "data": "PHN2Zz4="}], "Expected a picture (JPEG"),
        ([{"name": "a.mp4", "data": "AAAAIGZ0eXBpc29t"}], "takes none"),
        ([{"name": "a", "data": "A" * (MOST_BYTES * 4 // 3 + 99)}], "Expected at most 24 MB"),
    ],
)
def test_what_is_no_picture_is_refused(viewer, files, told):
    with pytest.raises(TokensieveError) as error:
        viewer.open(files)
    assert told in str(error.value)


def test_bombs_are_refused_unopened(viewer, sent):
    side = int(MOST_PIXELS**0.5) + 1
    bomb = sent(Image.new("1", (side, side)))
    assert len(bomb["data"]) < 100_000
    with pytest.raises(PictureError, match="Expected at most 40 million pixels"):
        viewer.open([bomb])


def test_a_dropped_picture_is_read(viewer, sent):
    picture = viewer.example("cluttered").items[0]
    assert viewer.open([sent(picture)]).digest == viewer.example("cluttered").digest


@pytest.mark.parametrize(
    ("question", "methods", "stop", "kind"),
    [
        ("", METHODS, 0, PromptError),
        (None, METHODS, 0, PromptError),
        ("a" * 2001, METHODS, 0, PromptError),
        ("a", [], 0, ConfigError),
        ("a", "selector", 0, ConfigError),
        ("a", ["nothing"], 0, UnknownNameError),
        ("a", [["selector"]], 0, UnknownNameError),
        ("a", METHODS, -1, ConfigError),
        ("a", METHODS, 99, ConfigError),
        ("a", METHODS, True, ConfigError),
        ("a", METHODS, "0", ConfigError),
    ],
)
def test_what_cannot_be_asked_is_refused(viewer, question, methods, stop, kind):
    with pytest.raises(kind, match=r"Expected|Unknown"):
        viewer.ask(viewer.example("page"), question, methods, stop)
    with pytest.raises(UnknownNameError):
        viewer.example("../../../etc/passwd")


def test_sheet_and_page_are_those_of_ask(viewer):
    pictures = viewer.example("cluttered")
    assert viewer.sheet(pictures, QUESTION, METHODS, 0).startswith(b"\x89PNG")
    page = viewer.page(pictures, QUESTION, ["stride", "full"], 2).decode()
    assert page.startswith("<!doctype html>")
    assert '{"refused":' not in page


def test_what_was_not_asked_for_long_goes():
    recent, made = Recent(2), []
    for key in (1, 2, 1, 3, 1, 2):
        recent.get(key, lambda key=key: made.append(key))
    assert made == [1, 2, 3, 2]


# -- the gate


@pytest.mark.parametrize(
    "path",
    ["/gradio_api/file=/etc/passwd", "/file=/etc/passwd", "/gradio_api/file/etc/passwd",
     "/gradio_api/proxy=http://example.org", "/gradio_api/upload", "/gradio_api/run/ask",
     "/gradio_api/call/ask", "/gradio_api/component_server", "/monitoring", "/static/../../etc",
     "/docs", "/openapi.json", "/gradio_api/info", "/login"],
)  # fmt: skip
def test_nothing_else_is_reached(path):
    assert not allowed(path)


def test_the_page_is_reached():
    for path in ("/", "/config", "/gradio_api/queue/join", "/assets/index.js"):
        assert allowed(path)


@pytest.mark.parametrize(
    ("path", "length", "chunks", "status"),
    [("/", 10, 1, 200), ("/", 101, 1, 413), ("/", None, 30, 500), ("/nothing", 10, 1, 404)],
)
def test_requests_too_large_are_cut_off(path, length, chunks, status):
    async def app(scope, receive, send):
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                code = 500
                break
            if not message["more_body"]:
                code = 200
                break
        headers = [(b"content-security-policy", b"none")]
        await send({"type": "http.response.start", "status": code, "headers": headers})

    left, found = [b"x" * 10] * chunks, []

    async def receive():
        body = left.pop()
        return {"type": "http.request", "body": body, "more_body": bool(left)}

    async def send(message):
        found.append(message)

    headers = [] if length is None else [(b"content-length", str(length).encode())]
    scope = {"type": "http", "path": path, "headers": headers}
    asyncio.run(Gate(app, 100)(scope, receive, send))
    assert found[0]["status"] == status
    (policy,) = [v for k, v in found[0]["headers"] if k == b"content-security-policy"]
    assert b"default-src 'self'" in policy
