"""Recycling and a spatial floor around other methods: their promises, sums and errors."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from method_checks import CHECKS, COUNTS, ENCODER, GRID, padded, told, vision
from torch.testing import assert_close

from families.methods import Inside
from families.tiny import build
from tokensieve.errors import BudgetError, ConfigError, UnsupportedError
from tokensieve.hf.sieve import compress, encode, sieve
from tokensieve.methods.compose import Covered, Recycled, composed
from tokensieve.methods.registry import get_method, method_class, method_names
from tokensieve.types import Site

WITHOUT_GRID = (
    "identity",
    "padding",
    "valid_only",
    "partition",
    "inputs_untouched",
)  # these checks also run so
RECYCLED = ["stride", "feature-norm", "divprune", "cdpruner", "fastervlm", "pixel-variance"]
COVERED = ["feature-norm", "pixel-variance", "fastervlm"]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", RECYCLED)
@pytest.mark.one_of_each
def test_recycled_keeps_every_promise(name: str, check: str) -> None:
    CHECKS[check](get_method(name, recycle=True).bind(ENCODER))


@pytest.mark.parametrize("check", [c for c in CHECKS if c not in WITHOUT_GRID])
@pytest.mark.parametrize("recycle", [False, True])
@pytest.mark.parametrize("name", COVERED)
def test_covered_keeps_every_promise(name: str, recycle: bool, check: str) -> None:
    method = get_method(name, cover=1 if check == "budget" else 2, recycle=recycle)
    CHECKS[check](method.bind(ENCODER))


def test_a_wrapper_is_what_it_wraps() -> None:
    for name in ("cdpruner", "pixel-variance", "fastervlm"):
        plain, around = get_method(name), get_method(name, recycle=True)
        for said in ("site", "needs", "exact", "paper", "reads_picture"):
            assert getattr(around, said) == getattr(plain, said)
        assert around.signals(ENCODER) == plain.signals(ENCODER)
    plain, around = get_method("pyramiddrop"), get_method("pyramiddrop", cover=2)
    assert around.llm_stages(32, 0.2) == plain.llm_stages(32, 0.2) is not None
    hired = get_method("hired").bind(ENCODER)
    v = dataclasses.replace(told(hired, vision(5)), tiles=(2, 2))
    want = hired.share(v)
    got = composed(hired, recycle=True, cover=2).share(v)
    assert want is not None
    assert got is not None
    assert_close(got, want)


def test_its_config_goes_through_json() -> None:
    for options in ({"recycle": True}, {"cover": 3}, {"cover": 2, "recycle": True}):
        method = get_method("feature-norm", largest=True, **options)
        assert method.options() == {"largest": True, **options}
        assert get_method("feature-norm", **json.loads(json.dumps(method.options()))) == method
        assert method != get_method("feature-norm", largest=True)


def test_no_method_takes_an_option_of_the_sieve() -> None:
    reserved = {
        "recycle",
        "cover",
        "site",
        "keep",
        "positions",
        "pool",
        "newlines",
        "layer",
        "keys",
    }
    for name in method_names():
        assert not reserved & {field.name for field in dataclasses.fields(method_class(name))}


@pytest.mark.parametrize("name", ["divprune", "feature-norm"])
def test_recycling_equals_a_loop(name: str) -> None:
    v = vision()
    plain = get_method(name).reduce(v, torch.tensor(COUNTS))
    got = get_method(name, recycle=True).reduce(v, torch.tensor(COUNTS))
    assert torch.equal(got.kept, plain.kept)
    for b, kept in enumerate(plain.indices()):
        x = v.tokens[b].double().numpy()
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        groups = {k: [k] for k in kept.tolist()}
        for token in range(len(x)):
            if token not in groups:
                groups[max(kept.tolist(), key=lambda k: unit[token] @ unit[k])].append(token)
        want = np.stack([x[groups[k]].mean(0) for k in kept.tolist()])
        assert_close(got.apply(v.tokens)[b].double(), torch.from_numpy(want), atol=1e-5, rtol=0)


def coarse(token: int, cells: int) -> tuple[int, int]:
    return token // GRID[1] * cells // GRID[0], token % GRID[1] * cells // GRID[1]


@pytest.mark.parametrize("cells", [1, 2, 3])
def test_a_floor_equals_a_loop(cells: int) -> None:
    v, counts = vision(), (9, 15, 11)
    method = get_method("feature-norm")
    scores = method.scores(v)  # type: ignore[attr-defined]
    got = get_method("feature-norm", cover=cells).reduce(v, torch.tensor(counts)).indices()
    plain = method.reduce(v, torch.tensor(counts)).indices()
    for b, count in enumerate(counts):
        ranked = scores[b].argsort(descending=True).tolist()
        best: dict[tuple[int, int], int] = {}
        for token in ranked:
            best.setdefault(coarse(token, cells), token)
        rest = [token for token in ranked if token not in best.values()]
        assert got[b].tolist() == sorted([*best.values(), *rest[: count - len(best)]])
    differs = [a.tolist() != b.tolist() for a, b in zip(got, plain, strict=True)]
    assert any(differs) == (cells > 1)


def test_a_floor_over_a_choice_that_is_no_ranking() -> None:
    """The method's own choice stays, but for as many tokens as cells were empty."""

    class First(type(get_method("feature-norm"))):  # type: ignore[misc]
        def reduce(self, v, counts, text=None):
            kept = torch.arange(v.tokens.shape[1]) < counts[:, None]
            return dataclasses.replace(super().reduce(v, counts), kept=kept)

    got = Covered(First(), 2).reduce(vision(), torch.tensor([10, 10, 10])).kept
    assert got.sum(-1).tolist() == [10, 10, 10]
    assert (got[:, :10].sum(-1) == 8).all()  # the first ten lie in the upper two of four cells


