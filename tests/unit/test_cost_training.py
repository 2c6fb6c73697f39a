"""Costs of training against PyTorch's counts, and of encoding against real towers."""

import json
from contextlib import nullcontext
from dataclasses import replace
from importlib import resources
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import save_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from lab.benchmarks.towers import build_tower, tower_inputs
from tokensieve.cost.encoders import SHAPES, encode_flops, encoder_shape
from tokensieve.cost.measured import measured_flops
from tokensieve.cost.recipes import RECIPES, recipe_of, training_shape
from tokensieve.cost.shapes import TransformerShape
from tokensieve.cost.training import (
    CUDA_BYTES,
    GPUS,
    INDEX_BYTES,
    TrainingShape,
    extraction_bytes,
    hours,
    store_bytes,
)
from tokensieve.errors import ConfigError, UnknownNameError, UnsupportedError
from tokensieve.hf.families.fingerprint import encoder_info
from tokensieve.nn.autoencoder import SelectorAutoencoder
from tokensieve.nn.config import ObjectiveConfig, ReconstructorConfig, SelectorConfig
from tokensieve.types import EncoderInfo, Site

GRID, TOKENS, PATCH = (6, 8), 48, 14


def trained(width, stack, depth, image_depth, positions="learned"):
    """A training shape, its module and a function that runs it on two crops."""
    info = EncoderInfo("clip_vision_model", width, -2, 3, 4, 256, GRID)
    selector = SelectorConfig(info, depth=depth, width=stack, positions="sincos")
    reconstructor = ReconstructorConfig(
        info, depth=depth, width=stack, positions=positions, image_depth=image_depth, patch=PATCH,
        image_width=32,
    )  # fmt: skip
    objective = ObjectiveConfig(objective="adaptive", estimator="gumbel")
    model = SelectorAutoencoder(selector, reconstructor, objective)
    features = torch.randn(2, TOKENS, width)
    pixels = torch.rand(2, 3, GRID[0] * PATCH, GRID[1] * PATCH) if image_depth else None

    def run():
        return model(features, grid=GRID, pixels=pixels)["loss"]

    return TrainingShape(selector, reconstructor, TOKENS), model, run


def counted(run):
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


CASES = [(64, None, 3, 0, "learned"), (64, None, 2, 2, "sincos"), (128, 64, 2, 1, "learned")]


