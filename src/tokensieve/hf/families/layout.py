"""How the rows a VLM feeds its LLM map to the tokens of each picture's crops.

N rows of one picture in the prompt, n crops of it, L tokens of a crop.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tokensieve.errors import UnsupportedError
from tokensieve.nn.fusion import unfold


@dataclass(frozen=True)
class Packing:
    """One picture's rows.

    crops: n; length: L tokens of each crop; grid: (rows, columns) of a crop, None if unknown.
    origin_N: for each row crop * L + position, or -1 for a structural row (newline).
    tiles: (rows, columns) of the crops behind the first, a view of the whole; None: no such crops.
    """

    crops: int
    length: int
    grid: tuple[int, int] | None
    origin_N: Int[Tensor, "N"]
    tiles: tuple[int, int] | None = None

    @cached_property
    def valid_nL(self) -> Bool[Tensor, "n L"]:
        """True where a token of a crop has a row, i.e. reaches the LLM at all."""
        valid = torch.zeros(self.crops * self.length, dtype=torch.bool, device=self.origin_N.device)
        valid[self.origin_N[self.origin_N >= 0]] = True
        return valid.view(self.crops, self.length)


def one_to_one(rows: int, grid: tuple[int, int] | None, crops: int, device: Any) -> Packing:
    """Every row is a token, crops one after another."""
    return Packing(crops, rows // crops, grid, torch.arange(rows, device=device))


def pack_plain(model: Any, inputs: Mapping[str, Any], rows: Sequence[int]) -> list[Packing]:
    """Rows are tokens in order; the grid is read from whatever the processor tells about sizes."""
    device = inputs["input_ids"].device
    packings = []
    for i, count in enumerate(rows):
        crops, grid = _grid(model.config, inputs, i, count)
        packings.append(one_to_one(count, grid, crops, device))
    return packings


def _grid(
    config: Any, inputs: Mapping[str, Any], i: int, count: int
) -> tuple[int, tuple[int, int] | None]:
    """(crops, grid of each) of picture `i` of `count` rows; grid None if nothing fits."""
    vision = getattr(config, "vision_config", config)
    if (thw := inputs.get("image_grid_thw")) is not None and i < len(thw):
        t, h, w = (int(v) for v in thw[i])
        kernel = getattr(vision, "merge_kernel_size", (1,))
        merge = getattr(vision, "spatial_merge_size", kernel[0])
        if t * (h // merge) * (w // merge) == count:
            return t, (h // merge, w // merge)
    for key, unit in (("image_sizes", _patch(vision)), ("spatial_shapes", 1)):
        if (sizes := inputs.get(key)) is None or i >= len(sizes):
            continue
        h, w = (int(v) // unit for v in sizes[i])
        merges = (
            1,
            getattr(config, "spatial_merge_size", 1),
            getattr(config, "downsample_factor", 1),
        )
        for merge in merges:
            if (h // merge) * (w // merge) == count:
                return 1, (h // merge, w // merge)
    side = math.isqrt(count)
    return 1, (side, side) if side * side == count else None


def pack_pooled(
    model: Any, inputs: Mapping[str, Any], rows: Sequence[int], *, newline: bool = False
) -> list[Packing]:
    """Videos whose frames are pooled: LLaVA-NeXT-Video by a stride, OneVision to half the side and
    with a newline row behind the last frame."""
    device, vision = inputs["input_ids"].device, model.config.vision_config
    side = int(vision.image_size) // _patch(vision)
    stride = getattr(model.config, "spatial_pool_stride", None)
    side = -(-side // 2) if stride is None else side // int(stride)
    packings = []
    for count in rows:
        frames, rest = divmod(count - newline, side**2)
        if rest or not frames:
            packings.append(one_to_one(count, None, 1, device))
            continue
        origin = torch.arange(count, device=device)
        origin[frames * side**2 :] = -1
        packings.append(Packing(frames, side**2, (side, side), origin))
    return packings


def pack_with_cls(model: Any, inputs: Mapping[str, Any], rows: Sequence[int]) -> list[Packing]:
    """Video-LLaVA: the LLM reads CLS too, in front of each frame; it is no token of the frame."""
    device, vision = inputs["input_ids"].device, model.config.vision_config
    side = int(vision.image_size) // _patch(vision)
    packings = []
    for count in rows:
        frames, rest = divmod(count, side**2 + 1)
        if rest:
            packings.append(one_to_one(count, None, 1, device))
            continue
        numbers = torch.arange(frames * side**2, device=device).view(frames, -1)
        origin = torch.cat([torch.full_like(numbers[:, :1], -1), numbers], 1).flatten()
        packings.append(Packing(frames, side**2, (side, side), origin))
    return packings


def pack_merges(model: Any, inputs: Mapping[str, Any], rows: Sequence[int]) -> list[Packing]:
    """VideoLLaMA3: each item says how many patches make a token, and its processor may have left
    tokens out of a video (`video_compression_mask`)."""
    grids, merges = inputs.get("image_grid_thw"), inputs.get("image_merge_sizes")
    if grids is None or merges is None:
        return pack_plain(model, inputs, rows)
    mask, at, packings = inputs.get("video_compression_mask"), 0, []
    for (t, h, w), merge in zip(grids.tolist(), merges.tolist(), strict=True):
        grid = (h // merge, w // merge)
        total = t * grid[0] * grid[1]
        origin = torch.arange(total, device=inputs["input_ids"].device)
        if mask is not None:
            origin = origin[mask[at : at + total].to(origin.device)]
        packings.append(Packing(t, grid[0] * grid[1], grid, origin))
        at += total
    return packings


def pack_fused(model: Any, inputs: Mapping[str, Any], rows: Sequence[int]) -> list[Packing]:
    """FusedLlava: a row for each cell of the encoder's grid, or several, which then lie on none."""
    fusion, device = model.config.fusion, inputs["input_ids"].device
    return [
        one_to_one(count, fusion.token_grid if count == fusion.tokens else None, 1, device)
        for count in rows
    ]


