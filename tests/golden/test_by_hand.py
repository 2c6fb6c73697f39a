"""Small cases done on paper, from the papers' formulas; where a release differs, its answer too."""

from __future__ import annotations

from dataclasses import replace

import torch

from tokensieve.functional.attention import telling_heads
from tokensieve.functional.blocks import blocks_run
from tokensieve.hf.attention.signals import EncoderSignals
from tokensieve.methods.registry import get_method
from tokensieve.types import EncoderInfo, Kind, Signal, TextContext, VisionTokens


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


def test_evit_fuses_the_inattentive() -> None:
    """CLS pays .5, .3, .2 to tokens 1, 2, 4. Of two one is fused: .3 * 2 + .2 * 4 = 1.4, where the
    second stood; as an average 1.4 / .5 = 2.8."""
    v = crop([[1.0], [2], [4]], attention=[0.5, 0.3, 0.2])
    for averaged, fused in ((False, 1.4), (True, 2.8)):
        found = get_method("evit", averaged=averaged).reduce(v, torch.tensor([2]))
        assert found.indices()[0].tolist() == [0, 1]
        torch.testing.assert_close(found.apply(v.tokens)[0], torch.tensor([[1.0], [fused]]))


def test_todre_sums_distances() -> None:
    """a (0, 1, 0), b (.6, -.8, 0), c (-.6, -.8, 0), d (0, 0, 1); mean (0, -.15, .25).

    Cosines with the mean: a -.51, b and c .41, d .86. From the farthest, a: b and c are 1.8 away, d
    1: b, the earlier. Then c: 1.8 + (1 - (-.36 + .64)) = 2.52 as a sum, .72 as the least; d 2 and
    1. So the second version of the paper takes c, the first takes d.
    """
    v = crop([[0.0, 1, 0], [0.6, -0.8, 0], [-0.6, -0.8, 0], [0, 0, 1]])
    assert kept("todre", v, 1) == [3]
    assert kept("todre", v, 3, start="farthest") == [0, 1, 2]
    assert kept("todre", v, 3, start="farthest", rule="k-centre") == [0, 1, 3]


def test_mustdrop_key_set_and_windows() -> None:
    """One window of 3 x 3, tokens 1 to 9 in one direction, attention rising: ceil(.08 * 9) = 1 key
    token, the last. Of the other eight, all alike, six must go for a budget of three: those of
    least attention, 1 to 6, into the most attended of the eight, 8: (8 + 21) / 7."""
    v = VisionTokens(
        torch.arange(1.0, 10)[None, :, None],
        grid=(3, 3),
        signals={"attention": torch.arange(1.0, 10)[None] / 45},
    )
    method = get_method("mustdrop")
    found = method.reduce(v, torch.tensor([3]))
    assert found.indices()[0].tolist() == [6, 7, 8]
    torch.testing.assert_close(found.apply(v.tokens)[0], torch.tensor([[7.0], [29 / 7], [9]]))
    key = method.protects(v)
    assert key is not None
    assert key[0].tolist() == 8 * [False] + [True]


def test_fopru_rows_and_ranks() -> None:
    """2 x 2: attention .1 .5 / .3 .25. Rows have means .3 and .275: the first, with its .1, before
    the second; by rank .5 and .3."""
    v = VisionTokens(
        torch.zeros(1, 4, 1),
        grid=(2, 2),
        signals={"attention": torch.tensor([[0.1, 0.5, 0.3, 0.25]])},
    )
    assert kept("fopru", v, 2) == [1, 2]
    assert kept("fopru", v, 2, strategy="row") == [0, 1]
    assert kept("fastervlm", v, 2) == [1, 2]  # CLS: .5 and .3


def test_prumerge_sums() -> None:
    """Tokens 1, 2, 4, 8 of attention .4, .3, .2, .1; keys (1, 0), (0, 1), (.6, .8), (.8, .6); two
    stay, the first two. Nearest to the first is the fourth (cosine .8): 1 + .1 * 8 = 1.8; to the
    second the third (.8): 2 + .2 * 4 = 2.8. As means (.4 + .8) / .5 and (.6 + .8) / .5.

    As released one stays, 1.8, and all others are one token: .3 * 2 + .2 * 4 + .1 * 8 = 2.2, where
    the second stood. With three neighbours kept tokens are taken in too: 1 + .6 + .8 + .8 = 3.2.
    """
    v = VisionTokens(
        torch.tensor([[[1.0], [2], [4], [8]]]),
        signals={
            "attention": torch.tensor([[0.4, 0.3, 0.2, 0.1]]),
            "keys": torch.tensor([[[1.0, 0], [0, 1], [0.6, 0.8], [0.8, 0.6]]]),
        },
    )
    for options, values in (
        ({"neighbours": 1}, [1.8, 2.8]),
        ({"neighbours": 1, "averaged": True}, [2.4, 2.8]),
        ({"neighbours": 1, "as_released": True}, [1.8, 2.2]),
        ({"neighbours": 3}, [3.2, 4.0]),
    ):
        found = get_method("prumerge", **options).reduce(v, torch.tensor([2]))
        assert found.indices()[0].tolist() == [0, 1]
        torch.testing.assert_close(found.apply(v.tokens)[0][:, 0], torch.tensor(values))
    alone = get_method("prumerge", as_released=True).reduce(v, torch.tensor([1]))
    assert alone.indices()[0].tolist() == [0]
    info = EncoderInfo("any", 8, -2, 24, 2, 8)
    assert get_method("prumerge", as_released=True).signals(info) == {
        "attention": Signal(Kind.CLS_UNSPLIT, 23),
        "keys": Signal(Kind.ALL_KEYS, 23),
    }


