"""Which patches make a token, where a projector joins a square of neighbours: told by the model's
own projector, which is given the numbers of the patches."""

import pytest
import torch
from torch import nn

from families.tiny import build
from tokensieve.errors import UnsupportedError
from tokensieve.hf.attention.signals import patches_of_tokens
from tokensieve.hf.families.table import family_of
from tokensieve.hf.sieve import encode

JOINING = ("mistral3", "idefics3", "smolvlm", "gemma3")


def told_by_model(name, model, grid, side):
    """(L, m) numbers of patches as the projector joins them, or (L, 1) their mean."""
    h, w = grid
    numbers = torch.arange(h * w * side**2, dtype=torch.float32)
    base = model.base_model
    if name == "mistral3":
        merger = base.multi_modal_projector.patch_merger
        own, merger.merging_layer = merger.merging_layer, nn.Identity()
        try:
            width = model.config.vision_config.hidden_size
            patch = model.config.vision_config.patch_size
            features = numbers[:, None].expand(-1, width)
            sizes = torch.tensor([[h * side * patch, w * side * patch]])
            return merger(features, sizes)[:, : side**2]
        finally:
            merger.merging_layer = own
    if name == "gemma3":
        square = numbers.view(1, 1, h * side, w * side)
        return base.multi_modal_projector.avg_pool(square).flatten()[:, None]
    return base.connector.pixel_shuffle(numbers[None, :, None], side)[0]


@pytest.mark.parametrize("name", JOINING)
def test_a_token_is_made_of_the_patches_its_projector_joins(name):
    model = build(name).model
    encoded = encode(model, build(name).inputs([1, 2]))
    tokens = sum(p.crops * p.length for p in encoded.packings)
    patches = count_patches(model, build(name).inputs([1, 2]))
    merged = patches // tokens
    assert merged in (4, 9, 16)
    mine = patches_of_tokens(model, family_of(model), encoded.packings, merged)
    assert sorted(mine.flatten().tolist()) == list(range(patches))
    first = encoded.packings[0]
    theirs = told_by_model(name, model, first.grid, int(merged**0.5))
    ours = mine[: first.length].float()
    if theirs.shape[1] == 1:
        ours, theirs = ours.mean(1), theirs[:, 0]
    else:
        ours, theirs = ours.sort(1).values, theirs.sort(1).values
    torch.testing.assert_close(ours, theirs)


def count_patches(model, inputs):
    """Patches the encoder runs on for all pictures."""
    seen = []
    tower = model.base_model
    tower = getattr(tower, "vision_tower", None) or tower.vision_model
    layers = next(m for m in tower.modules() if isinstance(m, nn.ModuleList) and len(m))
    handle = layers[0].register_forward_pre_hook(
        lambda _m, args, kwargs: seen.append(
            (args or tuple(kwargs.values()))[0].shape[:-1].numel()
        ),
        with_kwargs=True,
    )
    try:
        encode(model, inputs)
    finally:
        handle.remove()
    return sum(seen)


def test_patches_that_are_no_square_are_refused():
    model = build("mistral3").model
    packings = encode(model, build("mistral3").inputs([1])).packings
    with pytest.raises(UnsupportedError, match="knows how 8 patches make a token"):
        patches_of_tokens(model, family_of(model), packings, 8)
