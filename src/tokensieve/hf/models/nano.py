"""The embedded models: Llava models trained from scratch that really read, in the package.

"nano" (1.7 M parameters, `make nano`) reads glyphs on its own patch grid, "nano2" (`make nano2`)
ordinary typeset pages.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import (
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)
from transformers.processing_utils import ProcessorMixin

from tokensieve.assets import asset_path
from tokensieve.errors import WeightsError
from tokensieve.fields import check_names
from tokensieve.nn.pretrained import read_weights

NANO = asset_path("nano")
VARIANTS = ("llava", "llava-next", "control")
TILINGS = ((1, 1), (1, 2), (2, 1), (2, 2), (1, 3), (3, 1))  # rows and columns of crops


def load_nano(
    variant: str = "llava", dtype: torch.dtype = torch.float32, path: Path = NANO
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """The embedded model and its processor, in evaluation mode on the CPU.

    `variant`: "llava" (nano: 256 visual tokens a picture; nano2: 576); "llava-next" (the same
    weights with 1+n crops of its size and row-end tokens, which were never trained); "control"
    (the same encoder with a language model that never saw a shortened sequence). The weights are
    kept in fp16; `dtype` is what they are computed in. `path`: the folder of nano, of nano2
    (`load_model("nano2")` knows it), or of another trained by their recipes.

    Raises:
        UnknownNameError: no such variant.
        WeightsError: a weight file is not there or damaged.
    """
    check_names("variant of nano", [variant], VARIANTS)
    reader = path.with_name(path.name + "-control") / "reader.safetensors"
    needed = reader if variant == "control" else path / "config.json"
    if not needed.exists():
        made = "control" if variant == "control" else "nano2" if path.name == "nano2" else "nano"
        raise WeightsError(f"Expected the weights of nano at {needed}. Run `make {made}` first.")
    try:
        model = LlavaForConditionalGeneration.from_pretrained(
            path, dtype=dtype, trust_remote_code=False
        )
        if variant == "llava-next":
            return as_next(model, path), processor(path, crops=True)
        if variant == "control":
            load_reader(model, reader)
        model.train(False)
        return model, processor(path)
    except (OSError, RuntimeError, KeyError, SafetensorError) as error:
        raise WeightsError(
            f"Expected whole files of nano in {path}. Got: {str(error).splitlines()[0]}. Install "
            f"the package again, or run `make nano`."
        ) from error


def load_reader(model: LlavaForConditionalGeneration, weights: Path) -> None:
    """Replace projector, language model and output layer by those of a safetensors file.

    Raises `WeightsError` where it is broken or holds others.
    """
    parts = {
        "projector": model.model.multi_modal_projector,
        "language_model": model.model.language_model,
        "lm_head": model.lm_head,
    }
    own = {f"{part}.{n}": v for part, m in parts.items() for n, v in m.state_dict().items()}
    for name, tensors in split_by_head(read_weights(weights, own)).items():
        parts[name].load_state_dict(tensors)


def split_by_head(tensors: dict[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """`{"a.b.c": t}` to `{"a": {"b.c": t}}`."""
    out: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        head, rest = key.split(".", 1)
        out.setdefault(head, {})[rest] = value
    return out


def pinpoints(side: int) -> list[list[int]]:
    """The sizes in pixels that LLaVA-NeXT fits a picture to, of crops of `side` pixels."""
    return [[rows * side, columns * side] for rows, columns in TILINGS]


def as_next(model: LlavaForConditionalGeneration, path: Path) -> LlavaNextForConditionalGeneration:
    """A LLaVA-NeXT model that shares the parts of `model`."""
    old: Any = model.config  # its parts may be None by their types, and never are
    config = LlavaNextConfig(
        vision_config=old.vision_config,
        text_config=old.text_config,
        image_token_index=old.image_token_id,
        vision_feature_layer=old.vision_feature_layer,
        vision_feature_select_strategy=old.vision_feature_select_strategy,
        image_grid_pinpoints=pinpoints(old.vision_config.image_size),
        image_seq_length=old.image_seq_length,
        tie_word_embeddings=False,
    )
    grown = LlavaNextForConditionalGeneration(config)
    torch.nn.Module.to(grown, model.dtype)
    grown.model.vision_tower = model.model.vision_tower
    grown.model.multi_modal_projector = model.model.multi_modal_projector
    grown.model.language_model = model.model.language_model
    grown.lm_head = model.lm_head
    row_end = load_file(path / "newline.safetensors")["image_newline"]
    grown.model.image_newline = torch.nn.Parameter(row_end.to(model.dtype))
    grown.generation_config = model.generation_config
    grown.train(False)
    return grown


def processor(path: Path = NANO, crops: bool = False) -> ProcessorMixin:
    """The processor (Pillow only, no torchvision), for one picture or for 1+n crops."""
    layout = json.loads((path / "processor_config.json").read_text())
    layout.pop("processor_class")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(path, trust_remote_code=False)
    template = tokenizer.chat_template
    images = CLIPImageProcessorPil.from_pretrained(path, trust_remote_code=False)
    if not crops:
        return LlavaProcessor(  # type: ignore[no-untyped-call]
            images, tokenizer, chat_template=template, **layout
        )
    tiles = LlavaNextImageProcessorPil(
        size=images.size,
        crop_size=images.crop_size,
        do_center_crop=False,
        image_mean=images.image_mean,
        image_std=images.image_std,
        image_grid_pinpoints=pinpoints(images.size["height"]),
    )
    return LlavaNextProcessor(  # type: ignore[no-untyped-call]
        tiles, tokenizer, chat_template=template, **layout
    )
