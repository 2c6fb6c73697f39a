"""Results are files: one JSON per (model, method, seed, kind) that says how it was made."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokensieve.data.provenance import git, version_of
from tokensieve.errors import InputError
from tokensieve.files import write_text
from tokensieve.folders import Kind, check_ours, told_in

Record = dict[str, Any]
RECORDS = Kind(
    "records", lambda folder: any(map(told_in("", "config"), folder.glob("*.json"))), own=True
)
_PACKAGES = ("tokensieve", "torch", "transformers", "numpy", "pillow", "safetensors")


def identity(config: Mapping[str, Any]) -> str:
    """Short hash of everything that decides a record's numbers: same hash, same result."""
    text = json.dumps(config, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


TOLD = "trained_by"  # of a config: what is told of the weights, which decides no number


def weights_hash(plan: Mapping[str, Any]) -> dict[str, str]:
    """Of a method's own weights under "method", where a file or folder of them is named."""
    path = plan.get("weights")
    if isinstance(path, str | Path) and Path(path).exists():
        return {"method": file_hash(Path(path))}
    return {}


def file_hash(path: Path) -> str:
    """Short hash of a weights file or, for a folder, of every file in it by sorted name; not of
    what is only told of them: cards, and the config's `trained_by`."""
    digest = hashlib.sha256()
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    for file in files:
        if file.name != "README.md":
            digest.update(file.name.encode())
            digest.update(_what_counts(file))
    return digest.hexdigest()[:16]


def _what_counts(file: Path) -> bytes:
    content = file.read_bytes()
    try:
        values = json.loads(content) if file.name == "config.json" else None
    except ValueError:
        return content
    if not isinstance(values, dict) or TOLD not in values:
        return content
    del values[TOLD]
    return (json.dumps(values, indent=2, sort_keys=True) + "\n").encode()


def provenance() -> Record:
    """Commit, versions and machine of this run."""
    return {
        "commit": git("rev-parse", "HEAD"),
        "uncommitted": git("status", "--porcelain", "--", "src", "lab").splitlines(),
        "versions": {name: version_of(name) for name in _PACKAGES}
        | {"python": platform.python_version()},
        "machine": {
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "load": round(os.getloadavg()[0], 1),  # what else ran: read times with it
            "system": platform.platform(),
        },
    }


def write(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record whole or not at all.

    Raises `ConfigError` where the disk refuses, or where the folder holds anything but records.
    """
    check_ours(path.parent, RECORDS)
    write_text(path, json.dumps(record, indent=1, allow_nan=False) + "\n")


def read(path: Path) -> Record:
    """A record from its file. Raises `InputError` if it is no record."""
    try:
        record = json.loads(path.read_text())
    except json.JSONDecodeError as problem:
        raise InputError(f"Expected a JSON record in {path}. Got {problem}. Re-run it.") from None
    if not isinstance(record, dict) or "config" not in record:
        raise InputError(f"Expected a record with a `config` in {path}. Re-run it.")
    return record


def read_all(folder: Path) -> Iterator[Record]:
    """Every record of a suite, by file name."""
    for path in sorted(folder.glob("*.json")):
        yield read(path)


def is_done(path: Path, config: Mapping[str, Any]) -> bool:
    """Whether `path` holds the record of exactly this config."""
    return path.exists() and read(path).get("identity") == identity(config)


def shorter(path: Path, config: Mapping[str, Any]) -> Record | None:
    """The record at `path` if it differs from `config` in having fewer pictures only, in whole
    batches: it need not be made again, only added to."""
    if not path.exists():
        return None
    record = read(path)
    had = record["config"].get("pictures", 0)
    whole = had % int(config["batch"]) == 0 and 0 < had < config["pictures"]
    return record if whole and {**config, "pictures": had} == record["config"] else None


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
