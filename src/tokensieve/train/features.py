"""Stored encoder features: safetensors read through the page cache, never whole.

A file holds "features" (N, L, C), usually float16, and may hold "pixels" (N, 3, H, V); its metadata
entry "encoder" is the `EncoderInfo` as JSON.
"""

from __future__ import annotations

import dataclasses
import json
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tokensieve.data.files import written_whole
from tokensieve.errors import InputError, WeightsError
from tokensieve.nn.config import encoder_from_dict
from tokensieve.types import EncoderInfo


class FeatureSet:
    """Crops of several feature files as one list.

    Raises `WeightsError` for a missing or broken file, `InputError` where files do not fit
    together or do not say which encoder made them, `EncoderMismatchError` where two encoders or
    two sites made them.
    """

    def __init__(self, paths: Sequence[str | Path], encoder: EncoderInfo | None = None) -> None:
        if not paths:
            raise InputError("Expected at least one feature file. Got none.")
        opened = [_open(Path(path)) for path in paths]
        self.features = [features for features, _, _ in opened]
        self.pixels = [pixels for _, pixels, _ in opened]
        found = encoder or next((info for _, _, info in opened if info is not None), None)
        if found is None:
            raise InputError(
                f"Expected an 'encoder' entry in the metadata of {paths[0]}. Got none. "
                "Pass --encoder with a JSON file of its EncoderInfo."
            )
        self.encoder = found
        for path, (features, _, info) in zip(paths, opened, strict=True):
            if info is not None and encoder is None:
                found.require_same_output(info, owner=f"{paths[0]}, read together with {path},")
            if features.ndim != 3 or features.shape[2] != found.width or len(features) == 0:
                raise InputError(
                    f"Expected features (N, L, {found.width}) in {path}, for {found.model_type}. "
                    f"Got {tuple(features.shape)}."
                )
            if features.shape[1] != self.features[0].shape[1]:
                raise InputError(
                    f"Expected {self.features[0].shape[1]} tokens a crop in {path}, as in "
                    f"{paths[0]}. Got {features.shape[1]}."
                )
        self._ends = list(accumulate(len(f) for f in self.features))

    def __len__(self) -> int:
        return self._ends[-1]

    def batch(self, rows: Int[Tensor, "B"]) -> Float[Tensor, "B L C"]:
        """Features of the crops `rows`, in float32."""
        return torch.stack([self._row(self.features, int(i)) for i in rows]).float()

    def pixel_batch(self, rows: Int[Tensor, "B"]) -> Float[Tensor, "B 3 H V"]:
        """Pixels of the crops `rows`, in float32. Raises `InputError` if none are stored."""
        stored = [pixels for pixels in self.pixels if pixels is not None]
        if len(stored) != len(self.pixels):
            raise InputError("Expected 'pixels' in every feature file, for the image term.")
        return torch.stack([self._row(stored, int(i)) for i in rows]).float()

    def _row(self, parts: list[Tensor], index: int) -> Tensor:
        part = bisect_right(self._ends, index)
        return parts[part][index - (self._ends[part - 1] if part else 0)]


def _open(path: Path) -> tuple[Tensor, Tensor | None, EncoderInfo | None]:
    """Features, pixels and encoder of one file; tensors are backed by the file, not read."""
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            metadata = file.metadata() or {}
            if "features" not in names:
                raise InputError(f"Expected a tensor 'features' in {path}. Got {sorted(names)}.")
            pixels = file.get_tensor("pixels") if "pixels" in names else None
            features = file.get_tensor("features")
    except (OSError, SafetensorError) as error:
        raise WeightsError(
            f"Expected a complete safetensors file at {path}. Got: {error}"
        ) from error
    stored = metadata.get("encoder")
    return features, pixels, encoder_from_dict(json.loads(stored)) if stored else None


def save_features(
    path: str | Path,
    features_NLC: Float[Tensor, "N L C"],
    encoder: EncoderInfo,
    pixels: Float[Tensor, "N 3 H V"] | None = None,
) -> None:
    """Write a feature file as float16, whole or not at all."""
    tensors = {"features": features_NLC.half().contiguous()}
    if pixels is not None:
        tensors["pixels"] = pixels.half().contiguous()
    with written_whole(path) as part:
        save_file(tensors, part, metadata={"encoder": json.dumps(dataclasses.asdict(encoder))})
