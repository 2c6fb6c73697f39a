"""Small cases done on paper, from the papers' formulas; where a release differs, its answer too."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from tokensieve.functional.blocks import blocks_run
from tokensieve.methods.registry import get_method
from tokensieve.types import EncoderInfo, Kind, Signal, TextContext, VisionTokens

CLIP_L = EncoderInfo("clip_vision_model", 1024, -2, 24, 16, 4096, (24, 24))


def kept(
    name: str, v: VisionTokens, count: int, text: TextContext | None = None, **options: object
) -> list[int]:
    found = get_method(name, **options).reduce(v, torch.tensor([count]), text)
    return [int(i) for i in found.indices()[0]]


def crop(tokens: list[list[float]], **signals: list[float]) -> VisionTokens:
    return VisionTokens(
        torch.tensor([tokens]),
        signals={name: torch.tensor([values]) for name, values in signals.items()},
    )


def test_layers_move_with_the_depth_by_one_rule() -> None:
    """round(n / N * depth) blocks have run: FastV's 2 of 32, HiPrune's 9 of 24 and 16 of 32."""
    assert [blocks_run(2 / 32, depth) for depth in (32, 28, 64, 4)] == [2, 2, 4, 1]
    assert [blocks_run(9 / 24, depth) for depth in (24, 32)] == [9, 12]
    for middle, depth, block in ((9 / 24, 24, 8), (16 / 32, 32, 15)):
        info = EncoderInfo("any", 8, -1, depth, 2, 8)
        assert get_method("hiprune", middle=middle).signals(info)["middle"].block == block


def test_hiprune_anchor_buffers_registers() -> None:
    """3 x 3, alpha 1: round(5 / 5) = 1 anchor, the middle layer's best, token 2 at the end of the
    first row. Its neighbours are 1 (left) and 5 (below). The deep layer's best two of the others
    are 8 and 7. The release takes 3 for a neighbour as well, the first of the next row."""
    v = VisionTokens(
        torch.zeros(1, 9, 1),
        grid=(3, 3),
        signals={
            "middle": torch.tensor([[1.0, 2, 9, 3, 4, 5, 6, 7, 8]]),
            "deep": torch.tensor([[1.0, 2, 3, 0, 4, 5, 6, 7, 8]]),
        },
    )
    assert kept("hiprune", v, 5, alpha=1.0) == [1, 2, 5, 7, 8]
    assert kept("hiprune", v, 5, alpha=1.0, as_released=True) == [1, 2, 3, 5, 8]
    # the anchor in the centre has four neighbours, of which the deep layer's best two fit
    v.signals["middle"][0, 4] = 10
    assert kept("hiprune", v, 3, alpha=1.0) == [4, 5, 7]


def test_cdpruner_past_the_rank() -> None:
    """Directions a (-1, 0), b (1, 0), c (0, 1), d (.6, .8); the question is (1, 0).

    Cosines with it -1, 1, 0, .6; scaled to [0, 1]: 0, 1, .5, .8. First the largest r^2: b. Then
    r^2 (1 - cos^2 with b): a 0, c .25 * 1, d .64 * .64 = .41: d. In two dimensions nothing else
    is new: c, of relevance .5, before a, of 0, though a comes first.
    The release reverses the sign: r = 1, 0, .5, .2. First a; then b adds nothing (it is -a), c
    adds .25, d .04 * .64: c.
    """
    v = crop([[-2.0, 0], [1, 0], [0, 3], [0.6, 0.8]])
    text = TextContext(torch.tensor([[5.0, 0]]))
    assert kept("cdpruner", v, 1, text) == [1]
    assert kept("cdpruner", v, 2, text) == [1, 3]
    assert kept("cdpruner", v, 3, text) == [1, 2, 3]
    assert kept("cdpruner", v, 2, text, as_released=True) == [0, 2]


def pact_case() -> VisionTokens:
    """Keys a a c c d e f: a (1, 0), c (0, 1), d (.6, .8), e (.8, .6), f (-1, 0)."""
    keys = [(1.0, 0.0), (2.0, 0.0), (0.0, 1.0), (0.0, 3.0), (0.6, 0.8), (0.8, 0.6), (-1.0, 0.0)]
    return VisionTokens(
        torch.tensor([[[1.0], [2], [4], [8], [16], [3], [5]]]),
        signals={
            "asked": torch.tensor([[0.2, 0.2, 0.2, 0.2, 0.1, 0.05, 0.02]]),
            "keys": torch.tensor([keys]),
        },
    )


def test_pact_clusters() -> None:
    """Importance, attention times norm: .2 .4 .8 1.6 1.6 .15 .1; ceil(.7 * 7) = 5 are important,
    e and f are not. Distances 1 - cosine: a-c 1, a-d .4, c-d .2; cutoff .21.

    Density, sum of exp(-d / .21): a 2 + 2 * .009 + .149 = 2.17, c 2 + 2 * .009 + .386 = 2.40,
    d 1 + 2 * .149 + 2 * .386 = 2.07. Centres in that order: c (token 2); a (token 0), 1 from c;
    d is .2 from c and joins it. e is .2 from a, within 1.5 * .21 = .315, and joins it; f is 1 or
    more from both and is dropped. Values: a (1 + 2 + 3) / 3; c (4 + 8 + 16) / 3.

    The release's density, sum of exp(-(d / 2)^2): a 2 + 2 * .779 + .961 = 4.52, c 2 + 2 * .779 +
    .990 = 4.55, d 1 + 2 * .961 + 2 * .990 = 4.90. Now d is the first centre, c joins it, a is .4
    away and a centre. e is .04 from d and joins it: d (4 + 8 + 16 + 3) / 4.
    """
    v = pact_case()
    found = get_method("pact", important=0.7).reduce(v, torch.tensor([2]))
    assert found.indices()[0].tolist() == [0, 2]
    assert_close(found.apply(v.tokens)[0], torch.tensor([[2.0], [28 / 3]]))
    found = get_method("pact", important=0.7, as_released=True).reduce(v, torch.tensor([2]))
    assert found.indices()[0].tolist() == [0, 4]
    assert_close(found.apply(v.tokens)[0], torch.tensor([[1.5], [31 / 4]]))


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("pyramiddrop", {"attention": Signal(Kind.LAST_ATTENTION, ahead=True)}),
        (
            "pact",
            {
                "asked": Signal(Kind.MEAN_UNROTATED, ahead=True),
                "keys": Signal(Kind.ALL_KEYS, ahead=True),
            },
        ),
        ("fastv", {"attention": Signal(Kind.LAST_ATTENTION)}),
    ],
)
def test_whose_attention_a_cut_reads(name: str, asked: dict[str, Signal]) -> None:
    """PyramidDrop and PACT: the layer at the cut; FastV: the one before (K - 1)."""
    assert get_method(name).signals(CLIP_L) == asked


def test_layers_of_the_papers() -> None:
    """Of 32, counted from 0: FastV 2; PACT 4; PyramidDrop 8, 16, 24 with .5, .25, .125."""
    assert get_method("fastv").llm_stages(32, 0.5) == {2: 0.5}
    assert get_method("pact").llm_stages(32, 0.5) == {4: 0.5}
    steps = get_method("pyramiddrop").llm_stages(32, 0.125)
    assert {at: round(share, 9) for at, share in steps.items()} == {8: 0.5, 16: 0.25, 24: 0.125}
