"""The exactness checks fail for shortenings that are subtly wrong: a check must be able to."""

import pytest
import torch

from contract import test_exactness
from families import checks
from families.checks import shorten
from families.said import require_same, require_tokens
from families.tiny import REQUIRED, build
from tokensieve.hf.prompt.compaction import Rows

required = pytest.mark.parametrize("name", REQUIRED)


def forgets_the_mask(model, inputs):
    short = shorten(model, inputs)
    return {**short, "attention_mask": torch.ones_like(short["attention_mask"])}


def closes_the_gaps(model, inputs):
    short = shorten(model, inputs)
    counted = (short["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    return {**short, "position_ids": counted.expand_as(short["position_ids"]).contiguous()}


def mixes_up_rows(model, inputs):
    short = shorten(model, inputs)
    out = short["mm_encoder_outputs"]["image"]
    out.pooler_output = [item.flip(0) for item in out.pooler_output]
    return short


def drops_nothing(model, inputs):
    return inputs


def shifts_labels_of_pictures(model, inputs):
    short = shorten(model, inputs)
    ids = short["input_ids"].clone()
    ids[:, [-1, -2]] = ids[:, [-2, -1]]
    return {**short, "input_ids": ids}


@required
@pytest.mark.parametrize("broken", [forgets_the_mask, closes_the_gaps, mixes_up_rows])
@pytest.mark.one_of_each
def test_blocked_check_bites(name, broken):
    with pytest.raises(AssertionError):
        checks.check_blocked(build(name), broken)


def test_a_check_says_what_is_broken():
    said = (
        "llava does not answer as if the dropped tokens were blocked: [0-9]+ of 2000 numbers differ"
    )
    with pytest.raises(AssertionError, match=f"^{said}, by up to "):
        checks.check_blocked(build("llava"), closes_the_gaps)
    with pytest.raises(
        AssertionError, match=r"^It is not so: answered \[1, 3\]\. Expected \[1, 2\]"
    ):
        require_tokens(
            torch.tensor([[0, 0], [1, 3]]), torch.tensor([[0, 0], [1, 2]]), "It is not so"
        )
    with pytest.raises(AssertionError, match=r"^It is not so: got \[2\] numbers\. Expected \[3\]"):
        require_same(torch.zeros(2), torch.zeros(3), "It is not so")


@required
def test_alone_check_bites(name):
    with pytest.raises(AssertionError):
        checks.check_alone(build(name), forgets_the_mask)


@required
def test_cache_check_bites(name):
    with pytest.raises(AssertionError):
        checks.check_cache(build(name), drops_nothing)


@pytest.mark.parametrize("name", ["llava", "llava_next"])
def test_embeds_check_bites(name):
    with pytest.raises(AssertionError):
        checks.check_embeds(build(name), shorten)  # gaps kept where none are expected


@pytest.mark.skipif(
    not test_exactness.BEAMS_TAKE_SEVERAL_PICTURES, reason="no reference in this Transformers"
)
def test_beams_need_rows_repeated_by_prompt(monkeypatch):
    """The mistake the sieve's own expansion avoids: each row repeated, not each prompt."""
    right = Rows.output

    def wrong(self, repeats=1, kind="image"):
        out = right(self, 1, kind)
        out.pooler_output = [item for item in out.pooler_output for _ in range(repeats)]
        return out

    monkeypatch.setattr(Rows, "output", wrong)
    with pytest.raises(AssertionError):
        test_exactness.test_beams("llava_next")
