"""docs/reading-list.md: every work of the list has its place, every method stands there."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import pytest

from lab.report.reading_list import PLACES, Work, page, works
from tokensieve.errors import ConfigError, UnknownNameError
from tokensieve.methods.registry import method_names
from tokensieve.train.fusion.recipe import SECTIONS, preset_names

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_is_what_is_made_of_the_works_and_the_registry() -> None:
    """If this fails: python -m lab.report.methods"""
    assert (DOCS / "reading-list.md").read_text() == page()


def test_every_work_stands_there_once() -> None:
    titles = Counter(work.title for work in works())
    assert len(titles) == 72  # of the list as it was handed to us
    assert set(titles.values()) == {1}
    text = page().replace("\\", "")
    assert all(text.count(f"| {title} |") == 1 for title in titles)


def test_every_method_of_the_registry_stands_there_once_as_one() -> None:
    rows = [line for line in page().splitlines() if line.startswith("| ")]
    for name in method_names():
        assert sum(f"](methods.md#{name})" in row for row in rows) == 1, name


@pytest.mark.parametrize(
    ("work", "error", "message"),
    [
        (Work("A", "other", text="b"), UnknownNameError, "Did you mean 'divprune'"),
        (Work("A", "other", text="b"), ConfigError, "Expected methods of a work that is one"),
    ],
)
def test_a_work_without_a_place_or_with_a_method_that_is_none_is_refused(
    work: Work, error: type[Exception], message: str
) -> None:
    methods = ("divprun",) if error is UnknownNameError else ()
    with pytest.raises(error, match=message):
        dataclasses.replace(work, place="method", methods=methods)
    with pytest.raises(UnknownNameError, match="Unknown place"):
        dataclasses.replace(work, place="elsewhere")


def test_recipes_are_of_settings_and_options_that_exist() -> None:
    """Words in backquotes such as --sieve, train.steps or stage2 are looked up."""
    from tokensieve.cli.train_fusion import fusion

    assert set(PLACES) == {"method", "option", "recipe", "other", "open"}
    known = {f"--{name}" for name in fusion.__annotations__}
    for work in works():
        if "train fusion" in work.text:
            words = work.text.replace("`", " ").split()
            flags = {word for word in words if word.startswith("--")}
            assert flags, work.title
            assert flags - {"--set", "--preset"} <= known, work.title
            if "--preset" in words:
                assert words[words.index("--preset") + 1] in preset_names()
            for word in words:
                section, dot, rest = word.partition(".")
                if dot and section in SECTIONS:
                    assert rest.partition("=")[0] in SECTIONS[section].__dataclass_fields__
