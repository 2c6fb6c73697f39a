"""Nano for reading pictures, loaded once a module."""

from __future__ import annotations

import pytest

from toys.extract_tiny import SMALL


@pytest.fixture(scope="module")
def nano():
    """Nano without its LLM."""
    from tokensieve.hf.load import load_encoder

    return load_encoder("nano", device="cpu")


@pytest.fixture
def made(nano, tmp_path):
    """Extract generated pictures into a folder of that name."""
    from tokensieve.data.extraction.extract import extract
    from tokensieve.data.sources import open_source

    def make(name: str = "store", pictures: str = "synth:mix:8", settings=SMALL, **options):
        sources = [open_source(spec) for spec in pictures.split()]
        return extract(nano, sources, tmp_path / name, settings, **options)

    return make
