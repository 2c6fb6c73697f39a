"""What extraction refuses, and how it says so."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from tokensieve.data.extraction.crops import CropEncoder
from tokensieve.data.extraction.extract import ExtractSettings
from tokensieve.errors import ConfigError, NonFiniteError, UnknownNameError, WeightsError
from tokensieve.types import Site
from toys.extract_tiny import SMALL, noise


@pytest.mark.parametrize(
    ("pictures", "settings", "told"),
    [
        ("synth:mix:9", SMALL, r"listing.hash=.*listing.pictures=9 \(there: 8\)"),
        ("other=synth:mix:8", SMALL, "listing.sources.other=8"),
        ("synth:mix:8", ExtractSettings(Site.EMBEDS, chunk=3), 'encoder.site="embeds"'),
        ("synth:mix:8", ExtractSettings(dtype="bfloat16", chunk=3), 'dtype="bfloat16"'),
        ("synth:mix:8", ExtractSettings(chunk=4), r"chunk=4 \(there: 3\)"),
        ("synth:mix:8", ExtractSettings(chunk=3, pixels=True), "pixels=true"),
    ],
)
def test_another_extraction_into_the_same_store_is_refused(
    pictures, settings, told, made, tmp_path
) -> None:
    made("store")
    with pytest.raises(ConfigError, match=told):
        made("store", pictures, settings)


def test_another_model_is_refused_and_foreign_folders_too(made, nano, tmp_path) -> None:
    made("store")
    path = tmp_path / "store" / "store.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "weights": "0" * 16}))
    with pytest.raises(ConfigError, match=r"weights=.*there: \"0000"):
        made("store")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(ConfigError, match="holds other files"):
        made("mine")
    path.write_text("{")
    with pytest.raises(WeightsError, match=r"Expected what the store was made with .*store\.json"):
        made("store")


def test_what_float16_cannot_hold_names_the_picture(made, monkeypatch) -> None:
    from tokensieve.data.extraction import crops

    whole, calls = crops.site_tokens, []

    def loud(model, site, encoded):
        probe = not calls  # of a grey picture
        calls.append(site)
        return [part if probe else part * 1e6 for part in whole(model, site, encoded)]

    monkeypatch.setattr(crops, "site_tokens", loud)
    with pytest.raises(NonFiniteError, match=r"of mix/train/cluttered-000000\..*--dtype bfloat16"):
        made("store")
    made("wide", settings=ExtractSettings(dtype="bfloat16", chunk=3, batch=2))


def test_bfloat16_is_stored(made, tmp_path) -> None:
    made("store", settings=ExtractSettings(dtype="bfloat16", chunk=8))
    stored = load_file(tmp_path / "store" / "shard-000000.safetensors")
    assert stored["tokens"].dtype == torch.bfloat16
    assert set(stored) == {"tokens", "offsets", "grids"}


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"chunk": 0}, ConfigError, "Expected `chunk` of at least 1. Got 0"),
        ({"workers": -1}, ConfigError, "Expected `workers` of at least 1"),
        ({"dtype": "float17"}, UnknownNameError, "Did you mean 'float16'"),
    ],
)
def test_bad_settings(options, error, told) -> None:
    with pytest.raises(error, match=told):
        ExtractSettings(**options)


def test_other_sites_are_refused(nano) -> None:
    with pytest.raises(ConfigError, match=r"Expected the site .features., .*llm.\. Got .pixels."):
        CropEncoder(nano, Site.PIXELS, torch.float16, pixels=False)


def test_other_pictures_of_the_same_names_are_refused(made, tmp_path) -> None:
    for name, seed in (("pa", 0), ("pb", 1)):
        (tmp_path / name).mkdir()
        noise(40, 40, seed).save(tmp_path / name / "a.bmp")
    made("store", f"p={tmp_path / 'pa'}")
    with pytest.raises(ConfigError, match="same names and of other sizes or bytes"):
        made("store", f"p={tmp_path / 'pb'}")
    (tmp_path / "pa").rename(tmp_path / "moved")
    assert made("store", f"p={tmp_path / 'moved'}").pictures == 1
    path = tmp_path / "store" / "store.json"
    record = json.loads(path.read_text())
    del record["listing"]["content"]  # as stores of before were
    path.write_text(json.dumps(record))
    assert made("store", f"p={tmp_path / 'moved'}").pictures == 1


def test_one_picture_that_float16_cannot_hold_is_skipped(made, monkeypatch) -> None:
    from tokensieve.data.extraction import crops

    whole = crops.site_tokens

    def loud(model, site, encoded):
        first, *others = whole(model, site, encoded)
        return [first, *(part * 1e6 for part in others)]

    monkeypatch.setattr(crops, "site_tokens", loud)
    summary = made("store")
    assert (summary.pictures, summary.crops, summary.skipped, summary.nonfinite) == (8, 5, 3, 3)
    where, error = summary.skipped_first[0]
    assert error.startswith(f"Expected finite features of {where}. Got NaN or Inf")
    assert "--dtype bfloat16" in error
