"""What the README shows, runs, as printed; and it is as short as it claims."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tokensieve.serving.setting import Setting

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
HUB = "llava-hf/llava-1.5-7b-hf"
PICTURE = ROOT / "src/tokensieve/assets/pictures/cluttered.png"


def blocks(language: str, text: str = README) -> list[str]:
    """The fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def run(command: list[str], folder: Path) -> str:
    """What `command` prints in `folder`; it must succeed."""
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "100",
             "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), *sys.path])},
    )  # fmt: skip
    assert done.returncode == 0, f"{command} failed:\n{done.stderr}"
    return done.stdout


def shell(block: str, folder: Path) -> list[str]:
    """Run the commands of a block with this Python's tokensieve; what each printed."""
    return [
        run([sys.executable, "-m", *shlex.split(line, comments=True)], folder)
        for line in block.splitlines()
        if line.startswith("tokensieve ")
    ]


def test_the_first_block_answers_and_prints_the_answer_alone(tmp_path: Path) -> None:
    answer, report = run([sys.executable, "-c", blocks("python")[0]], tmp_path).splitlines()
    assert answer == "620"
    assert "102 of 256" in report  # round-half-up of .4 * 256


def test_your_model_runs_as_printed(tmp_path: Path) -> None:
    """The hub's name stands for a folder of the embedded model, the picture for a shipped one."""
    from tokensieve import load_nano

    for part in load_nano():
        part.save_pretrained(tmp_path / "model")
    shutil.copy(PICTURE, tmp_path / "page.png")
    block = blocks("python")[1]
    assert HUB in block
    printed = run([sys.executable, "-c", block.replace(HUB, "./model")], tmp_path)
    assert "64 of 256" in printed.splitlines()[-1]


def test_what_vllm_is_told_is_a_setting() -> None:
    """vLLM itself is not here; its plugin reads the printed argument by this."""
    _, given = blocks("sh")[1].split("--hf-overrides ")
    setting = Setting.of(json.loads(shlex.split(given)[0])["tokensieve"])
    assert (setting.method, setting.keep) == ("divprune", 0.4)


@pytest.mark.slow
def test_training_runs_as_printed(tmp_path: Path) -> None:
    answered = shell(blocks("sh")[2], tmp_path)[-1]
    assert "620" in answered
    assert "77/256" in answered


def test_the_command_line_runs_as_printed(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()  # `make demo` makes it
    answered, typeset, listed, counted = shell(blocks("sh")[3], tmp_path)
    for name in ("selector", "divprune", "random", "full"):
        assert name in answered
    assert "620" in answered
    assert (tmp_path / "out" / "kept.png").stat().st_size > 1000
    assert typeset.count("77.15") >= 2  # by the selector as with all tokens
    assert "fastv" in listed
    assert "2,880 visual tokens" in counted


def test_every_block_is_one_of_those_that_are_tried() -> None:
    assert len(blocks("python")) == 2
    assert len(blocks("sh")) == 4
    assert set(re.findall(r"^```(\w*)$", README, re.MULTILINE)) == {"python", "sh", ""}


def test_commands_of_make_are_targets() -> None:
    files = [ROOT / "Makefile", *(ROOT / "lab").rglob("*.mk")]
    makefile = "\n".join(file.read_text(encoding="utf-8") for file in files)
    named = re.findall(r"^make (\w+)", README, re.MULTILINE)
    assert named[:2] == ["demo", "test"]
    for target in {*named, *re.findall(r"`make ([\w-]+)`", README)}:
        assert re.search(rf"^{target}:.*## ", makefile, re.MULTILINE), target


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def prose(text: str) -> str:
    """Without tables, blocks of code, and what a program wrote."""
    text = re.sub(r"<!-- (\w+):begin -->.*?<!-- \1:end -->", "", text, flags=re.DOTALL)
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return "\n".join(line for line in text.splitlines() if not line.startswith(("|", "#")))


def results(text: str) -> list[str]:
    """Numbers in prose that read as results: shares, times, factors."""
    return re.findall(r"[\d.]*\d\s?(?:%|ms\b|x\b|times\b|points?\b)|(?<![\w.])0?\.\d+", prose(text))


def test_no_result_stands_in_prose() -> None:
    """A number belongs into a table that a command makes from records."""
    assert results(README) == []
    assert results("It reads 98 % at .4, 3 times as fast.\n| 98 % |") == ["98 %", ".4", "3 times"]


def test_it_is_a_screen_and_a_half() -> None:
    assert len(prose(README).split()) < 500
