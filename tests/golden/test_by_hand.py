"""Small cases done on paper, from the papers' formulas; where a release differs, its answer too."""

from __future__ import annotations

import torch

from tokensieve.functional.blocks import blocks_run
from tokensieve.methods.registry import get_method
from tokensieve.types import EncoderInfo, TextContext, VisionTokens


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
