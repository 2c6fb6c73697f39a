"""Rows of attention from queries and keys, without the whole map.

B sequences, H heads, G key heads (H is a multiple of it), Q queries, N keys, d width of a head.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

_PART = 256  # queries at a time: (B, H, 256, N) is the largest temporary


def attention_rows(
    q_BHQd: Float[Tensor, "B H Q d"],
    k_BGNd: Float[Tensor, "B G N d"],
    scaling: float,
    mask: Bool[Tensor, "..."] | Float[Tensor, "..."] | None = None,
) -> Float[Tensor, "B Q N"]:
    """Softmax of scaled products, mean over heads, in float32.

    mask: for these rows, to be broadcast to (B, H, Q, N): True where a key is seen, or added.
    """
    return attention_heads(q_BHQd, k_BGNd, scaling, mask).mean(1)


def attention_heads(
    q_BHQd: Float[Tensor, "B H Q d"],
    k_BGNd: Float[Tensor, "B G N d"],
    scaling: float,
    mask: Bool[Tensor, "..."] | Float[Tensor, "..."] | None = None,
) -> Float[Tensor, "B H Q N"]:
    """`attention_rows` head by head."""
    B, H, Q, d = q_BHQd.shape
    G, N = k_BGNd.shape[1:3]
    grouped = q_BHQd.float().reshape(B, G, H // G * Q, d)  # query heads that share a key head
    logits = (grouped @ k_BGNd.float().mT).view(B, H, Q, N) * scaling
    if mask is None:
        return logits.softmax(-1)
    if mask.dtype != torch.bool:
        return (logits + mask).softmax(-1)
    rows_BHQN = logits.masked_fill(~mask, -torch.inf).softmax(-1)
    return rows_BHQN.masked_fill(~mask, 0)  # a row that sees no key at all is NaN


def received_attention(
    q_BHQd: Float[Tensor, "B H Q d"],
    k_BGNd: Float[Tensor, "B G N d"],
    scaling: float,
    mask: Bool[Tensor, "..."] | Float[Tensor, "..."] | None = None,
    real_BQ: Bool[Tensor, "B Q"] | None = None,
) -> Float[Tensor, "B N"]:
    """Attention each key receives, mean over heads, *summed* over queries, some at a time.

    mask: as of `attention_rows`, its third axis Q or 1. real: queries that count; None: all.
    """
    total_BN = k_BGNd.new_zeros(len(k_BGNd), k_BGNd.shape[2], dtype=torch.float32)
    for start in range(0, q_BHQd.shape[2], _PART):
        part = slice(start, start + _PART)
        shown = mask if mask is None or mask.shape[-2] == 1 else mask[..., part, :]
        rows_BPN = attention_rows(q_BHQd[:, :, part], k_BGNd, scaling, shown)
        if real_BQ is not None:
            rows_BPN = rows_BPN.masked_fill(~real_BQ[:, part, None], 0)
        total_BN += rows_BPN.sum(1)
    return total_BN


def page_rank(
    attention_BLL: Float[Tensor, "B L L"], valid_BL: Bool[Tensor, "B L"], iterations: int
) -> Float[Tensor, "B L"]:
    """How much attention each token gets from tokens that get much, summing to 1 over real ones.

    The rank of all tokens, even at first, is handed on `iterations` times along the rows of the
    attention map, and divided by its sum each time.
    """
    rank_BL = valid_BL.float() / valid_BL.sum(-1, keepdim=True).clamp_min(1)
    for _ in range(iterations):
        next_BL = torch.zeros_like(rank_BL)
        for start in range(0, rank_BL.shape[1], _PART):  # a half precision map is widened in parts
            part = slice(start, start + _PART)
            next_BL += (rank_BL[:, None, part] @ attention_BLL[:, part].float())[:, 0]
        next_BL = next_BL.masked_fill(~valid_BL, 0)
        rank_BL = next_BL / next_BL.sum(-1, keepdim=True).clamp_min(1e-30)
    return rank_BL


def telling_heads(
    rank_BHL: Float[Tensor, "B H L"], valid_BL: Bool[Tensor, "B L"], low: float, high: float
) -> Float[Tensor, "B L"]:
    """The root of the mean of squares over the heads whose ranks, scaled to a mean of 1 over real
    tokens, have a variance from `low` to `high`; over all heads where none has."""
    n_B11 = valid_BL.sum(-1)[:, None, None].clamp_min(1)
    off_BHL = (rank_BHL * n_B11 - 1).masked_fill(~valid_BL[:, None], 0)
    variance_BH1 = off_BHL.square().sum(-1, keepdim=True) / n_B11
    told_BH1 = (variance_BH1 >= low) & (variance_BH1 <= high)
    told_BH1 = (told_BH1 | ~told_BH1.any(1, keepdim=True)).float()
    return ((rank_BHL.square() * told_BH1).sum(1) / told_BH1.sum(1)).sqrt()
