"""A selector meets an encoder of the right shape and other weights: said once, by name and hash."""

from __future__ import annotations

import json
import warnings
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from families.tiny import build
from tokensieve.data.extraction.crops import CropEncoder
from tokensieve.data.store.features import FeatureStore
from tokensieve.errors import EncoderMismatchWarning
from tokensieve.hf.families.fingerprint import encoder_info, tower_hashes
from tokensieve.hf.load import load_model
from tokensieve.hf.models.loaded import Loaded
from tokensieve.hf.sieve import sieve
from tokensieve.nn.config import SelectorConfig, TrainedBy
from tokensieve.nn.selector import Selector
from tokensieve.types import Site
from toys.extract_tiny import SMALL


@pytest.fixture(scope="module")
def model() -> Any:
    return build("llava").model.float()


def selector_for(model: Any, folder: Path, site: Site = Site.FEATURES) -> str:
    """A selector of random weights that knows the encoder of `model`."""
    info = encoder_info(model)
    info = info.at_embeds() if site is Site.EMBEDS else info
    config = SelectorConfig(info, depth=1, heads=1, encoder_weights=tower_hashes(model, site))
    Selector(config).save_pretrained(folder)
    return str(folder)


def met(model: Any, weights: Any) -> list[str]:
    """What is said where the selector is used twice."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(2):
            with sieve(model, "selector", keep=0.5, weights=weights):
                pass
    return [str(w.message) for w in said if w.category is EncoderMismatchWarning]


def changed(model: Any, part: str) -> Any:
    other = deepcopy(model)
    with torch.no_grad():
        next(p for n, p in other.named_parameters() if part in n and p.dim() > 1)[0, 0] += 0.01
    return other


@pytest.mark.parametrize("site", [Site.FEATURES, Site.EMBEDS])
@pytest.mark.parametrize(
    ("part", "sites"),
    [
        ("vision_tower", (Site.FEATURES, Site.EMBEDS)),
        ("multi_modal_projector", (Site.EMBEDS,)),
        ("language_model", ()),
    ],
)
def test_other_weights_are_told_once(
    model: Any, tmp_path: Path, part: str, sites: tuple[Site, ...], site: Site
) -> None:
    weights = selector_for(model, tmp_path / "own", site)
    assert met(model, weights) == []
    other = changed(model, part)
    said = met(other, weights)
    assert len(said) == (site in sites)
    if said:
        known, got = (dict(tower_hashes(m, site))["float32"] for m in (model, other))
        assert f"{weights} was trained for, of hash {known}" in said[0]
        assert got in said[0]
    again = selector_for(model, tmp_path / "second", site)  # another pair
    assert len(met(other, again)) == (site in sites)


def test_a_model_loaded_in_16_bits_is_the_same_one(model: Any, tmp_path: Path) -> None:
    weights = selector_for(model, tmp_path / "own")
    for dtype in (torch.bfloat16, torch.float16):
        assert met(deepcopy(model).to(dtype), weights) == []
        assert len(met(changed(model, "vision_tower").to(dtype), weights)) == 1
    rough = selector_for(deepcopy(model).to(torch.bfloat16), tmp_path / "rough")
    assert met(model, rough) == []  # in float32 nobody knows


def test_weights_of_before_say_nothing(model: Any, tmp_path: Path) -> None:
    weights = selector_for(model, tmp_path / "own")
    path = tmp_path / "own" / "config.json"
    told = json.loads(path.read_text())
    del told["encoder_weights"]
    path.write_text(json.dumps(told))
    assert met(changed(model, "vision_tower"), weights) == []


def test_it_can_be_silenced_and_made_an_error(model: Any, tmp_path: Path) -> None:
    weights = selector_for(model, tmp_path / "own")
    other = changed(model, "vision_tower")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", EncoderMismatchWarning)
        with sieve(other, "selector", keep=0.5, weights=weights):
            pass
    third = changed(model, "vision_tower")
    with warnings.catch_warnings():
        warnings.simplefilter("error", EncoderMismatchWarning)
        with (
            pytest.raises(EncoderMismatchWarning, match="of the same shape with other weights"),
            sieve(third, "selector", keep=0.5, weights=weights),
        ):
            pass


def test_a_model_is_hashed_once(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tokensieve.hf.families import fingerprint

    weights, seen = selector_for(model, tmp_path / "own"), []
    hash_of = fingerprint._tower_hash
    monkeypatch.setattr(
        fingerprint, "_tower_hash", lambda *given: (seen.append(1), hash_of(*given))[1]
    )
    fresh = deepcopy(model)
    for _ in range(3):
        met(fresh, weights)
    assert len(seen) == 1


def test_what_is_extracted_trained_and_shipped_knows_its_encoder(made, nano, tmp_path) -> None:  # type: ignore[no-untyped-def]
    from tokensieve.train.selector.recipe import make_recipe
    from tokensieve.train.selector.run import train_selector

    made("store")
    store = FeatureStore([tmp_path / "store"])
    loaded = load_model("nano")
    assert (
        dict(store.encoder_weights)
        == CropEncoder(
            Loaded("nano", loaded.model, loaded.processor), SMALL.site, torch.float16, pixels=False
        ).tower()
    )
    settings = ["selector.depth=1", "reconstructor.depth=1", "train.steps=1", "train.batch=2"]
    train_selector(store, make_recipe(store.encoder, "default", settings), tmp_path / "run")
    assert met(loaded.model, str(tmp_path / "run" / "selector")) == []
    assert len(met(changed(loaded.model, "vision_tower"), str(tmp_path / "run" / "selector"))) == 1
    for name in ("nano", "nano-next"):
        assert met(load_model(name).model, None) == []


def test_a_report_says_how_the_weights_were_trained(model: Any, tmp_path: Path) -> None:
    silent = selector_for(model, tmp_path / "silent")
    told = Selector.from_pretrained(silent)
    told.config = replace(told.config, trained_by=TrainedBy("adaptive", "gumbel", "adaptive"))
    told.save_pretrained(tmp_path / "told")
    by = "objective adaptive (Adaptive Vision Token Selection), estimator gumbel, preset adaptive"
    for method, options, said in [
        ("selector", {"weights": silent}, "not said"),
        ("selector", {"weights": tmp_path / "told"}, by),
        ("divprune", {}, None),
    ]:
        with sieve(model, method, keep=0.5, **options) as report:
            pass
        assert report.trained_by == said
        assert ("; weights trained by: " in str(report)) is (said is not None)
        assert said is None or str(report).endswith(said)
