"""Thresholds of likeness by layer, for methods that merge what is more alike.

B crops, S shares of a table.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from itertools import pairwise
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from tokensieve.errors import ConfigError, EncoderMismatchError, WeightsError
from tokensieve.fields import as_fields, check_fields, read_object
from tokensieve.files import write_text
from tokensieve.types import EncoderInfo

_MAKE = "Make them: python -m tokensieve.train.calibration.dymu --help."


@dataclass(frozen=True)
class Thresholds:
    """Cosines of keys above which tokens merge, for one encoder.

    shares: of the tokens, that are left on average; rising. values: per share one threshold for
    each layer up to the one the VLM reads.

    Raises `WeightsError` where these do not fit together.
    """

    encoder: EncoderInfo
    shares: tuple[float, ...]
    values: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        check_fields(self)
        blocks = self.encoder.block + 1
        rising = all(low < high for low, high in pairwise(self.shares))
        whole = all(len(row) == blocks for row in self.values)
        if not (self.shares and rising and whole and len(self.shares) == len(self.values)):
            raise WeightsError(
                f"Expected rising shares, each with {blocks} thresholds, one for a layer. Got "
                f"{len(self.shares)} shares and {[len(row) for row in self.values]}. {_MAKE}"
            )

    def at(self, block: int | None, share_B: Float[Tensor, "B"]) -> Float[Tensor, "B"]:
        """The threshold behind layer `block` for each share, linear between the shares there are,
        level beyond them; of the layers' mean for None."""
        rows = [sum(row) / len(row) if block is None else row[block] for row in self.values]
        known_S = torch.tensor(self.shares, device=share_B.device)
        value_S = torch.tensor(rows, device=share_B.device)
        if len(rows) == 1:
            return value_S.expand_as(share_B)
        share_B = share_B.float().clamp(known_S[0], known_S[-1])
        right_B = torch.searchsorted(known_S, share_B.contiguous()).clamp(1, len(rows) - 1)
        part_B = (share_B - known_S[right_B - 1]) / (known_S[right_B] - known_S[right_B - 1])
        return torch.lerp(value_S[right_B - 1], value_S[right_B], part_B)

    def save(self, path: str | Path) -> None:
        """Write JSON. Raises `ConfigError` where the disk refuses."""
        text = json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True)
        write_text(path, text + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Thresholds:
        """Read what `save` wrote. Raises `WeightsError` for a missing or damaged file."""
        read = read_object(path, "thresholds", WeightsError, _MAKE)
        try:
            return cls(**as_fields(cls, read))
        except (ConfigError, WeightsError) as error:
            raise WeightsError(f"Expected a file of thresholds at {path}. {error}") from error


def shipped_thresholds(encoder: EncoderInfo) -> Thresholds:
    """Those inside the package for `encoder`. Raises `EncoderMismatchError` if there are none."""
    files = sorted(Path(str(resources.files("tokensieve.assets"))).glob("dymu-*.json"))
    for file in files:
        found = _load(file)
        try:
            found.encoder.require_same_output(encoder, owner=file.stem)
        except EncoderMismatchError:
            continue
        return found
    raise EncoderMismatchError(
        f"Expected thresholds for the encoder '{encoder.model_type}' (width {encoder.width}, layer "
        f"{encoder.layer}). Shipped: {', '.join(f.stem for f in files) or 'none'}. Pass "
        f"thresholds=FILE. {_MAKE}"
    )


@lru_cache(maxsize=8)
def _load(file: Path) -> Thresholds:
    return Thresholds.load(file)
