"""The contracts that depend on other libraries, on several of their versions.

.venv/bin/python .ci/versions.py [floor|newest|RELEASE ...] [--out FILE] [--whole FILE] [--strict]

Each version gets an environment of its own under .venvs/. "floor": every floor of pyproject.toml;
"newest": the newest Transformers that the index gives within our cap; RELEASE: that Transformers,
such as 5.20.0. All but the floor take the rest from constraints.txt.

A failure on a release newer than the pinned one is told loudly and does not fail the run; any
other fails it, and with --strict all do. An index that does not answer is told, and fails nothing.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
VENVS = ROOT / ".venvs"
SUITES = {
    "exactness": "tests/contract/test_exactness*.py",
    "stages": "tests/contract/test_stages*.py",
    "pairs": "tests/contract/test_pairs*.py",
    "sieve": "tests/unit/test_hf_sieve*.py",
    "calls": "tests/contract/test_calls*.py",
    "turns": "tests/contract/test_turns*.py",
}
WHOLE = "whole suite"
TOLD = ("transformers", "torch", "numpy")  # columns of the table
LOOSE = ("transformers", "tokenizers", "huggingface-hub", "safetensors", "click", "hf-xet")
EXTRAS = ("test",)


@dataclass
class Row:
    """What one environment gave."""

    name: str
    versions: Mapping[str, str] = field(default_factory=dict)
    cells: Mapping[str, str] = field(default_factory=dict)
    note: str = ""
    failed: bool = False


def number(release: str) -> tuple[int, ...]:
    """5.18.0+cpu as (5, 18, 0)."""
    return tuple(int(part) for part in re.findall(r"\d+", release.partition("+")[0]))


def plain(name: str) -> str:
    """A package's name as the index spells it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements(project: Mapping[str, object]) -> dict[str, str]:
    """Package -> specifier of what the project and its tests need, such as ">=5.18,<6"."""
    table: dict = project["project"]  # type: ignore[assignment]
    every = [*table["dependencies"]]
    for extra in EXTRAS:
        every += table["optional-dependencies"][extra]
    found = {}
    for text in every:
        name, specifier = re.fullmatch(r"([\w.-]+)\s*(.*)", text).groups()
        found[plain(name)] = specifier
    return found


def bound(specifier: str, mark: str) -> str | None:
    """The version behind ">=" or "<" of a specifier."""
    found = re.search(rf"{mark}\s*([\d.]+)", specifier)
    return found[1] if found else None


def pins(text: str) -> dict[str, str]:
    """Package -> version of a constraints file."""
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return {plain(line.partition("==")[0]): line.partition("==")[2] for line in lines if line}


def wanted(
    name: str, needs: Mapping[str, str], pinned: Mapping[str, str]
) -> tuple[list[str], list[str]]:
    """What to install for "floor" or a release of Transformers, and pip's constraints for it."""
    if name == "floor":
        lines = [f"{package}=={bound(spec, '>=')}" for package, spec in needs.items()]
        free = {*needs, *LOOSE}
    else:
        lines = [p + (f"=={name}" if p == "transformers" else spec) for p, spec in needs.items()]
        free = {*LOOSE}
    return lines, [f"{p}=={version}" for p, version in pinned.items() if p not in free]


