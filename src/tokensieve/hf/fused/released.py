"""Checkpoints as the authors of [1] release them: what lies in them, and under which names.

C width of the encoder, M encoder blocks, D width of the LLM.

[1] Learning Compact Vision Tokens for Efficient Large Multimodal Models, arXiv 2506.07138.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokensieve.errors import WeightsError
from tokensieve.hf.fused.weights import PROJECTOR
from tokensieve.nn.fusion import FusionConfig, FusionProjector, spaced_blocks
from tokensieve.nn.pretrained import PICKLED, read_json, read_weights

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
_TOWER = "model.vision_tower.vision_tower."
_CROSS, _MLP = "model.mm_projector_crosslayer.", "model.mm_projector."
_LLM = {"model.embed_tokens.", "model.layers.", "model.norm.", "lm_head."}
_BUFFERS = ("rotary_emb.inv_freq", "embeddings.position_ids")  # not weights


@dataclass(frozen=True)
class Released:
    """A checkpoint taken apart.

    projector: by the names in a `FusionProjector`. llm: as in a causal LLM; tower: as in its own
    model; both empty where the checkpoint leaves them out. values: its config.json, if any.
    """

    projector: dict[str, Tensor]
    llm: dict[str, Tensor]
    tower: dict[str, Tensor]
    values: Mapping[str, Any]

    @property
    def width(self) -> int:
        """C."""
        return len(self.projector["blocks.mlp.2.bias"])

    @property
    def out_width(self) -> int:
        """D."""
        return len(self.projector["spatial.mlp.2.bias"])

    @property
    def blocks(self) -> int:
        """M."""
        return self.projector["blocks.mlp.0.weight"].shape[-1] // self.width


def read_released(source: str | Path) -> Released:
    """The checkpoint in a folder, or in one file: what stage 1 leaves, the projector alone.

    Raises `WeightsError` for a file that is missing, broken or pickled, a checkpoint whose
    projector fuses nothing (a plain LLaVA), and names or shapes that are not of this layout.
    """
    path = Path(source).expanduser()
    tensors = _tensors(path)
    folder = path if path.is_dir() else path.parent
    config = folder / "config.json"
    parts: dict[str, dict[str, Tensor]] = {"projector": {}, "llm": {}, "tower": {}}
    for name, tensor in tensors.items():
        if not name.endswith(_BUFFERS):
            part, own = _placed(name, path)
            parts[part][own] = tensor
    _check_projector(parts["projector"], path)
    return Released(**parts, values=read_json(config) if config.is_file() else {})


def blocks_read(count: int, depth: int, last: int) -> list[int]:
    """The encoder's blocks in the order of the channels: the configured one, then downwards.

    For 8 blocks of 24: [-2, 21, 18, 15, 12, 9, 6, 3].
    """
    return [last, *reversed(spaced_blocks(depth, count)[:-1])]


def _placed(name: str, path: Path) -> tuple[str, str]:
    """Which part a tensor belongs to, and its name there."""
    if name.startswith(_CROSS):
        return "projector", "blocks.mlp." + name.removeprefix(_CROSS)
    if name.startswith(_MLP):
        return "projector", "spatial.mlp." + name.removeprefix(_MLP)
    if name.startswith(_TOWER):
        return "tower", name.removeprefix(_TOWER)
    if name.startswith(tuple(_LLM)):
        return "llm", name
    raise WeightsError(
        f"Expected a released checkpoint: projector ({_CROSS}*, {_MLP}*), LLM (model.layers.*, "
        f"...) and perhaps encoder ({_TOWER}*). Got {name} in {path}. Merge adapters (LoRA) into "
        "their LLM first; a folder of tokensieve or Transformers needs no conversion."
    )


def _check_projector(found: Mapping[str, Tensor], path: Path) -> None:
    """Raise `WeightsError` unless it is a whole projector in the release's form."""
    if not any(name.startswith("blocks.") for name in found):
        what = "one of a plain LLaVA" if found else "none"
        raise WeightsError(
            f"Expected a projector that fuses tokens ({_CROSS}*) in {path}. Got {what}. To fuse a "
            "plain LLaVA yourself, pass it to tokensieve.hf.fused.fuse and train it."
        )
    try:
        width = len(found["blocks.mlp.2.bias"])
        config = FusionConfig(
            width=width, out_width=len(found["spatial.mlp.2.bias"]), rows=2, columns=2,
            blocks=found["blocks.mlp.0.weight"].shape[-1] // width, form="release",
        )  # fmt: skip
    except KeyError as error:
        raise _other_projector(f"no {_released_name(str(error.args[0]))}", path) from error
    with torch.device("meta"):
        wanted = {name: w.shape for name, w in FusionProjector(config).state_dict().items()}
    for name in sorted(wanted.keys() | found.keys()):
        if name not in found or name not in wanted:
            how = "no" if name in wanted else "an unexpected"
            raise _other_projector(f"{how} {_released_name(name)}", path)
        if found[name].shape != wanted[name]:
            shape = tuple(found[name].shape)
            said = f"{_released_name(name)} of shape {shape} in place of {tuple(wanted[name])}"
            raise _other_projector(said, path)
        if not bool(torch.isfinite(found[name]).all()):
            raise _other_projector(f"NaN or Inf in {_released_name(name)}", path)


def _other_projector(got: str, path: Path) -> WeightsError:
    return WeightsError(
        "Expected the eight tensors of a released projector: linear layers M C -> 4 C -> C "
        f"({_CROSS}0 and 2) and 4 C -> 16 C -> D ({_MLP}0 and 2). Got {got} in {path}. Other "
        "kernels and numbers of tokens were not released in this layout."
    )


def _released_name(name: str) -> str:
    return name.replace("blocks.mlp.", _CROSS).replace("spatial.mlp.", _MLP)


def _tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, or of the files of a folder."""
    if path.is_file():
        if path.suffix in PICKLED:
            raise _pickled(path)
        return read_weights(path)
    if not path.is_dir():
        raise WeightsError(f"Expected a checkpoint's folder or file. Got {path}: no such thing.")
    if (path / INDEX).is_file():
        names = sorted(set(dict(read_json(path / INDEX).get("weight_map", {})).values()))
        files = [path / str(name) for name in names]
    else:
        files = sorted(path.glob("*.safetensors"))
    if not files:
        pickled = sorted(f for f in path.iterdir() if f.suffix in PICKLED)
        if pickled:
            raise _pickled(pickled[0])
    if not files or (len(files) > 1 and not (path / INDEX).is_file()):
        got = ", ".join(file.name for file in files) or "none"
        raise WeightsError(
            f"Expected {SINGLE}, or several files and {INDEX}, in {path}. Got {got}. Download the "
            "whole checkpoint, or name one file."
        )
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors |= read_weights(file)
    return tensors


def _pickled(path: Path) -> WeightsError:
    made = path.with_suffix(".safetensors").name
    return WeightsError(
        f"Expected safetensors. Got {path}, a pickle, which may run code when it is read. If you "
        f'trust where it comes from, make {made} of it: python -c "import torch; from '
        "safetensors.torch import save_file; save_file({k: v.contiguous() for k, v in "
        f"torch.load('{path.name}', map_location='cpu', weights_only=True).items()}}, '{made}')\" "
        "in its folder."
    )


def renamed(released: Released) -> dict[str, Tensor]:
    """The projector's tensors by their names in a FusedLlava."""
    return {f"model.{PROJECTOR}{name}": tensor for name, tensor in released.projector.items()}
