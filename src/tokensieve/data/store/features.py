"""Feature stores: what a frozen encoder says of many pictures, read through the page cache.

B crops of a batch, N of all, L tokens of a crop, C width, H x V pixels of a crop.
"""

from __future__ import annotations

import hashlib
import logging
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokensieve.data.store.groups import codes, grouped
from tokensieve.data.store.identity import FEATURES, begin, make_identity, read_identity
from tokensieve.data.store.manifest import Listed, Manifest, read_manifest, write_manifest
from tokensieve.data.store.shards import (
    Crop,
    Layout,
    Record,
    Shard,
    as_bytes,
    damaged,
    read_info,
    shard_name,
    write_shard,
)
from tokensieve.errors import EncoderMismatchError, InputError, NonFiniteError
from tokensieve.folders import claimed
from tokensieve.nn.config import encoder_from_dict
from tokensieve.types import EncoderInfo, Grid, Grids

CHUNK = 256
logger = logging.getLogger("tokensieve.data")


@dataclass(frozen=True)
class FeatureBatch:
    """Some crops of a store.

    features: float32, zeros where padded. valid: False where a token is padding or never reaches
    the LLM; None: every token is real. grids: (rows, columns) of each crop, None where some crop
    has none. pixels: in [0, 1], at the encoder's resolution; None where not asked for.
    """

    features: Float[Tensor, "B L C"]
    valid: Bool[Tensor, "B L"] | None
    grids: tuple[Grid, ...] | None
    pixels: Float[Tensor, "B 3 H V"] | None

    @property
    def valid_BL(self) -> Bool[Tensor, "B L"]:
        """The valid mask, all True where none was given."""
        if self.valid is not None:
            return self.valid
        return torch.ones(self.features.shape[:2], dtype=torch.bool, device=self.features.device)

    @property
    def grid(self) -> Grids | None:
        """The grid that all crops share, or one per crop."""
        if self.grids is None:
            return None
        return self.grids[0] if len(set(self.grids)) == 1 else self.grids

    def to(self, device: torch.device) -> FeatureBatch:
        """The same crops on `device`."""
        valid, pixels = (
            None if tensor is None else tensor.to(device) for tensor in (self.valid, self.pixels)
        )
        return replace(self, features=self.features.to(device), valid=valid, pixels=pixels)


