"""Efficient video sampling, by hand on three frames of two tokens."""

from __future__ import annotations

import pytest
import torch

from tokensieve.methods.evs import EVS, spread_evenly
from tokensieve.types import VisionTokens

# cosine distances to the same place one frame before, by hand:
#   frame 1: (1, 0) after (1, 0) is 0; (1, 0) after (0, 1) is 1
#   frame 2: (0, 3) after (1, 0) is 1 (lengths do not count); (-1, 0) after (1, 0) is 2
FRAMES = torch.tensor(
    [[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]], [[0.0, 3.0], [-1.0, 0.0]]]
)


def test_distances():
    scores = EVS().scores(VisionTokens(FRAMES, frames=True))
    torch.testing.assert_close(scores[1:], torch.tensor([[0.0, 1.0], [1.0, 2.0]]))
    assert float(scores[0].min()) > 2


@pytest.mark.parametrize(
    ("count", "kept"),
    [
        (2, [[1, 1], [0, 0], [0, 0]]),  # the first frame
        (3, [[1, 1], [0, 0], [0, 1]]),  # then what changed most
        (4, [[1, 1], [0, 1], [0, 1]]),  # a tie: the earlier token
        (5, [[1, 1], [0, 1], [1, 1]]),
        (1, [[1, 0], [0, 0], [0, 0]]),  # less than a frame: some of the first
    ],
)
def test_the_first_frame_then_what_changes(count, kept):
    (reduction,) = EVS().reduce_pool([VisionTokens(FRAMES, frames=True)], count)
    assert reduction.kept.int().tolist() == kept


def test_frames_in_another_order_keep_other_tokens():
    (reduction,) = EVS().reduce_pool([VisionTokens(FRAMES.flip(0), frames=True)], 3)
    # (1, 0) after (0, 3): 1; (1, 0) after (-1, 0): 2
    assert reduction.kept.int().tolist() == [[1, 1], [0, 1], [0, 0]]


def test_a_still_picture_is_a_first_frame():
    scores = EVS().scores(VisionTokens(torch.randn(1, 8, 3)))
    assert scores[0].argsort(descending=True).tolist() == [0, 4, 2, 6, 1, 5, 3, 7]


def test_any_number_of_the_first_frame_lies_evenly():
    # bits of 0 ... 7 read backwards: 0 4 2 6 1 5 3 7
    order = spread_evenly(torch.ones(1, 8, dtype=torch.bool))[0].argsort(descending=True)
    assert order.tolist() == [0, 4, 2, 6, 1, 5, 3, 7]
    gaps = order[:4].sort().values.diff()
    assert gaps.tolist() == [2, 2, 2]


def test_eight_frames_at_the_shares_papers_report():
    """10 % of 8 frames of 10 tokens is less than one frame; 15 % is the first and two tokens."""
    frames = torch.ones(8, 10, 4)
    frames[5, 3] = torch.tensor([1.0, -1.0, 1.0, -1.0])  # differs, and so does what comes after it
    video = VisionTokens(frames, frames=True)
    kept = [EVS().reduce_pool([video], count)[0].kept for count in (8, 12)]
    assert int(kept[0][0].sum()) == 8
    assert [int(n) for n in kept[1].sum(-1)] == [10, 0, 0, 0, 0, 1, 1, 0]
    assert bool(kept[1][5, 3])
    assert bool(kept[1][6, 3])
