"""Towers that are not CLIP go through the same two commands, processors without torchvision."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from tokensieve.data.extraction.extract import ExtractSettings, extract
from tokensieve.data.sources import open_source
from tokensieve.data.store.features import FeatureStore
from tokensieve.errors import UnknownNameError
from tokensieve.hf.families.fingerprint import encoder_info
from tokensieve.hf.load import load_model
from tokensieve.hf.models.random import RANDOM_MODELS, save_random_model
from tokensieve.hf.sieve import sieve
from tokensieve.train.selector.recipe import make_recipe
from tokensieve.train.selector.run import train_selector


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise of several sizes."""
    folder = tmp_path_factory.mktemp("sizes")
    generator = torch.Generator().manual_seed(0)
    for i, (width, height) in enumerate([(96, 96), (144, 96), (96, 192), (120, 120)]):
        noise = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(noise.numpy()).save(folder / f"{i}.png")
    return folder


@pytest.mark.parametrize("name", RANDOM_MODELS)
def test_extracted_trained_and_plugged_in(name: str, pictures: Path, tmp_path: Path) -> None:
    loaded = load_model(str(save_random_model(name, tmp_path / "model")))
    settings = ExtractSettings(chunk=2, batch=2)
    extract(loaded, [open_source(str(pictures))], tmp_path / "store", settings)
    store = FeatureStore([tmp_path / "store"])
    batch = store.batch(torch.arange(len(store)))
    if name == "qwen":  # a tower that takes pictures as they are
        assert batch.grids == ((8, 8), (8, 12), (16, 8), (10, 10))
        assert batch.valid is not None
    else:
        assert set(batch.grids or ()) == {(16, 16)}
    assert (len(store) > 4) is (name == "internvit")  # tiles
    plan = make_recipe(store.encoder, "default", [
        "selector.depth=1", "reconstructor.depth=1", "train.steps=2", "train.batch=2",
    ])  # fmt: skip
    train_selector(store, plan, tmp_path / "run", holdout=0.25)
    with Image.open(pictures / "1.png") as picture:
        processor = loaded.processor
        text = getattr(processor, "image_token", "<image>")
        inputs = processor(images=[[picture]], text=[text], return_tensors="pt")
    with sieve(loaded.model, "selector", 0.5, weights=str(tmp_path / "run/selector")) as report:
        loaded.model.generate(**inputs, max_new_tokens=2, do_sample=False)
    # half of the crops' tokens; rows between crops are not tokens of a crop
    assert report.kept_tokens < report.visual_tokens
    assert report.kept_tokens / report.visual_tokens == pytest.approx(0.5, abs=0.02)
    assert encoder_info(loaded.model) == store.encoder


def test_weights_are_those_of_the_seed_and_names_are_known(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    before = torch.get_rng_state()
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        save_random_model("siglip", tmp_path / folder, seed)
    assert torch.equal(before, torch.get_rng_state())
    a, b, c = (load_file(tmp_path / n / "model.safetensors") for n in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(not torch.equal(a[name], c[name]) for name in a)
    with pytest.raises(UnknownNameError, match="Did you mean 'siglip'"):
        save_random_model("siglib", tmp_path / "d")
