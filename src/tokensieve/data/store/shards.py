"""One shard of a feature store: the crops of some consecutive pictures, in one safetensors file.

T tokens of all crops together, n crops, L tokens of a crop, C width, H x V pixels of a crop.
Tensors: `tokens` (T, C); `offsets` (n + 1), where each crop begins; `grids` (n, 2), 0 where a crop
has none; `valid` (T), only where some token never reaches the LLM; `pixels` (n, 3, H, V), only
where asked for. The metadata holds one record per picture, skipped ones too, and a content hash.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tokensieve.errors import UnsupportedError, WeightsError
from tokensieve.fields import as_fields, option
from tokensieve.files import staged

SKIPPED = "skipped"
NONFINITE = "Expected finite "  # how the error of a picture begins that the dtype cannot hold


@dataclass(frozen=True)
class Crop:
    """The tokens of one crop, as they are stored.

    grid: (rows, columns), None if it has none. valid: None where every token is real.
    """

    tokens: Tensor
    grid: tuple[int, int] | None = None
    valid: Bool[Tensor, "L"] | None = None
    pixels: UInt8[Tensor, "3 H V"] | None = None


@dataclass(frozen=True)
class Record:
    """One picture of the listing: where it came from, and what was wrong with it, if anything."""

    picture: int  # its number in the listing
    source: str
    key: str
    sha256: str
    width: int = option(0, low=0)
    height: int = option(0, low=0)
    crops: int = option(0, low=0, high=2**31)
    error: str = ""


@dataclass(frozen=True)
class ShardInfo:
    """What a shard says of itself, without its tokens."""

    name: str
    records: tuple[Record, ...]
    grids: Int[Tensor, "n 2"]
    tokens: int
    content: str
    size: int  # bytes of the file


@dataclass(frozen=True)
class Layout:
    """What every shard of a store holds, by its `store.json`."""

    width: int
    dtype: str
    pixels: bool


def shard_name(number: int) -> str:
    """The file name of shard `number`."""
    return f"shard-{number:06d}.safetensors"


def as_bytes(pixels: Float[Tensor, "*any"]) -> UInt8[Tensor, "*any"]:
    """Pixels in [0, 1] as they are stored."""
    return (pixels.clamp(0, 1) * 255).round().to(torch.uint8)


def write_shard(
    path: Path, records: Sequence[Record], crops: Sequence[Crop], width: int, dtype: torch.dtype
) -> None:
    """Write a shard, whole or not at all.

    Raises `UnsupportedError` if crops' pixels differ in size, `ConfigError` where the disk refuses.
    """
    lengths = [len(crop.tokens) for crop in crops]
    grids = [crop.grid or (0, 0) for crop in crops]
    tensors: dict[str, Tensor] = {
        "tokens": torch.cat([torch.empty(0, width, dtype=dtype), *(c.tokens for c in crops)]),
        "offsets": torch.tensor([0, *accumulate(lengths)]),
        "grids": torch.tensor(grids, dtype=torch.int32).view(-1, 2),
    }
    if any(crop.valid is not None for crop in crops):
        tensors["valid"] = torch.cat([_valid(crop) for crop in crops])
    pixels = [crop.pixels for crop in crops if crop.pixels is not None]
    if pixels:
        if len({part.shape for part in pixels}) > 1:
            sizes = sorted({f"{part.shape[-1]} x {part.shape[-2]}" for part in pixels})
            raise UnsupportedError(
                f"Expected crops of one size to store their pixels. Got {', '.join(sizes)}. "
                "Extract without --pixels: this model reads each picture at a size of its own."
            )
        tensors["pixels"] = torch.stack(pixels)
    told = json.dumps([asdict(record) for record in records])
    # One entry only: safetensors writes several in any order, and equal shards are equal bytes.
    metadata = {"shard": json.dumps({"content": _content(told, tensors), "records": told})}
    with staged(path) as part:
        save_file(tensors, part, metadata=metadata)


def _valid(crop: Crop) -> Tensor:
    if crop.valid is not None:
        return crop.valid
    return torch.ones(len(crop.tokens), dtype=torch.bool)


def _content(told: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(told.encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        raw: Any = value.contiguous().view(-1).view(torch.uint8).numpy()
        digest.update(raw)
    return digest.hexdigest()


def read_info(path: Path) -> ShardInfo:
    """What the shard at `path` says of itself. Raises `WeightsError` if it is damaged."""
    with _opened(path) as file:
        content, told = _metadata(file)
        grids = file.get_tensor("grids").clone()
        tokens = file.get_slice("tokens").get_shape()[0]
        return ShardInfo(path.name, _records(told), grids, tokens, content, path.stat().st_size)


class Shard:
    """A shard's tensors, backed by the file: pages are read when they are looked at.

    Held against the store's `layout`, its own counts and, once, its bytes against `content`, the
    hash that was taken when it was written ("" for none). Raises `WeightsError` if it is damaged.
    """

    def __init__(self, path: Path, layout: Layout, content: str) -> None:
        with _opened(path) as file:
            stored, told = _metadata(file)
            self.records = _records(told)
            found: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            _check_tensors(found, layout, len(self.records))
            self._tokens: Float[Tensor, "T C"] = found["tokens"]
            self._offsets: list[int] = found["offsets"].tolist()
            self._grids: list[list[int]] = found["grids"].tolist()
            _check_counts(self._offsets, self._grids, len(self._tokens), self.records)
            self._valid, self._pixels = found.get("valid"), found.get("pixels")
            if content and (stored != content or _content(told, found) != content):
                raise ValueError("other bytes than were written")

    def __len__(self) -> int:
        return len(self._grids)

    @property
    def finite(self) -> bool:
        """Whether all tokens are; looks at each."""
        return all(_finite(part) for part in torch.split(self._tokens, 1 << 12))

    def crop(self, row: int) -> Crop:
        """Crop number `row`, not copied."""
        first, last = self._offsets[row], self._offsets[row + 1]
        h, w = self._grids[row]
        return Crop(
            self._tokens[first:last],
            (h, w) if h * w else None,
            None if self._valid is None else self._valid[first:last],
            None if self._pixels is None else self._pixels[row],
        )


def _finite(values: Tensor) -> bool:
    """NaN and Inf survive a sum; where it is not finite, an overflow perhaps, all are looked at."""
    whole = bool(torch.isfinite(values.sum(dtype=torch.float32)))
    return whole or bool(torch.isfinite(values).all())


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The shard's file; whatever is wrong with it inside the block becomes `WeightsError`."""
    try:
        if not path.is_file():
            raise OSError("no such file")
        with safe_open(path, framework="pt") as file:
            yield file
    # what safetensors, JSON and tensors of a wrong shape or type raise
    except (
        OSError, SafetensorError, LookupError, TypeError, ValueError, RuntimeError, AttributeError,
        OverflowError,
    ) as error:  # fmt: skip
        raise damaged(path, error) from error


