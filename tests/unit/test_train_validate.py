"""Validation: what is lost at a budget, held against chance and stride; padded crops alike."""

from __future__ import annotations

import pytest
import torch

from tokensieve.data.store.features import FeatureBatch, FeatureStore
from tokensieve.nn.autoencoder import SelectorAutoencoder
from tokensieve.nn.transformer import Positions, sincos_2d
from tokensieve.train.selector.validate import stride_mask, validate, validation_text
from toys.train_toys import ENCODER, small, toy, toy_store


def test_stride_keeps_the_count_at_even_distances_among_real_tokens() -> None:
    valid = torch.ones(3, 10, dtype=torch.bool)
    valid[1, 6:] = False
    valid[2, ::2] = False
    mask = stride_mask(torch.tensor([5, 2, 5]), valid)
    assert mask.sum(-1).tolist() == [5, 2, 5]
    assert mask[0].nonzero()[:, 0].diff().unique().tolist() == [2]
    assert mask[1].nonzero()[:, 0].diff().tolist() == [3]
    assert torch.equal(mask[2], valid[2])


def untrained(tmp_path) -> tuple[SelectorAutoencoder, FeatureStore]:
    store = FeatureStore([toy_store(tmp_path / "store")])
    recipe = small(store, "selector.rule=top", "objective.objective=plain",
                   "objective.estimator=straight-through")  # fmt: skip
    torch.manual_seed(0)
    return SelectorAutoencoder(recipe.selector, recipe.reconstructor, recipe.objective), store


def test_measures_do_not_depend_on_batches(tmp_path) -> None:
    model, store = untrained(tmp_path)
    model.selector.fit_normaliser(toy(16)[0])
    rows = torch.arange(12)
    lost = [validate(model, store, rows, size)["lost"] for size in (12, 4)]
    assert lost[0]["0.2"]["selector"] == pytest.approx(lost[1]["0.2"]["selector"], abs=1e-5)
    assert lost[0]["0.2"]["stride"] == pytest.approx(lost[1]["0.2"]["stride"], abs=1e-5)


def test_more_kept_loses_less_and_a_perfect_ranking_least(tmp_path) -> None:
    model, store = untrained(tmp_path)
    model.selector.fit_normaliser(toy(16)[0])
    # a rebuild that knows only the mean: what is lost is then the size of a token
    model.reconstructor.forward = lambda x, *_: torch.zeros_like(x)
    sizes = {}

    def by_size(features, valid, grid):
        standard = model.selector.standardise(features)
        sizes["all"] = standard.square().mean(-1).sqrt()
        return sizes["all"]

    model.selector.scores = by_size
    found = validate(model, store, torch.arange(8), 8, shares=(0.2, 0.4))
    lost = found["lost"]
    assert lost["0.4"]["selector"] < lost["0.2"]["selector"] < lost["0.2"]["random"]
    assert found["kept"] == 1.0
    assert found["histogram"] == [0] * 9 + [8]
    smallest = sizes["all"].sort(-1).values[:, :20]  # a fifth of 25 tokens kept
    assert lost["0.2"]["selector"] == pytest.approx(float(smallest.sum() / (8 * 25)), abs=1e-5)
    assert "lost at keep 0.2: selector" in validation_text(found)


def test_crops_of_different_grids_are_read_as_alone(tmp_path) -> None:
    from dataclasses import replace

    from tokensieve.train.selector.recipe import make_recipe

    varying = replace(ENCODER, grid=None)
    plan = make_recipe(varying, "default", ["selector.depth=1", "reconstructor.depth=1"])
    torch.manual_seed(0)
    model = SelectorAutoencoder(plan.selector, plan.reconstructor, plan.objective).eval()
    tokens = toy(2)[0]
    valid = torch.ones(2, 25, dtype=torch.bool)
    valid[1, 12:] = False
    batch = FeatureBatch(tokens, valid, ((5, 5), (3, 4)), None)
    mask = valid.float() * (torch.arange(25) % 2)
    both = model.reconstructor(batch.features, mask, batch.valid, batch.grid)
    alone = model.reconstructor(tokens[1:, :12], mask[1:, :12], None, (3, 4))
    torch.testing.assert_close(both[1, :12], alone[0], atol=1e-5, rtol=1e-5)


def test_positions_of_a_varying_grid_are_those_of_each_crop() -> None:
    positions = Positions("sincos", None, 16)
    found = positions(torch.zeros(2, 6, 16), ((2, 3), (2, 2)))
    torch.testing.assert_close(found[0], sincos_2d((2, 3), 16))
    torch.testing.assert_close(found[1, :4], sincos_2d((2, 2), 16))
    assert not found[1, 4:].any()
