"""Video files, and a Qwen's video processor of a few lines, where torchvision is missing."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from transformers.feature_extraction_utils import BatchFeature
from transformers.video_utils import make_batched_metadata

from toys.extract_tiny import noise


class PatchVideos:
    """Frames of 16 x 32 pixels as patches of 2 x 4 x 4, in the order of Qwen's merger."""

    merge_size = temporal_patch_size = 2
    patch_size = 4
    size = {"height": 16, "width": 32}  # noqa: RUF012
    model_input_names = ("pixel_values_videos", "video_grid_thw")

    def __call__(self, videos, video_metadata=None, **_):
        rows, grids = [], []
        for video in videos:
            frames = [np.asarray(frame.resize((32, 16)), np.float32) / 255 - 0.5 for frame in video]
            frames += frames[-1:] * (len(frames) % 2)
            pixels = torch.tensor(np.stack(frames)).movedim(-1, 1)  # (F, C, H, W)
            grid = (len(frames) // 2, 4, 8)
            cut = pixels.view(grid[0], 2, 3, 2, 2, 4, 4, 2, 4)
            rows.append(cut.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(-1, 96))
            grids.append(grid)
        metadata = make_batched_metadata(videos, video_metadata)
        return BatchFeature({
            "pixel_values_videos": torch.cat(rows), "video_grid_thw": torch.tensor(grids),
            "video_metadata": metadata,
        })  # fmt: skip


def clip(path, frames=6, size=(32, 16)):
    """A GIF of noise, a frame for half a second."""
    first, *rest = [noise(size[1], size[0], seed=i) for i in range(frames)]
    first.save(path, save_all=True, append_images=rest, duration=500)
    return path


def pictures(n=2) -> list[Image.Image]:
    return [noise(16, 32, seed=i) for i in range(n)]
