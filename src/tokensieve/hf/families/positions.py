"""Mask and position ids as `generate` would make them for the whole prompt.

B prompts, S prompt length.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tokensieve.errors import UnsupportedError
from tokensieve.hf.runtime.compat import positions_for


def mask_of(model: Any, inputs: Mapping[str, Any]) -> Tensor:
    """(B, S) the 2-D attention mask: as given, or inferred from padding as `generate` does."""
    ids = inputs["input_ids"]
    mask = inputs.get("attention_mask")
    if mask is not None:
        if mask.shape != ids.shape:
            raise UnsupportedError(
                f"Expected a 2-D attention mask of shape {tuple(ids.shape)}, like the ids. Got "
                f"{tuple(mask.shape)}. Pass the mask the processor returned."
            )
        return torch.as_tensor(mask)
    config = inputs.get("generation_config") or model.generation_config
    pad = inputs.get("pad_token_id", config.pad_token_id)
    eos = config.eos_token_id
    ends = eos if isinstance(eos, list) else [eos]
    if isinstance(pad, int) and pad not in ends:
        return torch.as_tensor(ids.ne(pad).long())
    return torch.ones_like(ids)


def original_positions(model: Any, inputs: Mapping[str, Any], mask_BS: Tensor) -> Tensor:
    """Position ids (B, S), or (4, B, S) for M-RoPE, of the whole prompt: as given, or as the
    model's own code computes them."""
    if (given := inputs.get("position_ids")) is not None:
        return torch.as_tensor(given)
    return positions_for(model, {**inputs, "attention_mask": mask_BS})
