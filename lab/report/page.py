"""What every generated page looks like: message, the table that matters, the rest folded.

A page says first, in a sentence or two made from the records, what they show.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokensieve.errors import InputError
from tokensieve.files import write_text

NANO = "the embedded nano (192 pixels, glyphs on its own patch grid)"


def document(
    title: str, message: str, parts: Sequence[str], made: str, more: str = "", on: str = ""
) -> str:
    """A whole page of Markdown; `made` by which command from what, and `more` about that; `on` the
    model that all numbers of the page are of."""
    end = f"*{f'Made by {made}; do not edit. {more}'.strip()}*"
    body = [f"All numbers here are of {on}." if on else "", *parts]
    return "\n\n".join([f"# {title}", f"**{message}**", *[p for p in body if p], end]) + "\n"


def fold(summary: str, *body: str) -> str:
    """Folded text, on GitHub and on the site alike."""
    inner = "\n\n".join(body)
    return f'<details markdown="1"><summary>{summary}</summary>\n\n{inner}\n\n</details>'


def words(names: Sequence[str], last: str = "and") -> str:
    """a, b and c."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} {last} {names[-1]}"


def put_block(file: Path, name: str, block: str) -> None:
    """Replace what stands between the two markers of `name` in a file written by hand.

    Raises `InputError` where the file has not each of them once, the first before the second.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    text = file.read_text("utf-8") if file.is_file() else ""
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    if text.count(begin) != 1 or text.count(end) != 1 or text.find(begin) > text.find(end):
        raise InputError(
            f"Expected the lines {begin} and {end}, each once and in this order, in {file}. Got "
            f"{text.count(begin)} and {text.count(end)}. Put them where the generated part belongs."
        )
    write_text(file, f"{before}{begin}\n{block}\n{end}{after}")
