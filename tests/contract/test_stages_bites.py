"""The contracts of tokens dropped inside the LLM fail for cuts that are subtly wrong."""

import copy
from dataclasses import replace

import pytest
import torch

from contract import test_stages
from families import inside
from families.methods import Inside, Ragged
from families.tiny import REQUIRED, build
from tokensieve.hf.llm import cut, stages
from tokensieve.hf.runtime import hooks
from tokensieve.types import Site

required = pytest.mark.parametrize("name", REQUIRED)
HEAD = 8  # width of the tiny models' rotary embeddings


def counts_positions_anew(patch):
    right = cut.take_rows

    def wrong(values, index_BT):
        first = torch.arange(index_BT.shape[1]).expand_as(index_BT)
        return right(values, first if values.shape[-1] == HEAD else index_BT)

    patch.setattr(stages.cut, "take_rows", wrong)


def forgets_padding_in_prefill(patch):
    patch.setattr(stages.cut, "prefill_mask", lambda mask, gather, flash: None)


def forgets_padding_in_decoding(patch):
    patch.setattr(stages.cut, "decode_mask", lambda *_args, **_kwargs: None)


def keeps_the_first_columns_of_the_mask(patch):
    def wrong(mask, gather, length, new, flash):
        return (
            None
            if mask is None
            else mask[..., : gather.index_BT.shape[1] + mask.shape[-1] - length]
        )

    patch.setattr(stages.cut, "decode_mask", wrong)


def drops_nothing(patch):
    right = stages.Stages._cut

    def wrong(self, number, hidden):
        right(self, number, hidden)
        self.gathers.clear()
        return hidden

    patch.setattr(stages.Stages, "_cut", wrong)


def mixes_up_rows(patch):
    right = cut.compose
    patch.setattr(stages.cut, "compose", lambda b, a, n: right(b, a, n).roll(1, 1))


@required
@pytest.mark.parametrize(
    "broken",
    [
        counts_positions_anew,
        forgets_padding_in_prefill,
        forgets_padding_in_decoding,
        keeps_the_first_columns_of_the_mask,
        drops_nothing,
        mixes_up_rows,
    ],
)
@pytest.mark.one_of_each
def test_blocked_check_bites(name, broken, monkeypatch):
    broken(monkeypatch)
    with pytest.raises(AssertionError):
        inside.check_blocked(build(name), 1)


@required
def test_blocked_check_bites_where_a_second_stage_forgets_the_first(name, monkeypatch):
    last = {"rows": None}

    def wrong(before, after, length):
        index = after.index_BT
        if before is not None:
            index = index.clamp(max=before.index_BT.shape[1] - 1)
            last["rows"] = index
        return index

    monkeypatch.setattr(stages.cut, "compose", wrong)
    with pytest.raises(AssertionError):
        inside.check_blocked(build(name), {1: 0.6, 2: 0.3})
    assert last["rows"] is not None


@required
def test_alone_check_bites(name, monkeypatch):
    forgets_padding_in_prefill(monkeypatch)
    with pytest.raises(AssertionError):
        inside.check_alone(build(name), 1)


@required
def test_cache_check_bites(name, monkeypatch):
    drops_nothing(monkeypatch)
    with pytest.raises(AssertionError):
        inside.check_cache(build(name), 1)


@required
def test_identity_check_bites(name, monkeypatch):
    class DropsOne(Ragged):
        site = Site.LLM

    monkeypatch.setattr(inside, "Inside", DropsOne)
    with pytest.raises(AssertionError):
        inside.check_identity(build(name), 1)


def test_restored_check_bites(monkeypatch):
    tiny = replace(build("llava"), model=copy.deepcopy(build("llava").model))
    monkeypatch.setattr(hooks, "_MOUNTS", {})  # what is left on purpose must not meet other tests
    left = hooks.When.AFTER  # is forgotten
    right = hooks._Mount.take
    monkeypatch.setattr(
        hooks._Mount, "take", lambda self, point: right(self, point) if point.when != left else None
    )
    with pytest.raises(AssertionError):
        inside.check_restored(tiny, Inside)


def test_forward_check_bites(monkeypatch):
    right = cut.put_back
    monkeypatch.setattr(stages.cut, "put_back", lambda *a: right(*a).roll(1, 1))
    with pytest.raises(AssertionError):
        test_stages.test_a_forward_gives_the_prompt_its_length_back("llava", False)
