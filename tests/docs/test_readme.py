"""What the README shows, runs, and is as short as it claims."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def first_block() -> str:
    found = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    if found is None:
        pytest.fail("README.md has no python block")
    return found.group(1)


def test_first_block_is_short_and_answers() -> None:
    block = first_block()
    assert len([line for line in block.splitlines() if line]) <= 8
    done = subprocess.run(
        [sys.executable, "-c", block],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "620" in done.stdout
    assert "102" in done.stdout  # round-half-up of .4 * 256


def test_first_commands_are_make_targets() -> None:
    shell = re.findall(r"^make (\w+)", README, re.MULTILINE)
    files = [ROOT / "Makefile", *(ROOT / "lab").rglob("*.mk")]
    makefile = "\n".join(file.read_text(encoding="utf-8") for file in files)
    assert shell[:2] == ["demo", "test"]
    for target in {*shell, *re.findall(r"`make (\w+)`", README)}:
        assert re.search(rf"^{target}:.*## ", makefile, re.MULTILINE), target


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
