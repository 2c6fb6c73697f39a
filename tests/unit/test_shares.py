"""Crops of one picture share its budget unevenly where a method says so."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from families.methods import ByFeatureNorm
from families.tiny import build
from tokensieve.budget import Spread, split_by_weight, split_evenly
from tokensieve.errors import BudgetError, ConfigError
from tokensieve.hf.families.layout import pack_anyres
from tokensieve.hf.plan import encoder_signals
from tokensieve.hf.prompt.reduce import reduce_images
from tokensieve.hf.sieve import compress, encode, sieve
from tokensieve.methods.hired import HiRED
from tokensieve.types import Kind, Signal


@dataclass(frozen=True)
class Shared(ByFeatureNorm):
    """Gives each crop a share of its picture's budget; remembers the pictures it was asked of."""

    shares: tuple = (1.0, 1.0, 1.0)
    seen: list = field(default_factory=list)

    def share(self, vision):
        self.seen.append(vision)
        return torch.tensor(self.shares[: len(vision.tokens)])


def kept(name, method, keep, pictures=(1, 2)) -> list[list[int]]:
    """Tokens kept of each crop of each picture."""
    tiny = build(name)
    encoded = encode(tiny.model, tiny.inputs(list(pictures)))
    reduced = reduce_images(tiny.model, method, encoded, keep, Spread())
    return [image.kept_nL.sum(-1).tolist() for image in reduced]


def test_weights_by_hand() -> None:
    assert split_by_weight(10, [1, 1], [8, 8]) == [5, 5]
    assert split_by_weight(10, [3, 1], [8, 8]) == [8, 2]  # 7.5 and 2.5: the heavier one
    assert split_by_weight(12, [3, 1, 0], [8, 8, 8]) == [8, 3, 1]  # the full one leaves one
    assert split_by_weight(20, [1, 0, 0], [8, 8, 8]) == [8, 6, 6]  # no weight: evenly
    assert split_by_weight(4, [0, 0, 0], [8, 8, 8]) == [2, 1, 1]
    assert split_by_weight(3, [97, 2, 1], [8, 8, 8]) == [1, 1, 1]
    assert split_by_weight(24, [97, 2, 1], [8, 8, 8]) == [8, 8, 8]
    for least in (4e-149, 5e-324):  # what counts is the ratio, however small all of them are
        assert split_by_weight(5, [0, 0, 0, least], [1, 1, 2, 2]) == [1, 1, 1, 2]


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.floats(0, 1e6)), min_size=1, max_size=7), st.data()
)
def test_weights_are_spent_exactly(crops, data) -> None:
    sizes, weights = [size for size, _ in crops], [weight for _, weight in crops]
    total = data.draw(st.integers(len(sizes), sum(sizes)))
    counts = split_by_weight(total, weights, sizes)
    assert sum(counts) == total
    assert all(1 <= n <= size for n, size in zip(counts, sizes, strict=True))
    for i, j in ((i, j) for i in range(len(sizes)) for j in range(len(sizes))):
        heavier = weights[i] > max(weights[j], 1e-9 * max(weights))  # less counts as no weight
        if heavier and counts[j] > 1:  # then it has no less, or is full
            assert counts[i] >= counts[j] or counts[i] == sizes[i]


def test_weights_that_cannot_be() -> None:
    with pytest.raises(BudgetError, match="Expected 2 to 16 tokens for 2 crops"):
        split_by_weight(1, [1, 1], [8, 8])
    with pytest.raises(BudgetError, match="Got 17"):
        split_by_weight(17, [1, 1], [8, 8])
    for weights in ([1], [1, -1], [1, float("nan")]):
        with pytest.raises(ConfigError, match="Expected 2 weights"):
            split_by_weight(4, weights, [8, 8])