@pytest.mark.parametrize(("width", "stack", "depth", "image_depth", "positions"), CASES)
def test_parameters_and_flops_of_training_are_exact(width, stack, depth, image_depth, positions):
    shape, model, run = trained(width, stack, depth, image_depth, positions)
    assert shape.parameters() == sum(p.numel() for p in model.parameters())
    assert 2 * shape.forward_flops() == counted(run)
    assert 2 * shape.step_flops() == counted(lambda: run().backward())


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize(("width", "stack", "depth", "image_depth", "positions"), CASES[:2])
def test_activation_bytes_are_near_what_autograd_keeps(
    width, stack, depth, image_depth, positions, mixed
):
    shape, model, run = trained(width, stack, depth, image_depth, positions)
    kept = {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    sizes = {p.numel() for p in model.parameters() if p.ndim > 1}

    def pack(tensor):
        # copies of weights in bfloat16 are counted with the parameters, not per crop
        storage = tensor.untyped_storage()
        copy = tensor.dtype == torch.bfloat16 and tensor.numel() in sizes
        if storage.data_ptr() not in weights and not copy:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with (
        torch.autocast("cpu", torch.bfloat16) if mixed else nullcontext(),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        run()
    seen = sum(size for size, _ in kept.values())
    assert 2 * shape.activation_bytes(mixed=mixed) == pytest.approx(seen, rel=0.1)


def test_memory_is_state_and_activations():
    shape, _, _ = trained(*CASES[0])
    step = shape.memory_bytes(5, mixed=False) - shape.memory_bytes(4, mixed=False)
    assert step == shape.activation_bytes(mixed=False)
    assert shape.memory_bytes(0, mixed=False) == 16 * shape.parameters() + CUDA_BYTES
    assert shape.memory_bytes(0) == 18 * shape.parameters() + CUDA_BYTES


@pytest.mark.parametrize("name", SHAPES)
def test_towers_have_the_stated_parameters(name):
    with torch.device("meta"):
        tower = build_tower(SHAPES[name])
    assert sum(p.numel() for p in tower.parameters()) == SHAPES[name].parameters


@pytest.mark.parametrize("name", [name for name, shape in SHAPES.items() if not shape.rates])
def test_encode_flops_are_what_the_counter_sees(name):
    shape = SHAPES[name]
    layers = 4 if shape.window else 2
    small = replace(
        shape,
        transformer=TransformerShape(layers, 64, 96, 4, 4, 16, gated=shape.transformer.gated),
        rows=10, cols=14, embed_width=48, full_layers=2 * bool(shape.window),
    )  # fmt: skip  # 10 and 14 are no multiples of the window of 8
    if small.fixed:
        small = replace(small, cols=10)
    tower, inputs = build_tower(small).eval(), tower_inputs(small, 2)
    assert 2 * encode_flops(small) == measured_flops(lambda: tower(**inputs))


def _models():
    text = {"hidden_size": 4096, "num_hidden_layers": 1, "intermediate_size": 8, "vocab_size": 9,
            "num_attention_heads": 4, "num_key_value_heads": 4}  # fmt: skip
    qwen = {**text, "hidden_size": 3584}
    tower = {name: build_tower(SHAPES[name]).config for name in SHAPES if not SHAPES[name].rates}
    llama = {"model_type": "llama", **text}
    yield (
        "clip-l-336",
        LlavaForConditionalGeneration(
            LlavaConfig(vision_config=tower["clip-l-336"], text_config=llama)
        ),
    )
    qwen2 = {"model_type": "qwen2", **qwen}
    yield (
        "siglip-so400m-384",
        LlavaOnevisionForConditionalGeneration(
            LlavaOnevisionConfig(vision_config=tower["siglip-so400m-384"], text_config=qwen2)
        ),
    )
    yield (
        "internvit-300m-448",
        InternVLForConditionalGeneration(
            InternVLConfig(vision_config=tower["internvit-300m-448"], text_config=qwen2)
        ),
    )
    vision = tower["qwen2.5-vl"].to_dict()
    yield (
        "qwen2.5-vl",
        Qwen2_5_VLForConditionalGeneration(
            Qwen2_5_VLConfig(vision_config=vision, text_config=qwen)
        ),
    )


def test_shapes_have_the_fingerprint_that_selectors_are_bound_to():
    with torch.device("meta"):
        for name, model in _models():
            assert SHAPES[name].info() == encoder_info(model), name
            assert SHAPES[name].info(Site.EMBEDS) == encoder_info(model).at_embeds(), name


def test_a_picture_takes_as_many_patches_as_qwens_processor_makes():
    for size in ((480, 640), (1200, 900), (333, 1011)):
        shape = encoder_shape("qwen2.5-vl").of_pixels(*size)
        assert shape.size == smart_resize(*size, factor=28, max_pixels=12_845_056)
    assert encoder_shape("qwen2.5-vl").of_pixels(480, 640) == encoder_shape("qwen2.5-vl")
    with pytest.raises(ConfigError, match="Expected an encoder that takes pictures of any size"):
        encoder_shape("clip-l-336").of_pixels(480, 640)


def test_store_bytes_are_the_bytes_of_a_file(tmp_path):
    shape = encoder_shape("siglip-so400m-384")
    tensors = {"tokens": torch.zeros(shape.tokens, shape.width(), dtype=torch.float16),
               "pixels": torch.zeros(3, *shape.size, dtype=torch.uint8)}  # fmt: skip
    save_file(tensors, tmp_path / "crop.safetensors")
    header = 300  # of this file; a shard has one for all its crops
    size = (tmp_path / "crop.safetensors").stat().st_size
    counted_bytes = store_bytes(shape, 1, Site.FEATURES, pixels=True) - INDEX_BYTES
    assert counted_bytes == pytest.approx(size, abs=header)
    assert counted_bytes == store_bytes(shape, 1, Site.FEATURES) - INDEX_BYTES + 3 * 384 * 384
    assert store_bytes(shape, 10, Site.EMBEDS) == 10 * (2 * 729 * 3584 + INDEX_BYTES)


def test_extraction_grows_with_the_batch_and_with_kept_states():
    clip = encoder_shape("clip-l-336")
    last = replace(clip, layer=-1)
    per_crop = extraction_bytes(clip, 2) - extraction_bytes(clip, 1)
    assert per_crop - (extraction_bytes(last, 2) - extraction_bytes(last, 1)) == 2 * 23 * 577 * 1024
    assert extraction_bytes(clip, 0) == 2 * clip.parameters + CUDA_BYTES


def test_hours_and_crops_of_recipes():
    assert hours(7200, 2.0) == 1.0
    assert recipe_of("adaptive").crops(133_000) == 13_300_000
    assert recipe_of("default").crops(133_000) == recipe_of("default").crops(5) == 960_000
    assert GPUS[0].rate(109_200_000_000_000) == pytest.approx(1.0)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_build_for_every_encoder_at_its_own_width(name, recipe):
    sizes = training_shape(SHAPES[name], recipe_of(recipe))
    assert sizes.selector.stack_width == SHAPES[name].transformer.width
    with torch.device("meta"):
        model = SelectorAutoencoder(
            sizes.selector, sizes.reconstructor, recipe_of(recipe).objective_config()
        )
    assert sizes.parameters() == sum(p.numel() for p in model.parameters())


@pytest.mark.skipif(find_spec("tokensieve.train.selector.presets") is None, reason="no presets yet")
@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_the_trainers_presets(name):
    folder = resources.files("tokensieve.train.selector.presets")
    settings = json.loads(folder.joinpath(f"{name}.json").read_text("utf-8"))["settings"]
    recipe = RECIPES[name]
    ours = {
        "selector.depth": recipe.depth, "reconstructor.depth": recipe.depth,
        "reconstructor.image_depth": recipe.image_depth, "train.epochs": recipe.epochs,
        "objective.objective": recipe.objective, "objective.estimator": recipe.estimator,
    }  # fmt: skip
    shared = settings.keys() & ours.keys()
    assert {key: ours[key] for key in shared} == {key: settings[key] for key in shared}


def test_unknown_names_and_towers_say_so():
    with pytest.raises(UnknownNameError, match=r"Unknown encoder shape 'clip-l'. Did you mean"):
        encoder_shape("clip-l")
    with pytest.raises(UnknownNameError, match=r"Unknown recipe 'adaptiv'. Did you mean"):
        recipe_of("adaptiv")
    with pytest.raises(UnsupportedError, match=r"Expected one of the encoders .* Got 'eva'"):
        build_tower(replace(encoder_shape("clip-l-336"), model_type="eva"))
