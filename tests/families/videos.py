"""Tiny random models that take videos, and inputs as their processors would give them.

`build_video("qwen3_vl")` gives a `Videos`: `.model`, and `.inputs(["v", "iv"])` for two prompts,
one of a video and one of a picture and a video, padded on the left.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
import transformers as tf
from packaging.version import Version

from families import checks, inside, parts
from families.said import require_same, require_tokens
from families.tiny import BEGIN, END, IMAGE, PAD, PINPOINTS, SYSTEM, VIDEO, build

FRAMES = 3
GRIDS = {"i": [1, 8, 4], "v": [FRAMES, 4, 8]}  # of Qwen, in patches


def _llava_next_video() -> Any:
    config = tf.LlavaNextVideoConfig(
        vision_config=parts.clip(), text_config=parts.llm(), image_token_index=IMAGE,
        video_token_index=VIDEO, image_grid_pinpoints=PINPOINTS, spatial_pool_stride=2,
    )  # fmt: skip
    return tf.LlavaNextVideoForConditionalGeneration(config)


def _video_llava() -> Any:
    config = tf.VideoLlavaConfig(
        vision_config=parts.clip(), text_config=parts.llm(), image_token_index=IMAGE,
        video_token_index=VIDEO,
    )  # fmt: skip
    return tf.VideoLlavaForConditionalGeneration(config)


def _video_llama_3() -> Any:
    vision = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2,
              "num_attention_heads": 2, "patch_size": 4, "num_channels": 3}  # fmt: skip
    config = tf.VideoLlama3Config(
        vision_config={"model_type": "video_llama_3_vision", **vision},
        text_config=parts.llm("qwen2"), image_token_id=IMAGE, video_token_id=VIDEO,
    )  # fmt: skip
    return tf.VideoLlama3ForConditionalGeneration(config)


_OWN = {"llava_next_video": _llava_next_video, "video_llava": _video_llava,
        "video_llama_3": _video_llama_3}  # fmt: skip
NAMES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_onevision", *_OWN)
if Version(tf.__version__) < Version("5.24"):  # its encoders want other names before
    NAMES = tuple(name for name in NAMES if name != "video_llava")


@dataclass(frozen=True)
class Videos:
    """A tiny model and what its processor would give of pictures ("i") and videos ("v")."""

    name: str
    model: Any

    def pixels(self, kinds: str) -> dict[str, Any]:
        """Of all pictures and videos; the same for the n-th of a kind, whatever is beside it."""
        out: dict[str, Any] = {}
        for kind, name in (("i", "pixel_values"), ("v", "pixel_values_videos")):
            n = kinds.count(kind)
            if not n:
                continue
            own = "image" if kind == "i" else "video"
            if "qwen" in self.name or self.name == "video_llama_3":
                width = 3 * 4 * 4 * (2 if "qwen" in self.name else 1)
                grid = torch.tensor([GRIDS[kind]] * n)
                out[name] = torch.cat([
                    parts.noise(int(g.prod()), width, seed=i) for i, g in enumerate(grid)
                ])  # fmt: skip
                out[f"{own}_grid_thw"] = grid
                if self.name == "video_llama_3":
                    out[f"{own}_merge_sizes"] = torch.tensor([1 if kind == "i" else 2] * n)
            elif kind == "v":
                out[name] = parts.each([n], FRAMES, 3, 24, 24)
            elif self.name == "video_llava":
                out[name] = parts.each([n], 3, 24, 24)
            else:
                out |= parts.anyres([n])
        return out

    def rows(self, kind: str, n: int) -> list[int]:
        """Rows of each of n pictures or videos."""
        own = "image" if kind == "i" else "video"
        items = encoded_by_model(self.model, self.pixels(kind * n), own)
        counts = [item.reshape(-1, item.shape[-1]).shape[0] for item in items]
        return [sum(counts[i::n]) for i in range(n)] if len(counts) > n else counts

    def inputs(self, prompts: list[str]) -> dict[str, Any]:
        """Prompts of so many pictures and videos, padded on the left."""
        kinds = "".join(prompts)
        rows = {kind: iter(self.rows(kind, kinds.count(kind))) for kind in "iv" if kind in kinds}
        generator = torch.Generator().manual_seed(3)
        made = []
        for b, prompt in enumerate(prompts):
            ids = [1, 2, *SYSTEM]
            for kind in prompt:
                count, parts = next(rows[kind]), 1
                if kind == "v" and self.name == "qwen3_vl":
                    parts = FRAMES  # a time stands in front of every frame
                for _ in range(parts):
                    words = torch.randint(3, 140, (2,), generator=generator).tolist()
                    token = IMAGE if kind == "i" else VIDEO
                    ids += [*words, BEGIN, *[token] * (count // parts), END]
            made.append(ids + torch.randint(3, 140, (5 + 4 * b,), generator=generator).tolist())
        S = max(map(len, made))
        ids_BS = torch.tensor([[PAD] * (S - len(p)) + p for p in made])
        mask = torch.tensor([[0] * (S - len(p)) + [1] * len(p) for p in made])
        out = {"input_ids": ids_BS, "attention_mask": mask, **self.pixels(kinds)}
        if "qwen" in self.name:
            out["mm_token_type_ids"] = (ids_BS == IMAGE).int() + 2 * (ids_BS == VIDEO).int()
        return out


PROMPTS = ["v", "iv"]


def encoded_by_model(model: Any, inputs: dict[str, Any], kind: str) -> Any:
    """The rows of one kind, by the model's own code."""
    encoder = getattr(model.base_model, f"get_{kind}_features")
    names = inspect.signature(encoder).parameters
    with torch.no_grad():
        given = {k: v for k, v in inputs.items() if k in names}
        return encoder(**given, return_dict=True).pooler_output


