"""Whether the question stands before the pictures, which conditional methods rely on.

B prompts, S prompt length.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from torch import Tensor

from tokensieve.errors import QuestionWarning
from tokensieve.hf.prompt.text import Asked
from tokensieve.hf.runtime.once import once

_LOOKED_AT = 4  # words behind the last picture, of which the question is among the first


def asked_in_front(asked: Asked) -> list[bool]:
    """For each prompt whether its question stands before its first picture; True without pictures.

    Without a tokenizer that is read from the words: the first ones behind the last picture, where a
    question is repeated, stand in front too, two neighbours or the last one; or none are behind.
    An entry `text_mask` of the inputs says it outright. A question of one word may be misread.
    """
    rows = zip(asked.ids_BS, asked.words_BS, asked.place_BS, asked.behind_BS, strict=True)
    return [_in_front(*row, named=asked.named_BS is not None) for row in rows]


def _in_front(
    ids_S: Tensor, words_S: Tensor, place_S: Tensor, behind_S: Tensor, *, named: bool
) -> bool:
    if not bool(place_S.any()):
        return True
    before_S = place_S.cumsum(-1) == 0
    front = ids_S[words_S & before_S].tolist()
    if named:
        return bool(front)
    first = ids_S[words_S & behind_S].tolist()[:_LOOKED_AT]
    if not first or not front:
        return bool(front)
    return bool(set(pairwise(first)) & set(pairwise(front))) or front[-1] in first[:2]


def warn_of_order(model: Any, inputs: Mapping[str, Any]) -> None:
    """Warn, once for each open sieve, of a picture that stands before its question."""
    if not all(asked_in_front(Asked.of(model, inputs))):
        _warn(model)


@once
def _warn(_model: Any) -> None:
    warnings.warn(
        "Expected the question before the picture, for a method that chooses by what was asked. "
        "Got a picture with its question behind it, which a causal LLM has not read by then. Ask "
        "with --ask-first or prompts of tokensieve.hf.prompt.template.ask_first; where the "
        "question does stand in front, mark it by an entry `text_mask` of the inputs.",
        QuestionWarning,
        stacklevel=2,
    )
