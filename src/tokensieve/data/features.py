"""Temporary shim with the coming interface."""

from __future__ import annotations
import hashlib, json, dataclasses
from dataclasses import dataclass
from pathlib import Path
import torch
from torch import Tensor
from safetensors import safe_open
from safetensors.torch import save_file
from tokensieve.nn.config import encoder_from_dict


@dataclass(frozen=True)
class FeatureBatch:
    features: Tensor
    valid: Tensor | None
    grids: tuple[tuple[int, int], ...] | None
    pixels: Tensor | None

    @property
    def valid_BL(self) -> Tensor:
        if self.valid is not None:
            return self.valid
        return torch.ones(self.features.shape[:2], dtype=torch.bool, device=self.features.device)

    @property
    def grid(self):
        if self.grids is None:
            return None
        return self.grids[0] if len(set(self.grids)) == 1 else self.grids

    @property
    def pixels_B3HV(self):
        return self.pixels

    def to(self, device):
        m = lambda t: None if t is None else t.to(device)
        return FeatureBatch(m(self.features), m(self.valid), self.grids, m(self.pixels))


class FeatureStore:
    def __init__(self, folders):
        self.parts = []
        self.px = []
        h = hashlib.sha256()
        self.encoder = None
        src = []
        for folder in folders:
            for path in (
                sorted(Path(folder).glob("*.safetensors"))
                if Path(folder).is_dir()
                else [Path(folder)]
            ):
                f = safe_open(path, "pt")
                self.parts.append(f.get_tensor("features"))
                self.px.append(f.get_tensor("pixels") if "pixels" in f.keys() else None)
                self.encoder = encoder_from_dict(json.loads(f.metadata()["encoder"]))
                h.update(self.parts[-1][:8].numpy().tobytes())
        self.fingerprint = h.hexdigest()
        self.ends = torch.tensor([len(p) for p in self.parts]).cumsum(0)
        self.sources = ("memory",)
        self.source_N = torch.zeros(len(self), dtype=torch.long)
        self.picture_N = torch.arange(len(self))
        self.has_pixels = all(p is not None for p in self.px)

    def __len__(self):
        return int(self.ends[-1])

    def batch(self, rows, *, pixels=False):
        F = []
        P = []
        for r in rows.tolist():
            k = int(torch.searchsorted(self.ends, r, right=True))
            i = r - (int(self.ends[k - 1]) if k else 0)
            F.append(self.parts[k][i])
            if pixels:
                P.append(self.px[k][i].float())
        g = self.encoder.grid
        return FeatureBatch(
            torch.stack(F).float(),
            None,
            (g,) * len(F) if g else None,
            torch.stack(P) if pixels else None,
        )


def write_store(folder, features_NLC, encoder, *, pixels_N3HV=None, source="memory"):
    Path(folder).mkdir(parents=True, exist_ok=True)
    t = {"features": features_NLC.half().contiguous()}
    if pixels_N3HV is not None:
        t["pixels"] = (pixels_N3HV.float() / 255).half()
    save_file(
        t,
        Path(folder) / "a.safetensors",
        metadata={"encoder": json.dumps(dataclasses.asdict(encoder))},
    )
    return Path(folder)
