"""The selectors inside the package, by the encoder they are for and by name.

A folder `selector-MODEL` of the assets holds the default weights of an encoder,
`selector-MODEL--NAME` others, such as those trained by a paper's objective.
"""

from __future__ import annotations

from functools import lru_cache
from importlib import resources
from pathlib import Path

import torch

from tokensieve.errors import EncoderMismatchError, WeightsError
from tokensieve.nn.config import SelectorConfig
from tokensieve.nn.pretrained import CONFIG, read_json
from tokensieve.nn.selector import Selector
from tokensieve.types import EncoderInfo

BETWEEN = "--"  # model and name of a folder


def load_selector(weights: str | Path, encoder: EncoderInfo) -> Selector:
    """A selector from a folder, a hub name 'owner/name', or the name of shipped weights.

    A folder of that name comes first. Raises `WeightsError` where there is none of the three.
    """
    text = str(weights)
    plain = not Path(text).exists() and text[:1] not in "./~" and not set(text) & set("/\\")
    if isinstance(weights, Path) or not plain:
        return Selector.from_pretrained(weights)
    named, _ = _fitting(encoder)
    if text and text in named:
        return _load(named[text])
    others = ", ".join(f"'{name}'" for name in named if name) or "none ships"
    raise WeightsError(
        "Expected a folder, a hub name 'owner/name' or the name of weights that ship for the "
        f"encoder '{encoder.model_type}' of width {encoder.width}: {others}. Got '{text}'. Leave "
        "weights out for the default ones."
    )


def shipped_selector(encoder: EncoderInfo) -> Selector:
    """The default selector inside the package trained for `encoder`.

    Raises `EncoderMismatchError` if none is.
    """
    found, reasons = _fitting(encoder)
    if "" in found:
        return _load(found[""])
    raise EncoderMismatchError(
        f"Expected a selector for the encoder '{encoder.model_type}' (width {encoder.width}, layer "
        f"{encoder.layer}). Got none: {' '.join(reasons) or 'none ships.'} Take a method without "
        "training, such as 'divprune', pass weights=FOLDER (--weights), or train one: tokensieve "
        "train selector --help."
    )


def _fitting(encoder: EncoderInfo) -> tuple[dict[str, Path], list[str]]:
    """Folders of weights for this encoder by name ("" is the default), and why others are not."""
    found: dict[str, Path] = {}
    reasons = []
    for folder in folders():
        try:
            _config(folder).encoder.require_same_output(encoder, owner=folder.name)
        except EncoderMismatchError as error:
            reasons.append(str(error).partition(" Use ")[0])
            continue
        found.setdefault(folder.name.partition(BETWEEN)[2], folder)
    return found, reasons


def folders() -> list[Path]:
    """Folders of the selectors that ship."""
    assets = Path(str(resources.files("tokensieve.assets")))
    return sorted(path.parent for path in assets.glob(f"selector*/{CONFIG}"))


@lru_cache(maxsize=32)
def _config(folder: Path) -> SelectorConfig:
    return SelectorConfig.from_dict(read_json(folder / CONFIG))


@lru_cache(maxsize=8)
def _load(folder: Path) -> Selector:
    # kept for later calls: what is made in inference mode is of no use to one that trains
    with torch.inference_mode(False):
        return Selector.from_pretrained(folder)
