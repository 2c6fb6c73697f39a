"""docs/results/families.md and the README's table say what the families' checks say now."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from families import checks, modes, page, sites
from lab.report.page import put_block
from tokensieve.errors import InputError, UnsupportedError
from tokensieve.hf.sieve import compress

ROOT = Path(__file__).parents[2]


def test_the_page_is_what_the_record_says() -> None:
    """If this fails: make families. `tests/contract/test_modes.py` runs what the record holds."""
    cells = page.read_record(ROOT / page.RECORD)
    assert (ROOT / "docs/results/families.md").read_text("utf-8") == page.page(cells)
    readme = (ROOT / "README.md").read_text("utf-8")
    if "<!-- families:begin -->" in readme:
        block = readme.split("<!-- families:begin -->")[1].split("<!-- families:end -->")[0]
        assert block.strip() == page.readme_block(cells).strip()


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    cells = page.read_record(ROOT / page.RECORD)
    page.write_record(tmp_path / "cells.json", cells)
    assert page.read_record(tmp_path / "cells.json") == cells
    assert (tmp_path / "cells.json").read_text() == (ROOT / page.RECORD).read_text("utf-8")


def test_every_family_has_a_name_for_readers() -> None:
    assert set(sites.ALL) <= set(page.TITLES)


def test_a_family_that_answers_otherwise_has_no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows in another order are neither exact nor refused: they are an error."""
    right = checks.shorten

    def rolled(model, inputs, **options):
        short = right(model, inputs, **options)
        rows = short["mm_encoder_outputs"]["image"].pooler_output
        short["mm_encoder_outputs"]["image"].pooler_output = [row.flip(0) for row in rows]
        return short

    assert modes.cell("llava", "embeds", "batch") == ("exact", "")
    monkeypatch.setattr(checks, "shorten", rolled)
    with pytest.raises(AssertionError):
        modes.cell("llava", "embeds", "batch")


def _most_of(model, inputs, method, keep):
    return compress(model, inputs, method, 0.9)


def _another_prompt(model, inputs, method, keep):
    short = compress(model, inputs, method, keep)
    if len(short.inputs["input_ids"]) > 1:  # the pictures' rows stay as they are alone
        short.inputs["input_ids"][0, -1] += 1
    return short


@pytest.mark.parametrize(("site", "state"), [("pixels", "works"), ("encoder", "exact")])
@pytest.mark.parametrize(
    ("broken", "said"), [(_most_of, "Expected"), (_another_prompt, "as it does alone")]
)
def test_a_budget_is_held_and_an_answer_as_alone(
    site: str, state: str, broken: Callable[..., object], said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    assert modes.cell("llava", site, "batch") == (state, "")
    monkeypatch.setattr(sites, "compress", broken)
    with pytest.raises(AssertionError, match=said):
        modes.cell("llava", site, "batch")


def test_refused_is_an_error_that_was_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    state, said = modes.cell("gemma3", "features", "batch")
    assert state == "refused"
    assert said.startswith("Expected a model that offers the site 'features'. Got")

    def refuse(tiny):
        raise UnsupportedError("Expected another. Got this. Take that.")

    monkeypatch.setitem(sites.CHECKS, "embeds", refuse)
    assert modes.cell("llava", "embeds", "batch") == (
        "refused",
        "Expected another. Got this. Take that.",
    )


@pytest.mark.parametrize(
    "text",
    ["nothing", "<!-- x:begin -->", "<!-- x:end --> <!-- x:begin -->",
     "<!-- x:begin --> <!-- x:begin --> <!-- x:end -->"],
)  # fmt: skip
def test_a_page_without_its_markers_is_refused_and_left_alone(tmp_path: Path, text: str) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(text)
    with pytest.raises(InputError, match="Expected the lines <!-- x:begin -->"):
        put_block(readme, "x", "new")
    assert readme.read_text() == text
    with pytest.raises(InputError, match="each once"):
        put_block(tmp_path / "none.md", "x", "new")