def test_padding_takes_no_cell() -> None:
    v = vision()
    valid = torch.zeros(GRID, dtype=torch.bool)
    valid[:2, :3] = True  # of 2 x 2 cells only the first
    v = dataclasses.replace(v, valid=valid.flatten().expand(3, -1))
    kept = get_method("feature-norm", cover=2).reduce(v, torch.tensor([1, 2, 6])).kept
    assert kept.sum(-1).tolist() == [1, 2, 6]
    assert not (kept & ~v.valid_BL).any()


def test_a_pool_gives_every_crop_its_cells() -> None:
    groups = [vision(2), dataclasses.replace(vision(1, seed=3), grid=(6, 5))]
    groups[0] = dataclasses.replace(
        groups[0], tokens=groups[0].tokens / 100
    )  # low norms: all there
    plain = get_method("feature-norm").reduce_pool(groups, 20)
    parts = get_method("feature-norm", cover=2).reduce_pool(groups, 20)
    assert [int(part.kept.sum()) for part in plain] == [20, 0]
    assert sum(int(part.kept.sum()) for part in parts) == 20
    for group, part in zip(groups, parts, strict=True):
        rows, columns = group.grid or (0, 0)
        for crop in part.kept.view(-1, rows, columns):
            halves = [crop[: (rows + 1) // 2], crop[(rows + 1) // 2 :]]
            cut = (columns + 1) // 2
            assert all(part.any() for h in halves for part in (h[:, :cut], h[:, cut:]))
    with pytest.raises(BudgetError, match="Expected a budget of 12 tokens or more"):
        get_method("feature-norm", cover=2).reduce_pool(groups, 11)


def test_what_cannot_be_composed_is_named() -> None:
    with pytest.raises(UnsupportedError, match=r"Got DivPrune\. Use one that ranks"):
        get_method("divprune", cover=2)
    with pytest.raises(UnsupportedError, match="Got Downsample, which does not"):
        get_method("downsample", recycle=True)
    with pytest.raises(ConfigError, match=r"`cover` as a whole number from 0 up\. Got 1\.5"):
        get_method("feature-norm", cover=1.5)
    with pytest.raises(ConfigError, match=r"`recycle` as True or False\. Got 0\.1"):
        get_method("feature-norm", recycle=0.1)
    with pytest.raises(ConfigError, match="`cells` of at least 1"):
        Covered(get_method("feature-norm"), 0)
    merging = get_method("avgpool", recycle=True)
    with pytest.raises(UnsupportedError, match="Got AvgPool, which makes new ones"):
        merging.reduce(vision(), torch.tensor(COUNTS))
    covered = get_method("feature-norm", cover=3)
    with pytest.raises(BudgetError, match=r"9 tokens or more, one per cell of 3 x 3\. Got 4"):
        covered.reduce(vision(), torch.tensor(COUNTS))
    with pytest.raises(UnsupportedError, match="Expected tokens on a grid, for `cover`"):
        covered.reduce(padded(vision(), junk=1.0)[0], torch.tensor([10, 10, 10]))


def test_the_sieve_takes_both() -> None:
    tiny = build("llava")
    inputs = tiny.inputs([1, 2])
    encoded = encode(tiny.model, inputs)
    short = compress(tiny.model, encoded, "feature-norm", 6, cover=2, recycle=True)
    plain = compress(tiny.model, encoded, "feature-norm", 6)
    wrapped = compress(tiny.model, encoded, Recycled(Covered(get_method("feature-norm"), 2)), 6)
    assert short.inputs["input_ids"].shape == plain.inputs["input_ids"].shape
    rows = [c.inputs["mm_encoder_outputs"]["image"].pooler_output for c in (short, plain, wrapped)]
    for mine, dropped, same in zip(*rows, strict=True):
        assert_close(mine, same)
        assert mine.shape == dropped.shape
        assert not torch.equal(mine, dropped)
    with sieve(tiny.model, "feature-norm", 6, cover=2, recycle=True) as report:
        tiny.model(**inputs)
    assert report.calls
    with pytest.raises(UnsupportedError, match="for `cover`"), sieve(tiny.model, "stride", cover=2):
        pass


def test_recycling_inside_the_llm() -> None:
    tiny = build("llava")
    inputs = tiny.inputs([1])
    logits = []
    for recycle in (False, True):
        with sieve(tiny.model, Inside(), 0.5, layer=1, recycle=recycle), torch.no_grad():
            logits.append(tiny.model(**inputs).logits[:, -1])
    assert Inside().site is Site.LLM
    assert not torch.allclose(logits[0], logits[1], atol=1e-6)
