"""docs/reading-list.md: what became of every work of the reading list. Written by
`python -m lab.report.methods`.

`works.json`, kept by hand, holds one `Work` a line; which methods there are the registry says.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.report.markdown import table
from tokensieve.errors import ConfigError
from tokensieve.fields import as_fields, check_names, read_object
from tokensieve.methods.registry import method_class, method_names

METHOD, OPTION, RECIPE, OTHER, OPEN = "method", "option", "recipe", "other", "open"
PLACES = {  # title, head of the second column, what it is about
    METHOD: (
        "Methods", "method",
        "What each computes, and where it differs from its paper: [methods](methods.md).",
    ),
    OPTION: ("Options", "how", "Parts of a sieve that go with any method."),
    RECIPE: (
        "Recipes of a training", "how",
        "Of `tokensieve train fusion`: [training](guides/train-fusion.md).",
    ),
    OTHER: (
        "Not of this library's kind", "because",
        "The library shortens what the LLM of a trained VLM reads, or trains a VLM to read less.",
    ),
    OPEN: ("Of this library's kind, and not here", "what is missing", "Nothing is promised."),
}  # fmt: skip


@dataclass(frozen=True)
class Work:
    """One work and its place. methods: names of the registry; text: how, or because.

    Raises `UnknownNameError` for a method that does not exist, `ConfigError` for no such place or
    no text where one is due.
    """

    title: str
    place: str
    methods: tuple[str, ...] = ()
    text: str = ""

    def __post_init__(self) -> None:
        check_names("place", [self.place], PLACES)
        check_names("method", self.methods, method_names())
        if (self.place == METHOD) != bool(self.methods) or not (self.methods or self.text):
            raise ConfigError(
                f"Expected methods of a work that is one, a text of any other. Got {self}."
            )


def works() -> tuple[Work, ...]:
    """The works in the order of the list."""
    rows = read_object(Path(__file__).with_name("works.json"), "the works")["works"]
    return tuple(Work(**as_fields(Work, row)) for row in rows)


def page() -> str:
    """Every work once, under its place; then the methods of other works."""
    known = works()
    parts = [
        "# The reading list",
        f"What became of each of the {len(known)} works of the list that this library began with, "
        "and of which works its other methods are.",
        "Made by `python -m lab.report.methods` from `lab/report/works.json` and the registry; do "
        "not edit.",
        *_sections(known),
        "## Methods of other works",
        table([["method", "of"], *_others(known)]).replace("--:", ":--"),
    ]
    return "\n\n".join(parts) + "\n"


def _sections(known: Sequence[Work]) -> Iterator[str]:
    for place, (title, head, about) in PLACES.items():
        rows = [_row(work) for work in known if work.place == place]
        if rows:
            yield f"## {title}"
            yield f"{len(rows)} of the works. {about}"
            yield table([["work", head], *rows]).replace("--:", ":--")


def _row(work: Work) -> list[str]:
    named = " ".join(f"[`{name}`](methods.md#{name})" for name in work.methods)
    title = work.title.replace("[", "\\[").replace("]", "\\]")
    return [title, "; ".join(part for part in (named, work.text) if part)]


def _others(known: Sequence[Work]) -> Iterator[list[str]]:
    named = {name for work in known for name in work.methods}
    for name in method_names():
        if name not in named:
            paper = method_class(name).paper
            yield [f"[`{name}`](methods.md#{name})", paper or "no paper: a baseline, or our own"]