def offered(package: str) -> list[str]:
    """Releases that the index gives, newest first; empty if it does not answer."""
    command = [sys.executable, "-m", "pip", "index", "versions", package, "--retries", "1"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    except subprocess.TimeoutExpired:
        return []
    found = re.search(r"Available versions: (.*)", done.stdout)
    return found[1].split(", ") if found and not done.returncode else []


def newest(releases: Sequence[str], specifier: str) -> str | None:
    """The newest of `releases` below the cap of `specifier`."""
    cap = number(bound(specifier, "<") or "999")
    return max((r for r in releases if number(r) < cap), key=number, default=None)


def environment(name: str, lines: Iterable[str], constraints: Iterable[str]) -> Path | str:
    """The Python of an environment with these requirements, or why there is none."""
    folder = VENVS / name
    python, mark, given = (folder / part for part in ("bin/python", "installed", "constraints.txt"))
    lines, text = sorted(lines), "".join(f"{line}\n" for line in sorted(constraints))
    told = "\n".join((*lines, text))
    if mark.is_file() and mark.read_text() == told:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for command in (
        [sys.executable, "-m", "venv", str(folder)],
        [*pip, "--constraint", str(given), *lines],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            wrong = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            return (wrong or done.stderr.splitlines() or ["pip gave no reason"])[-1]
        given.write_text(text)
    mark.write_text(told)
    return python


def run(name: str, python: Path) -> Row:
    """The suites in one environment."""
    found = {suite: sorted(ROOT.glob(pattern)) for suite, pattern in SUITES.items()}
    files = {suite: paths for suite, paths in found.items() if paths}
    report, log = VENVS / f"{name}.xml", VENVS / f"{name}.log"
    report.unlink(missing_ok=True)
    command = [str(python), "-m", "pytest", "-n", "2", "-p", "no:warnings", "--tb=short"]
    command += [f"--junitxml={report}", *(str(f) for found in files.values() for f in found)]
    here = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    with log.open("w") as out:
        code = subprocess.run(command, cwd=ROOT, env=here, stdout=out, stderr=out, check=False)
    row = Row(name, _installed(python), failed=code.returncode != 0)
    if report.is_file():
        row.cells = cells(
            report, {suite: [f.stem for f in found] for suite, found in files.items()}
        )
    if row.failed:
        row.note = f"see {log.relative_to(ROOT)}"
        sys.stdout.write("\n".join(log.read_text().splitlines()[-60:]) + "\n")
    return row


def cells(report: Path, modules: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Suite -> "N passed, N failed, N skipped", from pytest's report."""
    found: dict[str, dict[str, int]] = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        parts = case.get("classname", "").split(".")
        kinds = {child.tag for child in case}
        state = "failed" if kinds & {"failure", "error"} else "skipped"
        state = state if kinds & {"failure", "error", "skipped"} else "passed"
        for suite, stems in modules.items():
            if not stems or set(parts) & set(stems):
                counts = found.setdefault(suite, {"passed": 0, "failed": 0, "skipped": 0})
                counts[state] += 1
    return {
        suite: ", ".join(f"{count} {state}" for state, count in counts.items() if count)
        for suite, counts in found.items()
    }


def _installed(python: Path) -> dict[str, str]:
    code = (
        "import sys, importlib.metadata as m; print('{}.{}.{}'.format(*sys.version_info), "
        f"*(m.version(n) for n in {TOLD!r}))"
    )
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True)
    return dict(zip(("Python", *TOLD), done.stdout.split(), strict=True))


def verdict(row: Row, pinned: str) -> bool:
    """Whether a row fails the run: not if its Transformers is newer than the pinned one."""
    release = row.versions.get("transformers", row.name)
    ahead = row.name != "floor" and number(release) > number(pinned)
    if row.failed and ahead:
        row.note = f"newer than the pinned {pinned}: told, not fatal. {row.note}".strip()
    return row.failed and not ahead


def table(rows: Sequence[Row]) -> str:
    """A Markdown table of what was run where."""
    suites = [s for s in (WHOLE, *SUITES) if any(s in row.cells for row in rows)]
    heads = ["environment", "Python", *TOLD, *suites, "note"]
    lines = [heads, [":--"] * len(heads)]
    for row in rows:
        told = [row.versions.get(name, "") for name in ("Python", *TOLD)]
        lines.append([row.name, *told, *(row.cells.get(s, "") for s in suites), row.note])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def page(rows: Sequence[Row]) -> str:
    """docs/results/versions.md."""
    return (
        "# What was run on which versions\n"
        "Written by `make test-versions`; CI runs the floor and the newest besides the whole suite "
        "on\n[constraints.txt](../../constraints.txt). *floor*: every floor of pyproject.toml; "
        "other rows: that release of\nTransformers, the rest as pinned.\n\n" + table(rows) + "\n"
    )


def whole(report: Path) -> Row:
    """The row of the whole suite in this Python's environment, from pytest's report."""
    versions = {"Python": "{}.{}.{}".format(*sys.version_info)}
    versions |= {name: importlib.metadata.version(name) for name in TOLD}
    return Row("pinned", versions, cells(report, {WHOLE: []}))


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; 1 if a version that must work does not."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", default=["floor", "newest"], metavar="VERSION")
    parser.add_argument("--out", type=Path, help="write the table to this page too")
    parser.add_argument("--whole", type=Path, help="pytest's report of the whole suite, as a row")
    parser.add_argument("--strict", action="store_true", help="a newer release may fail the run")
    options = parser.parse_args(arguments)
    needs = requirements(tomllib.loads((ROOT / "pyproject.toml").read_text()))
    pinned = pins((ROOT / "constraints.txt").read_text())
    rows, fatal = [], False
    if options.whole and options.whole.is_file():
        rows.append(whole(options.whole))
    releases = offered("transformers")
    for name in options.names:
        row = _one(name, releases, needs, pinned)
        fatal |= verdict(row, pinned["transformers"]) or (options.strict and row.failed)
        rows.append(row)
    sys.stdout.write(table(rows) + "\n")
    for row in rows:
        if row.failed:
            sys.stdout.write(f"\n{'!' * 79}\n!! FAILED on {row.name}: {row.note}\n{'!' * 79}\n")
    if options.out and releases:
        options.out.write_text(page(rows), encoding="utf-8")
    return int(fatal)


def _one(
    name: str, releases: Sequence[str], needs: Mapping[str, str], pinned: Mapping[str, str]
) -> Row:
    """The row of a name given on the command line."""
    if not releases:
        return Row(name, note="not run: the index does not answer")
    if name == "newest":
        release = newest(releases, needs["transformers"])
        beyond = [r for r in releases if release and number(r) > number(release)]
        more = f"; {beyond[0]} is beyond our cap" if beyond else ""
        if release is None or number(release) <= number(pinned["transformers"]):
            return Row(name, note=f"not run again: {release} is the pinned one{more}")
        name = release
    python = environment(name, *wanted(name, needs, pinned))
    if isinstance(python, str):
        return Row(name, note=f"could not be installed: {python}", failed=True)
    return run(name, python)


if __name__ == "__main__":
    raise SystemExit(main())
