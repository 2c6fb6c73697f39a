"""The default objective: scores learn what dropping a token costs; `diverse` spends by it."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from tokensieve.errors import ConfigError
from tokensieve.functional import worth as rule
from tokensieve.functional.cosine import Cosines
from tokensieve.functional.grid import beside
from tokensieve.functional.worth import ALONE, Crowd, weighted_diversity
from tokensieve.nn.autoencoder import SelectorAutoencoder
from tokensieve.nn.config import ObjectiveConfig, ReconstructorConfig, SelectorConfig
from tokensieve.nn.estimators import explore_mask
from tokensieve.nn.losses import SURPRISE_FLOOR, surprise_losses
from tokensieve.nn.selector import Selector
from tokensieve.types import EncoderInfo

ENCODER = EncoderInfo("toy", 16, -1, 2, 2, 32, (3, 4))


def test_surprise_by_hand() -> None:
    # squared errors per token of width 2: 4, 1 (kept, must not count), 0
    output = torch.tensor([[[2.0, 2.0], [1.0, 1.0], [0.0, 0.0]]])
    scores = torch.tensor([[math.log(4 + SURPRISE_FLOOR) + 1.0, 99.0, math.log(SURPRISE_FLOOR)]])
    dropped = torch.tensor([[1.0, 0.0, 1.0]])
    error, guess = surprise_losses(output, torch.zeros(1, 3, 2), scores, dropped)
    assert_close(error, torch.tensor(2.0))
    assert_close(guess, torch.tensor(0.5))


def test_cosine_surprise_by_hand() -> None:
    # raw outputs point right, right and up, raw targets up, right and right
    output = torch.tensor([[[2.0, 0.0], [1.0, 0.0], [0.0, 5.0]]])
    target = torch.tensor([[[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]])
    scores = torch.tensor([[math.log(1 + SURPRISE_FLOOR) + 1.0, math.log(SURPRISE_FLOOR), 99.0]])
    dropped = torch.tensor([[1.0, 1.0, 0.0]])
    error, guess = surprise_losses(output, target, scores, dropped, (output, target))
    assert_close(error, torch.tensor((2.5 + 1 + 0) / 2))  # mean square and cosine distance
    assert_close(guess, torch.tensor(0.5))


def test_cosines_are_of_raw_features() -> None:
    selector = Selector(SelectorConfig(encoder=ENCODER, depth=1))
    features = 3 + torch.randn(4, 12, 16, generator=torch.Generator().manual_seed(1))
    selector.fit_normaliser(features)
    assert_close(selector.restore(selector.standardise(features)), features)


def test_surprise_teaches_scores_only_through_the_guess() -> None:
    torch.manual_seed(0)
    model = SelectorAutoencoder(
        SelectorConfig(encoder=ENCODER, depth=1),
        ReconstructorConfig(encoder=ENCODER, depth=1),
        ObjectiveConfig(),
    )
    features = torch.randn(2, 12, 16, generator=torch.Generator().manual_seed(1))
    losses = model(features, generator=torch.Generator().manual_seed(0))
    torch.autograd.backward(losses["reconstruction"], retain_graph=True)
    assert model.selector.head.weight.grad is None
    torch.autograd.backward(losses["surprise"])
    assert model.selector.head.weight.grad is not None
    assert float(model.selector.head.weight.grad.abs().sum()) > 0


def test_explore_counts_padding_and_both_policies() -> None:
    scores = torch.arange(20.0).expand(400, 20)
    valid = torch.arange(20).expand(400, 20) < 16
    counts = torch.full((400,), 4)
    mask = explore_mask(scores, counts, valid, torch.Generator().manual_seed(0))
    assert torch.equal(mask.sum(-1), torch.full((400,), 4.0))
    assert float(mask[:, 16:].sum()) == 0
    share_of_top = mask[:, 12:16].mean(-1)
    assert 0.1 < float((share_of_top <= 0.5).float().mean()) < 0.6  # the random rows
    assert float((share_of_top == 1).float().mean()) > 0.3  # the ranked rows


def test_explore_has_no_gradient_so_only_surprise_takes_it() -> None:
    with pytest.raises(ConfigError, match="Expected an estimator with a gradient"):
        ObjectiveConfig(estimator="explore", objective="plain")


def diverse_slowly(weights: list[float], points: list[list[float]], count: int) -> list[int]:
    """The definition, one number at a time; in order of choice."""

    def apart(a: list[float], b: list[float]) -> float:
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        return 1 - dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))

    chosen = [max(range(len(weights)), key=lambda i: weights[i])]
    while len(chosen) < count:
        left = [i for i in range(len(weights)) if i not in chosen]
        cost = {i: weights[i] * min(apart(points[i], points[j]) for j in chosen) for i in left}
        chosen.append(max(left, key=lambda i: cost[i]))
    return chosen


@pytest.mark.parametrize("trust", [0.0, 0.5, 1.0, 3.0])
def test_diverse_follows_its_definition(trust: float) -> None:
    generator = torch.Generator().manual_seed(3)
    points = torch.randn(2, 24, 6, generator=generator)
    scores = trust * torch.randn(2, 24, generator=generator)
    padded = torch.cat([points, torch.full((2, 5, 6), 9.0)], 1)
    heavy = torch.cat([scores, torch.full((2, 5), 50.0)], 1)
    valid = (torch.arange(29) < 24).expand(2, 29)
    for counts in ([1, 5], [12, 0], [24, 24]):
        kept = weighted_diversity(padded, heavy, torch.tensor(counts), valid)
        for row, count in enumerate(counts):
            weights = scores[row].exp().tolist()
            want = diverse_slowly(weights, points[row].tolist(), count)[:count]
            assert kept[row].nonzero()[:, 0].tolist() == sorted(want)


def test_diverse_keeps_a_calm_region_that_ranking_loses() -> None:
    # 40 alike tokens of small error, 5 unlike pairs of larger error, room for 6
    axes = torch.eye(8)
    tokens = torch.cat([axes[5].expand(40, 8), axes[:5], axes[:5]])[None]
    scores = torch.cat([torch.full((40,), -0.5), torch.zeros(10)])[None]
    counts, valid = torch.tensor([6]), torch.ones(1, 50, dtype=torch.bool)
    assert int(weighted_diversity(tokens, scores, counts, valid)[0, :40].sum()) == 1
    assert int(weighted_diversity(tokens, 100 * scores, counts, valid)[0, :40].sum()) == 0


def test_among_equal_tokens_the_heaviest_come_first() -> None:
    scores = torch.tensor([[0.0, 3.0, 1.0, 2.0]])
    valid = torch.ones(1, 4, dtype=torch.bool)
    kept = weighted_diversity(torch.ones(1, 4, 2), scores, torch.tensor([3]), valid)
    assert kept[0].tolist() == [False, True, True, True]


def test_crowds_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    # angles of 0, 0, 37 and 90 degrees; the last token is padding
    tokens = torch.tensor([[[1.0, 0.0], [2.0, 0.0], [0.8, 0.6], [0.0, 1.0], [1.0, 0.0]]])
    valid = torch.tensor([[True, True, True, True, False]])
    sizes = Cosines(tokens, valid, 0, radius=0.5).crowd_BL
    want = torch.tensor([[2 + 0.6, 2 + 0.6, 1 + 2 * 0.6 + 0.2, 1 + 0.2]])
    assert_close(sizes[:, :4], want)
    monkeypatch.setattr("tokensieve.functional.cosine._PART", 2)
    assert_close(Cosines(tokens, valid, 0, radius=0.5).crowd_BL, sizes)
    monkeypatch.setattr("tokensieve.functional.cosine._FLOATS", 0)  # nothing held
    assert_close(Cosines(tokens, valid, 0, radius=0.5).crowd_BL, sizes)


@pytest.mark.parametrize("crowd", [ALONE, Crowd(0.5, 0.9), Crowd(0.5, 0.9, words=8.0)])
@pytest.mark.parametrize("floats", [80_000_000, 600, 0])  # the whole, strips, rows one by one
def test_crops_one_by_one_and_together_take_the_same_order(
    crowd: Crowd, floats: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(5)
    tokens, weight = (torch.randn(2, 30, *w, generator=generator) for w in ((6,), ()))
    valid = torch.arange(30) != torch.tensor([[30], [8]])
    valid[1, 22:] = False
    near = beside((5, 6), 1).expand(2, -1, -1)
    monkeypatch.setattr("tokensieve.functional.cosine._PART", 8)
    monkeypatch.setattr("tokensieve.functional.cosine._FLOATS", floats)
    for steps in (0, 5, 26):
        order, worth = rule.diverse_order(tokens, weight, valid, steps, crowd, near)
        together = torch.zeros_like(order), torch.zeros_like(worth)
        given = None if crowd.words == 0 else near
        rule._take_together(tokens, weight, valid, crowd, given, together)
        real = together[1] > -torch.inf
        assert real.sum(-1).tolist() == [steps, min(steps, 21)]
        assert torch.equal(order[real], together[0][real])
        assert_close(worth, together[1], atol=1e-5, rtol=1e-5)


def words_slowly(
    weights: list[float], points: torch.Tensor, near: list[list[int]], words: float, count: int
) -> list[int]:
    """The definition of `words`: what is worth most waits for a token beside a chosen one."""
    apart = 1 - torch.cosine_similarity(points[:, None], points[None], dim=-1)
    crowd = (1 - apart / 0.9).clamp(0, 1).sum(1)
    chosen: list[int] = []
    while len(chosen) < count:
        left = [i for i in range(len(weights)) if i not in chosen]
        value = {i: weights[i] * min([float(apart[i, j]) for j in chosen] or [1.0]) for i in left}
        best = max(left, key=lambda i: value[i])
        on = [i for i in left if set(near[i]) & set(chosen)]
        if best not in on and on:
            longest = max(on, key=lambda i: value[i])
            if value[longest] * (1 + words / float(crowd[best])) > value[best]:
                best = longest
        chosen.append(best)
    return chosen


@pytest.mark.parametrize("words", [0.0, 0.5, 3.0, 1e6])
def test_words_follow_their_definition(words: float) -> None:
    generator = torch.Generator().manual_seed(6)
    points = torch.randn(1, 24, 6, generator=generator)
    weight = torch.randn(1, 24, generator=generator)
    near, valid = beside((4, 6), 1)[None], torch.ones(1, 24, dtype=torch.bool)
    order, _ = rule.diverse_order(points, weight, valid, 24, Crowd(0, 0.9, words), near)
    want = words_slowly(weight[0].exp().tolist(), points[0], near[0].tolist(), words, 24)
    assert order[0].tolist() == want
    plain, _ = rule.diverse_order(points, weight, valid, 24, Crowd(0, 0.9, words))
    assert (plain[0].tolist() == want) == (words == 0)


def test_a_word_goes_on_before_the_next_begins_but_not_before_a_region() -> None:
    # a row of six letters, each like no other, the middle ones weaker; a row of sky, all alike
    letters, sky = torch.eye(8)[:6], torch.eye(8)[6:7].expand(6, 8)
    tokens, valid = torch.cat([letters, sky])[None], torch.ones(1, 12, dtype=torch.bool)
    weight = torch.tensor([[0.0, -1.0, -1.0, -1.0, -0.1, -0.2, *[-0.6] * 6]])
    near = beside((2, 6), 1)[None]

    def kept(words: float) -> list[int]:
        order, _ = rule.diverse_order(tokens, weight, valid, 4, Crowd(0, 0.3, words), near)
        return order[0].tolist()

    assert kept(0) == [0, 4, 5, 6]
    assert kept(2) == [0, 1, 2, 3]  # the sky, worth less than another word, waits with it
    weight[0, 6:] = 0.0
    assert kept(2)[1] == 6


def test_negative_powers_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"Expected `crowd` of 0 or more\. Got -1\.0"):
        SelectorConfig(encoder=ENCODER, crowd=-1.0)
    with pytest.raises(ConfigError, match=r"Expected `radius` in \(0, 2\]\. Got 0\.0"):
        SelectorConfig(encoder=ENCODER, radius=0.0)
