"""A whole number is the most tokens a picture, or a prompt, keeps: one that has fewer keeps all."""

from __future__ import annotations

from collections import defaultdict

import pytest

from families.checks import answer
from families.methods import ByNorm, Inside
from families.registry import every_method, ready, refused, refused_there
from families.said import require_same, require_tokens
from families.tiny import REQUIRED, build
from tokensieve.errors import ConfigError
from tokensieve.hf.encoder import reduction
from tokensieve.hf.sieve import compress, sieve
from tokensieve.types import Site

MORE = 10**6
POOLS = ("crop", "image", "prompt")


def sizes_and_kept(report, *, by="image"):
    """(tokens, kept) of each picture, or of each prompt, structural rows left out."""
    found = defaultdict(lambda: [0, 0])
    for p, prompt in enumerate(report.calls[0].prompts):
        for i, image in enumerate(prompt.images):
            total = found[p if by == "prompt" else (p, i)]
            total[0] += sum(int(crop.valid.sum()) for crop in image.crops)
            total[1] += sum(len(crop.kept) for crop in image.crops)
    return [tuple(pair) for pair in found.values()]


def bits(model, inputs, method, keep, pool):
    """Everything that comes out of a call at `keep`."""
    layer = None
    if method.site is Site.LLM:
        layer = {1: keep} if method.trained else {1: keep, 2: keep}
    with sieve(model, method, keep, pool=pool, layer=layer) as report:
        return answer(model, inputs), sizes_and_kept(report)


@every_method
@pytest.mark.parametrize(
    ("family", "pool"), [*((f, "crop") for f in REQUIRED), *(("llava_next", p) for p in POOLS[1:])]
)
@pytest.mark.one_of_each(apart=refused_there)
def test_more_than_there_are_is_all_bit_for_bit(family, method, pool):
    if refused_there(family, method, pool):
        return
    tiny = build(family)
    instance = ready(method, tiny.model)
    inputs = tiny.inputs([1, 2])
    (tokens, logits), kept = bits(tiny.model, inputs, instance, MORE, pool)
    (same, wanted), all_of_them = bits(tiny.model, inputs, instance, 1.0, pool)
    claim = f"{method} on {family} does not keep all where keep={MORE} a {pool} is more than all"
    require_same(logits, wanted, claim)
    require_tokens(tokens, same, claim)
    assert kept == all_of_them, f"{claim}: (tokens, kept) {kept}. Expected {all_of_them}."


@every_method
@pytest.mark.parametrize("family", ["llava_next", "qwen2_5_vl"])  # pictures of different sizes
@pytest.mark.one_of_each(apart=refused)
def test_a_count_between_two_pictures_keeps_the_smaller_whole(family, method):
    tiny = build(family)
    instance = ready(method, tiny.model)
    if refused(family, method) or not instance.budgeted:
        return
    inputs = tiny.inputs([1, 2])
    with sieve(tiny.model, ByNorm(), 1.0) as report:
        tiny.model.generate(**inputs, max_new_tokens=1)
    sizes = sorted({size for size, _ in sizes_and_kept(report)})
    keep = (sizes[0] + sizes[-1]) // 2
    assert sizes[0] < keep < sizes[-1]
    with sieve(
        tiny.model, instance, keep, layer={1: keep} if instance.site is Site.LLM else None
    ) as report:
        tiny.model.generate(**inputs, max_new_tokens=1)
    for size, kept in sizes_and_kept(report):
        if size <= keep:
            assert kept == size
        elif instance.exact:
            assert kept == keep
        else:
            assert 0 < kept <= keep * (2 if instance.on_average else 1)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("method", [ByNorm, Inside])
def test_a_total_is_of_a_picture_or_of_a_prompt(method, pool):
    """llava_next's tiny pictures have 40, 48 and 32 tokens; the second prompt has the last two."""
    tiny, keep = build("llava_next"), 45
    layer = {1: keep} if method is Inside else None
    with sieve(tiny.model, method(), keep, pool=pool, layer=layer) as report:
        tiny.model.generate(**tiny.inputs([1, 2]), max_new_tokens=1)
    if pool == "prompt":
        assert sizes_and_kept(report, by="prompt") == [(40, 40), (80, 45)]
    else:
        assert sizes_and_kept(report) == [(40, 40), (48, 45), (32, 32)]
    assert f"keep=45 a {'prompt' if pool == 'prompt' else 'picture'}: " in str(report)


def test_a_report_of_shares_names_no_pool():
    tiny = build("llava")
    short = compress(tiny.model, tiny.inputs([1]), ByNorm(), 0.5, pool="prompt")
    assert "keep=0.5: " in str(short.report)


@pytest.mark.parametrize("keeps", [(MORE, MORE), (MORE, 45), (45, 10)])
def test_a_pair_of_counts(keeps):
    tiny = build("llava_next")
    with sieve(tiny.model, (ByNorm(), Inside()), keeps, layer=1) as report:
        tiny.model.generate(**tiny.inputs([1, 2]), max_new_tokens=1)
    assert [n for _, n in sizes_and_kept(report)] == [min(keeps[1], n) for n in (40, 48, 32)]
    assert report.calls[0].stages[0].kept_tokens >= sum(min(keeps[0], n) for n in (40, 48, 32))
    with pytest.raises(ConfigError, match="no more tokens inside the LLM"):
        sieve(tiny.model, (ByNorm(), Inside()), (45, MORE), layer=1).__enter__()


def test_the_contract_bites(monkeypatch):
    """A count taken for one of each crop instead of the picture's total."""
    real = reduction.split_evenly
    monkeypatch.setattr(
        reduction, "split_evenly", lambda keep, sizes: [real(keep, [size])[0] for size in sizes]
    )
    with pytest.raises(AssertionError):
        test_a_total_is_of_a_picture_or_of_a_prompt(ByNorm, "crop")