@pytest.mark.parametrize("name", ["llava_next", "llava_onevision"])
def test_tiles_are_those_of_the_picture(name) -> None:
    """SIZES of the tiny pictures at PINPOINTS, tiles of 24: worked out by hand."""
    tiny = build(name)
    packings = encode(tiny.model, tiny.inputs([1, 2])).packings
    assert [(p.tiles, p.crops) for p in packings] == [((2, 1), 3), ((1, 2), 3), ((1, 2), 3)]
    assert encode(build("llava").model, build("llava").inputs([1])).packings[0].tiles is None


def test_a_picture_with_others_has_no_crops_in_onevision() -> None:
    tiny = build("llava_onevision")
    inputs = {"image_sizes": torch.tensor([[40, 24], [24, 60]]), "batch_num_images": [2]}
    inputs |= {"input_ids": torch.zeros(1, 1, dtype=torch.long)}
    packings = pack_anyres(tiny.model, inputs, [])
    assert [(p.tiles, p.crops) for p in packings] == [(None, 1), (None, 1)]


def test_crops_of_a_picture_share_its_budget() -> None:
    # tokens of the pictures' crops: (16, 12, 12), (16, 16, 16), (16, 8, 8)
    even = [[8, 6, 6], [8, 8, 8], [8, 4, 4]]
    assert kept("llava_next", ByFeatureNorm(), 0.5) == even
    method = Shared(shares=(0.0, 3.0, 1.0))
    assert kept("llava_next", method, 0.5) == [[1, 12, 7], [1, 16, 7], [1, 8, 7]]
    assert [v.tiles for v in method.seen] == [(2, 1), (1, 2), (1, 2)]
    assert [len(v.tokens) for v in method.seen] == [3, 3, 3]
    assert kept("llava_next", Shared(shares=(2.0, 1.0, 1.0)), 8) == [[4, 2, 2]] * 3
    assert kept("llava_next", Shared(shares=(0.0, 1.0, 0.0)), 1.0) == [
        [16, 12, 12], [16, 16, 16], [16, 8, 8],
    ]  # fmt: skip


def test_a_share_is_the_same_alone_and_in_a_batch() -> None:
    method = Shared(shares=(0.1, 0.6, 0.3))
    assert kept("llava_next", method, 0.4, [1]) == kept("llava_next", method, 0.4, [1, 2])[:1]


def test_a_pooled_budget_is_not_shared() -> None:
    tiny, method = build("llava_next"), Shared(shares=(0.0, 1.0, 0.0))
    compress(tiny.model, tiny.inputs([1]), method, 0.5, pool="image")
    assert method.seen == []


def test_hired_shares_by_the_attention_of_the_first_crop() -> None:
    tiny, method = build("llava_next"), HiRED(alpha=0.4)
    early = Signal(Kind.CLS_ATTENTION, 0)
    signals = encoder_signals(tiny.model, method)
    encoded = encode(tiny.model, tiny.inputs([1, 2]), signals=signals)
    reduced = reduce_images(tiny.model, method, encoded, 0.3, Spread())
    differ = False
    for seen, packing, image in zip(encoded.signals[early], encoded.packings, reduced, strict=True):
        # tiles side by side or one above the other, padding on both outer sides: halves
        halves = seen[0].view(4, 4).sum(1 if packing.tiles == (2, 1) else 0).view(2, 2).sum(-1)
        weights = [0.4, *(0.6 * halves / halves.sum()).tolist()]
        sizes = packing.valid_nL.sum(-1).tolist()
        even = split_evenly(0.3, sizes)
        want = split_by_weight(sum(even), weights, sizes)
        assert image.kept_nL.sum(-1).tolist() == want
        differ |= want != even
    assert differ


def test_hired_answers() -> None:
    tiny = build("llava_next")
    with sieve(tiny.model, "hired", 0.3) as report:
        tiny.model.generate(**tiny.inputs([1, 2]), max_new_tokens=2)
    images = [image for prompt in report.calls[0].prompts for image in prompt.images]
    assert [sum(len(crop.kept) for crop in image.crops) for image in images] == [13, 15, 9]


def test_shares_of_the_wrong_length_are_named() -> None:
    with pytest.raises(ConfigError, match="one share per crop"):
        kept("llava_next", Shared(shares=(1.0,)), 0.5)
