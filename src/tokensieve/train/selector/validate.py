"""What a selector is worth on crops it was not trained on.

B crops, L tokens.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokensieve.data.store.features import FeatureBatch, FeatureStore
from tokensieve.functional.topk import topk_mask
from tokensieve.nn.autoencoder import SelectorAutoencoder
from tokensieve.nn.ranking import choose
from tokensieve.nn.selector import Selector
from tokensieve.train.batches import generator_of

SHARES = (0.05, 0.1, 0.2, 0.4)
BINS = 10
_SEED = 971  # of the random choice that the ranking is held against


@torch.no_grad()
def validate(
    model: SelectorAutoencoder,
    store: FeatureStore,
    rows: Int[Tensor, "N"],
    batch: int,
    shares: Sequence[float] = SHARES,
) -> dict[str, Any]:
    """Measures of `model` on the crops `rows` of `store`, `batch` at a time.

    reconstruction, ...: the training's losses, under masks drawn as in training.
    kept: mean share of tokens whose keep logit is above the drop logit, the mask as it stands
        (L_pr); histogram: crops by that share, in tenths. Only for objectives with a mask: where
        scores are expected errors their sign says nothing.
    lost: {"0.2": {"selector": x, "ranking": x, "random": x, "stride": x}}: the error left when so
        large a share of the tokens is kept: root mean square of a token's standardised features,
        averaged over all tokens, a kept one counting 0. selector: by its own rule; ranking: by
        its highest scores, where that is another rule.
    """
    device = next(model.parameters()).device
    was_training, pixels = model.training, model.image is not None and store.has_pixels
    model.eval()
    sums: dict[str, float] = defaultdict(float)
    lost: dict[str, dict[str, float]] = {str(share): defaultdict(float) for share in shares}
    kept: list[float] = []
    for number, part in enumerate(torch.split(rows, batch)):
        crops, size = store.batch(part, pixels=pixels).to(device), len(part)
        noise = generator_of(_SEED, number)
        losses = model(crops.features, crops.valid, crops.grid, crops.pixels, noise)
        for name, value in losses.items():
            sums[name] += float(value) * size
        scores_BL = model.selector.scores(crops.features, crops.valid, crops.grid)
        valid_BL = crops.valid_BL
        as_it_stands = ((scores_BL > 0) & valid_BL).sum(-1) / valid_BL.sum(-1).clamp_min(1)
        kept += as_it_stands.tolist()
        chance_BL = torch.rand(scores_BL.shape, generator=noise).to(device)
        for share in shares:
            for name, mask_BL in _choices(model.selector, crops, share, scores_BL, chance_BL):
                lost[str(share)][name] += _lost(model, crops, mask_BL) * size
    model.train(was_training)
    count = len(rows)
    sums.pop("kept", None)  # of the drawn masks
    found: dict[str, Any] = {name: value / count for name, value in sums.items()}
    if "mask" in found:
        tenths = torch.histc(torch.tensor(kept), BINS, 0.0, 1.0)
        found |= {"kept": sum(kept) / count, "histogram": [int(value) for value in tenths]}
    found["lost"] = {s: {n: round(v / count, 6) for n, v in by.items()} for s, by in lost.items()}
    return {**found, "crops": count}


def _choices(
    selector: Selector, crops: FeatureBatch, share: float, scores_BL: Float[Tensor, "B L"],
    chance_BL: Float[Tensor, "B L"],
) -> Iterator[tuple[str, Bool[Tensor, "B L"]]]:  # fmt: skip
    """Each way of keeping so large a share of the tokens, and which ones it keeps."""
    valid_BL = crops.valid_BL
    counts_B = (share * valid_BL.sum(-1)).round().long().clamp_min(1)
    yield "selector", choose(selector, crops.features, scores_BL, counts_B, valid_BL)
    if selector.config.rule != "top":
        yield "ranking", topk_mask(scores_BL, counts_B, valid_BL)
    yield "random", topk_mask(chance_BL, counts_B, valid_BL)
    yield "stride", stride_mask(counts_B, valid_BL)


def stride_mask(counts_B: Int[Tensor, "B"], valid_BL: Bool[Tensor, "B L"]) -> Bool[Tensor, "B L"]:
    """`counts_B` real tokens at even distances."""
    order_BL, total_B1 = valid_BL.cumsum(-1) - 1, valid_BL.sum(-1, keepdim=True)
    k_B1 = counts_B[:, None]
    step_BL = (order_BL * k_B1).div(total_B1.clamp_min(1), rounding_mode="floor")
    before_BL = ((order_BL - 1) * k_B1).div(total_B1.clamp_min(1), rounding_mode="floor")
    return valid_BL & (step_BL != before_BL)


def _lost(model: SelectorAutoencoder, crops: FeatureBatch, mask_BL: Bool[Tensor, "B L"]) -> float:
    """Mean error per real token, kept ones counting 0."""
    target_BLC = model.selector.standardise(crops.features)
    mask: Float[Tensor, "B L"] = mask_BL.to(target_BLC)
    rebuilt_BLC = model.reconstructor(target_BLC, mask, crops.valid, crops.grid)
    error_BL = (rebuilt_BLC - target_BLC).square().mean(-1).sqrt()
    dropped_BL = crops.valid_BL & ~mask_BL
    return float((error_BL * dropped_BL).sum() / crops.valid_BL.sum())


def validation_text(values: dict[str, Any]) -> str:
    """The measures as a few lines for a terminal."""
    lines = [f"lost at keep {share}: " + ", ".join(f"{n} {v:.3f}" for n, v in by.items())
             for share, by in values["lost"].items()]  # fmt: skip
    if "kept" in values:
        lines.append(f"mask as it stands keeps {values['kept']:.1%}")
    return "\n".join(lines)
