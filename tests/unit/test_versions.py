"""The pins, floors and caps agree with each other, and what runs them tells what it should."""

import importlib.util
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("versions", ROOT / ".ci" / "versions.py")
versions = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(versions)

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = versions.pins((ROOT / "constraints.txt").read_text())
NEEDS = {"transformers": ">=5.18,<6", "torch": ">=2.13,<3", "pillow": ">=10.3,<14"}
EXTRAS = {name: PROJECT["optional-dependencies"][name] for name in PROJECT["optional-dependencies"]}
NOT_IN_CI = ("tokensieve", "deepspeed", "gradio", "lmms-eval", "vllm")
CAPPED = (
    "torch",
    "transformers",
    "tokenizers",
    "huggingface-hub",
    "safetensors",
    "numpy",
    "pillow",
)


@pytest.mark.parametrize(
    "text", [*PROJECT["dependencies"], *(t for e in EXTRAS.values() for t in e)]
)
def test_every_requirement_is_pinned_between_its_floor_and_its_cap(text) -> None:
    name = versions.plain(re.match(r"[\w.-]+", text)[0])
    if name in NOT_IN_CI:
        return
    if text == "filelock<4":  # lmms-eval's, which has an environment of its own
        return
    floor, cap = (versions.bound(text, mark) for mark in (">=", "<"))
    assert versions.number(floor) <= versions.number(PINS[name])
    assert cap is not None or name not in CAPPED
    assert cap is None or versions.number(PINS[name]) < versions.number(cap)


def test_every_install_that_we_show_takes_the_pins() -> None:
    for file in (ROOT / "README.md", ROOT / "Makefile", *sorted((ROOT / "docs").rglob("*.md"))):
        for line in file.read_text(encoding="utf-8").splitlines():
            if re.search(r"pip install (?!tensorboard|'?tokensieve\b)", line):
                assert "--constraint constraints.txt" in line, f"{file.name}: {line}"


def test_what_is_installed_where() -> None:
    pinned = {
        "transformers": "5.24.0",
        "torch": "2.13.0",
        "click": "8.5",
        "pillow": "13.0.0",
        "x": "1",
    }
    lines, constraints = versions.wanted("floor", NEEDS, pinned)
    assert lines == ["transformers==5.18", "torch==2.13", "pillow==10.3"]
    assert constraints == ["x==1"]  # what no floor names stays as pinned
    lines, constraints = versions.wanted("5.20.0", NEEDS, pinned)
    assert lines == ["transformers==5.20.0", "torch>=2.13,<3", "pillow>=10.3,<14"]
    assert constraints == ["torch==2.13.0", "pillow==13.0.0", "x==1"]


def test_the_newest_is_below_the_cap() -> None:
    assert versions.newest(["6.0.0", "5.9.1", "5.18.0"], ">=5.18,<6") == "5.18.0"
    assert versions.newest([], ">=5.18,<6") is None


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """The tool without pip or tests: which releases there are, and on which the suites fail."""
    ran = []

    def of(releases, broken=(), uninstallable=()):
        def run(name, python):
            ran.append(name)
            release = "5.18.0" if name == "floor" else name
            told = {"Python": "3", "transformers": release, "torch": "2", "numpy": "1"}
            return versions.Row(name, told, {"pairs": "3 passed"}, "see a log", name in broken)

        monkeypatch.setattr(versions, "offered", lambda package: list(releases))
        monkeypatch.setattr(versions, "run", run)
        monkeypatch.setattr(
            versions,
            "environment",
            lambda name, *_: "no such wheel" if name in uninstallable else tmp_path,
        )
        return ran

    monkeypatch.setattr(versions, "pins", lambda text: {"transformers": "5.24.0"})
    return of


AHEAD, SAME = ["6.1.0", "5.25.0", "5.24.0"], ["5.24.0", "5.18.0"]


@pytest.mark.parametrize(
    ("releases", "broken", "code", "told"),
    [
        (SAME, (), 0, "not run again: 5.24.0 is the pinned one"),
        (AHEAD, (), 0, "3 passed"),
        (AHEAD, ("5.25.0",), 0, "FAILED on 5.25.0: newer than the pinned 5.24.0: told, not fatal"),
        (AHEAD, ("floor",), 1, "FAILED on floor: see a log"),
        ([], ("floor",), 0, "not run: the index does not answer"),
    ],
)
def test_what_fails_the_run(machine, capsys, releases, broken, code, told) -> None:
    ran = machine(releases, broken)
    assert versions.main([]) == code
    assert told in capsys.readouterr().out
    assert ran == ([] if not releases else ["floor", "5.25.0"] if releases is AHEAD else ["floor"])


def test_a_newer_release_fails_a_strict_run(machine) -> None:
    machine(AHEAD, broken=["5.25.0"])
    assert versions.main(["newest", "--strict"]) == 1
    assert versions.main(["floor", "--strict"]) == 0


def test_what_cannot_be_installed_fails_where_it_must_work(machine, capsys) -> None:
    machine(AHEAD, uninstallable=["5.25.0", "5.20.0"])
    assert versions.main(["newest"]) == 0
    assert "FAILED on 5.25.0" in capsys.readouterr().out
    assert versions.main(["5.20.0"]) == 1
    assert "could not be installed: no such wheel" in capsys.readouterr().out


def test_the_page_is_what_was_counted(machine, tmp_path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(
        '<s><testcase classname="tests.contract.test_pairs" name="a"/>'
        '<testcase classname="contract.test_pairs.TestX" name="b"><skipped/></testcase>'
        '<testcase classname="unit.test_other" name="c"><failure/></testcase></s>'
    )
    assert versions.cells(report, {"pairs": ["test_pairs"]}) == {"pairs": "1 passed, 1 skipped"}
    whole = {versions.WHOLE: "1 passed, 1 failed, 1 skipped"}
    assert versions.cells(report, {versions.WHOLE: []}) == whole
    machine(SAME)
    versions.main(["floor", "--out", str(tmp_path / "page.md"), "--whole", str(report)])
    page = (tmp_path / "page.md").read_text()
    assert "| floor | 3 | 5.18.0 | 2 | 1 |  | 3 passed | see a log |" in page
    assert "| 1 passed, 1 failed, 1 skipped |" in page


def test_every_suite_of_the_matrix_is_there() -> None:
    assert {"exactness", "stages", "pairs", "sieve", "calls", "turns"} <= set(versions.SUITES)
    for name, pattern in versions.SUITES.items():
        assert sorted(ROOT.glob(pattern)), name
