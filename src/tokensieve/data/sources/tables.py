"""Pictures in parquet files and in data sets of the `datasets` package."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokensieve.data.extras import need
from tokensieve.data.sources.content import in_parts, plain, spans_hash, spread
from tokensieve.data.sources.files import read_bytes
from tokensieve.errors import ConfigError, InputError, MissingPackageError, PictureError

GROUPS = 4  # row groups that stay in memory, so that neighbours are read once
GUESSES = ("image", "images", "picture", "img", "jpg", "png", "bytes")


class ParquetSource:
    """A column of pictures in parquet files: bytes, or a struct of bytes and path.

    A key is the row's number, after the file's name where there are several files. Raises
    `InputError` for a damaged file or one without rows, `ConfigError` for an unknown column.
    """

    def __init__(self, name: str, paths: Sequence[Path], column: str | None) -> None:
        parquet = need("pyarrow.parquet", "train", "to read parquet files")
        arrow = need("pyarrow", "train", "to read parquet files")
        self.name, self._paths, self._arrow = name, tuple(paths), arrow
        self._lock = threading.Lock()
        self._groups: OrderedDict[tuple[int, int], list[Any]] = OrderedDict()
        self._files, self._rows, keys = [], [], []
        for number, path in enumerate(self._paths):
            try:
                file = parquet.ParquetFile(path)
            except (OSError, arrow.ArrowException) as error:
                raise InputError(
                    f"Expected a parquet file at {path}. Got: {error}. Fetch it again."
                ) from error
            schema = file.schema_arrow
            fitting = [field.name for field in schema if _holds_pictures(arrow, field.type)]
            column = choose_column(str(path), column, schema.names, fitting)
            self._files.append(file)
            for group in range(file.num_row_groups):
                count = file.metadata.row_group(group).num_rows
                self._rows += [(number, group, row) for row in range(count)]
            prefix = f"{plain(path.name)}#" if len(self._paths) > 1 else ""
            keys += [f"{prefix}{row:08d}" for row in range(file.metadata.num_rows)]
        self.detail = self._column = column or ""
        self.keys: Sequence[str] = keys
        if not keys:
            raise InputError(f"Expected rows in {self._paths[0]}. Got none. Check the file.")

    def content(self) -> str:
        """Short hash of the files' sizes, and of places in them, footers among these."""
        return spans_hash(in_parts(self._paths))

    def read(self, index: int) -> bytes:
        """The picture file's bytes. Raises `PictureError` for an empty cell."""
        number, group, row = self._rows[index]
        with self._lock:
            if (number, group) not in self._groups:
                self._groups[number, group] = self._group(number, group)
                while len(self._groups) > GROUPS:
                    self._groups.popitem(last=False)
            cell = self._groups[number, group][row]
        return cell_bytes(cell, f"{self.name}/{self.keys[index]}", self._paths[number].parent)

    def _group(self, number: int, group: int) -> list[Any]:
        try:
            table = self._files[number].read_row_group(group, columns=[self._column])
            return list(table.column(0).to_pylist())
        except (OSError, self._arrow.ArrowException) as error:
            raise PictureError(
                f"Expected a whole row group {group} in {self._paths[number]}. Got: {error}. "
                "Fetch the file again."
            ) from error


class DatasetSource:
    """A data set of the hub or of a local folder, read with the `datasets` package.

    A key is the row's number. Raises `InputError` if it cannot be loaded, `ConfigError` for an
    unknown split or column.
    """

    def __init__(self, name: str, dataset: str, split: str | None, column: str | None) -> None:
        datasets = need("datasets", "datasets", "to read data sets")
        self.name = name
        table = _load(datasets, dataset, split)
        fitting = [
            key for key, kind in table.features.items() if isinstance(kind, datasets.Image)
        ] or [key for key in table.column_names if key in GUESSES]
        chosen = choose_column(dataset, column, table.column_names, fitting)
        if isinstance(table.features[chosen], datasets.Image):
            table = table.cast_column(chosen, datasets.Image(decode=False))
        self._table = table.select_columns([chosen])
        self.detail = self._column = chosen
        self._lock = threading.Lock()
        self.keys: Sequence[str] = [f"{row:08d}" for row in range(len(table))]
        if not self.keys:
            raise InputError(f"Expected rows in the data set {dataset}. Got none. Choose a split.")

    def content(self) -> str:
        """Short hash of the split's name and of some pictures' bytes."""
        digest = hashlib.sha256(str(self._table.split).encode())
        for index in spread(len(self.keys)):
            try:
                digest.update(hashlib.sha256(self.read(index)).digest())
            except (PictureError, OSError):
                digest.update(b"?")
        return digest.hexdigest()[:16]

    def read(self, index: int) -> bytes:
        """The picture file's bytes. Raises `PictureError` for an empty cell."""
        with self._lock:
            cell = self._table[index][self._column]
        return cell_bytes(cell, f"{self.name}/{self.keys[index]}", Path())


def _load(datasets: Any, dataset: str, split: str | None) -> Any:
    """The table of one split."""
    if int(datasets.__version__.partition(".")[0]) < 4:
        raise MissingPackageError(
            "Expected the package datasets 4 or newer, which runs no code that comes with a data "
            f"set. Got {datasets.__version__}. Run: pip install 'tokensieve[datasets]'."
        )
    folder = Path(dataset).expanduser()
    try:
        if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
            found = datasets.load_from_disk(str(folder))
        else:
            found = datasets.load_dataset(dataset)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        first = str(error).strip().partition("\n")[0]
        raise InputError(
            f"Expected a data set that `datasets` can load: '{dataset}'. Got: {first}. "
            "Check the name, or give a local folder."
        ) from error
    if not hasattr(found, "keys"):
        if split not in (None, str(found.split)):
            raise ConfigError(
                f"Expected no split for '{dataset}', which has one. Got '{split}'. Leave it out."
            )
        return found
    if split is None and len(found) == 1:
        return next(iter(found.values()))
    if split not in found:
        raise ConfigError(
            f"Expected a split of '{dataset}': {', '.join(found)}. Got {split or 'none'}. "
            f"Write hf:{dataset}:{next(iter(found))}."
        )
    return found[split]


def choose_column(
    where: str, asked: str | None, names: Sequence[str], fitting: Sequence[str]
) -> str:
    """The column of pictures: the one asked for, or the only likely one.

    Raises `ConfigError` that lists the columns.
    """
    if asked is not None and asked in names:
        return asked
    likely = [name for name in GUESSES if name in fitting] or list(fitting)
    if asked is None and likely and (likely[0] in GUESSES or len(likely) == 1):
        return likely[0]
    got = f"'{asked}', which is not there" if asked else "several or none that fit"
    raise ConfigError(
        f"Expected a column of pictures in {where}. Got {got}. "
        f"Choose one with --column: {', '.join(names)}."
    )


def _holds_pictures(arrow: Any, kind: Any) -> bool:
    types = arrow.types
    if types.is_struct(kind):
        return "bytes" in [field.name for field in kind]
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def cell_bytes(cell: Any, name: str, folder: Path) -> bytes:
    """The bytes a cell holds or names. Raises `PictureError` if it does neither."""
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    if isinstance(data, bytes) and data:
        return data
    if isinstance(cell, dict) and isinstance(cell.get("path"), str):
        return read_bytes(folder / cell["path"])
    got = "an empty cell" if not cell else f"a {type(cell).__name__} without bytes"
    raise PictureError(f"Expected the bytes of a picture in {name}. Got {got}. Check the table.")
