"""What is said of the package in several places agrees, and what checks its archives bites."""

import importlib.util
import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import tokensieve

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("wheel", ROOT / ".ci" / "wheel.py")
wheel = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(wheel)

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
HOME = PYPROJECT["project"]["urls"]["Homepage"]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
DATA = wheel.data_files()
MAKEFILES = [ROOT / "Makefile", *(ROOT / "lab").rglob("*.mk")]
TARGETS = {
    target
    for file in MAKEFILES
    for target in re.findall(r"^([a-z][a-z0-9-]*):.*## ", file.read_text("utf-8"), re.MULTILINE)
}


def test_version_licence_and_address_are_said_once() -> None:
    assert str(CITATION["version"]) == tokensieve.__version__
    assert CITATION["license"] == PYPROJECT["project"]["license"]
    assert CITATION["repository-code"] == HOME
    assert all(url.startswith(HOME) for url in PYPROJECT["project"]["urls"].values())
    for file in ("SECURITY.md", ".github/ISSUE_TEMPLATE/config.yml"):
        repositories = re.findall(r"https://github\.com/[\w-]+/[\w-]+", (ROOT / file).read_text())
        assert repositories == [HOME] * len(repositories) != [], file


@pytest.mark.parametrize("file", [*WORKFLOWS, ROOT / ".ci" / "run"], ids=lambda file: file.name)
def test_ci_calls_targets_that_there_are(file) -> None:
    called = set(re.findall(r"^\s*(?:- run: )?make ([\w-]+)", file.read_text(), re.MULTILINE))
    assert called, "calls no target"
    assert called <= TARGETS


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_workflows_may_only_read_and_end(file) -> None:
    flow = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert flow["permissions"] == {"contents": "read"}
    for name, job in flow["jobs"].items():
        assert job["timeout-minutes"] <= 60, name
        assert job.get("permissions", {}) in ({}, {"id-token": "write"}), name
        for step in job["steps"]:
            assert re.search(r"@(v\d+|release/v\d+)$", step.get("uses", "@v0")), step


@pytest.mark.parametrize("file", FORMS, ids=lambda file: file.name)
def test_issue_forms_are_forms(file) -> None:
    form = yaml.safe_load(file.read_text(encoding="utf-8"))
    if file.stem == "config":
        assert {*form["contact_links"][0]} == {"name", "url", "about"}
        return
    assert {"name", "description", "body"} <= {*form}
    ids = [part["id"] for part in form["body"]]
    assert len({*ids}) == len(ids)
    assert all(part["attributes"]["label"] for part in form["body"])


@pytest.mark.parametrize(
    ("told", "problems"),
    [
        ("the wheel holds lab/run.py", wheel.wheel_problems(["lab/run.py"], [])),
        ("the wheel holds tokensieve/a.pkl", wheel.wheel_problems(["tokensieve/a.pkl"], [])),
        ("the wheel lacks tokensieve/py.typed", wheel.wheel_problems([], DATA)),
        ("the sdist holds results/a.json", wheel.sdist_problems(["results/a.json"])),
        ("the sdist holds lab/nano/weights/x", wheel.sdist_problems(["lab/nano/weights/x"])),
        ("the sdist holds tests/lab/test_a.py", wheel.sdist_problems(["tests/lab/test_a.py"])),
        ("the sdist lacks LICENSE", wheel.sdist_problems([])),
        ("links to docs/a.png", wheel.link_problems("![a](docs/a.png)")),
        ("links to docs/b.png", wheel.link_problems('<img src="docs/b.png">')),
        ("x.whl has 29.0 MB", wheel.size_problems({"x.whl": 29_000_000})),
        ("the tag is v0.2.0, the version 0.1.0", wheel.tag_problems("v0.2.0", "0.1.0", "")),
        ("has no heading", wheel.tag_problems("v0.1.0", "0.1.0", "## [0.1.0]\n")),
    ],
)
def test_what_is_wrong_with_an_archive_is_told(told, problems) -> None:
    assert told in "\n".join(problems)


def test_what_is_right_is_passed() -> None:
    assert not [*wheel.wheel_problems([*DATA, "tokensieve-1.dist-info/METADATA"], DATA)]
    assert not [*wheel.sdist_problems([*wheel.SDIST_NEEDS, "tests/unit/test_package.py"])]
    assert not [*wheel.link_problems("[a](#b) ![c](https://d/e.png) <a href='https://f'>")]
    assert not [*wheel.size_problems({"x.whl": wheel.LIMIT})]
    assert not [*wheel.tag_problems("v0.1.0", "0.1.0", "# C\n## [0.1.0] - 2026-11-28\n")]


def test_a_wheel_without_its_presets_is_told() -> None:
    held = [name for name in DATA if "/presets/" not in name]
    lost = {name for name in DATA if "/presets/" in name}
    assert {name.rpartition("/")[2] for name in lost} >= {"default.json", "stage1.json"}
    told = {*wheel.wheel_problems(held, DATA)}
    assert told == {f"the wheel lacks {name}" for name in lost}


def test_data_of_the_library_is_all_that_is_no_python(tmp_path) -> None:
    for name in ("a.py", "__pycache__/a.pyc", "py.typed", "train/presets/default.json"):
        (tmp_path / "tokensieve" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tokensieve" / name).touch()
    found = wheel.data_files(tmp_path / "tokensieve")
    assert found == ["tokensieve/py.typed", "tokensieve/train/presets/default.json"]


def test_arguments_are_read_before_anything_is_built(monkeypatch) -> None:
    monkeypatch.setattr(wheel, "build", lambda: pytest.fail("built"))
    monkeypatch.setattr(sys, "argv", ["wheel.py", "--tga", "v0.1.0"])
    with pytest.raises(SystemExit, match="2"):
        wheel.main()


def test_what_stays_in_the_repository_is_left_out_of_the_sdist() -> None:
    sdist = PYPROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]
    kept = tuple(f"{name}/" for name in sdist["only-include"])
    for folder in wheel.SDIST_LEAVES:
        assert not folder.startswith(kept) or f"/{folder[:-1]}" in sdist["exclude"], folder


def test_links_of_the_readme_lead_somewhere_from_the_index() -> None:
    """The substitutions of pyproject.toml, on pictures, pages and HTML."""
    hook = PYPROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    page += '[![a](docs/a.svg)](docs/b.md#c) <a href="LICENSE"><img src="docs/d.png"></a> [e](#f)'
    assert [*wheel.link_problems(page)]
    for change in hook["substitutions"]:
        page = re.sub(change["pattern"], change["replacement"], page)
    assert [*wheel.link_problems(page)] == []
    raw, blob = "https://raw.githubusercontent.com/", f"({HOME}/blob/v$HFPR_VERSION/docs/b.md#c)"
    assert page.count(raw) == len(re.findall(r"!\[|<img|<source", page))
    assert blob in page
    assert "[e](#f)" in page
