"""What `mkdocs build` does besides: the same pages read well on a code host and on the site.

Links to files outside docs/ go to the repository (and must lead somewhere), lists need no blank
line before them, drawings are put into the page so that they follow its colours, and a star in the
nav stands for every page of a folder.
"""

from __future__ import annotations

import logging
import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
LOG = logging.getLogger("mkdocs.hooks")  # a warning here fails the strict build

_FENCE = re.compile(r"\s*(```|~~~)")
_ITEM = re.compile(r"([-*+]|\d+\.) +\S")
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)#\s:]+)(#[^)\s]*)?\)")
_DRAWING = re.compile(r"^!\[([^\]]*)\]\(([^)\s]+\.svg)\)$", re.MULTILINE)


def on_config(config: Any) -> Any:
    """The address of the repository, from pyproject.toml; stars of the nav spelled out."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    config.repo_url = project.get("urls", {}).get("Source", config.repo_url)
    config.repo_name = "Source"
    config.nav = list(spelled_out(config.nav))
    return config


def on_files(files: Any, config: Any) -> Any:
    """The changelog, which lies beside docs/, becomes a page."""
    from mkdocs.structure.files import File

    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    files.append(File.generated(config, "changelog.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """One page, on its way to HTML. One that is a tab by itself has no list of pages beside it."""
    if page.parent is None:
        page.meta.setdefault("hide", ["navigation"])
    source = DOCS / page.file.src_uri
    base = f"{config.repo_url.rstrip('/')}/blob/main" if config.repo_url else None
    text, dead = with_repository_links(markdown, source, base)
    for target in dead:
        LOG.warning("Doc file '%s' links to '%s', which is not there.", page.file.src_uri, target)
    return with_drawings(with_lists(text), source)


def on_page_content(html: str, **_: Any) -> str:
    """Long paths may end a line behind a slash, a colon or an underscore."""

    def broken(found: re.Match[str]) -> str:
        path = re.sub(r"(/|::|_)", r"\1<wbr>", found[1])
        return f"<code>{path}</code>"

    return re.sub(r"<code>([^<\s]{24,})</code>", broken, html)


def spelled_out(nav: list[Any]) -> Iterator[Any]:
    """The nav with a page for each file that a star stands for, but those named beside it."""
    named = {entry for entry in nav if isinstance(entry, str)}
    for entry in nav:
        if isinstance(entry, dict):
            yield {k: list(spelled_out(v)) if isinstance(v, list) else v for k, v in entry.items()}
        elif "*" in entry:
            found = (path.relative_to(DOCS).as_posix() for path in sorted(DOCS.glob(entry)))
            yield from (path for path in found if path not in named)
        else:
            yield entry


def with_repository_links(text: str, source: Path, base: str | None) -> tuple[str, list[str]]:
    """Links of the page `source` that leave docs/, made addresses under `base`, or mere words where
    there is none; and the dead ones."""
    dead: list[str] = []

    def there(found: re.Match[str]) -> str:
        words, target, anchor = found[1], found[2], found[3] or ""
        path = Path(os.path.normpath(source.parent / target))
        if path.is_relative_to(DOCS):
            return found[0]
        if not path.is_relative_to(ROOT) or not path.exists():
            dead.append(target)
            return found[0]
        if base is None:
            return words
        return f"[{words}]({base}/{path.relative_to(ROOT).as_posix()}{anchor})"

    return "\n".join(line if code else _LINK.sub(there, line) for line, code in _lines(text)), dead


def with_lists(text: str) -> str:
    """A blank line before each list and table that follows a line of text, which Markdown's first
    dialect wants and today's do not."""
    out: list[str] = []
    inside = False  # of a list
    for line, code in _lines(text):
        before = out[-1] if out else ""
        starts_list = bool(_ITEM.match(line)) and not inside
        starts_table = line.startswith("|") and not before.startswith("|")
        if not code and before.strip() and (starts_list or starts_table):
            out.append("")
        if not code:
            inside = bool(_ITEM.match(line)) or (inside and (line.startswith(" ") or not line))
        out.append(line)
    return "\n".join(out)


def with_drawings(text: str, source: Path) -> str:
    """SVGs put into the page in place of a link to them."""

    def drawn(found: re.Match[str]) -> str:
        svg = (source.parent / found[2]).read_text(encoding="utf-8")
        lines = [line.strip() for line in svg.splitlines() if line.strip()]
        return f'<figure class="drawing" aria-label="{found[1]}">{" ".join(lines)}</figure>'

    return _DRAWING.sub(drawn, text)


def _lines(text: str) -> Iterator[tuple[str, bool]]:
    """Each line, and whether it is code."""
    inside = False
    for line in text.split("\n"):
        fence = bool(_FENCE.match(line))
        yield line, inside or fence
        inside ^= fence
