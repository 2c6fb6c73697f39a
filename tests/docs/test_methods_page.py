"""docs/methods.md says what the registry says."""

from __future__ import annotations

from pathlib import Path

from lab.report.methods import page
from tokensieve.methods.registry import method_class, method_names

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_is_the_registrys() -> None:
    """If this fails: python -m lab.report.methods"""
    assert (DOCS / "methods.md").read_text() == page()


def test_every_method_says_what_it_does_and_where_it_comes_from() -> None:
    text = page()
    for name in method_names():
        assert f"### `{name}`" in text
        doc = method_class(name).__doc__ or ""
        assert len(doc.split("\n\n")[0].split()) >= 5, name
        if method_class(name).paper:
            assert "[1]" in doc or "arXiv" in doc, name
