"""Rows as token ids, with labels on what the model is to say: answers and their end of turn.

An answer's characters are known exactly: the chat template is filled in once with marks in the
answers' places, and the result has to be the same text as with the answers themselves. Tokens are
then told apart by the character offsets of a fast tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from PIL import Image

from tokensieve.data.llava import PLACEHOLDER, Row
from tokensieve.errors import ConfigError, RowError, UnsupportedError

IGNORED = -100  # what cross entropy leaves out
_MARK = re.compile("\ue000(\\d+)\ue001")  # private characters: no text holds them
_PROBES = ((336, 336), (480, 240), (240, 480))
_PROBE = Row(0, "probe", None, (("a", "b"), ("c", "d")))


@dataclass(frozen=True)
class Tokens:
    """Token ids of a row, and labels: the same ids where the loss looks, else `IGNORED`."""

    ids: list[int]
    labels: list[int]


@dataclass(frozen=True)
class _Text:
    """A row's text, placeholders already multiplied, and [start, end) of every answer in it."""

    text: str
    spans: list[tuple[int, int]]


class Reader:
    """Makes tokens of rows, in the words of a processor.

    form: "chat", by the chat template, or "plain": picture, caption, end. end: text behind each
    answer; None: the template's own end of turn, or the tokenizer's end of sequence where the
    template has none.

    Raises `UnsupportedError` for a tokenizer without character offsets or pictures of varying
    length, `ConfigError` where there is no chat template or nothing to end an answer with.
    """

    def __init__(self, processor: Any, form: str, max_length: int, end: str | None = None) -> None:
        self.processor, self.tokenizer = processor, processor.tokenizer
        self.form, self.max_length = form, max_length
        if not getattr(self.tokenizer, "is_fast", False):
            raise UnsupportedError(
                "Expected a fast tokenizer, which knows the characters of each token. Got "
                f"{type(self.tokenizer).__name__}. Save the model with a tokenizer.json."
            )
        if form == "chat" and not getattr(processor, "chat_template", None):
            raise ConfigError(
                "Expected a processor with a chat template. Got none. Save one with the model, or "
                "use data.form=plain."
            )
        self.image_token, self.image_id = processor.image_token, int(processor.image_token_id)
        self.visual = _visual_tokens(processor)
        self.end = self._chosen_end() if end is None else end

    def tokens(self, row: Row) -> Tokens:
        """The ids the processor would give, and labels. Raises `RowError`."""
        filled = self._plain(row) if self.form == "plain" else self._chat(row)
        begun = self.tokenizer.bos_token
        encoded = self.tokenizer(
            filled.text,
            add_special_tokens=not (begun and filled.text.startswith(begun)),
            return_offsets_mapping=True,
            return_attention_mask=False,
            truncation=False,
            verbose=False,
        )
        ids, offsets = list(encoded["input_ids"]), encoded["offset_mapping"]
        pictures = ids.count(self.image_id)
        if pictures != (self.visual if row.picture else 0):
            raise RowError(
                "placeholder",
                f"{row.name}: expected {'one' if row.picture else 'no'} {self.image_token}, the "
                f"model's own placeholder, in its text as the model reads it. Got "
                f"{pictures // self.visual}. Take it out of the row, or use a chat template that "
                "shows pictures.",
            )
        labels = self._labels(row, ids, offsets, filled)
        if len(ids) > self.max_length:
            raise RowError(
                "too long",
                f"{row.name}: {len(ids)} tokens with its picture's, of at most {self.max_length}. "
                "Cut it into several rows, or raise data.max_length.",
            )
        return Tokens(ids, labels)

    def _labels(
        self, row: Row, ids: list[int], offsets: Sequence[tuple[int, int]], filled: _Text
    ) -> list[int]:
        labels = [IGNORED] * len(ids)
        inside: list[list[int]] = [[] for _ in filled.spans]
        number = 0
        for i, (a, b) in enumerate(offsets):  # answers stand one behind the other
            while number < len(inside) and a >= filled.spans[number][1]:
                number += 1
            if number < len(inside) and b > filled.spans[number][0]:
                inside[number].append(i)
        for number, (found, (_, end)) in enumerate(zip(inside, filled.spans, strict=True), 1):
            if not found:
                raise RowError(
                    "no tokens", f"{row.name}: the tokenizer drops answer {number}. Rewrite it."
                )
            last = self._end_of_turn(ids, offsets, filled.text, end, found[-1])
            labels[found[0] : last + 1] = ids[found[0] : last + 1]
        return labels

    def _end_of_turn(
        self, ids: list[int], offsets: Sequence[tuple[int, int]], text: str, end: int, last: int
    ) -> int:
        """Where the special token right behind an answer is; `last` where there is none."""
        for i in range(last + 1, len(ids)):
            if text[end : offsets[i][0]].strip():
                break
            if self._is_special(ids[i]):
                return i
            if text[offsets[i][0] : offsets[i][1]].strip():
                break
        return last

    def _is_special(self, token: int) -> bool:
        added = self.tokenizer.added_tokens_decoder.get(token)
        special = token in self.tokenizer.all_special_ids or bool(added and added.special)
        return special and token != self.image_id

    def _plain(self, row: Row) -> _Text:
        """Picture, caption, end: what is asked for is left out."""
        if row.picture is None or len(row.turns) != 1:
            raise RowError(
                "not a caption",
                f"{row.name}: expected a picture and one answer, its caption, for data.form=plain. "
                f"Got {len(row.turns)} answers{'' if row.picture else ' and no picture'}. Use "
                "data.form=chat.",
            )
        before = self.image_token * self.visual
        caption = row.turns[0][1] + self.end
        return _Text(before + caption, [(len(before), len(before) + len(caption))])

    def _chat(self, row: Row) -> _Text:
        answers = [answer + self.end for _, answer in row.turns]
        marks = [f"\ue000{number}\ue001" for number in range(len(answers))]
        pieces = _MARK.split(self._rendered(row, marks))
        between, order = pieces[::2], pieces[1::2]
        whole = self._rendered(row, answers)
        stripped = [answer.strip() for answer in answers]  # templates may trim what is said
        said = next((a for a in (answers, stripped) if _joined(between, a) == whole), None)
        if said is None or order != [str(number) for number in range(len(answers))]:
            raise RowError(
                "template",
                f"{row.name}: the chat template does not show its answers as they are, in order: "
                f"{whole[-200:]!r}. Use data.form=plain, or another chat template.",
            )
        text, spans = self._expanded(between[0]), []
        for answer, after in zip(said, between[1:], strict=True):
            spans.append((len(text), len(text) + len(answer)))
            text += answer + self._expanded(after)
        return _Text(text, spans)

    def _expanded(self, text: str) -> str:
        return text.replace(self.image_token, self.image_token * self.visual)

    def _rendered(self, row: Row, answers: Sequence[str]) -> str:
        messages = []
        for (question, _), answer in zip(row.turns, answers, strict=True):
            messages.append({"role": "user", "content": _parts(question)})
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        try:
            return str(self.processor.apply_chat_template(messages, tokenize=False))
        except (TemplateError, ValueError, TypeError, AttributeError) as error:
            raise RowError(
                "template",
                f"{row.name}: the chat template fails on it: {error}. Use data.form=plain, or "
                "another chat template.",
            ) from error

    def _chosen_end(self) -> str:
        """ "" where the template ends every answer itself, else the end of sequence."""
        eos = self.tokenizer.eos_token
        if self.form == "chat":
            self.end = ""
            try:
                filled = self._chat(_PROBE)
            except RowError as error:
                raise ConfigError(
                    "Expected a chat template that shows two questions and their answers as they "
                    f"are. Got, for one: {error}"
                ) from error
            encoded = self.tokenizer(filled.text, return_offsets_mapping=True)
            ids, offsets = list(encoded["input_ids"]), encoded["offset_mapping"]
            ended = []
            for start, end in filled.spans:
                last = max(i for i, (a, b) in enumerate(offsets) if a < end and b > start)
                ended.append(self._end_of_turn(ids, offsets, filled.text, end, last) > last)
            if all(ended):
                return ""
            if any(ended):
                raise ConfigError(
                    "Expected a chat template that ends every answer with a special token, or "
                    "none. Got one that ends some. Set data.end to what shall stand behind each."
                )
        if not eos:
            raise ConfigError(
                "Expected an end of turn for the model to learn. Got a chat template without one "
                "and a tokenizer without end of sequence. Set data.end."
            )
        return str(eos)


