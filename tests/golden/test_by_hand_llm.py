"""Small cases inside the LLM done on paper, from the papers' formulas; where a release differs, its
answer too."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tokensieve.hf.llm.heard import Heard, Held, signal_of
from tokensieve.hf.search import divergence
from tokensieve.methods.base import PROTECTED
from tokensieve.methods.registry import get_method
from tokensieve.types import EncoderInfo, Kind, Signal, TextContext, VisionTokens

CLIP_L = EncoderInfo("clip_vision_model", 1024, -2, 24, 16, 4096, (24, 24))


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
    """Of 32, counted from 0: FastV 2; PACT 4; PyramidDrop 8, 16, 24 with .5, .25, .125; SparseVLM
    behind 2, 6, 15, MustDrop behind 2, 6, 10, 14; FEATHER 8 and 16; VTW 15 or so of its mean."""
    assert list(get_method("sparsevlm").llm_stages(32, 0.1)) == [3, 7, 16]
    assert list(get_method("mustdrop-llm").llm_stages(32, 0.1)) == [3, 7, 11, 15]
    assert list(get_method("feather").llm_stages(32, 0.1)) == [8, 16]
    assert list(get_method("vtw").llm_stages(32, 15 / 32)) == [15]
    assert get_method("fastv").llm_stages(32, 0.5) == {2: 0.5}
    assert get_method("pact").llm_stages(32, 0.5) == {4: 0.5}
    steps = get_method("pyramiddrop").llm_stages(32, 0.125)
    assert {at: round(share, 9) for at, share in steps.items()} == {8: 0.5, 16: 0.25, 24: 0.125}


def attending(heads: list[list[list[float]]], text: list[int]) -> tuple[Heard, Held]:
    """A layer whose attention is `heads`, each a matrix of rows; `text`: places that are words."""
    N = len(heads[0])
    logits = torch.tensor(heads).clamp_min(1e-9).log()  # (H, N, N)
    query, key = torch.eye(N).expand(1, len(heads), N, N), logits.mT[None]
    heard = Heard(query, key, query, key)
    real = torch.ones(1, N, dtype=torch.bool)
    words = torch.zeros_like(real)
    words[0, text] = True
    return heard, Held(real, words, ~words, real, torch.arange(N)[None])


def told(kind: Kind, heads: list[list[list[float]]], text: list[int]) -> Tensor:
    return signal_of(kind, *attending(heads, text))[0]


def test_aim_page_rank() -> None:
    """Rows (1, 0, 0), (.5, .5, 0), (.2, .2, .6): a step of PageRank from 1/3 each gives the means
    of the columns, 1.7 / 3, .7 / 3, .6 / 3."""
    rows = [[1.0, 0, 0], [0.5, 0.5, 0], [0.2, 0.2, 0.6]]
    found = told(Kind.RECEIVED_ATTENTION, [rows], [2])
    assert_close(found[:, 0], torch.tensor([1.7, 0.7, 0.6]) / 3)
    assert get_method("aim-llm").signals(CLIP_L) == {"attention": Signal(Kind.RECEIVED_ATTENTION)}


def test_feather_softmax() -> None:
    """A word, two visual tokens, the last word. Its heads look (.8, .15, .03, .02) and (.1, .3, .5,
    .1): on average .225 and .265 at the picture. The release's softmax is over the picture: .833,
    .167 and .375, .625, on average .604 and .396."""
    first = [[0.8, 0.15, 0.03, 0.02], [0.1, 0.3, 0.5, 0.1]]
    heads = [[[1.0, 0, 0, 0], [0.5, 0.5, 0, 0], [0.4, 0.3, 0.3, 0], row] for row in first]
    kinds = [
        get_method("feather", as_released=released).signals(CLIP_L)["attention"].kind
        for released in (False, True)
    ]
    paper, release = (told(kind, heads, [0, 3])[1:3, 0] for kind in kinds)
    assert_close(paper, torch.tensor([0.225, 0.265]))
    assert_close(release, torch.tensor([0.6042, 0.3958]), atol=1e-4, rtol=0)


def test_sparsevlm_plus_asks_the_heads_that_look_at_the_picture() -> None:
    """Two visual tokens and a word that looks at them with .1 + .1, .6 + .2 in two heads: half of
    the heads is the second."""
    heads = [[[1.0, 0, 0], [0.5, 0.5, 0], row] for row in ([0.1, 0.1, 0.8], [0.6, 0.2, 0.2])]
    assert_close(told(Kind.TEXT_PRIORITY, heads, [2])[:2, 0], torch.tensor([0.6, 0.2]))
    assert_close(told(Kind.TEXT_ATTENTION, heads, [2])[:2, 0], torch.tensor([0.35, 0.15]))


def test_sparsevlm_recycles() -> None:
    """Tokens 5, 0, .1, 1, 1.1 of falling significance; two like words: both rate, the rank is 1.

    candidates 1, recycled .5, budget 3 of 5: ceil((3 - 2.5) / .5) = 1 stays, the other four become
    two. Mean squared distances to the others: .74, .607, .607, .74; so .1 and 1 are densest, .1
    the earlier. Gaps: 1.1 (the largest distance) and .9; the other two .1. Centres .1 and 1, the
    sums of their clusters .1 and 2.1.

    The release: rest 2, so one more than is needed; then rest 3, all of them candidates, and
    3 // 10 + 1 = 1 cluster: 5 and 0 stay. With one neighbour each: squared distances .81, .01, .01;
    the earlier of the densest, 1, is the centre, and the mean 2.2 / 3.
    """
    v = VisionTokens(
        torch.tensor([[[5.0], [0], [0.1], [1], [1.1]]]),
        signals={
            "attention": torch.tensor([[0.4, 0.3, 0.2, 0.1, 0.05]])[..., None].expand(1, 5, 2)
        },
    )
    words = TextContext(torch.ones(2, 1))
    share = {"candidates": 1.0, "recycled": 0.5}
    for options, places, values in (
        (share, [0, 2, 3], [5.0, 0.1, 2.1]),
        ({**share, "as_released": True}, [0, 1, 3], [5.0, 0.0, 2.2 / 3]),
        ({"plus": True}, [0, 1, 2], [5.0, 0.0, 0.1]),
    ):
        found = get_method("sparsevlm", **options).reduce(v, torch.tensor([3]), words)
        assert found.indices()[0].tolist() == places
        assert_close(found.apply(v.tokens)[0][:, 0], torch.tensor(values))


def test_mustdrop_keeps_the_key_set() -> None:
    """Two words pay (.4, .0), (.1, .3), (.2, .1), (.0, .0): means .2, .2, .15, 0 and largest .4,
    .3, .2, 0. Two stay: the first by both, the second by its mean. A key token stays before all."""
    rows = torch.tensor([[[0.4, 0.0], [0.1, 0.3], [0.2, 0.1], [0.0, 0.0]]])
    v = VisionTokens(torch.zeros(1, 4, 1), signals={"attention": rows})
    key = {PROTECTED: torch.tensor([[0.0, 0, 0, 1]])}
    asked = VisionTokens(v.tokens, signals={**v.signals, **key})
    method, two = get_method("mustdrop-llm"), torch.tensor([2])
    assert method.reduce(v, two).indices()[0].tolist() == [0, 1]
    assert method.reduce(asked, two).indices()[0].tolist() == [0, 3]


def test_todre_relevance() -> None:
    """Two words behind the picture spend .05 + .10 and .02 + .03 of their attention on it: .1 on
    average."""
    rows = torch.tensor([[[0.05, 0.02], [0.10, 0.03]]])
    v = VisionTokens(torch.zeros(1, 2, 1), signals={"attention": rows})
    for threshold, left in ((0.09, 2), (0.11, 0)):
        method = get_method("todre-llm", threshold=threshold)
        assert method.reduce(v, torch.tensor([1])).counts_B.tolist() == [left]


def test_vtw_divergence() -> None:
    """(.75, .25) from (.5, .5): .75 ln 1.5 + .25 ln .5 = .1308; the other way about .1438."""
    cut, whole = (torch.tensor([p]).log() for p in ((0.75, 0.25), (0.5, 0.5)))
    assert_close(divergence(cut, whole), torch.tensor([0.75 * math.log(1.5) - 0.25 * math.log(2)]))
    assert_close(divergence(whole, cut), torch.tensor([0.1438]), atol=1e-4, rtol=0)