def test_hired_shares() -> None:
    """A whole view of 4 x 4 and 2 x 2 tiles. Early attention is 0 but for .5 and .1 in the first
    row, one above each tile of the upper two, .3 in the third row (lower left), .1 in the last
    (lower right): shares .5, .1, .3, .1 of the half that alpha leaves.

    As released half of the tokens, 8, are taken for seen: those four and the first four zeros, the
    places 1, 2, 4, 5. Runs of four tokens, here rows: 4, 2, 1, 1 of 8.
    """
    early = torch.zeros(5, 16)
    early[0, [0, 3, 8, 14]] = torch.tensor([0.5, 0.1, 0.3, 0.1])
    v = VisionTokens(torch.zeros(5, 16, 1), grid=(4, 4), tiles=(2, 2), signals={"early": early})
    for released, share in (
        (False, [0.5, 0.25, 0.05, 0.15, 0.05]),
        (True, [0.5, 0.25, 0.125, 0.0625, 0.0625]),
    ):
        found = get_method("hired", as_released=released).share(v)  # type: ignore[attr-defined]
        torch.testing.assert_close(found, torch.tensor(share))


def test_vflowopt_recycles_by_cells() -> None:
    """2 x 4, alpha 0: attention .3 .1 .2 .05 / .15 .05 .1 .05, tokens 1 to 8. Half of a budget of
    4 is recycled: the first and the third token stay, the two cells are the left and the right
    half. Left are .1 .15 .05 of 2 5 6, which become (.2 + .75 + .3) / .3 where 5 stood; right
    .05 .1 .05 of 4 7 8, (.2 + .7 + .4) / .2, at 7."""
    v = VisionTokens(
        torch.arange(1.0, 9)[None, :, None],
        grid=(2, 4),
        patches=torch.rand(1, 8, 3, generator=torch.Generator().manual_seed(0)),
        signals={"attention": torch.tensor([[0.3, 0.1, 0.2, 0.05, 0.15, 0.05, 0.1, 0.05]])},
    )
    method = get_method("vflowopt", alpha=0.0, recycled=0.5)
    found = method.reduce(v, torch.tensor([4]))
    assert found.indices()[0].tolist() == [0, 2, 4, 6]
    want = torch.tensor([1.0, 3, 1.25 / 0.3, 6.5])
    torch.testing.assert_close(found.apply(v.tokens)[0][:, 0], want)
    # a pruned token alone in its cell is the cell's; the last place goes to the best of the others
    assert kept("vflowopt", v, 7, alpha=0.0, recycled=0.2) == [0, 1, 2, 3, 4, 5, 6]


def test_vflowopt_entropy_is_in_bits() -> None:
    """Two grey levels, half each: one bit; one level: none. exp(1) / (exp(1) + 1) = .731."""
    v = VisionTokens(
        torch.zeros(1, 2, 1),
        patches=torch.tensor([[[0.0, 1, 0, 1, 0, 1], [1.0, 1, 1, 1, 1, 1]]]),
        signals={"attention": torch.zeros(1, 2)},
    )
    found = get_method("vflowopt", alpha=2.0).importance(v)  # type: ignore[attr-defined]
    torch.testing.assert_close(found, torch.tensor([[1.4621, 0.5379]]), atol=1e-4, rtol=0)


def test_who_is_much_attended() -> None:
    """Rows (.8, .1, .1), (.6, .2, .2), (.1, .1, .8): on average .5, .133, .367, mean 1/3. Above
    the mean are the first and the third, whose rows give .45, .1, .45; above twice the mean nobody
    is, so the most attended speaks alone."""
    rows = torch.tensor([[0.8, 0.1, 0.1], [0.6, 0.2, 0.2], [0.1, 0.1, 0.8]])
    query, key = torch.eye(3)[None, None], rows.log().mT[None, None]
    said = EncoderSignals.__new__(EncoderSignals)
    said.cls = False
    for above, want in (
        (0.0, [0.5, 0.4 / 3, 1.1 / 3]), (1.0, [0.45, 0.1, 0.45]), (2.0, [0.8, 0.1, 0.1]),
    ):  # fmt: skip
        signal = Signal(Kind.RECEIVED_ATTENTION, 0, above=above)
        found = said._of(signal, query, key, 1.0, None, None) / 3
        torch.testing.assert_close(found, torch.tensor([want]))


