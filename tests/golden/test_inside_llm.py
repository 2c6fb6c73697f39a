"""Methods inside the LLM beside slow loops written from the papers' formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from tokensieve.errors import ConfigError, PromptError, UnsupportedError
from tokensieve.functional.density import bounded_peaks
from tokensieve.methods.registry import get_method
from tokensieve.types import EncoderInfo, Site, TextContext, VisionTokens

L, C, K, T, GRID = 24, 6, 5, 4, (4, 6)
COUNTS = (1, 5, 9, 17, 24)


def case(seed: int) -> tuple[VisionTokens, dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    last = rng.dirichlet(np.ones(L)).astype(np.float32)
    text = np.stack([rng.dirichlet(np.ones(L) * 0.3) for _ in range(T)], 1).astype(np.float32)
    keys = rng.normal(size=(5, K)).astype(np.float32)[rng.integers(0, 5, L)]
    keys = (keys + rng.normal(size=(L, K)) * 0.2).astype(np.float32)  # five loose groups
    tokens = rng.normal(size=(L, C)).astype(np.float32)
    return VisionTokens(torch.from_numpy(tokens)[None], grid=GRID), {
        "last": last, "text": text, "keys": keys, "tokens": tokens,
    }  # fmt: skip


def with_signals(v: VisionTokens, **signals: np.ndarray) -> VisionTokens:
    given = {name: torch.from_numpy(array)[None] for name, array in signals.items()}
    return VisionTokens(v.tokens, grid=v.grid, valid=v.valid, signals=given)


def run(name: str, v: VisionTokens, count: int, text: TextContext | None = None, **options: object):  # type: ignore[no-untyped-def]
    return get_method(name, **options).reduce(v, torch.tensor([count]), text)


def best(scores: np.ndarray, count: int, among: set[int] | None = None) -> list[int]:
    """The highest scores, the earlier first on a tie, sorted by place."""
    places = range(len(scores)) if among is None else sorted(among)
    return sorted(sorted(places, key=lambda i: (-scores[i], i))[:count])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", ["fastv", "pyramiddrop", "aim-llm"])
def test_attention_ranks(name: str, count: int, seed: int) -> None:
    v, a = case(seed)
    kept = run(name, with_signals(v, attention=a["last"]), count).indices()[0].tolist()
    assert kept == best(a["last"], count)
    if count < L:
        assert kept != best(-a["last"], count)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("count", COUNTS)
def test_aim_ranks_by_mean_text_attention(count: int, seed: int) -> None:
    v, a = case(seed)
    told = with_signals(v, attention=a["text"])
    kept = run("aim-llm", told, count, voters="text").indices()[0].tolist()
    assert kept == best(a["text"].mean(1), count)


def mustdrop(text: np.ndarray, count: int) -> list[int]:
    """Deepen both thresholds by a place at a time until enough tokens pass either."""
    by_mean = sorted(range(L), key=lambda i: (-text[i].mean(), i))
    by_max = sorted(range(L), key=lambda i: (-text[i].max(), i))
    kept: list[int] = []
    for depth in range(L):
        for i in by_mean:  # of those on one depth the larger mean first
            if i not in kept and i in {by_mean[depth], by_max[depth]}:
                kept.append(i)
    return sorted(kept[:count])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("count", COUNTS)
def test_mustdrop_drops_what_is_below_both_thresholds(count: int, seed: int) -> None:
    v, a = case(seed)
    found = run("mustdrop-llm", with_signals(v, attention=a["text"]), count)
    assert found.indices()[0].tolist() == mustdrop(a["text"], count)


def test_one_word_alone_saves_a_token() -> None:
    """The mean alone would drop it."""
    text = np.full((L, T), 0.05, dtype=np.float32)
    text[7] = (0.15, 0, 0, 0)
    v = with_signals(case(0)[0], attention=text)
    assert 7 in run("mustdrop-llm", v, 2).indices()[0].tolist()
    assert 7 not in best(text.mean(1), 2)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("stride", [2, 3])
def test_feather_unites_a_grid_with_attention(count: int, stride: int) -> None:
    v, a = case(1)
    n = min(count // 2, L // stride**2)
    even = run("stride", v, n).indices()[0].tolist() if n else []
    rest = best(a["last"], count - n, set(range(L)) - set(even))
    told = with_signals(v, attention=a["last"])
    kept = run("feather", told, count, stride=stride, uniform=True).indices()[0].tolist()
    assert kept == sorted({*even, *rest})
    alone = run("feather", told, count, uniform=False).indices()[0].tolist()
    assert alone == best(a["last"], count)
    if stride == 2 and 1 < count < L:
        assert kept != alone


def test_feather_has_its_grid_early_only() -> None:
    def bound(layer: int) -> object:
        info = EncoderInfo("llama", C, layer, 32, 2, 8, site=Site.LLM)
        return get_method("feather").bind(info).uniform  # type: ignore[attr-defined]

    assert (bound(8), bound(16)) == (True, False)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def pact(a: dict[str, np.ndarray], count: int) -> tuple[list[int], np.ndarray]:
    """Drop the unimportant, cluster by density, average; as in the paper, the budget made exact."""
    worth = a["last"] * np.linalg.norm(a["tokens"], axis=1)
    important = best(worth, max(math.ceil(0.55 * L), count))
    keys = a["keys"]
    density = {
        i: sum(math.exp(-(1 - cosine(keys[i], keys[j])) / 0.21) for j in important)
        for i in important
    }
    centres: list[int] = []
    for i in sorted(important, key=lambda i: (-density[i], i)):
        if len(centres) < count and all(1 - cosine(keys[i], keys[c]) > 0.21 for c in centres):
            centres.append(i)
    alone = best(worth, count - len(centres), set(important) - set(centres))
    members: dict[int, list[int]] = {c: [c] for c in centres} | {i: [i] for i in alone}
    for i in range(L):
        if i in members or not centres:
            continue
        c = max(centres, key=lambda c: cosine(keys[i], keys[c]))
        if i in important or 1 - cosine(keys[i], keys[c]) <= 1.5 * 0.21:
            members[c].append(i)
    kept = sorted(members)
    return kept, np.stack([a["tokens"][members[i]].mean(0) for i in kept])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("count", COUNTS)
def test_pact_equals_a_loop(count: int, seed: int) -> None:
    v, a = case(seed)
    told = with_signals(v, asked=a["last"], keys=a["keys"])
    found = run("pact", told, count)
    kept, values = pact(a, count)
    assert found.indices()[0].tolist() == kept
    assert_close(found.apply(v.tokens)[0].numpy(), values, rtol=1e-5, atol=1e-5)
    if count < 17:
        assert float(np.abs(values - a["tokens"][kept]).max()) > 1e-3  # something is merged
    tight = run("pact", told, count, cutoff=0.01)
    if 1 < count < 17:
        assert not torch.equal(tight.apply(v.tokens)[0], found.apply(v.tokens)[0])


def test_pact_compares_only_what_takes_part() -> None:
    """Tokens dropped at once neither make a place dense nor become centres, whatever they hold."""
    keys = torch.eye(6)[[0, 0, 1, 2, 3, 3, 3]][None]
    among = torch.tensor([[True, True, True, True, False, False, False]])
    count = torch.tensor([1])
    assert bounded_peaks(keys, among, count, 0.2)[0].tolist() == [True] + 6 * [False]
    everyone = torch.ones_like(among)
    assert bounded_peaks(keys, everyone, count, 0.2)[0].nonzero().tolist() == [[4]]
    keys[:, 4:] = torch.nan
    assert bounded_peaks(keys, among, count, 0.2)[0].tolist() == [True] + 6 * [False]
    assert not bounded_peaks(keys, torch.zeros_like(among), count, 0.2).any()


def rater_words(tokens: np.ndarray, words: np.ndarray) -> list[int]:
    relevance = np.zeros(T)
    for x in tokens:
        weight = np.exp(words @ x - (words @ x).max())
        relevance += weight / weight.sum() / len(tokens)
    return [t for t in range(T) if relevance[t] >= min(relevance.mean(), relevance.max())]


def peaks(x: np.ndarray, count: int, neighbours: int = 5) -> tuple[list[int], list[int]]:
    """Density peaks by nearest neighbours: centres, and the centre of each."""
    n = len(x)
    far = np.array([[np.linalg.norm(p - q) / math.sqrt(C) for q in x] for p in x])
    density = []
    for i in range(n):
        near = sorted(far[i][j] for j in range(n) if j != i)[:neighbours]
        density.append(math.exp(-float(np.mean(np.square(near))) if near else 0.0))
    order = sorted(range(n), key=lambda i: (-density[i], i))
    worth = np.zeros(n)
    for place, i in enumerate(order):
        gap = min((far[i][j] for j in order[:place]), default=far.max())
        worth[i] = density[i] * gap
    centres = best(worth, count)
    joins = [i if i in centres else min(centres, key=lambda c: far[i][c]) for i in range(n)]
    return centres, joins


def sparsevlm(a: dict[str, np.ndarray], words: np.ndarray, count: int):  # type: ignore[no-untyped-def]
    raters = rater_words(a["tokens"], words)
    rated = a["text"][:, raters]
    significance = rated.mean(1)
    rank = int(np.linalg.matrix_rank(rated))
    direct = min(max(math.ceil((count - 0.09 * L) / 0.91 - 1e-9), rank), count)
    whole = best(significance, direct)
    recycled = count - direct
    values = {i: a["tokens"][i] for i in whole}
    if recycled:
        size = max(math.ceil(0.3 * (L - direct)), recycled)
        pool = best(significance, size, set(range(L)) - set(whole))
        centres, joins = peaks(a["tokens"][pool], recycled)
        for c in centres:
            members = [pool[i] for i, centre in enumerate(joins) if centre == c]
            values[pool[c]] = a["tokens"][members].sum(0)
    kept = sorted(values)
    return kept, np.stack([values[i] for i in kept]), (rank, direct, recycled)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("count", COUNTS)
def test_sparsevlm_equals_a_loop(count: int, seed: int) -> None:
    v, a = case(seed)
    words = np.random.default_rng(seed + 50).normal(size=(T, C)).astype(np.float32)
    text = TextContext(torch.from_numpy(words))
    found = run("sparsevlm", with_signals(v, attention=a["text"]), count, text)
    kept, values, (rank, direct, recycled) = sparsevlm(a, words, count)
    assert found.indices()[0].tolist() == kept
    assert_close(found.apply(v.tokens)[0].numpy(), values, rtol=1e-5, atol=1e-5)
    assert direct >= min(rank, count)
    if count == 9:
        assert recycled > 0
        everyone = best(a["text"].mean(1), count)
        assert kept != everyone  # all words, none recycled: another choice


def test_sparsevlm_lets_the_rank_speak() -> None:
    """Of four raters each looks at a token of its own: four stay as they are."""
    v, _ = case(0)
    text = np.zeros((L, T), dtype=np.float32)
    text[[2, 5, 11, 20], range(T)] = 1
    words = TextContext(torch.zeros(T, C))  # all equally relevant
    found = run("sparsevlm", with_signals(v, attention=text), 4, words)
    assert found.indices()[0].tolist() == [2, 5, 11, 20]
    assert torch.equal(found.apply(v.tokens)[0], v.tokens[0, [2, 5, 11, 20]])
    alike = np.repeat(text.sum(1, keepdims=True), T, 1)  # the same significance, but rank 1
    recycled = run("sparsevlm", with_signals(v, attention=alike), 4, words)
    assert {2, 5, 11} <= set(recycled.indices()[0].tolist())
    assert not torch.equal(recycled.apply(v.tokens)[0], v.tokens[recycled.kept])
    with pytest.raises(ConfigError, match="`candidates` and `recycled`"):
        get_method("sparsevlm", recycled=1.5)


def test_vtw_drops_all_or_nothing() -> None:
    v, _ = case(0)
    assert run("vtw", v, L).counts_B.tolist() == [L]
    assert run("vtw", v, L - 1).counts_B.tolist() == [0]


def test_todre_drops_what_the_text_no_longer_asks_for() -> None:
    v, a = case(0)
    text = a["text"] * np.array([0.0, 0.02, 0.1, 0.06], dtype=np.float32)  # the first stands before
    told = with_signals(v, attention=text)
    relevance = (0.02 + 0.1 + 0.06) / 3
    assert run("todre-llm", told, 5, threshold=relevance - 1e-3).counts_B.tolist() == [L]
    assert run("todre-llm", told, 5, threshold=relevance + 1e-3).counts_B.tolist() == [0]
    assert run("todre-llm", told, L, threshold=1.0).counts_B.tolist() == [L]
    # had the word before the picture a vote, it would go
    assert relevance - 1e-3 > (0.02 + 0.1 + 0.06) / 4


TEXTUAL = ["sparsevlm", "mustdrop-llm", "todre-llm"]


@pytest.mark.parametrize("name", TEXTUAL)
def test_a_prompt_without_text_is_said(name: str) -> None:
    told = with_signals(case(0)[0], attention=np.zeros((L, 0), dtype=np.float32))
    with pytest.raises(PromptError, match="Expected text beside the picture"):
        run(name, told, 5, TextContext(torch.zeros(0, C)))


def test_sparsevlm_without_text_is_said() -> None:
    v, a = case(0)
    with pytest.raises(UnsupportedError, match="Expected the prompt's text"):
        run("sparsevlm", with_signals(v, attention=a["text"]), 5)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("pact", {"cutoff": 0.0}, "`cutoff` in"),
        ("pact", {"important": 0.0}, "`important` in"),
        ("feather", {"stride": 0}, "`stride` of at least 1"),
        ("aim-llm", {"first": 0.9}, "first <= last"),
        ("todre-llm", {"threshold": 2.0}, "`threshold` in"),
    ],
)
def test_wrong_options_are_said(name: str, options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        get_method(name, **options)
