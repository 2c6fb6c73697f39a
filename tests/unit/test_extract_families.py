"""Extraction with real processors of several families: crops, tiles and grids as the VLM cuts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers as tf
from torch.testing import assert_close
from transformers.processing_utils import ProcessorMixin

from families.tiny import NAMES, build
from tokensieve.data.extraction.crops import CropEncoder
from tokensieve.data.extraction.extract import ExtractSettings, extract
from tokensieve.data.sources import open_source
from tokensieve.data.store.features import FeatureStore
from tokensieve.data.store.shards import Crop
from tokensieve.errors import ConfigError, UnknownNameError, UnsupportedError
from tokensieve.hf.encoder.encode import encode
from tokensieve.hf.families.fingerprint import encoder_hash, encoder_info
from tokensieve.hf.load import first_layer_only, load_encoder, load_model
from tokensieve.hf.models.loaded import Loaded
from tokensieve.types import Site
from toys.extract_tiny import contents, noise
from toys.real_processors import MAKERS

SIZES = [(40, 24), (24, 60), (24, 24), (30, 70)]
CROPS = {"next": [3, 3, 3, 3], "siglip": [1] * 4, "internvl": [3, 4, 1, 3], "qwen": [1] * 4}


@pytest.fixture
def maker(monkeypatch):
    """Families by name. Qwen's and InternVL's processors want a video part that needs torchvision;
    pictures do not pass through it."""
    monkeypatch.setattr(ProcessorMixin, "check_argument_for_proper_class", lambda *_: None)
    return lambda name: MAKERS[name]()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pictures").mkdir()
    for i, size in enumerate(SIZES):
        noise(*size, seed=i).save(tmp_path / "pictures" / f"{i}.png")
    return tmp_path / "pictures"


@pytest.mark.parametrize("site", [Site.FEATURES, Site.EMBEDS])
@pytest.mark.parametrize("name", MAKERS)
def test_crops_are_those_of_the_vlm(name, site, maker, folder, tmp_path) -> None:
    loaded = maker(name)
    settings = ExtractSettings(site, chunk=3, batch=3)
    summary = extract(loaded, [open_source(str(folder))], tmp_path / "store", settings)
    assert summary is not None
    assert (summary.skipped, summary.crops) == (0, sum(CROPS[name]))
    rows = contents(tmp_path / "store")[1]
    assert [sum(row["picture"] == i for row in rows) for i in range(4)] == CROPS[name]
    check_crops(loaded, FeatureStore([tmp_path / "store"]), site)


def check_crops(loaded: Loaded, store: FeatureStore, site: Site) -> None:
    """What is stored of the pictures of `SIZES` is what the model says of each alone."""
    row, text = 0, "<s> <image>"
    for i, size in enumerate(SIZES):
        inputs = loaded.processor(images=[noise(*size, seed=i)], text=[text], return_tensors="pt")
        with torch.no_grad():
            encoded = encode(loaded.model, dict(inputs))
        for packing, rows_ND, features in zip(
            encoded.packings, encoded.images, encoded.features, strict=True
        ):
            count = packing.crops
            batch = store.batch(torch.arange(row, row + count))
            row += count
            assert batch.grids == (packing.grid,) * count
            valid = torch.ones(batch.features.shape[:2], dtype=torch.bool)
            valid = valid if batch.valid is None else batch.valid
            assert torch.equal(valid, packing.valid_nL)
            if site is Site.FEATURES:
                assert_close(batch.features, features.half().float(), rtol=2e-3, atol=2e-3)
            else:
                real = rows_ND[packing.origin_N >= 0]
                origin = packing.origin_N[packing.origin_N >= 0]
                flat = batch.features.flatten(0, 1)
                assert_close(flat[origin], real.half().float(), rtol=2e-3, atol=2e-3)
    assert row == len(store)


def _without_valid(packing, tokens_nLC, images):
    return [Crop(tokens, packing.grid) for tokens in tokens_nLC]


def _backwards(packing, tokens_nLC, images):
    return [Crop(tokens, packing.grid, packing.valid_nL[i])
            for i, tokens in enumerate(tokens_nLC.flip(0))]  # fmt: skip


@pytest.mark.parametrize("broken", [_without_valid, _backwards])
def test_broken_crops_are_noticed(broken, maker, folder, tmp_path, monkeypatch) -> None:
    loaded = maker("next")
    monkeypatch.setattr("tokensieve.data.extraction.crops._cut", broken)
    extract(loaded, [open_source(str(folder))], tmp_path / "store")
    with pytest.raises(AssertionError):
        check_crops(loaded, FeatureStore([tmp_path / "store"]), Site.FEATURES)


def test_only_padding_that_is_cut_is_marked(maker, folder, tmp_path) -> None:
    settings = ExtractSettings(chunk=4)
    extract(maker("next"), [open_source(str(folder))], tmp_path / "next", settings)
    batch = FeatureStore([tmp_path / "next"]).batch(torch.arange(6))
    assert batch.valid is not None
    assert batch.valid.sum(-1).tolist() == [16, 12, 12, 16, 16, 16]
    extract(maker("siglip"), [open_source(str(folder))], tmp_path / "siglip", settings)
    assert FeatureStore([tmp_path / "siglip"]).batch(torch.arange(4)).valid is None


@pytest.mark.parametrize("name", ["next", "siglip", "internvl"])
def test_pixels_are_what_the_encoder_saw(name, maker, folder, tmp_path) -> None:
    loaded = maker(name)
    settings = ExtractSettings(pixels=True, chunk=4, batch=4)
    extract(loaded, [open_source(str(folder))], tmp_path / "store", settings)
    found = FeatureStore([tmp_path / "store"]).batch(torch.tensor([0]), pixels=True).pixels
    images = loaded.processor.image_processor
    inputs = loaded.processor(images=[noise(*SIZES[0])], text=["<s> <image>"], return_tensors="pt")
    wanted = inputs["pixel_values"].flatten(0, -4)[0]
    again = (found[0] - torch.tensor(images.image_mean).view(3, 1, 1)) / torch.tensor(
        images.image_std
    ).view(3, 1, 1)
    assert_close(again, wanted, rtol=0, atol=0.5 / 255 / min(images.image_std) + 1e-5)


def test_pixels_of_patches_are_refused_at_once(maker, folder, tmp_path) -> None:
    with pytest.raises(UnsupportedError, match=r"Expected crops of pixels.*without --pixels"):
        extract(
            maker("qwen"), [open_source(str(folder))], tmp_path / "store",
            ExtractSettings(pixels=True),
        )  # fmt: skip
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("name", NAMES)
def test_one_layer_of_the_llm_is_enough(name, tmp_path, monkeypatch) -> None:
    tiny = build(name)
    tiny.model.save_pretrained(tmp_path / name)
    processor = SimpleNamespace(image_processor=None, tokenizer=None)
    monkeypatch.setattr(tf.AutoProcessor, "from_pretrained", lambda *_, **__: processor)
    small = load_encoder(str(tmp_path / name)).model
    assert small.config.get_text_config().num_hidden_layers == 1
    assert sum(p.numel() for p in small.parameters()) < sum(
        p.numel() for p in tiny.model.parameters()
    )
    whole = load_model(str(tmp_path / name)).model
    inputs = tiny.inputs([1, 1])
    with torch.no_grad():
        few, many = encode(small, inputs), encode(whole, inputs)
    for a, b in zip(few.images, many.images, strict=True):
        assert torch.equal(a, b)
    assert encoder_info(small) == encoder_info(whole)
    assert encoder_hash(small) == encoder_hash(whole)


def test_lists_of_layers_are_cut_too() -> None:
    config = build("gemma3").model.config
    cut = first_layer_only(config).get_text_config()
    assert (cut.num_hidden_layers, len(cut.layer_types)) == (1, 1)
    assert config.get_text_config().num_hidden_layers == 3


def test_the_hash_is_of_the_picture_s_side_only() -> None:
    from copy import deepcopy

    model = deepcopy(build("llava").model)
    before = encoder_hash(model)
    with torch.no_grad():
        model.lm_head.weight += 1
        next(model.model.language_model.parameters()).add_(1)
    assert encoder_hash(model) == before
    with torch.no_grad():
        next(model.model.multi_modal_projector.parameters()).add_(1)
    assert encoder_hash(model) != before


def test_dtype_and_device() -> None:
    assert load_encoder("nano", "bfloat16").model.dtype == torch.bfloat16
    with pytest.raises(UnknownNameError, match="Did you mean 'float16'"):
        load_encoder("nano", "float17")
    with pytest.raises(ConfigError, match=r"Expected a device of this machine.*'cuda:7'"):
        load_encoder("nano", device="cuda:7")


def test_a_processor_that_takes_no_picture_is_told_at_once(monkeypatch) -> None:
    def broken(self, pictures, questions=()):
        raise ValueError("no such backend")

    monkeypatch.setattr(CropEncoder, "prepare", broken)
    loaded = load_encoder("nano")
    with pytest.raises(UnsupportedError, match=r"Expected a processor.*no such backend"):
        CropEncoder(loaded, Site.FEATURES, torch.float16, pixels=False)


def test_a_width_that_is_not_the_fingerprint_s_is_refused(monkeypatch) -> None:
    from dataclasses import replace

    from tokensieve.data.extraction import crops

    monkeypatch.setattr(crops, "encoder_info", lambda model: replace(encoder_info(model), width=7))
    loaded = load_encoder("nano")
    with pytest.raises(UnsupportedError, match=r"Expected features of width 7.*Got 128"):
        CropEncoder(loaded, Site.FEATURES, torch.float16, pixels=False)
