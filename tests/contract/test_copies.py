"""Copied, pickled or saved inside a sieve, a model is the plain one."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch.testing import assert_close

from contract.test_calls import state
from families.checks import answer
from families.methods import ByNorm
from families.tiny import REQUIRED, build
from tokensieve.hf.runtime import hooks
from tokensieve.hf.sieve import sieve

METHODS = ("divprune", "fastervlm", "tome", "fastv")  # each puts other things on the model


def options(method):
    return {"layer": 2} if method == "fastv" else {}


def pickled(model):
    return pickle.loads(pickle.dumps(model))


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def check_plain(name, method, copied):
    """The copy answers as the plain model, can be sieved itself and shares nothing.

    Of a model that was never run: Transformers' own hooks, put on at the first run, cannot be
    pickled.
    """
    tiny = build.__wrapped__(name)
    inputs, before = build(name).inputs([1, 2]), state(tiny.model)
    with sieve(tiny.model, method, 0.4, **options(method)):
        twin = copied(tiny.model)
        assert state(twin)[:2] == before[:2]  # no hook, no attribute
        short = answer(tiny.model, inputs)
        plain = answer(twin, inputs)
        with sieve(twin, method, 0.4, **options(method)) as report:
            assert_close(answer(twin, inputs), short, rtol=0, atol=0)
        assert report.kept_tokens < report.visual_tokens
        assert_close(answer(tiny.model, inputs), short, rtol=0, atol=0)
    assert_close(answer(tiny.model, inputs), plain, rtol=0, atol=0)
    assert not hooks._MOUNTS


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("copied", [copy.deepcopy, pickled, saved])
@pytest.mark.one_of_each
def test_a_copy_made_inside_is_plain(method, copied):
    check_plain("llava", method, copied)


@pytest.mark.parametrize("name", REQUIRED)
def test_of_every_family(name):
    check_plain(name, ByNorm(), copy.deepcopy)


def test_the_check_bites(monkeypatch):
    """Where modules are copied with what lies on them, as they were before."""
    monkeypatch.setattr(hooks._Mount, "plain", lambda self, state: state)
    with pytest.raises((AssertionError, TypeError, AttributeError)):
        check_plain("llava", "divprune", copy.deepcopy)


def test_a_part_copied_inside_is_plain():
    tiny = build("llava")
    with sieve(tiny.model, "fastv", 0.4, layer=2):
        twin = copy.deepcopy(tiny.model.model.language_model)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in twin.modules())


@pytest.mark.parametrize("method", METHODS)
def test_what_is_saved_inside_is_plain(method, tmp_path):
    tiny = build("llava")
    with sieve(tiny.model, method, 0.4, **options(method)):
        tiny.model.save_pretrained(tmp_path / "inside")
    tiny.model.save_pretrained(tmp_path / "outside")
    for file in (tmp_path / "outside").iterdir():
        assert (tmp_path / "inside" / file.name).read_bytes() == file.read_bytes()


def test_the_report_is_copied_and_pickled():
    tiny = build("llava")
    with sieve(tiny.model, "divprune", 0.4, history=2) as report:
        for _ in range(5):
            answer(tiny.model, tiny.inputs([1]))
    again = pickle.loads(pickle.dumps(report))
    assert str(again) == str(copy.deepcopy(report)) == str(report)
    assert "5 calls" in str(report)
    assert len(report.calls) == 2
    assert report.visual_tokens == 5 * report.calls[0].visual_tokens