def _metadata(file: Any) -> tuple[str, str]:
    """(content hash, records as JSON)."""
    told = json.loads((file.metadata() or {})["shard"])
    content, records = told["content"], told["records"]
    if not isinstance(content, str) or not isinstance(records, str):
        raise TypeError("no hash and records")
    return content, records


def _records(told: str) -> tuple[Record, ...]:
    return tuple(Record(**as_fields(Record, record)) for record in json.loads(told))


def _check_tensors(found: dict[str, Tensor], layout: Layout, pictures: int) -> None:
    """Raise `ValueError` for tensors of other names, shapes or types than the store's."""
    n = len(found["grids"])
    tokens = len(found["tokens"])
    wanted: dict[str, tuple[str, tuple[int, ...]]] = {
        "tokens": (layout.dtype, (tokens, layout.width)),
        "offsets": ("int64", (n + 1,)),
        "grids": ("int32", (n, 2)),
    }
    if "valid" in found:
        wanted["valid"] = ("bool", (tokens,))
    if layout.pixels and n:
        wanted["pixels"] = ("uint8", (n, 3, *found["pixels"].shape[2:]))
    if names := found.keys() ^ wanted.keys():
        raise ValueError(f"unlike its store, '{min(names)}' in one of both alone")
    for name, (dtype, shape) in wanted.items():
        got = (str(found[name].dtype).removeprefix("torch."), tuple(found[name].shape))
        if got != (dtype, shape):
            raise ValueError(f"'{name}' as {got[0]} {got[1]} instead of {dtype} {shape}")


def _check_counts(
    offsets: list[int], grids: list[list[int]], tokens: int, records: Sequence[Record]
) -> None:
    """Raise `ValueError` where numbers of crops and tokens contradict each other."""
    crops = sum(record.crops for record in records)
    if crops != len(grids):
        raise ValueError(f"records of {crops} crops and {len(grids)} grids")
    if offsets[0] != 0 or offsets[-1] != tokens or any(b < a for a, b in pairwise(offsets)):
        raise ValueError(f"crops that do not cover its {tokens} tokens in order")
    for (first, last), (rows, columns) in zip(pairwise(offsets), grids, strict=True):
        if min(rows, columns) < 0 or rows * columns not in (0, last - first):
            raise ValueError(f"a grid of {rows} x {columns} over {last - first} tokens")


def damaged(path: Path, error: object) -> WeightsError:
    """The error for a shard that is not whole."""
    said = " ".join(str(error).split()).rstrip(".")[:300]
    return WeightsError(
        f"Expected a whole shard at {path}. Got: {said}. Delete it and run extract again: only "
        "its pictures are read anew."
    )
