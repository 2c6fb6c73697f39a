"""The package as users get it: built, looked into, installed apart from this folder and tried.

.venv/bin/python .ci/wheel.py [--tag v0.1.0]

Leaves the archives in dist/ and the environment in .venvs/wheel. With a tag, the version that is
built must be the tag's, and the changelog must have its heading.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DIST, VENV = ROOT / "dist", ROOT / ".venvs" / "wheel"
PYTHON = VENV / "bin" / "python"
LIMIT = 28_000_000  # bytes of an archive: the weights of nano 2 may have 16 MB, all else 12
SDIST_NEEDS = ("pyproject.toml", "LICENSE", "CITATION.cff", "Makefile", "src/tokensieve/py.typed")
SDIST_LEAVES = (
    "results/", "docs/results/", "docs/figures/", "tests/lab/", "tests/docs/", "runs/", "out/",
)  # fmt: skip
# Every module of the package: it imports, or says which extra it is missing.
IMPORTS = """
import importlib, pkgutil, sys, tokensieve
from tokensieve.errors import MissingPackageError
wrong, missing, count = [], 0, 0
if not tokensieve.__file__.startswith(sys.prefix):
    wrong.append(f"tokensieve is that of {tokensieve.__file__}, not the installed one")
for module in pkgutil.walk_packages(tokensieve.__path__, "tokensieve.", onerror=lambda name: None):
    if module.name.endswith("__main__"):
        continue
    count += 1
    try:
        importlib.import_module(module.name)
    except MissingPackageError as error:
        missing += 1
        if "tokensieve[" not in str(error):
            wrong.append(f"{module.name}: names no extra: {error}")
    except Exception as error:
        wrong.append(f"{module.name}: {type(error).__name__}: {error}")
print(f"{count} modules import without extras, {missing} of them name the one they lack")
sys.exit("\\n".join(wrong) or None)
"""


def data_files(library: Path = ROOT / "src" / "tokensieve") -> list[str]:
    """What lies in the library and is no Python, as a wheel names it."""
    found = (path for path in library.rglob("*") if path.is_file())
    data = (path for path in found if path.suffix not in (".py", ".pyc"))
    return sorted(path.relative_to(library.parent).as_posix() for path in data)


def wheel_problems(names: Iterable[str], needs: Iterable[str]) -> Iterator[str]:
    """What a wheel holds that it should not, or lacks of what it `needs`."""
    names = set(names)
    for name in sorted(names):
        if not re.match(r"tokensieve(-[^/]+\.dist-info)?/", name):
            yield f"the wheel holds {name}, which is no part of the library"
        if name.endswith((".pyc", ".pkl", ".pt", ".bin")):
            yield f"the wheel holds {name}: compiled or pickled"
    yield from (f"the wheel lacks {name}" for name in needs if name not in names)


def sdist_problems(names: Iterable[str]) -> Iterator[str]:
    """What an sdist holds that it should not, or lacks; names without the leading folder."""
    names = set(names)
    for name in sorted(names):
        if name.startswith(SDIST_LEAVES) or re.match(r"lab/.*/weights/", name):
            yield f"the sdist holds {name}, which stays in the repository"
    yield from (f"the sdist lacks {name}" for name in SDIST_NEEDS if name not in names)


def link_problems(page: str) -> Iterator[str]:
    """Links of a long description that lead nowhere outside the repository."""
    links = re.findall(r"\]\(([^)\s]+)", page)
    links += re.findall(r"""\b(?:src|srcset|href)=["']([^"'\s]+)""", page)
    for link in links:
        if not re.match(r"https?://|mailto:|#", link):
            yield f"the description links to {link}, which is not on the index"


def tag_problems(tag: str, version: str, changelog: str) -> Iterator[str]:
    """What of a tag does not fit the version built and its changelog."""
    if tag != f"v{version}":
        yield f"the tag is {tag}, the version {version}"
    if not re.search(
        rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$", changelog, re.MULTILINE
    ):
        yield f'CHANGELOG.md has no heading "## [{version}] - YYYY-MM-DD"'


def size_problems(sizes: Mapping[str, int]) -> Iterator[str]:
    """Archives beyond the limit."""
    for name, size in sizes.items():
        if size > LIMIT:
            yield f"{name} has {size / 1e6:.1f} MB; the limit is {LIMIT / 1e6:.0f}"


def run(*command: str | Path, cwd: Path = ROOT, **more: str) -> str:
    """A command's stdout; where it fails the run ends with all it said."""
    here = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")} | more
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=here,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        shown = " ".join(str(part) for part in command)[:200]
        raise SystemExit(f"{done.stdout}{done.stderr}\nFAILED: {shown}")
    return done.stdout


def build() -> tuple[Path, Path]:
    """sdist and, from the sdist, wheel."""
    shutil.rmtree(DIST, ignore_errors=True)
    pins = str(ROOT / "constraints.txt")
    run(sys.executable, "-m", "build", "--outdir", DIST, ROOT, PIP_CONSTRAINT=pins)
    run(sys.executable, "-m", "twine", "check", "--strict", *sorted(DIST.iterdir()))
    return next(DIST.glob("*.tar.gz")), next(DIST.glob("*.whl"))


def look(sdist: Path, wheel: Path, tag: str | None) -> list[str]:
    """What is wrong with the archives."""
    with tarfile.open(sdist) as tar, zipfile.ZipFile(wheel) as archive:
        inside = [member.name.partition("/")[2] for member in tar if member.isfile()]
        held = archive.namelist()
        metadata = next(name for name in held if name.endswith(".dist-info/METADATA"))
        page = archive.read(metadata).decode().partition("\n\n")[2]
    wrong = [*wheel_problems(held, data_files()), *sdist_problems(inside), *link_problems(page)]
    wrong += size_problems({path.name: path.stat().st_size for path in (sdist, wheel)})
    if tag:
        changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
        wrong += tag_problems(tag, wheel.name.split("-")[1], changelog)
    return wrong


def install(wheel: Path, extra: str = "") -> None:
    """The wheel into .venvs/wheel, the rest as pinned."""
    pip = [PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run(*pip, "--constraint", ROOT / "constraints.txt", f"tokensieve{extra} @ {wheel.as_uri()}")


def try_out(wheel: Path) -> None:
    """Install into a new environment and do, in an empty folder, what a newcomer does first."""
    shutil.rmtree(VENV, ignore_errors=True)
    run(sys.executable, "-m", "venv", VENV)
    install(wheel)
    block = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    if block is None:
        raise SystemExit("README.md has no python block")
    with tempfile.TemporaryDirectory() as name:
        empty, offline = Path(name), {"HF_HUB_OFFLINE": "1"}
        print(run(PYTHON, "-c", IMPORTS, cwd=empty, **offline), end="")
        install(wheel, "[plots]")
        print(run(PYTHON, "-c", block[1], cwd=empty, **offline), end="")
        for verb in ("methods", "demo"):
            said = run(VENV / "bin" / "tokensieve", verb, cwd=empty, **offline)
            print(f"tokensieve {verb}: {len(said.splitlines())} lines")


def main() -> int:
    """Command line; 1 if the package is not what users should get."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tag", help="the tag that is to be released, such as v0.1.0")
    tag = parser.parse_args().tag
    sdist, wheel = build()
    wrong = look(sdist, wheel, tag)
    for path in (sdist, wheel):
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1e6:.1f} MB")
    if wrong:
        print("\n".join(f"WRONG: {line}" for line in wrong))
        return 1
    try_out(wheel)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
