"""What a feature store was made with: `store.json`, written before anything else."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokensieve.errors import ConfigError, WeightsError
from tokensieve.fields import as_fields, option, read_object, shown
from tokensieve.files import left_behind, remove_tree, write_text
from tokensieve.folders import Kind, check_ours
from tokensieve.types import EncoderInfo

STORE = "store.json"
FORMAT = 1
DTYPES = ("float16", "bfloat16")
_ONLY_TOLD = ("model", "tower")  # other names of the same weights; hashes that others repeat
FEATURES = Kind("a feature store", lambda folder: STORE in os.listdir(folder), own=True)
_CONTENT = "listing.content"  # stores of before it was told do without


@dataclass(frozen=True)
class _Identity:
    """What `store.json` may hold; some of it stores of your own do without."""

    format: int
    encoder: EncoderInfo
    dtype: str = option(choices=DTYPES)
    chunk: int = option(low=1)
    pixels: bool = False
    compute: str | None = None
    model: str | None = None
    weights: str | None = None
    tower: Mapping[str, str] | None = None
    processor: Mapping[str, Any] | None = None
    listing: Mapping[str, Any] | None = None
    prompt: str | None = None  # the site "llm": how a question stands before its picture


def make_identity(encoder: EncoderInfo, *, dtype: str, chunk: int, **more: Any) -> dict[str, Any]:
    """The record of a store; all of it as JSON would give it back."""
    record = {
        "format": FORMAT,
        "encoder": dataclasses.asdict(encoder),
        "dtype": dtype,
        "chunk": chunk,
        **more,
    }
    return dict(json.loads(json.dumps(record)))


def begin(folder: Path, identity: dict[str, Any], *, repaired: bool = False) -> None:
    """Make the store's folder, or make sure that it is this store's.

    repaired: the bytes under the listing's keys may have changed; what they are now is recorded.

    Raises `ConfigError` if it was begun with anything else, or holds other files.
    """
    path = folder / STORE
    check_ours(folder, FEATURES)
    if not path.exists():
        _write(path, identity)
    before, now = _flat(read_identity(folder)), _flat(identity)
    known = before.setdefault(_CONTENT, now.get(_CONTENT))
    if repaired:
        before[_CONTENT] = now.get(_CONTENT)
    different = [
        f"{name}={_short(now.get(name))} (there: {_short(before.get(name))})"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name) and name.partition(".")[0] not in _ONLY_TOLD
    ]
    if different and all(name.startswith(_CONTENT) for name in different):
        raise ConfigError(
            f"Expected the pictures that the store in {folder} was begun with. Got files of the "
            "same names and of other sizes or bytes. Choose another --out, or pass --retry-skipped "
            "if some that were skipped have been repaired."
        )
    if different:
        raise ConfigError(
            f"Expected what the store in {folder} was begun with. Got {'; '.join(different[:4])}. "
            "Choose another --out, or delete the folder."
        )
    if known != now.get(_CONTENT):
        _write(path, identity)


def _write(path: Path, identity: dict[str, Any]) -> None:
    write_text(path, json.dumps(identity, indent=1) + "\n")


def read_identity(folder: Path) -> dict[str, Any]:
    """The record of the store in `folder`. Raises `WeightsError` if there is none."""
    path = folder / STORE
    try:
        path.stat()
    except (OSError, ValueError) as error:  # not there, a name too long, or with NUL
        raise WeightsError(
            f"Expected a feature store, with a {STORE}, at {shown(str(folder))}. Got none. "
            "Make one with `tokensieve extract`."
        ) from error
    again = "Delete the store and extract again."
    record = read_object(path, "what the store was made with", WeightsError, again)
    if record.get("format") != FORMAT:
        raise WeightsError(
            f"Expected a store of format {FORMAT} at {folder}. Got {shown(record.get('format'))}. "
            "Extract again with this version."
        )
    try:
        as_fields(_Identity, record)
    except ConfigError as error:
        raise WeightsError(f"Expected a whole {path}. Got: {error} {again}") from error
    return record


def remove_leftovers(folder: Path, mine: set[str]) -> None:
    """Remove what dead processes of this machine left half written of the files named in `mine`."""
    for path in folder.glob(".*.part*"):
        stem, suffix = left_behind(path.name) or ("", "")
        if path.is_dir() and f"{stem}.safetensors" in mine:
            remove_tree(path)
        elif f"{stem}{suffix}" in mine:
            path.unlink(missing_ok=True)


def _flat(record: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in record.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
