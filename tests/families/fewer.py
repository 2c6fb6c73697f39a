"""What must hold of an encoder run on fewer patches, against the encoder that was handed all of
them: its attention just may not look at those that go, by a mask written here."""

from __future__ import annotations

import dataclasses
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import transformers as tf
from packaging.version import Version
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from families import decoders
from families.checks import answer
from families.inside import kept_positions
from families.methods import ByVariance
from families.parts import noise
from families.registry import crops_of, kept_of, rows_of
from families.said import require_same, require_tokens
from families.tiny import NAMES
from families.tiny import build as build_tiny
from tokensieve.hf.families.towers import encoder_layers
from tokensieve.hf.sieve import compress, encode
from tokensieve.types import Site

FAMILIES = (
    "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "pixtral_llava", "mistral3", "llava", "llava_next",
    "llava_onevision", "vipllava", "internvl", "paligemma", "gemma3", "idefics3", "smolvlm",
)  # fmt: skip
HYBRID = ("qwen3_5", "lfm2_vl")  # whose LLMs have layers that do not look at keys
FAMILIES = tuple(name for name in FAMILIES if name in NAMES)  # some need a newer Transformers
FAMILIES += ("qwen3_vl_moe", "glm4v", *HYBRID)
LATER = ("qwen2_5_omni", "glm4v_moe", "glm_ocr", "ernie4_5_vl", "janus", "kimi_k25",
         "paddleocr_vl", "ovis2", "exaone4_5", "video_llama_3", "lighton_ocr",
         "perception_lm")  # fmt: skip
NEW = Version(tf.__version__) >= Version("5.24")
FAMILIES += LATER if NEW else ()
SHAPES = [[8, 8], [4, 8], [8, 4], [4, 4]]
# Other lengths are summed in another order, and weights this large blow that up.
CLOSE = {"rtol": 1e-3, "atol": 5e-4}


def of_any_shape(n):
    """SigLIP2 with pictures of several shapes, padded to a batch."""
    shapes = torch.tensor([SHAPES[i % 4] for i in range(sum(n))])
    pixels, mask = torch.zeros(sum(n), 64, 48), torch.zeros(sum(n), 64, dtype=torch.long)
    for i, size in enumerate(shapes.prod(-1).tolist()):
        pixels[i, :size], mask[i, :size] = noise(size, 48, seed=i), 1
    return {"pixel_values": pixels, "spatial_shapes": shapes, "pixel_attention_mask": mask}


def build(name):
    if name == "lfm2_vl":
        return dataclasses.replace(decoders.build(name), pixels=of_any_shape)
    if name in ("qwen3_vl_moe", "glm4v", "qwen3_5"):
        return decoders.build(name)
    return build_tiny(name)


@dataclass(frozen=True)
class Lively(ByVariance):
    """Keep the patches of liveliest pixels, and encode no others."""

    site = Site.PATCHES
    reads_tokens = False


@dataclass(frozen=True)
class LivelyRagged(Lively):
    """Another number of patches for every crop, whatever was asked."""

    exact = False

    def reduce(self, vision, counts, text=None):
        ragged = counts - torch.tensor(vision.keys, device=counts.device) % 3
        return super().reduce(vision, ragged.clamp(min=1), text)


def fewer(model, inputs, keep=0.6, **options):
    """The function under test."""
    return compress(model, inputs, LivelyRagged(), keep, **positions_of(model), **options)


def positions_of(model):
    """Options of a family that counts positions anew."""
    return {"positions": "renumber"} if model.config.model_type == "exaone4_5" else {}


def painted(inputs, crops):
    """The pictures with other pixels under every token that is not kept."""
    pixels = inputs["pixel_values"].clone()
    flat = []
    for crop in (crop for picture in crops for crop in picture):
        left = set(crop.kept.tolist())
        whole = len(left) == int(crop.valid.sum())  # its padding stays then
        flat.append((crop.grid, sorted(set() if whole else set(range(len(crop.valid))) - left)))
    if pixels.ndim == 2:  # patches of a token follow each other
        merge, at = len(pixels) // sum(h * w for (h, w), _ in flat), 0
        for (h, w), gone in flat:
            for token in gone:
                pixels[at + token * merge : at + (token + 1) * merge] += 1
            at += h * w * merge
        return {**inputs, "pixel_values": pixels}
    if pixels.ndim == 3 or "image_grid_thw" in inputs:  # rows of patches of each picture
        return {**inputs, "pixel_values": _painted_patches(inputs, pixels, flat)}
    real = pixels.view(-1, *pixels.shape[-3:])
    real = [picture for picture in real if bool((picture != 0).any())]  # views; others are padding
    sizes = inputs.get("image_sizes")
    for i, (picture, ((h, w), gone)) in enumerate(zip(real, flat, strict=True)):
        whole = pixels.ndim == 5 or sizes is None
        height, width = picture.shape[1:] if whole else sizes[i].tolist()
        y, x = height // h, width // w
        for token in gone:
            r, c = token // w * y, token % w * x
            picture[:, r : r + y, c : c + x] += 1
    return {**inputs, "pixel_values": pixels}


