"""What text of a prompt a method sees: the question, as far as a prompt tells without a tokenizer.

What stands before a picture (a system prompt, the template's first words) cannot have seen it in a
causal LLM, and seldom says what is asked. So the question is what stands behind the last picture,
less padding, answers that `labels` mark and the special tokens the model's config names. Words of a
template that are no special tokens ("ASSISTANT:") cannot be told from others: where they matter,
say which tokens are the question by an entry `text_mask` of the inputs.

B prompts, S prompt length, T text tokens of a prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tokensieve.errors import PromptError
from tokensieve.hf.families.table import places_of
from tokensieve.types import TextContext

TEXT_MASK = "text_mask"  # an entry of the inputs for methods; the model never gets it
_NO_LABEL = -100
_IDS = ("_token_id", "_token_ids", "_token_index")


@dataclass(frozen=True)
class Asked:
    """The text of B prompts, and which of it is the question.

    ids: (B, S). real: False in padding. place: the rows of pictures. labels, named: as the inputs'
    `labels` and `text_mask`. special: gives the ids of special tokens, where they are asked for.
    """

    ids_BS: Int[Tensor, "B S"]
    real_BS: Bool[Tensor, "B S"]
    place_BS: Bool[Tensor, "B S"]
    special: Callable[[], frozenset[int]]
    labels: Any = None
    named_BS: Bool[Tensor, "B S"] | None = None

    @classmethod
    def of(cls, model: Any, inputs: Mapping[str, Any], mask_BS: Tensor | None = None) -> Asked:
        """Of prompts for `model`. mask: of real tokens; None: as `inputs` say.

        Raises `PromptError` for a `text_mask` of another shape than `input_ids`.
        """
        ids_BS, named_BS = inputs["input_ids"], inputs.get(TEXT_MASK)
        if mask_BS is None and (mask_BS := inputs.get("attention_mask")) is None:
            mask_BS = torch.ones_like(ids_BS)
        if named_BS is not None and getattr(named_BS, "shape", None) != ids_BS.shape:
            got = tuple(named_BS.shape) if isinstance(named_BS, Tensor) else type(named_BS).__name__
            raise PromptError(
                f"Expected `{TEXT_MASK}` as a tensor of the shape {tuple(ids_BS.shape)} of "
                f"`input_ids`, 1 at the question's tokens. Got {got}. Correct it or leave it out."
            )
        return cls(
            ids_BS,
            mask_BS.bool(),
            places_of(model, ids_BS),
            partial(special_ids, model),
            inputs.get("labels"),
            None if named_BS is None else named_BS.to(ids_BS.device).bool(),
        )

    @cached_property
    def text_BS(self) -> Bool[Tensor, "B S"]:
        """All text: no padding, no pictures, no answers that `labels` mark, unless all of it is
        labelled."""
        text_BS = self.real_BS & ~self.place_BS
        if not isinstance(self.labels, Tensor) or self.labels.shape != text_BS.shape:
            return text_BS
        return _or(text_BS & (self.labels == _NO_LABEL), text_BS)

    @cached_property
    def behind_BS(self) -> Bool[Tensor, "B S"]:
        """Places behind the last picture; all where there is no picture."""
        return self.place_BS.flip(-1).cumsum(-1).flip(-1) == 0

    @cached_property
    def words_BS(self) -> Bool[Tensor, "B S"]:
        """Text a question can be made of: what `text_mask` names, else all but special tokens."""
        special = torch.tensor(sorted(self.special()), device=self.ids_BS.device)
        words_BS = self.text_BS & ~torch.isin(self.ids_BS, special)
        if self.named_BS is None:
            return words_BS
        return _or(self.named_BS & self.real_BS & ~self.place_BS, words_BS)

    @cached_property
    def question_BS(self) -> Bool[Tensor, "B S"]:
        """For embeddings, which know no order: `text_mask`; else the words behind the last picture.

        Where there is none: all words, wherever they stand; else special tokens too.
        """
        found_BS = _or(_or(self.words_BS & self.behind_BS, self.words_BS), self.text_BS)
        if self.named_BS is None:
            return found_BS
        return _or(self.named_BS & self.words_BS, found_BS)

    def context(self, embed: Callable[[Tensor], Tensor], prompt: int) -> TextContext:
        """The question of one prompt in embeddings of the LLM, as a method before it is told."""
        return TextContext(embed(self.ids_BS[prompt][self.question_BS[prompt]]))

    def seeing(self, alive_BS: Bool[Tensor, "B S"]) -> Bool[Tensor, "B S"]:
        """For what is read inside a causal LLM: words that have seen every picture.

        Where there is none (the question stands in front): the last place of the prompt, picture or
        not, that is still `alive` at the layer; the attention of words in front would be zero. None
        in a prompt without any text.
        """
        last_BS = _last(self.read_BS & alive_BS) & self.text_BS.any(-1, keepdim=True)
        return _or(self.words_BS & self.behind_BS, last_BS)

    @cached_property
    def read_BS(self) -> Bool[Tensor, "B S"]:
        """The prompt as it is read: without padding and answers, pictures and special tokens in
        it. Its last place is the one that the answer is written from."""
        return self.text_BS | (self.place_BS & self.real_BS)


def special_ids(model: Any) -> frozenset[int]:
    """Ids of tokens that are no words: all that configs name (begin, end, padding, pictures)."""
    config = model.config
    found: set[int] = set()
    for part in (config, config.get_text_config(), getattr(model, "generation_config", None)):
        for name, value in vars(part or object).items():
            if name.endswith(_IDS):
                values = value if isinstance(value, list | tuple) else [value]
                found |= {v for v in values if isinstance(v, int)}
    return frozenset(found)


def without_text_mask(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """`inputs` as a model takes them."""
    return {name: value for name, value in inputs.items() if name != TEXT_MASK}


def _or(first_BS: Tensor, second_BS: Tensor) -> Tensor:
    """Row by row the first where it has any, else the second."""
    return first_BS.where(first_BS.any(-1, keepdim=True), second_BS)


def _last(mask_BS: Tensor) -> Tensor:
    """True at the last True of each row."""
    return mask_BS & (mask_BS.flip(-1).cumsum(-1).flip(-1) == 1)