class FeatureStore:
    """The crops of one or more stores of one encoder as one list, in the order of extraction.

    encoder: what made the features. encoder_weights: (dtype, hash) of its parameters, where they
    are known. fingerprint: changes with any stored feature, row or picture.
    sources: names; those of the same name in two stores are one. source_N: which of them each crop
    is from. picture_N: which picture, counted over all stores, those that were skipped too.
    group_N: the first picture of each crop's group. Crops of one picture, of pictures of equal
    bytes and of frames of one video are a group: hold out groups, not pictures.

    verify: compare a shard's bytes with the hash that `extract` took, when it is first read. That
    reads all of it, once in a process: half a second for a shard of 300 MB on one core.

    Raises `WeightsError` for a folder that is no store, an unfinished or a damaged one,
    `EncoderMismatchError` for stores of different encoders or sites, `InputError` for stores of
    different precision or of which only some hold pixels, `MissingPackageError` without pyarrow.
    """

    def __init__(self, folders: Sequence[str | Path], *, verify: bool = True) -> None:
        if not folders:
            raise InputError("Expected at least one feature store. Got none. Name its folder.")
        self._verify = verify
        places = [Path(folder) for folder in folders]
        records = [read_identity(folder) for folder in places]
        self.encoder: EncoderInfo = encoder_from_dict(records[0]["encoder"])
        self.encoder_weights = tuple(sorted((records[0].get("tower") or {}).items()))
        self.has_pixels = bool(records[0].get("pixels"))
        digest = hashlib.sha256()
        sources: dict[str, int] = {}
        origins, own, pictures, manifests = [], [], [], []
        before = 0
        self._paths: list[Path] = []
        self._listed: list[Listed] = []
        self._layout = Layout(self.encoder.width, records[0]["dtype"], self.has_pixels)
        for folder, record in zip(places, records, strict=True):
            _check_fits(places[0], records[0], folder, record)
            manifest = read_manifest(folder)
            order = [sources.setdefault(name, len(sources)) for name in manifest.sources]
            manifests.append(manifest)
            origins.append(torch.tensor(order, dtype=torch.long)[manifest.source_N])
            own.append(manifest.picture_N)
            pictures.append(manifest.picture_N + before)
            before = int(pictures[-1][-1]) + 1
            self._paths += [folder / shard.name for shard in manifest.shards]
            self._listed += manifest.shards
            contents = [shard.content for shard in manifest.shards]
            if not all(contents):
                logger.warning("%s was written without hashes: its bytes are not checked", folder)
            told = [record["encoder"], record["dtype"], contents]
            digest.update(repr(told).encode())
        self.fingerprint = digest.hexdigest()[:16]
        self.sources, self.source_N = tuple(sources), torch.cat(origins)
        self.picture_N, self._own_picture_N = torch.cat(pictures), torch.cat(own)
        self.group_N = self._groups(manifests)
        self._ends = list(accumulate(shard.crops for shard in self._listed))
        self._shards: dict[int, Shard] = {}

    def _groups(self, manifests: Sequence[Manifest]) -> Int[Tensor, "N"]:
        video_N = codes([manifest.video for manifest in manifests])
        of_source_N = video_N * len(self.sources) + self.source_N
        return grouped(
            self.picture_N,
            codes([manifest.sha256 for manifest in manifests]),
            torch.where(video_N < 0, -1, of_source_N),
        )

    def __len__(self) -> int:
        return self._ends[-1]

    def usual_tokens(self) -> int:
        """Tokens of a crop; where the grid varies, the mean of the first shard's."""
        if self.encoder.grid is not None:
            return self.encoder.grid[0] * self.encoder.grid[1]
        info = read_info(self._paths[0])
        return -(-info.tokens // max(1, len(info.grids)))

    def batch(self, rows: Int[Tensor, "B"], *, pixels: bool = False) -> FeatureBatch:
        """The crops `rows`.

        Raises `InputError` for a row that is not there or for pixels that are not stored,
        `WeightsError` for a damaged shard, `NonFiniteError` for NaN or Inf in it.
        """
        wanted = rows.tolist()
        if wanted and not 0 <= min(wanted) <= max(wanted) < len(self):
            raise InputError(
                f"Expected rows from 0 to {len(self) - 1}. Got {min(wanted)} to {max(wanted)}."
            )
        if pixels and not self.has_pixels:
            raise InputError(
                f"Expected pixels in the store at {self._paths[0].parent}. Got none. "
                "Extract again with --pixels, or train without the image term."
            )
        crops = [self._crop(row) for row in wanted]
        longest = max((len(crop.tokens) for crop in crops), default=0)
        features = torch.zeros(len(crops), longest, self.encoder.width)
        valid = torch.zeros(len(crops), longest, dtype=torch.bool)
        for i, crop in enumerate(crops):
            features[i, : len(crop.tokens)] = crop.tokens
            valid[i, : len(crop.tokens)] = True if crop.valid is None else crop.valid
        if not math.isfinite(float(features.sum())) and not bool(torch.isfinite(features).all()):
            raise NonFiniteError(
                f"Expected finite features in {self._paths[0].parent}. Got NaN or Inf. Say which "
                "shard holds them with tokensieve extract --verify, and extract it again."
            )
        grids = [crop.grid for crop in crops if crop.grid is not None]
        images = [crop.pixels for crop in crops if crop.pixels is not None] if pixels else []
        return FeatureBatch(
            features,
            None if bool(valid.all()) else valid,
            tuple(grids) if len(grids) == len(crops) else None,
            torch.stack(images).float() / 255 if images else None,
        )

    def _crop(self, row: int) -> Crop:
        part = bisect_right(self._ends, row)
        first = self._ends[part - 1] if part else 0
        if part not in self._shards:
            self._shards[part] = self._open(part, first)
        return self._shards[part].crop(row - first)

    def _open(self, part: int, first: int) -> Shard:
        """A shard, held against the manifest: its bytes, once in a process, and its pictures."""
        path, listed = self._paths[part], self._listed[part]
        shard = Shard(path, self._layout, listed.content if self._verify else "")
        told = [record.picture for record in shard.records for _ in range(record.crops)]
        known_N = self._own_picture_N[first : self._ends[part]]
        if told != known_N.tolist():
            raise damaged(path, "other pictures than the manifest has there")
        return shard


def _check_fits(
    first: Path, ours: dict[str, object], folder: Path, theirs: dict[str, object]
) -> None:
    """Raise if two stores do not belong together."""
    for name in ("encoder", "weights", "processor"):
        a, b = ours.get(name), theirs.get(name)
        if a != b and not (name != "encoder" and None in (a, b)):
            raise EncoderMismatchError(
                f"Expected stores of one encoder. Got another {name} in {folder} than in {first}: "
                f"{_difference(a, b)}. Extract them with the same model and site."
            )
    for name in ("dtype", "pixels"):
        a, b = ours.get(name), theirs.get(name)
        if a != b:
            raise InputError(
                f"Expected stores alike. Got {name}={a} in {first} and {name}={b} in {folder}. "
                "Extract them with the same options."
            )


def _difference(a: object, b: object) -> str:
    if isinstance(a, dict) and isinstance(b, dict):
        names = [name for name in sorted(a.keys() | b.keys()) if a.get(name) != b.get(name)]
        return "; ".join(f"{n}={b.get(n)} instead of {a.get(n)}" for n in names[:3])
    return f"{b} instead of {a}"


def _check_shapes(
    features_NLC: Float[Tensor, "N L C"],
    encoder: EncoderInfo,
    pixels_N3HV: Float[Tensor, "M 3 H V"] | None,
) -> None:
    """Raise `InputError` for features that are none of the encoder's, or pixels of other crops."""
    N, L, C = features_NLC.shape
    grid = encoder.grid
    if encoder.width != C or (grid is not None and grid[0] * grid[1] != L) or N == 0:
        raise InputError(
            f"Expected features (N, L, {encoder.width}) on a grid {grid}, as the encoder says. "
            f"Got {(N, L, C)}. Pass the EncoderInfo they were made with."
        )
    if pixels_N3HV is not None and len(pixels_N3HV) != N:
        raise InputError(f"Expected pixels of {N} crops. Got {len(pixels_N3HV)}.")


def write_store(
    folder: str | Path,
    features_NLC: Float[Tensor, "N L C"],
    encoder: EncoderInfo,
    *,
    pixels_N3HV: Float[Tensor, "M 3 H V"] | None = None,
    source: str = "memory",
) -> Path:
    """Write features of your own as a store; returns its folder.

    Stored as bfloat16 if they are that, else as float16. pixels_N3HV: in [0, 1].

    Raises `InputError` for shapes that do not fit the encoder, `NonFiniteError` for NaN, Inf or
    what float16 cannot hold, `ConfigError` for a folder that holds something else.
    """
    folder = Path(folder)
    N, _, C = features_NLC.shape
    _check_shapes(features_NLC, encoder, pixels_N3HV)
    dtype = torch.bfloat16 if features_NLC.dtype == torch.bfloat16 else torch.float16
    tokens = features_NLC.to(dtype)
    if not bool(torch.isfinite(tokens).all()):
        raise NonFiniteError(
            "Expected finite features that float16 can hold. Got NaN or Inf. Check them, or pass "
            "them as bfloat16."
        )
    raw: Any = tokens.contiguous().view(-1).view(torch.uint8).numpy()
    content = hashlib.sha256(raw).hexdigest()
    listing = {"pictures": N, "hash": content[:16], "sources": {source: N}}
    has_pixels = pixels_N3HV is not None
    name = str(dtype).removeprefix("torch.")
    identity = make_identity(encoder, dtype=name, chunk=CHUNK, pixels=has_pixels, listing=listing)
    with claimed(folder, FEATURES):
        begin(folder, identity)
        names = []
        for number, start in enumerate(range(0, N, CHUNK)):
            rows = slice(start, min(N, start + CHUNK))
            own = range(rows.start, rows.stop)
            records = [Record(i, source, f"{i:08d}", "", crops=1) for i in own]
            images = [None] * len(own) if pixels_N3HV is None else as_bytes(pixels_N3HV[rows])
            pairs = zip(tokens[rows], images, strict=True)
            crops = [Crop(one, encoder.grid, None, image) for one, image in pairs]
            names.append(shard_name(number))
            write_shard(folder / names[-1], records, crops, C, dtype)
        write_manifest(folder, names)
    return folder
