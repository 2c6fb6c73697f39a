"""What is asked of the pictures of a prompt, for a projector that is told the question.

B prompts, S prompt length, T text in front of the first answer, P pictures, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tokensieve.errors import PromptError, UnsupportedError
from tokensieve.hf.prompt.compaction import Gather
from tokensieve.hf.runtime.hooks import Point, When, acting

KIND = "quecc"


@contextmanager
def asking(base: Any, inputs: Mapping[str, Any]) -> Iterator[None]:
    """While open, the projector of `base`, a `FusedLlavaModel`, is told the question of the prompt
    that each picture in `inputs` belongs to. Nothing is done for another kind of projector.

    Raises what `questions` raises.
    """
    pixels = inputs.get("pixel_values")
    if base.config.fusion_kind != KIND or pixels is None:
        yield
        return
    told_PD = questions(base, inputs, len(pixels))

    def tell(
        _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, {**kwargs, "question_BD": told_PD}

    with acting({Point(base.multi_modal_projector, When.BEFORE): tell}):
        yield


@torch.no_grad()
def questions(base: Any, inputs: Mapping[str, Any], pictures: int) -> Float[Tensor, "P D"]:
    """The LLM's last hidden state of the last word in front of the answer, the pictures left out,
    for each picture; zeros where there is none. With labels the answer begins at the first of
    them, so none of it is told.

    Raises `UnsupportedError` without ids, `PromptError` where pictures and placeholders do not fit.
    """
    ids_BS, mask_BS = inputs.get("input_ids"), inputs.get("attention_mask")
    if ids_BS is None:
        raise UnsupportedError(
            "Expected `input_ids`, which hold the question that the projector is told. Got "
            "embeddings. Pass ids, and pictures as `pixel_values`."
        )
    visual_BS = ids_BS == base.config.image_token_id
    text_BS = ~visual_BS if mask_BS is None else mask_BS.bool() & ~visual_BS
    if (labels_BS := inputs.get("labels")) is not None:
        text_BS &= (labels_BS != -100).cumsum(-1) == 0
    count_B = visual_BS.sum(-1) // base.config.image_seq_length
    if int(count_B.sum()) != pictures:
        raise PromptError(
            f"Expected {base.config.image_seq_length} placeholders a picture. Got {pictures} "
            f"picture(s), placeholders of {int(count_B.sum())}. Make prompts with the model's "
            "processor."
        )
    silent_B = ~text_BS.any(-1)
    text_BS[:, 0] |= silent_B  # any token, for its state is not told
    gather = Gather.of(text_BS, left=False)
    read = base.language_model(
        input_ids=gather.take(ids_BS, 0), attention_mask=gather.real_BT.long(), use_cache=False
    ).last_hidden_state
    last_B = (gather.real_BT.sum(-1) - 1).clamp(min=0)
    of_prompt: Tensor = read[torch.arange(len(read), device=read.device), last_B]
    of_prompt = of_prompt.masked_fill(silent_B[:, None], 0.0)
    return of_prompt.repeat_interleave(count_B.to(read.device), 0)
