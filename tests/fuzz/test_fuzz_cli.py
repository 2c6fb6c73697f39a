"""Command lines from strangers: any verb, any of its options, values that are none."""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import typer.main
from hypothesis import given
from hypothesis import strategies as st

from fuzz.common import bounded, fuzzed
from tokensieve import cli
from tokensieve.errors import ConfigError
from tokensieve.evaluate import bench, questions

for _module in ("evaluate.overlay", "data.extraction.extract", "train.selector.run",
                "train.fusion.run"):  # fmt: skip
    import_module(f"tokensieve.{_module}")  # not in the time of the first input


def verbs(command: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], list[str]]:
    """Every command with its options."""
    if hasattr(command, "commands"):
        return {
            at: options
            for name, child in sorted(command.commands.items())
            for at, options in verbs(child, (*path, name)).items()
        }
    return {path: [name for parameter in command.params for name in parameter.opts]}


VERBS = {at: options for at, options in verbs(typer.main.get_command(cli.app)).items()
         if at != ("demo",)}  # fmt: skip  # it asks for nothing
VALUES = (
    "", " ", "x", "-", "--", "-1", "0", "1", "0.3", "1.7", "nan", "inf", "-inf", "1e400", "9" * 400,
    "true", "null", "{}", "[]", "a=b", "train.batch=", "=1", "selector.depth=1e9", "a,b", ",", "é✓",
    "\udcff", "a" * 5000, "..", "/", "/dev/null", "/dev/full", "/proc/self/mem", "folder",
    "foreign", "file", "noise.png",
    "folder/none", "nano", "selector", "divprune", "strid", "synth:mix:x",
    "synth:", "http://[", "hf://x", "cuda:99", "float7", "None",
)  # fmt: skip


def words(path: tuple[str, ...]) -> st.SearchStrategy[list[str]]:
    """Options of a verb and of none, with and without values, and loose words."""
    option = st.sampled_from([*VERBS[path], "--nothing", "-z"])
    value = st.sampled_from(VALUES) | st.text(st.characters(exclude_characters="\0"), max_size=8)
    pair = st.tuples(option, value).map(list)
    part = st.one_of(pair, pair, value.map(lambda word: [word]), option.map(lambda name: [name]))
    return st.lists(part, max_size=6).map(lambda parts: [word for part in parts for word in part])


def said(arguments: list[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command line run in this process."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["tokensieve", *arguments]),
        mock.patch.object(questions, "_nano", side_effect=ConfigError("Expected less to ask.")),
        mock.patch.object(bench, "bench", side_effect=ConfigError("Expected less to measure.")),
        mock.patch.object(bench.Bench, "preset", side_effect=ConfigError("Expected less to run.")),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
    return code, out.getvalue(), err.getvalue()


def held(folder: Path) -> dict[str, bytes]:
    return {str(f): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


@fuzzed
@given(data=st.data())
def test_any_command_line(data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(VERBS)))
    arguments = [*path, *data.draw(words(path))]
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name), bounded():
        for sub in ("folder", "foreign"):
            Path(sub).mkdir()
        Path("foreign/mine.txt").write_text("mine")
        Path("file").write_text("no picture")
        Path("noise.png").write_bytes(b"\x89PNG\r\n\x1a\n spoilt")
        before = held(Path(name))
        code, out, err = said(arguments)
        after = held(Path(name))
    assert code in (0, 2), (arguments, err)
    assert "Traceback" not in out + err
    assert code == 0 or err.strip(), "refused without a word"
    assert code != 0 or out.strip() or path[0] == "train", "nothing was said"
    assert {k: after.get(k) for k in before} == before  # nothing of the user's was touched
    assert not [k for k in after if ".part" in k or ".tmp" in k]
