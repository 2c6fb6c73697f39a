"""What the prompt's text says of visual tokens.

B crops, L tokens, T text tokens.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from tokensieve.errors import PromptError, UnsupportedError
from tokensieve.types import TextContext, VisionTokens


def text_attention(vision: VisionTokens, name: str = "attention") -> Float[Tensor, "B L T"]:
    """The signal `name` in float32: attention from each text token.

    Raises `PromptError` where the prompt has no text, `UnsupportedError` without the signal,
    `NonFiniteError` for NaN in it.
    """
    found_BLT = vision.signal(name).float()
    if found_BLT.shape[-1] == 0:
        raise PromptError(
            "Expected text beside the picture, to choose tokens by it. Got a prompt without any. "
            "Add a question, or use a method that reads no text."
        )
    return found_BLT


def text_embeds(text: TextContext | None) -> Float[Tensor, "T D"]:
    """The text's embeddings in float32.

    Raises `UnsupportedError` where no text was handed on, `PromptError` where there is none.
    """
    if text is None:
        raise UnsupportedError(
            "Expected the prompt's text, which this method chooses by. Got none. Pass `text`, or "
            "run it inside a sieve."
        )
    if len(text.embeds) == 0:
        raise PromptError(
            "Expected text beside the picture, to choose tokens by it. Got a prompt without any. "
            "Add a question, or use a method that reads no text."
        )
    return text.embeds.float()
