"""What the prompt's text says of visual tokens.

B crops, L tokens, C width, T text tokens.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from tokensieve.errors import InputError, NonFiniteError, PromptError, UnsupportedError
from tokensieve.types import TextContext, VisionTokens


def text_attention(vision: VisionTokens, name: str = "attention") -> Float[Tensor, "B L T"]:
    """The signal `name` in float32: attention from each text token.

    Raises `PromptError` where the prompt has no text, `UnsupportedError` without the signal,
    `NonFiniteError` for NaN in it.
    """
    found_BLT = vision.signal(name).float()
    if found_BLT.shape[-1] == 0:
        raise _no_text()
    return found_BLT


def text_embeds(text: TextContext | None, vision: VisionTokens) -> Float[Tensor, "T C"]:
    """The text's embeddings in float32, to be compared with visual tokens.

    Raises `UnsupportedError` where no text was handed on, `PromptError` where there is none,
    `InputError` for text of another width than the visual tokens, `NonFiniteError` for NaN in it.
    """
    if text is None:
        raise UnsupportedError(
            "Expected the prompt's text, which this method chooses by. Got none. Pass `text`, or "
            "run it inside a sieve."
        )
    if len(text.embeds) == 0:
        raise _no_text()
    width, got = vision.tokens.shape[-1], text.embeds.shape[-1]
    if width != got:
        raise InputError(
            f"Expected text embeddings of width {width}, as the visual tokens. Got {got}. Use the "
            "method behind the projector, with embeddings of the LLM."
        )
    if not bool(torch.isfinite(text.embeds).all()):
        raise NonFiniteError(
            "Expected finite text embeddings. Got NaN or Inf. Check the model's dtype."
        )
    return text.embeds.float()


def _no_text() -> PromptError:
    return PromptError(
        "Expected text beside the picture, to choose tokens by it. Got a prompt without any. "
        "Add a question, or use a method that reads no text."
    )