KEYS = [[1.0, 0], [0.8, 0.6], [0, 1], [0.6, 0.8]]  # cosines 01 .8, 03 .6, 12 .6, 23 .8


def test_tome_deals_cls_first() -> None:
    """Of 1 2 4 8, standing for 1 1 1 3 patches, one joins another. Without CLS tokens 0 and 2 are
    sources: 0 joins 1 (.8, the earlier of two), their mean 1.5. With CLS 1 and 3 are: 1 joins 0."""
    v = VisionTokens(
        torch.tensor([[[1.0], [2], [4], [8]]]),
        signals={"keys": torch.tensor([KEYS])},
        sizes=torch.tensor([[1.0, 1, 1, 3]]),
    )
    for cls, places in ((False, [1, 2, 3]), (True, [0, 2, 3])):
        found = get_method("tome").reduce(replace(v, cls=cls), torch.tensor([3]))
        assert found.indices()[0].tolist() == places
        torch.testing.assert_close(found.apply(v.tokens)[0], torch.tensor([[1.5], [4], [8]]))
    found = get_method("tome").reduce(v, torch.tensor([2]))  # 2 joins 3: (4 + 3 * 8) / 4
    torch.testing.assert_close(found.apply(v.tokens)[0], torch.tensor([[1.5], [7]]))


def test_mctf_half_the_pairs_one_way_half_the_other() -> None:
    """Attention .1 .3 .2 .4. Without CLS 0 and 2 go first: 01 attracts by .9 / .03^.05 = 1.07, 23
    by .9 / .08^.05 = 1.02: 0 joins 1. Then 1 or 3 goes to 2, what is left of the first half: 3 by
    1.02 before 1 by .8 / .06^.05 = .92. Means by attention: (.1 t0 + .3 t1) / .4 and
    (.2 t2 + .4 t3) / .6. With CLS 1 and 3 go first: 1 joins 0, then 2 joins 3."""
    v = VisionTokens(
        torch.tensor([KEYS]), signals={"attention": torch.tensor([[0.1, 0.3, 0.2, 0.4]])}
    )
    want = torch.tensor([[0.85, 0.45], [0.4, 0.52 / 0.6]])
    for cls, places in ((False, [1, 2]), (True, [0, 3])):
        found = get_method("mctf").reduce(replace(v, cls=cls), torch.tensor([2]))
        assert found.indices()[0].tolist() == places
        torch.testing.assert_close(found.apply(v.tokens)[0], want)
    info = EncoderInfo("any", 8, -2, 24, 2, 8)
    ahead = {"attention": Signal(Kind.RECEIVED_ATTENTION, ahead=True)}
    assert get_method("mctf").signals(info) == ahead


def test_zero_tprune_filters_heads() -> None:
    """Ranks of two tokens by three heads, (.5, .5), (.8, .2), (1, 0): scaled to a mean of 1 their
    variances are 0, .36 and 1. Only the second is within .01 and .7. Without bounds the roots of
    (.25 + .64 + 1) / 3 and (.25 + .04 + 0) / 3."""
    rank = torch.tensor([[[0.5, 0.5], [0.8, 0.2], [1.0, 0.0]]])
    valid = torch.ones(1, 2, dtype=torch.bool)
    torch.testing.assert_close(telling_heads(rank, valid, 0.01, 0.7), torch.tensor([[0.8, 0.2]]))
    every = torch.tensor([[0.63, 0.29 / 3]]).sqrt()
    torch.testing.assert_close(telling_heads(rank, valid, 0.0, 9.0), every)
    torch.testing.assert_close(telling_heads(rank, valid, 5.0, 9.0), every)


def test_zero_tprune_alike_first() -> None:
    """All attend to tokens 0 1 2 3 with .4 .3 .2 .1: so they are ranked, at one step or many. The
    lower half is 2 and 3, keys a a b a; of two to go one goes for its likeness. Alike first: 3, a
    copy of 0, goes, then 2, the least important. Unimportant first: 3 goes, and of 0 1 2 the lower
    half is 2, which goes. Three stay: 3 both ways at similar=1, at 0; with 2 a copy too the
    earlier, 2, goes for its likeness."""
    rows = torch.tensor([0.4, 0.3, 0.2, 0.1]).expand(4, 4)[None, ..., None]
    v = VisionTokens(
        torch.zeros(1, 4, 1),
        signals={"attention": rows, "keys": torch.tensor([[[1.0, 0], [1, 0], [0, 1], [1, 0]]])},
    )
    assert kept("zero-tprune", v, 2) == [0, 1]
    assert kept("zero-tprune", v, 3, similar=1.0) == [0, 1, 2]
    assert kept("zero-tprune", v, 3, similar=0.0) == [0, 1, 2]
    v.signals["keys"][0, 2] = torch.tensor([1.0, 0])
    assert kept("zero-tprune", v, 3, similar=1.0) == [0, 1, 3]
    assert kept("zero-tprune", v, 3, similar=1.0, first="unimportant") == [0, 1, 3]