def _parts(question: str) -> list[dict[str, str]]:
    """A question as a template takes it: picture and text, in their order."""
    before, placeholder, after = question.partition(PLACEHOLDER)
    parts = [{"type": "text", "text": before.strip()}] if before.strip() else []
    if placeholder:
        parts.append({"type": "image"})
    if after.strip():
        parts.append({"type": "text", "text": after.strip()})
    return parts


def _joined(between: Sequence[str], answers: Sequence[str]) -> str | None:
    """The template's pieces with answers between them; None where their numbers disagree."""
    if len(between) != len(answers) + 1:
        return None
    pairs = zip(between, answers, strict=False)
    return "".join(piece + answer for piece, answer in pairs) + between[-1]


def _visual_tokens(processor: Any) -> int:
    """Placeholders of a picture. Raises `UnsupportedError` where their number varies."""
    counts = set()
    for size in _PROBES:
        picture = Image.new("RGB", size)
        made = processor(text=[processor.image_token], images=[picture], return_tensors="pt")
        counts.add(int((made["input_ids"] == processor.image_token_id).sum()))
    if len(counts) != 1 or counts == {0}:
        raise UnsupportedError(
            "Expected a processor that gives every picture the same number of tokens. Got "
            f"{sorted(counts)} for pictures of different shape. Use a LLaVA-1.5 kind of model."
        )
    return counts.pop()
