"""The viewer behind gradio, over HTTP as a browser speaks to it."""

import json
import threading

import pytest

pytest.importorskip("gradio")
httpx = pytest.importorskip("httpx")

from tokensieve.evaluate.ask import Settings  # noqa: E402
from tokensieve.view.app import build, launch  # noqa: E402
from tokensieve.view.dropped import MOST_BYTES  # noqa: E402
from tokensieve.view.viewer import Viewer  # noqa: E402

OPENED, EXAMPLE, ASK, STOP, OUTLINE, DOWNLOAD = range(6)  # the page's events, in order


@pytest.fixture(scope="module")
def address(loaded):
    viewer = Viewer(loaded, Settings(keep=0.2, max_new_tokens=4, options={"seed": 0}))
    page = build(viewer, ["selector", "full"])
    yield launch(page, "127.0.0.1", None, wait=False).rstrip("/")
    page.close()


class Asker:
    """One browser's session."""

    def __init__(self, address, name):
        self.http, self.name = httpx.Client(base_url=address, timeout=120), name

    def do(self, event, data=(), **told):
        """The event's outputs; raises where the server says that it failed."""
        body = {"fn_index": event, "data": [*data], "session_hash": self.name, "event_data": told}
        joined = self.http.post("/gradio_api/queue/join", json=body)
        joined.raise_for_status()
        wanted = joined.json()["event_id"]
        where = f"/gradio_api/queue/data?session_hash={self.name}"
        with self.http.stream("GET", where) as lines:
            for line in lines.iter_lines():
                message = json.loads(line.removeprefix("data:")) if line else {}
                done = message.get("msg") == "process_completed"
                if done and message["event_id"] == wanted:
                    if not message["success"]:
                        raise RuntimeError(message["output"])
                    return message["output"]["data"]
        raise RuntimeError("the stream ended")

    def choose(self, name):
        return self.do(EXAMPLE, example=name)[1]

    def ask(self, question, methods=("selector", "full")):
        return self.do(ASK, [None, question, [*methods]])[1]


def test_a_question_its_stops_and_its_downloads(address):
    asker = Asker(address, "one")
    assert "Choose a picture first" in asker.ask("What is KR?")["error"]
    assert asker.choose("cluttered")["example"] == "cluttered"
    told = asker.ask("What is KR?")
    page = told["page"]
    start = page["start"]
    assert [method["steps"][-1 if method["baseline"] else start]["answer"]
            for method in page["methods"]] == ["620", "620"]  # fmt: skip
    more = asker.do(STOP, [None], stop=0, id=told["id"])[0]["props"]["more"]
    assert more["stop"] == 0
    assert more["steps"][0]["kept"] < 51
    assert more["id"] == told["id"]
    outline = asker.do(OUTLINE, [None], id=told["id"])[0]["props"]["outline"]["methods"]
    assert outline[0][0] == more["steps"][0]["fate"]
    assert outline[1] is None
    sheet = asker.do(DOWNLOAD, [None], kind="sheet", stop=0, id=told["id"])[0]["props"]["saved"]
    assert sheet["type"] == "image/png"
    assert "error" in asker.do(STOP, [None], stop="0", id=told["id"])[0]["props"]["more"]


def test_32_askers_at_once_get_their_own_answers(address):
    kinds = [("cluttered", "What is KR?"), ("cluttered", "What is XR?"), ("page", "What is MR?"),
             ("mixed", "What is FR?")]  # fmt: skip
    right = {}
    for name, question in kinds:
        asker = Asker(address, f"alone-{name}-{question}")
        asker.choose(name)
        page = asker.ask(question, ["random", "full"])["page"]
        right[name, question] = (page["question"], page["pictures"][0]["src"],
                                 page["methods"][1]["steps"][0]["answer"])  # fmt: skip
    assert len({answer for *_, answer in right.values()}) == 4
    got, failed = {}, []

    def one(i):
        try:
            asker = Asker(address, f"asker-{i}")
            asker.choose(kinds[i % 4][0])
            page = asker.ask(kinds[i % 4][1], ["random", "full"])["page"]
            got[i] = (page["question"], page["pictures"][0]["src"],
                      page["methods"][1]["steps"][0]["answer"])  # fmt: skip
        except Exception as error:  # told below, where it counts
            failed.append(error)

    threads = [threading.Thread(target=one, args=(i,)) for i in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert got == {i: right[kinds[i % 4]] for i in range(32)}


def test_another_ones_question_cannot_be_asked_on(address):
    mine, other = Asker(address, "mine"), Asker(address, "other")
    mine.choose("cluttered")
    told = mine.ask("What is KR?")
    assert other.do(STOP, [None], stop=0, id=told["id"])[0]["props"] == {"__type__": "update"}


def test_dropped_files_are_pictures_or_refused(address, sent):
    from PIL import Image

    asker = Asker(address, "dropper")
    told = asker.do(OPENED, files=[sent(Image.new("RGB", (40, 30)))])[1]
    assert told["mine"][0]["src"].startswith("data:image/")
    assert "Expected a picture" in asker.do(OPENED, files=[sent(b"%PDF-1.7")])[1]["error"]
    file = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
    with pytest.raises(RuntimeError, match="cannot be accessed"):
        asker.do(OPENED, files=[file])
    file["path"] = file["url"] = "http://127.0.0.1:1/a.png"
    assert "Expected a picture's bytes" in asker.do(OPENED, files=[file])[1]["error"]


@pytest.mark.parametrize("path", ["/etc/passwd", "pyproject.toml", "http://127.0.0.1:1/a.png"])
def test_no_file_goes_in_by_its_name(address, path):
    asker = Asker(address, "reader")
    asker.choose("page")
    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    with pytest.raises(RuntimeError) as error:
        asker.do(ASK, [None, file, ["full"]])
    assert "root:" not in str(error.value)


def test_nothing_else_answers(address):
    http = httpx.Client(base_url=address)
    for path in ("/gradio_api/file=/etc/passwd", "/gradio_api/file=pyproject.toml",
                 "/gradio_api/proxy=http://127.0.0.1:1/", "/gradio_api/info", "/monitoring",
                 "/static/..%2f..%2f..%2fetc/passwd", "/assets/..%2f..%2fapp.py"):  # fmt: skip
        assert http.get(path).status_code == 404, path
    upload = http.post("/gradio_api/upload", files={"files": b"x"})
    assert upload.status_code == 404
    large = b"x" * (MOST_BYTES * 4 // 3 + (2 << 20))
    assert http.post("/gradio_api/queue/join", content=large).status_code == 413
    page = http.get("/")
    assert "frame-ancestors" in page.headers["content-security-policy"]