def blocked(model: Any, inputs: dict[str, Any], short: dict[str, Any]) -> dict[str, Any]:
    """The whole prompt, its dropped keys blocked by holes in the mask, every position told."""
    ids, holes = inputs["input_ids"], inputs["attention_mask"].bool()
    config = model.config
    for kind, token in (("image", config.image_token_id), ("video", config.video_token_id)):
        if kind in short["mm_encoder_outputs"]:
            full = encoded_by_model(model, inputs, kind)
            rows = checks.kept_rows(full, short["mm_encoder_outputs"][kind].pooler_output)
            assert 0 < int(rows.sum()) < len(rows)
            holes = holes.masked_scatter(ids == token, rows)
    positions = model._prepare_position_ids_for_generation(ids, dict(inputs))
    return {**inputs, "attention_mask": holes.long(), "position_ids": positions}


def check_before(videos: Videos, shorten: Any) -> None:
    """Shortened = the whole prompt with the dropped keys blocked, every position as it was, and
    every layer's cache holds the shortened prompt alone."""
    model, inputs = videos.model, videos.inputs(PROMPTS)
    short = shorten(model, inputs)
    tokens, logits = checks.answer(model, short)
    wanted_tokens, wanted = checks.answer(model, blocked(model, inputs, short))
    claim = f"{videos.name} does not answer as if the dropped tokens of its video were blocked"
    require_same(logits, wanted, claim, **checks.CLOSE)
    require_tokens(tokens, wanted_tokens, claim)
    out = model.generate(**short, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
    held = {layer.keys.shape[-2] for layer in out.past_key_values.layers}
    assert held == {short["input_ids"].shape[1] + 2}, f"{videos.name} caches {held}"


def check_inside(videos: Videos) -> None:
    """Tokens of a video dropped at a layer of the LLM, as if it could not look at them."""
    told = SimpleNamespace(
        name=videos.name, model=videos.model, inputs=lambda _pictures: videos.inputs(PROMPTS)
    )
    inside.check_blocked(told, 1)


@cache
def build_video(name: str) -> Videos:
    """The tiny model `name`, its weights drawn so that attention matters."""
    if name not in _OWN:
        return Videos(name, build(name).model)
    torch.manual_seed(0)
    model = _OWN[name]()
    generator = torch.Generator().manual_seed(11)
    for key, weight in model.named_parameters():
        if weight.ndim >= 2:
            scale = 1.0 if "embed_tokens" in key else 2.0 / weight.shape[-1] ** 0.5
            weight.data = torch.randn(weight.shape, generator=generator) * scale
    model.eval()
    model.generation_config.pad_token_id = PAD
    model.generation_config.eos_token_id = None
    return Videos(name, model)
