"""A page in one file: pictures, what each method kept at every keep, answers and costs.

Needs no server and no network: its own policy forbids it all but what is inside it.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from tokensieve import __version__
from tokensieve.budget import check_keep
from tokensieve.errors import ConfigError
from tokensieve.evaluate.answer import Answer
from tokensieve.files import check_writable, written_whole
from tokensieve.view.look import Look
from tokensieve.view.told import Asked, ask_all, page_data

KEEPS: tuple[float, ...] = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
_START = """
tokensieveView(
  document.getElementById("view"), JSON.parse(document.getElementById("data").textContent));
"""
STATIC = Path(__file__).with_name("static")


def check_report_path(path: Path) -> None:
    """Raise `ConfigError` unless a page may be written to `path`; creates nothing."""
    if path.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(
            f"Expected the name of a page to write. Got '{path.name}'. Name it .html."
        )
    check_writable(path)


def write_report(path: Path, look: Look, methods: Sequence[str]) -> int:
    """Ask `methods` at every keep of `KEEPS` and at the one of the settings of `look`, and write
    the page to `path`, whole or not at all. Gives its size in bytes.

    Raises `ConfigError` for the path.
    """
    keeps, start = stops(look.settings.keep, look.visual_tokens / max(1, len(look.pictures)))
    asked = ask_all(look, methods, keeps)
    page = html_page(page_data(look, asked, keeps, start), _plain(asked, start)).encode()
    with written_whole(path) as part:
        part.write_bytes(page)
    return len(page)


def stops(keep: float | int, tokens: float) -> tuple[list[float | int], int]:
    """Where a page's slider stops, from fewest tokens of a picture of so many to most, and which of
    them is `keep`."""
    check_keep(keep)
    every: list[float | int] = [*KEEPS]
    if keep not in every:
        every.append(keep)
    every.sort(key=lambda one: one / tokens if one > 1 else one)
    return every, every.index(keep)


def html_page(data: dict[str, Any], plain: str = "") -> str:
    """The page of `page_data`. plain: HTML to read where scripts are switched off."""
    style, script = read_static("view.css"), read_static("view.js")
    script += _START
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    title = escape(data["question"])
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        '<meta name="referrer" content="no-referrer">\n'
        f'<meta name="generator" content="tokensieve {escape(__version__)}">\n'
        f"<title>{title} - tokensieve</title>\n<style>{style}</style>\n</head>\n<body>\n"
        f'<main id="view" class="ts"></main>\n<noscript>{plain}</noscript>\n'
        f'<script type="application/json" id="data">{safe_json(data)}</script>\n'
        f"<script>{script}</script>\n</body>\n</html>\n"
    )


def safe_json(data: Any) -> str:
    """JSON that cannot end the element it stands in, nor begin another."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def read_static(name: str) -> str:
    """A file of the page's own look."""
    return (STATIC / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _plain(asked: Sequence[Asked], start: int) -> str:
    """The answers at one keep, as a table."""
    rows = []
    for one in asked:
        step = one.steps[min(start, len(one.steps) - 1)]
        said = step.answer if isinstance(step, Answer) else f"refused: {step.reason}"
        count = f"{step.kept_tokens} of {step.visual_tokens}" if isinstance(step, Answer) else "-"
        rows.append(
            f"<tr><td>{escape(one.method)}</td><td>{escape(said)}</td><td>{escape(count)}</td></tr>"
        )
    head = "<tr><th>method</th><th>answer</th><th>tokens</th></tr>"
    return f"<table>{head}{''.join(rows)}</table>"