def patches_of_cells(model: Any) -> Int[Tensor, "L m"]:
    """FusedLlava: the patches of a crop that make each of its tokens.

    Raises `UnsupportedError` where a cell makes several tokens: none of them has patches of its
    own.
    """
    fusion = model.config.fusion
    if fusion.token_grid is None:
        raise UnsupportedError(
            f"Expected a model of which each token is made of patches of its own. Got one that "
            f"makes {fusion.fused} of a cell of {fusion.kernel} x {fusion.kernel}. Use a method "
            "that reads no attention."
        )
    patches = torch.arange(math.prod(fusion.grid), dtype=torch.float32)[None, :, None]
    return unfold(patches, fusion.grid, fusion.kernel)[0].long()


def _patch(vision: Any) -> int:
    size = getattr(vision, "patch_size", 1)
    return int(size if isinstance(size, int) else size[0])


def pack_anyres(model: Any, inputs: Mapping[str, Any], rows: Sequence[int]) -> list[Packing]:
    """LLaVA-NeXT and its kin: token indices pushed through the model's own packing code.

    Raises `UnsupportedError` where that code resizes features, so that rows are no tokens.
    """
    from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

    if (sizes := inputs.get("image_sizes")) is None:
        return pack_plain(model, inputs, rows)
    config, base = model.config, model.base_model
    tile = int(config.vision_config.image_size)
    side = tile // _patch(config.vision_config)
    several = [n > 1 for n in inputs.get("batch_num_images", ()) for _ in range(int(n))]
    shape_of: Any = get_anyres_image_grid_shape  # it has no type hints
    tiles = [
        None
        if i < len(several) and several[i]  # OneVision: no crops where a prompt has many pictures
        else shape_of(size, config.image_grid_pinpoints, tile)
        for i, size in enumerate(sizes)
    ]
    crops = [1 if shape is None else 1 + shape[0] * shape[1] for shape in tiles]
    length = side * side
    numbers = [torch.arange(n * length, dtype=torch.float32).view(n, length, 1) for n in crops]
    options: dict[str, Any] = {
        key: inputs.get(key, getattr(config, key, None))
        for key in ("vision_feature_select_strategy", "vision_aspect_ratio")
    }
    options["image_newline"] = torch.tensor([-1.0])
    accepted = inspect.signature(base.pack_image_features).parameters
    packed, _ = base.pack_image_features(
        numbers, torch.as_tensor(sizes).cpu(), **{k: v for k, v in options.items() if k in accepted}
    )
    return [
        Packing(n, length, (side, side), _whole(values[:, 0]).to(inputs["input_ids"].device), shape)
        for n, values, shape in zip(crops, packed, tiles, strict=True)
    ]


def _whole(values_N: Tensor) -> Tensor:
    """Row numbers as integers. Raises `UnsupportedError` if they were blended by a resize."""
    rounded = values_N.round()
    if not torch.equal(rounded, values_N):
        raise UnsupportedError(
            "Expected each visual row to be one encoder token. Got rows the model resized out of "
            "several crops (anyres_max_N). Use smaller pictures, or raise N in "
            "`model.config.vision_aspect_ratio` (anyres_max_36, and the same in "
            "`processor.vision_aspect_ratio`), so that nothing is resized."
        )
    return rounded.long()
