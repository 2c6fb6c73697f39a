"""The commands of docs/guides/train.md are ones the command line takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from tokensieve.cli import app
from tokensieve.cost.encoders import SHAPES
from tokensieve.train.selector.recipe import SECTIONS
from tokensieve.train.settings import parse_settings

PAGE = (Path(__file__).parents[2] / "docs" / "guides" / "train.md").read_text(encoding="utf-8")
BLOCKS = "\n".join(re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)).replace("\\\n", " ")
COMMANDS = sorted(
    {re.sub(r"#.*", "", line).split("tokensieve ", 1)[1].strip()
     for line in BLOCKS.splitlines() if "tokensieve " in line}
)  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_is_one_of_its_verb(command: str) -> None:
    words, verb = shlex.split(command), typer.main.get_command(app)
    while words and words[0] in getattr(verb, "commands", {}):
        verb = verb.commands[words.pop(0)]
    assert not hasattr(verb, "commands"), words
    known = {flag for option in verb.params for flag in option.opts}
    assert {word for word in words if word.startswith("--")} <= known


def test_every_setting_is_one_of_a_recipe() -> None:
    settings = re.findall(r"--set ([\w.]+=[\w.]+)", PAGE)
    assert len(settings) > 8
    parse_settings(settings, SECTIONS)


def test_every_checkpoint_has_its_commands() -> None:
    for shape in SHAPES.values():
        assert f"--model {shape.checkpoint}" in BLOCKS or f"put `{shape.checkpoint}`" in PAGE
        assert f"### {shape.rates or shape.name}:" in PAGE