def _painted_patches(inputs, pixels, flat):
    """Patches row by row over each picture, padded to a batch of them or not."""
    packed = "image_grid_thw" in inputs
    shapes = inputs["image_grid_thw"][:, 1:] if packed else inputs["spatial_shapes"]
    at = 0
    for i, ((h, w), gone) in enumerate(flat):
        height, width = shapes[i].tolist()
        side = height // h
        place = torch.arange(height * width).view(h, side, w, side).transpose(1, 2).flatten(2)
        chosen = place.view(h * w, -1)[gone].flatten()
        picture = pixels[at : at + height * width] if packed else pixels[i]
        picture[chosen] += 1
        at += height * width
    return pixels


def first_rows(model, inputs):
    """What the first layer of the encoder is handed."""
    seen = []

    def look(_module, args, kwargs):
        seen.append(args[0] if args else kwargs["hidden_states"])

    handle = encoder_layers(model)[0].register_forward_pre_hook(look, with_kwargs=True)
    try:
        encode(model, inputs)
    finally:
        handle.remove()
    return seen[0]


def gone_rows(model, inputs, crops):
    """(N,) or (B, S) the rows of the encoder that show what is under the tokens not kept."""
    rows, other = first_rows(model, inputs), first_rows(model, painted(inputs, crops))
    changed = (rows != other).any(-1)
    return changed[0] if len(changed) == 1 and "image_sizes" in inputs else changed


@contextmanager
def no_looking_at(gone):
    """The encoder's attention, window by window, with these keys blocked."""
    own, state = ALL_ATTENTION_FUNCTIONS["sdpa"], {"at": 0}

    def attend(module, query, key, value, attention_mask=None, **kwargs):
        S = key.shape[-2]
        part = gone
        if gone.ndim == 1:
            part = gone[None, state["at"] : state["at"] + S]
            state["at"] = (state["at"] + S) % len(gone)
        bias = torch.zeros(part.shape).masked_fill(part, torch.finfo(torch.float32).min)
        bias = bias[:, None, None].expand(-1, 1, query.shape[-2], -1)
        if attention_mask is not None:
            if attention_mask.dtype == torch.bool:
                zeros = torch.zeros(attention_mask.shape)
                attention_mask = zeros.masked_fill(~attention_mask, torch.finfo(torch.float32).min)
            bias = torch.minimum(bias, attention_mask)
        return own(module, query, key, value, bias, **kwargs)

    ALL_ATTENTION_FUNCTIONS["sdpa"] = attend
    try:
        yield
    finally:
        del ALL_ATTENTION_FUNCTIONS["sdpa"]
        if ALL_ATTENTION_FUNCTIONS["sdpa"] is not own:
            ALL_ATTENTION_FUNCTIONS["sdpa"] = own


def check_blocked(tiny, shorten=fewer, pictures=(1, 2), llm=True):
    """Rows and answers are those of an encoder whose attention may not look at the patches that go,
    and of an LLM that may not look at their tokens (llm: if all it does is look)."""
    model, inputs = tiny.model, tiny.inputs(list(pictures))
    short = shorten(model, inputs)
    call = short.report.calls[0]
    assert 0 < call.kept_tokens < call.visual_tokens
    with torch.no_grad(), no_looking_at(gone_rows(model, inputs, crops_of(short))):
        blind = encode(model, inputs)
    check_as_blind(tiny, inputs, short, blind, llm=llm)


def check_as_blind(tiny, inputs, short, blind, llm=True):
    """Rows and answers of `short` are those of prompts whose pictures were encoded `blind`."""
    model, call = tiny.model, short.report.calls[0]
    left = kept_positions(model, inputs, call)
    kept = left[inputs["input_ids"] == model.config.image_token_id]
    whole = torch.cat([item.reshape(-1, item.shape[-1]) for item in blind.output.pooler_output])
    claim = f"the encoder of {tiny.name} is not as if it could not look at the dropped patches"
    require_same(rows_of(short), whole[kept], claim, **CLOSE)
    other = torch.cat([item.reshape(-1, item.shape[-1])
                       for item in encode(model, inputs).output.pooler_output])  # fmt: skip
    assert (other[kept] - whole[kept]).abs().max() > 1e-2, "blocking changes nothing: no test"
    if not llm or positions_of(model):
        return
    tokens, logits = answer(model, short.inputs)
    text = {k: v for k, v in inputs.items() if "pixel" not in k}
    positions = model._prepare_position_ids_for_generation(inputs["input_ids"], dict(inputs))
    holes = {"attention_mask": left.long(), "position_ids": positions}
    wanted_tokens, wanted = answer(
        model, {**text, **holes, "mm_encoder_outputs": {"image": blind.output}}
    )
    claim = f"{tiny.name} does not answer as if the dropped patches could not be looked at"
    require_same(logits, wanted, claim, **CLOSE)
    require_tokens(tokens, wanted_tokens, claim)


def check_alone(tiny, shorten=fewer):
    """A picture beside others that keep other numbers is encoded and answered as alone."""
    with torch.no_grad():
        both, alone = (shorten(tiny.model, tiny.inputs(pictures)) for pictures in ([1, 2], [1]))
    assert len({len(kept) for kept in kept_of(both)}) > 1
    assert kept_of(both)[: len(kept_of(alone))] == kept_of(alone)
    claim = f"{tiny.name} does not encode fewer patches in a batch as alone"
    require_same(rows_of(both)[: len(rows_of(alone))], rows_of(alone), claim, **CLOSE)
    _, together = answer(tiny.model, both.inputs)
    _, single = answer(tiny.model, alone.inputs)
    require_same(together[:1], single, claim, **CLOSE)
