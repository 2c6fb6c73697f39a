"""The model that lmms-eval finds, on a small stand-in of its chat interface; the suites' tasks.

That it runs in lmms-eval itself, on rows in DocVQA's, ChartQA's, POPE's, AI2D's and MMStar's
layouts, was seen with lmms-eval 0.7.3: docs/guides/benchmarks.md.
"""

import sys
from importlib import import_module
from importlib.metadata import entry_points
from types import ModuleType, SimpleNamespace

import pytest
import torch
from PIL import Image

from tokensieve.assets import asset_path
from tokensieve.data.sources.clips import Video
from tokensieve.errors import ConfigError, InputError, UnknownNameError, UnsupportedError
from tokensieve.evaluate.ask import Settings, ask
from tokensieve.evaluate.lmms import suites
from tokensieve.hf.load import load_model

MODEL = "tokensieve.evaluate.lmms.model"


@pytest.fixture
def room(monkeypatch):
    """tokensieve's model, made upon a stand-in of lmms-eval's base class and manifest."""

    class Base:
        is_simple = True

        def __init__(self):
            self.cache_hook = SimpleNamespace(add_partial=lambda *told: None)
            self.task_dict = {}

    api, registry = ModuleType("lmms_eval.api.model"), ModuleType("lmms_eval.models.registry_v2")
    api.lmms, registry.ModelManifest = Base, SimpleNamespace
    for name in ("lmms_eval", "lmms_eval.api", "lmms_eval.models"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "lmms_eval.api.model", api)
    monkeypatch.setitem(sys.modules, "lmms_eval.models.registry_v2", registry)
    monkeypatch.delitem(sys.modules, MODEL, raising=False)
    yield import_module(MODEL)
    sys.modules.pop(MODEL, None)


def page(name):
    return Image.open(asset_path("pictures") / f"{name}.png")


def requests_of(model, rows, told=None, task="t"):
    """(picture, question) rows as lmms-eval hands them on."""
    model.task_dict[task] = {"test": rows}

    def messages(doc):
        picture, question = doc
        content = [{"type": "image", "url": picture}] if picture else []
        return [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]

    told = told or {"max_new_tokens": 6, "temperature": 0, "do_sample": False}
    return [SimpleNamespace(args=("", messages, dict(told), n, task, "test"))
            for n in range(len(rows))]  # fmt: skip


def test_lmms_eval_finds_it(room):
    (manifest,) = import_module("tokensieve.evaluate.lmms.manifests").manifests()
    assert (manifest.model_id, manifest.chat_class_path) == ("tokensieve", f"{MODEL}.Tokensieve")
    assert room.Tokensieve.is_simple is False
    named = [one.value for one in entry_points(group="lmms_eval.models")]
    assert named in ([], ["tokensieve.evaluate.lmms.manifests:manifests"])  # []: an older install


def test_a_batch_answers_as_ask_does_in_the_order_asked(room):
    """Two questions of one setting in a batch, one of another setting between them."""
    model = room.Tokensieve(method="divprune", keep="0.5", batch_size=2)
    rows = [(page("cluttered"), "Read XR."), (page("page"), "Read MW."), (page("page"), "Read XR.")]
    several = requests_of(model, rows)
    several[1].args[2]["max_new_tokens"] = 5
    nano, settings = load_model("nano"), Settings(0.5, max_new_tokens=6)
    want = [ask(nano, picture, text, "divprune", settings).answer for picture, text in rows]
    assert model.generate_until(several) == want
    assert model.tokens == [(128, 256)] * 3


def test_an_answer_ends_where_the_task_says(room):
    assert room._until("12 \n\nand more", ["\n\n", ""]) == "12"
    assert room._until(" 12.", None) == "12."
    assert room._until("a;b", ";") == "a"


def test_all_tokens_and_no_image_take_no_keep(room):
    model = room.Tokensieve(method="none")
    model.generate_until(requests_of(model, [(page("page"), "Read MW.")]))
    assert model.tokens == [(0, 256)]


def test_options_go_to_the_method(room):
    assert (
        room.Tokensieve(method="selector", rule="top")._settings.plan("selector")["rule"] == "top"
    )
    with pytest.raises(UnknownNameError, match="Unknown option"):
        room.Tokensieve(method="selector", rul="top")
    with pytest.raises(UnknownNameError):
        room.Tokensieve(method="selektor")


def test_what_it_cannot_is_told(room):
    model = room.Tokensieve(method="stride", batch_size=2)
    with pytest.raises(UnsupportedError, match="generating form"):
        model.loglikelihood([])
    with pytest.raises(UnsupportedError, match="several rounds"):
        model.generate_until_multi_round([])
    with pytest.raises(InputError, match=r"Expected a picture as a PIL.Image in a message"):
        model.generate_until(requests_of(model, [("a.png", "Read MW.")]))
    with pytest.raises(UnsupportedError, match="Got audio"):
        room._media([{"content": [{"type": "audio", "url": "a.wav"}]}])
    clip = [{"role": "user", "content": [{"type": "video", "url": Video([page("page")])},
                                         {"type": "text", "text": "What?"}]}]  # fmt: skip
    with pytest.raises(UnsupportedError, match="--batch_size 1"):
        model._inputs([clip, clip])
    with pytest.raises(UnsupportedError):  # nano reads no videos: the room of `ask` says so
        model._inputs([clip])
    if not torch.cuda.is_available():
        assert room._device("cuda") is None
    assert room._device("cpu") == "cpu"


def test_tasks_on_rows_of_ones_own_are_the_benchmarks(tmp_path, capsys, monkeypatch):
    own = tmp_path / "lmms" / "tasks" / "chartqa" / "chartqa.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("task: chartqa\n")
    (tmp_path / "rows.parquet").write_bytes(b"")
    monkeypatch.setattr(suites, "installed", lambda: tmp_path / "lmms")
    suites.main([f"chartqa={tmp_path / 'rows.parquet'}", "--out", str(tmp_path / "tasks")])
    text = (tmp_path / "tasks" / "local_chartqa.yaml").read_text()
    assert text.splitlines()[:2] == [f"include: {own.resolve()}", "task: local_chartqa"]
    assert f"local: {(tmp_path / 'rows.parquet').resolve()}" in text
    assert capsys.readouterr().out == "local_chartqa\n"
    for told, error in (
        ("chart=x", UnknownNameError),
        ("chartqa=x", ConfigError),
        ("x", ConfigError),
    ):
        with pytest.raises(error):
            suites.main([told])


def test_groups_are_of_tasks_there_are(capsys):
    suites.main([])
    assert capsys.readouterr().out == f"{suites.GROUPS}\n"
    for file in sorted(suites.GROUPS.glob("*.yaml")):
        head, word, *tasks = file.read_text().splitlines()
        assert (head, word) == (f"group: {file.stem}", "task:")
        assert {line.removeprefix("  - ") for line in tasks} <= set(suites.TASKS)
