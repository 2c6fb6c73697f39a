"""The tokenizer of nano and the processors around it, made from scratch.

Words of three letters and more (and a few short ones) are tokens; everything else is read
character by character, so that "KX" is k, x and "417" is 4, 1, 7. Case does not matter.
"""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tokensieve.data.synth import COLOURS, KEY_LETTERS, PLACES, SHAPES

PAD, EOS, UNK, IMAGE, ANSWER = "<pad>", "</s>", "<unk>", "<image>", "<answer>"
SPECIAL = (PAD, EOS, UNK, IMAGE, ANSWER)
SHORT = ("is", "of", "in", "on", "to", "it")  # none of them can be a key
WORDS = [
    "what",
    "the",
    "value",
    "read",
    "which",
    "background",
    "colour",
    "how",
    "many",
    "objects",
    "are",
    "there",
    "count",
    "has",
    "shape",
    "object",
    "where",
    "located",
    "photo",
    "picture",
    "page",
    "tell",
    "please",
    "number",
    "key",
    "give",
    "and",
    "for",
    "number",
]
SIGNS = "?.:,!-'\""
PLAIN = "abcdefghijklmnopqrstuvwxyz0123456789"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}"
    "{% set parts = message['content'] %}"  # pictures first, unless text stands on both sides
    "{% if parts[0]['type'] == 'text' and parts[-1]['type'] == 'text' %}"
    "{% for part in parts %}"
    "{% if part['type'] == 'image' %}<image>{% elif part['type'] == 'text' %}"
    "{{ part['text'] }}{% endif %}{% endfor %}"
    "{% else %}"
    "{% for part in parts if part['type'] == 'image' %}<image>{% endfor %}"
    "{% for part in parts if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}"
    "{% endif %}"
    "{% if message['role'] == 'assistant' %}</s>{% else %}<answer>{% endif %}"
    "{% endfor %}"
)


def vocabulary() -> dict[str, int]:
    """Token -> id; the special tokens come first."""
    words = [*SPECIAL, *PLAIN, *SIGNS, *SHORT, *WORDS, *COLOURS, *SHAPES, *PLACES]
    return {word: number for number, word in enumerate(dict.fromkeys(words))}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer with its chat template; unknown words become <unk>."""
    core = Tokenizer(models.WordLevel(vocabulary(), unk_token=UNK))
    core.normalizer = normalizers.Sequence(
        [
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"\bcolor\b"), "colour"),
            normalizers.Replace(Regex(r"\bcenter\b"), "centre"),
        ]
    )
    places = "|".join(place for place in PLACES if " " in place)
    pieces = Regex(rf"{places}|\b(?:{'|'.join(SHORT)})\b|[a-z]{{3,}}|\S")
    core.pre_tokenizer = pre_tokenizers.Split(pieces, behavior="removed", invert=True)
    return with_template(core)


def with_template(core: Tokenizer) -> PreTrainedTokenizerFast:
    """`core` as Transformers knows it, with the special tokens and the chat template; what it reads
    is put together again without spaces."""
    core.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNK,
        additional_special_tokens=[IMAGE, ANSWER],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def encode_question(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Ids of a question with its answer marker, as the chat template lays them out."""
    return list(tokenizer(text + ANSWER, add_special_tokens=False)["input_ids"])


def key_positions(ids: list[int]) -> list[int]:
    """Where in a question the two letters of a key stand (empty if it names none)."""
    table = vocabulary()
    letters = {table[letter.lower()] for letter in KEY_LETTERS}
    return [place for place, token in enumerate(ids) if token in letters]
