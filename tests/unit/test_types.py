"""The core types check their shapes and say what is wrong."""

from __future__ import annotations

from dataclasses import replace

import jaxtyping
import pytest
import torch

from tokensieve.errors import ConfigError, EncoderMismatchError, InputError, NonFiniteError
from tokensieve.functional.topk import topk_mask
from tokensieve.types import EncoderInfo, Reduction, Site, VisionTokens

CLIP = EncoderInfo("clip_vision_model", 64, -2, 12, 4, 256, (16, 16))


def test_grid_must_hold_the_tokens() -> None:
    with pytest.raises(InputError, match=r"grid \(3, 4\) to hold 11 tokens"):
        VisionTokens(torch.zeros(1, 11, 2), grid=(3, 4))


def test_shapes_are_checked_wherever_a_signature_names_them() -> None:
    """In tests, by tests/conftest.py: of dataclasses, functions, methods and properties."""
    vision = VisionTokens(torch.zeros(1, 4, 2))
    for wrong in (
        lambda: VisionTokens(torch.zeros(4, 2)),
        lambda: topk_mask(torch.zeros(2, 4), torch.ones(2).long(), torch.ones(2, 5).bool()),
        lambda: Reduction(torch.ones(1, 4).bool()).apply(torch.zeros(4, 2)),
        lambda: replace(vision, valid=torch.ones(2, 2).bool()).valid_BL,
    ):
        with pytest.raises(jaxtyping.TypeCheckError):
            wrong()


def test_keys_are_one_per_crop() -> None:
    with pytest.raises(InputError, match="Expected 2 keys"):
        VisionTokens(torch.zeros(2, 4, 2), keys=(1,))


def test_nan_counts_in_real_tokens_only() -> None:
    tokens = torch.zeros(1, 3, 2)
    tokens[0, 1, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="at here"):
        VisionTokens(tokens).require_finite("here")
    padding = VisionTokens(tokens, valid=torch.tensor([[True, False, True]]))
    padding.require_finite("here")
    assert padding.valid_BL.sum() == 2


def test_large_numbers_are_finite_though_their_sum_is_not() -> None:
    tokens = torch.full((1, 3, 4), 6e4, dtype=torch.float16)
    VisionTokens(tokens).require_finite("here")
    tokens[0, 2, 1] = float("inf")
    with pytest.raises(NonFiniteError, match="at here"):
        VisionTokens(tokens).require_finite("here")


def test_reduction_applies_new_values_at_kept_places() -> None:
    kept = torch.tensor([[True, False, True]])
    old, new = torch.zeros(1, 3, 1), torch.tensor([[[5.0], [6.0], [7.0]]])
    assert Reduction(kept, new).apply(old)[0].tolist() == [[5.0], [7.0]]
    assert Reduction(kept).apply(old)[0].tolist() == [[0.0], [0.0]]
    assert Reduction(kept).counts_B.tolist() == [2]
    assert Reduction(kept).indices()[0].tolist() == [0, 2]


@pytest.mark.parametrize(
    ("field", "value"),
    [("width", 32), ("layer", -1), ("depth", 24), ("model_type", "siglip"), ("grid", (8, 8))],
)
def test_another_encoder_is_refused(field: str, value: object) -> None:
    with pytest.raises(EncoderMismatchError, match=f"Weights was trained for .*{field}="):
        CLIP.require_same_output(replace(CLIP, **{field: value}), owner="Weights")


@pytest.mark.parametrize(
    ("field", "value"), [("heads", 8), ("ffn", 1), ("layer", 11), ("grid", None)]
)
def test_the_same_output_is_welcome(field: str, value: object) -> None:
    """Layer 11 of 12 and -2 are one; a grid that varies fits any."""
    other = replace(CLIP, **{field: value})
    CLIP.require_same_output(other, owner="Weights")
    assert other != CLIP


def test_behind_the_projector_only_the_width_differs() -> None:
    model = replace(CLIP, embed_width=256)
    behind = model.at_embeds()
    assert (behind.site, behind.width, behind.grid) == (Site.EMBEDS, 256, (16, 16))
    assert behind.at_embeds() is behind
    behind.require_same_output(model, owner="Weights")
    with pytest.raises(EncoderMismatchError, match=r"width=256\. Got width=512"):
        behind.require_same_output(replace(CLIP, embed_width=512), owner="Weights")
    with pytest.raises(EncoderMismatchError, match=r"site=embeds\. Got site=features"):
        behind.require_same_output(CLIP, owner="Weights")
    with pytest.raises(EncoderMismatchError, match=r"site=features\. Got site=embeds"):
        CLIP.require_same_output(behind, owner="Weights")
    with pytest.raises(ConfigError, match="width of the projector's output"):
        CLIP.at_embeds()


def test_the_site_of_a_fingerprint_is_features_embeds_or_llm() -> None:
    with pytest.raises(ConfigError, match=r"'features', 'embeds' or 'llm'\. Got 'encoder'"):
        replace(CLIP, site=Site.ENCODER)
