"""What a server is told, and what it refuses before a request comes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from tokensieve.errors import BudgetError, ConfigError, UnknownNameError, UnsupportedError
from tokensieve.methods.registry import get_method, method_class, method_names
from tokensieve.serving.setting import Setting, require_servable
from tokensieve.types import Site

GOOD = {"method": "selector", "keep": 0.4}


def test_a_setting_is_read_as_sieve_takes_it():
    given = {**GOOD, "least": 0.1, "pool": "image", "weights": "DIR", "recycle": True}
    asked = Setting.of(given).asked("renumber")
    assert (asked.method, asked.keep, asked.positions) == ("selector", 0.4, "renumber")
    assert (asked.pool, asked.recycle, asked.options) == ("image", True, {"weights": "DIR"})


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ("selector", ConfigError, 'an object with "method" and "keep"'),
        ({"method": "selector"}, ConfigError, 'Write {"method": "selector", "keep": 0.4}'),
        ({**GOOD, "keep": 1.5}, BudgetError, "Expected `keep`"),
        ({**GOOD, "least": 0.5}, BudgetError, "at most `keep`, which is 0.4"),
        ({**GOOD, "keep": 64, "least": 0.1}, BudgetError, "a share too"),
        ({**GOOD, "method": "selectr"}, UnknownNameError, "Did you mean 'selector'"),
        ({**GOOD, "wieghts": "DIR"}, ConfigError, "no option 'wieghts'. Did you mean 'weights'"),
        ({**GOOD, "pool": "prompt"}, UnknownNameError, "Unknown pool 'prompt'"),
        ({**GOOD, "newlines": "some"}, UnknownNameError, "Unknown newlines"),
        ({**GOOD, "frames": "no"}, ConfigError, "Expected `frames`"),
        ({**GOOD, "positions": "none"}, UnknownNameError, "Unknown positions"),
        ({**GOOD, "layer": 2}, UnsupportedError, "Got 'layer'"),
        ({**GOOD, "method": "fastv"}, UnsupportedError, "drops tokens inside the LLM"),
        ({**GOOD, "method": "cdpruner"}, UnsupportedError, "reads the question"),
        ({**GOOD, "method": "conditional"}, UnsupportedError, "reads the question"),
        ({**GOOD, "method": "tome"}, UnsupportedError, "the encoder is the engine's own"),
        ({**GOOD, "method": "downsample"}, UnsupportedError, "the encoder is the engine's own"),
        ({**GOOD, "method": "none"}, UnsupportedError, "leaves no row"),
        ({**GOOD, "counts": "adaptive"}, UnsupportedError, "decides itself how many"),
    ],
)
def test_what_cannot_be_served_is_refused(given, error, words):
    with pytest.raises(error) as caught:
        Setting.of(given)
    assert words in str(caught.value)


@pytest.mark.parametrize("name", method_names())
def test_every_method_is_served_or_refused(name):
    kind = method_class(name)
    able = kind.site in (Site.FEATURES, Site.EMBEDS) and kind.exact and kind.reads_picture
    if able and "text" not in kind.needs:
        require_servable(name, get_method(name))
        return
    with pytest.raises(UnsupportedError, match=f"Got '{name}'"):
        require_servable(name, get_method(name))


def test_the_page_names_the_families_of_the_plugin():
    from tokensieve.serving.vllm import FAMILIES

    page = Path(__file__).parents[2] / "docs" / "guides" / "serving.md"
    rows = [line.split("|") for line in page.read_text("utf-8").splitlines()]
    said = [row[2].strip() for row in rows if len(row) > 3 and row[3].strip() == "equal"]
    assert tuple(said) == FAMILIES


def test_positions_are_the_engines():
    assert Setting.of({**GOOD, "positions": "renumber"}).asked("renumber").positions == "renumber"
    with pytest.raises(UnsupportedError, match="Expected positions='keep'"):
        Setting.of({**GOOD, "positions": "renumber"}).asked("keep")


def test_requests_stay_within_what_the_server_allows():
    free, fixed = Setting.of({**GOOD, "least": 0.1}), Setting.of(GOOD)
    assert [free.keep_of(None), free.keep_of({"keep": 0.1})] == [0.4, 0.1]
    assert fixed.keep_of({"keep": 0.4}) == 0.4
    for setting, request, error, words in [
        (free, {"keep": 0.05}, BudgetError, "from 0.1 to 0.4"),
        (free, {"keep": 0.5}, BudgetError, "from 0.1 to 0.4"),
        (free, {"keep": 64}, BudgetError, "from 0.1 to 0.4"),
        (free, {"keep": "all"}, BudgetError, "Expected `keep`"),
        (free, {"keep": 0.2, "method": "full"}, ConfigError, '{"keep": share}'),
        (free, 0.2, ConfigError, '{"keep": share}'),
        (fixed, {"keep": 0.3}, BudgetError, "for all requests"),
    ]:
        with pytest.raises(error) as caught:
            setting.keep_of(request)
        assert words in str(caught.value)


def test_two_settings_never_share_a_key():
    settings = [
        GOOD, {**GOOD, "keep": 0.3}, {**GOOD, "method": "divprune"}, {**GOOD, "pool": "image"},
        {**GOOD, "weights": "DIR"}, {**GOOD, "recycle": True},
    ]  # fmt: skip
    keys = [Setting.of(one).key(one["keep"]) for one in settings] + [Setting.of(GOOD).key(0.2)]
    assert len(set(keys)) == len(keys)
    assert Setting.of({**GOOD, "least": 0.1}).key(0.4) == Setting.of(GOOD).key(0.4)


def test_vllm_is_imported_only_when_it_calls():
    rooms = "tokensieve.serving.vllm, tokensieve.serving.items"
    code = f"import sys, {rooms}; sys.exit('vllm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@dataclass
class Known:
    module_name: str
    class_name: str


def test_registering_twice_is_registering_once(monkeypatch):
    from tokensieve.serving import vllm as plugin

    def told(name, ours):
        models[name] = Known(*ours.split(":"))

    llava, mine, text = "LlavaForConditionalGeneration", "TransformersMultiModal", "Llama"
    models = {name: Known("vllm.some", name) for name in (llava, mine, text)}
    registry = SimpleNamespace(models=models, register_model=told)
    fake = SimpleNamespace(ModelRegistry=registry, __version__="1.2")
    monkeypatch.setattr(plugin, "OWN", {})
    monkeypatch.setitem(sys.modules, "vllm", fake)
    plugin.register()
    once = dict(models)
    plugin.register()
    assert models == once
    assert {name: f"vllm.some:{name}" for name in (llava, mine, text)} == plugin.OWN
    assert models[llava] == Known("tokensieve.serving.vllm.models", f"{llava}@1.2")
    assert models[text] == Known("tokensieve.serving.vllm.models", f"{text}@1.2")
