"""VisPruner, SCOPE, HoloV, DART, TRIO and released VisionZip on cases done on paper, with sums."""

from __future__ import annotations

import math

import pytest
import torch

from tokensieve.functional.runs import run_of, spend_on_runs
from tokensieve.methods.registry import get_method
from tokensieve.types import TextContext, VisionTokens


def at_angles(*degrees: float) -> list[list[float]]:
    return [[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in degrees]


def kept(name: str, tokens: list[list[float]], count: int, *, text=None, signals=(), **options):
    """The kept places of one crop, alone and behind padding of NaN in a batch of two."""
    signals = {key: torch.tensor(value)[None] for key, value in dict(signals).items()}
    v = VisionTokens(torch.tensor(tokens)[None], signals=signals)
    words = None if text is None else TextContext(torch.tensor(text))
    method = get_method(name, **options)
    found = method.reduce(v, torch.tensor([count]), words).indices()[0].tolist()
    L = len(tokens)
    wide = torch.full((2, L + 2, len(tokens[0])), torch.nan)
    wide[:, 1 : L + 1] = v.tokens
    valid = torch.zeros(2, L + 2, dtype=torch.bool)
    valid[:, 1 : L + 1] = True
    told = {}
    for key, value in signals.items():
        told[key] = value.new_zeros(2, L + 2, *value.shape[2:])
        told[key][:, 1 : L + 1] = value
    again = method.reduce(
        VisionTokens(wide, valid=valid, signals=told), torch.tensor([count, 1]), words
    )
    assert (again.indices()[0] - 1).tolist() == found
    assert again.counts_B.tolist() == [count, 1]
    return found


# --- VisPruner: one of three by attention (token 0); the others 1 ... 5 lie at these angles
VIS = at_angles(200, 0, 10, 90, 0, 60)
LOOKED = {"attention": [0.30, 0.25, 0.15, 0.12, 0.10, 0.08]}


@pytest.mark.parametrize(
    ("at_once", "places"),
    [
        # 1 3 5 | 2 4: highest cosines cos 0, cos 80, cos 50: 1 goes, what stays is 5 3, then 2 4
        # 5 2 | 3 4: cos 30, cos 10: 2 goes; 5 4 | 3: cos 30, cos 90: 5 goes; 4 3 are left
        (1, [0, 3, 4]),
        # 1 3 5 | 2 4: 1 and 5 go; 3 4 | 2: cos 80, cos 10: 4 goes, though two might
        (2, [0, 2, 3]),
    ],
)
def test_vispruner_takes_duplicates_out_in_rounds(at_once: int, places: list[int]) -> None:
    assert kept("vispruner", VIS, 3, signals=LOOKED, at_once=at_once) == places


def test_vispruner_without_duplicates_or_attention() -> None:
    assert kept("vispruner", VIS, 3, signals=LOOKED, important=1.0) == [0, 1, 2]
    # none by attention: 0 2 4 | 1 3 5: cos 110, cos 10, cos 0: 4 goes, what stays is 2 0, 1 3 5
    # 2 1 5 | 0 3: cos 80, cos 90, cos 30: 5 goes; 2 0 | 1 3: cos 10, cos 110: 2 goes
    assert kept("vispruner", VIS, 3, signals=LOOKED, important=0.0, at_once=1) == [0, 1, 3]


# --- SCOPE: tokens at 0, 0, 90 and 45 degrees
SCOPE = at_angles(0, 0, 90, 45)
SALIENT = {"attention": [0.10, 0.08, 0.06, 0.03]}


def test_scope_takes_what_covers_most_times_its_attention() -> None:
    # first: what they cover is 2.71, 2.71, 1.71, 3.12, times attention .271, .217, .102, .094: 0
    # covered now 1, 1, 0, .71: gains 0, 1 (its own), 1 (.71 of 2, .29 of its own)
    # times attention 0, .06, .03: 2; attention alone would take 0 and 1
    assert kept("scope", SCOPE, 2, signals=SALIENT) == [0, 2]
    # coverage alone: first 3; covered .71, .71, .71, 1: gains .59, .59, .29: 0
    assert kept("scope", SCOPE, 2, signals=SALIENT, alpha=0.0) == [0, 3]


# --- HoloV: two runs of three; cosines 1, 0, 0 in the first, all 1 in the second
HOLO = [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]
HOLO_LOOKED = {"attention": [0.50, 0.02, 0.04, 0.17, 0.15, 0.12]}


def test_holov_shares_by_runs() -> None:
    # .56 and .44 of 3 are 1.68 and 1.32, so 1 and 1, and the one left to the first run
    assert kept("holov", HOLO, 3, signals=HOLO_LOOKED, crops=2) == [0, 2, 3]
    # the highest attention alone would be 0, 3, 4
    assert kept("holov", HOLO, 3, signals=HOLO_LOOKED, crops=1) == [0, 3, 4]


def test_holov_by_score() -> None:
    # variance with the own place as 0: token 0 of 0 1 0: mean 1/2, (.25 + .25 + .25) / 2 = .375;
    # token 1 alike; token 2 of 0 0 0: 0. Scaled by .56 / .75 to .28, .28, 0.
    # scores .78, .30, .04: token 1 before token 2. In the second run all vary alike.
    told = {"signals": HOLO_LOOKED, "crops": 2, "by": "score"}
    assert kept("holov", HOLO, 3, beta=1.0, **told) == [0, 1, 3]
    # beta small: .02 + .05 * .28 = .034 is less than .04
    assert kept("holov", HOLO, 3, beta=0.05, **told) == [0, 2, 3]


def test_holov_gives_on_what_a_run_cannot_hold() -> None:
    # .94 of 5 is 4.7, the first run has 3; .3 of the second is none: two are left for it
    looked = {"attention": [0.9, 0.02, 0.02, 0.03, 0.02, 0.01]}
    assert kept("holov", HOLO, 5, signals=looked, crops=2) == [0, 1, 2, 3, 4]


def test_runs_the_first_of_which_are_longer() -> None:
    valid = torch.ones(1, 8, dtype=torch.bool)
    valid[0, 2] = False
    assert run_of(valid, 3)[0].tolist() == [0, 0, 3, 0, 1, 1, 2, 2]  # 7 = 3 + 2 + 2
    assert run_of(valid[:, :2], 3)[0].tolist() == [0, 1]
    weight, size = torch.tensor([[0.0, 0.0]]), torch.tensor([[1, 3]])
    assert spend_on_runs(weight, size, torch.tensor([3])).tolist() == [[1, 2]]


# --- DART
DART = [[3.0, 0.0], [1.0, 0.0], [0.0, 2.0], [-1.0, 0.0], [1.0, 1.0], [-1.0, -1.0]]
WORDS = [[0.0, 5.0], [1.0, 0.0]]


@pytest.mark.parametrize(
    ("text_pivots", "places"),
    [
        # pivots: token 0 (norm 3) and word 0 (norm 5). Of 3 left token 0 takes 2, of lowest cosine
        # with (1, 0): 3 (-1) and 5 (-.71). The word takes 1 of 1 2 4, cosines 0 1 .71: 1
        (1, [0, 1, 3, 5]),
        # alone, token 0 takes 3: 3, 5 and 2 (0)
        (0, [0, 2, 3, 5]),
        # one each: token 0 takes 3; word 0 of 1 2 4 5 takes 5 (-.71); word 1 of 1 2 4 takes 2 (0)
        (2, [0, 2, 3, 5]),
        (9, [0, 2, 3, 5]),  # there are only two words
    ],
)
def test_dart_takes_what_is_least_like_pivots(text_pivots: int, places: list[int]) -> None:
    options = {"pivots": 1, "text_pivots": text_pivots}
    assert kept("dart", DART, 4, text=WORDS, **options) == places


def test_dart_keeps_its_pivots_first() -> None:
    # norms 3 1 2 1 2 2: of four pivots a budget of two keeps 0 and the first of the twos
    assert kept("dart", DART, 2, text=WORDS) == [0, 2]


def test_dart_llm_takes_pivots_by_keys() -> None:
    # pivots: token 4 (norm 9) and word 1. Of 3 left token 4 takes 2, of lowest cosine with (1, 1):
    # 5 and 3; word 1 takes 1 of 0 1 2, cosines 1 1 0: 2
    keys = [[1.0, 0], [0, 1], [1, 0], [-1, 0], [-5, 4], [0, 1]]
    signals = {"keys": keys, "text norms": [[1.0, 7.0]] * 6}
    options = {"pivots": 1, "text_pivots": 1}
    assert kept("dart-llm", DART, 4, text=WORDS, signals=signals, **options) == [2, 3, 4, 5]


# --- TRIO: cosines .995 (0, 1), .71 (0, 3), .71 (2, 3), 1 (2, 4), else below .8
TRIO = [[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.7, 0.7], [0.0, 1.0]]
SALIENCY = {"saliency": [0.9, 0.8, 0.7, 0.1, 0.6]}


@pytest.mark.parametrize(
    ("count", "similar", "places"),
    [
        (3, 0.8, [0, 2, 3]),  # 1 is like 0 and 4 like 2
        (4, 0.8, [0, 1, 2, 3]),  # then the most salient of those passed over
        (3, 2.0, [0, 1, 2]),
        (2, 0.7, [0, 2]),
        (3, 0.7, [0, 1, 2]),  # 3 is like 0 now
    ],
)
def test_trio_passes_copies_over(count: int, similar: float, places: list[int]) -> None:
    assert kept("trio", TRIO, count, signals=SALIENCY, similar=similar) == places


def test_trio_cuts_where_its_release_does() -> None:
    trio = get_method("trio")
    assert trio.llm_stages(32, 22) == {1: 92, 10: 54, 15: 22}
    assert trio.llm_stages(4, 0.5) == {1: 1.0, 2: 1.0, 3: 0.5}
    assert list(trio.llm_stages(28, 0.1).values()) == pytest.approx([9.2 / 22, 5.4 / 22, 0.1])


# --- VisionZip as released
def test_visionzip_adds_the_mean_of_those_that_join() -> None:
    # kept: 0 by attention; of 1 2 3 the first, 1, is the target, and 2 and 3 join it.
    # released: (2, 0) + ((4, 0) + (0, 2)) / 2 = (4, 1); here the mean of all three, (2, .67)
    tokens = torch.tensor([[[9.0, 9.0], [2.0, 0.0], [4.0, 0.0], [0.0, 2.0]]])
    signals = {"attention": torch.tensor([[0.7, 0.1, 0.1, 0.1]]), "keys": torch.ones(1, 4, 2)}
    v = VisionTokens(tokens, signals=signals)
    for released, want in ((True, [4.0, 1.0]), (False, [2.0, 2 / 3])):
        method = get_method("visionzip", contextual=0.5, as_released=released)
        (got,) = method.reduce(v, torch.tensor([2])).apply(tokens)
        torch.testing.assert_close(got, torch.tensor([[9.0, 9.0], want]))
