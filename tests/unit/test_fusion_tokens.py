"""Ids as the processor gives them, and labels on answers and their ends alone."""

from pathlib import Path

import pytest
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from tokensieve.data.llava import Row
from tokensieve.errors import ConfigError, RowError, UnsupportedError
from tokensieve.hf.fused import fuse
from tokensieve.hf.models.nano import load_nano
from tokensieve.train.fusion.tokens import IGNORED, Reader, _parts
from toys.fusion_toys import SPECIAL, VICUNA, as_llama, letters, processor_of, toy

# what llava-hf/llava-1.5-7b-hf ships: no end of turn
OPEN = (
    "{% for m in messages %}{{ m['role'].upper() + ': ' }}{% for c in m['content'] if c['type'] == "
    "'image' %}<image>\n{% endfor %}{% for c in m['content'] if c['type'] == 'text' %}"
    "{{ c['text'] + ' ' }}{% endfor %}{% endfor %}"
)
WORDS = [
    "\u2581A", "\u2581chat.", "\u2581USER:", "USER:", "\u2581ASSISTANT:", "\n", "\u2581what?",
    "what?", "\u2581red", "red", "\u2581fish", "\u2581sure?", "\u2581yes", "\u2581",
]  # fmt: skip


def row(*turns, picture=True):
    return Row(3, "x", Path("p.png") if picture else None, tuple(turns))


def words():
    """Llama's ways: a word carries the space before it, the first word one that is not there."""
    table = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}
    made = Tokenizer(models.WordLevel(table, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split("\n", "isolated"),
        pre_tokenizers.Metaspace(prepend_scheme="first"),
    ])  # fmt: skip
    return as_llama(made)


def labelled(reader, tokens):
    """Runs of labelled tokens, as words."""
    runs, open_run = [], False
    for token, label in zip(tokens.ids, tokens.labels, strict=True):
        assert label in (IGNORED, token)
        if label != IGNORED:
            word = reader.tokenizer.convert_ids_to_tokens(token)
            runs = [*runs[:-1], [*runs[-1], word]] if open_run else [*runs, [word]]
        open_run = label != IGNORED
    return runs


def by_processor(processor, row, answers=None):
    messages = []
    for (asked, said), answer in zip(row.turns, answers or row.turns, strict=True):
        messages.append({"role": "user", "content": _parts(asked)})
        text = answer if answers else said
        messages.append({"role": "assistant", "content": [{"type": "text", "text": text}]})
    text = processor.apply_chat_template(messages, tokenize=False)
    pictures = [Image.new("RGB", (80, 60))] if row.picture else None
    return processor(text=[text], images=pictures, return_tensors="pt")["input_ids"][0].tolist()


def test_answers_and_ends_by_hand_on_a_llama_like_tokenizer():
    reader = Reader(processor_of(words()), "chat", 2048)
    tokens = reader.tokens(row(("<image>\nwhat?", "red fish"), ("sure?", "yes")))
    assert reader.end == ""  # the template ends turns itself
    assert reader.tokenizer.convert_ids_to_tokens(tokens.ids) == [
        "<s>", "\u2581A", "\u2581chat.", "\u2581USER:", "\u2581", *["<image>"] * 16, "\n", "what?",
        "\u2581ASSISTANT:", "\u2581red", "\u2581fish", "</s>", "USER:", "\u2581sure?",
        "\u2581ASSISTANT:", "\u2581yes", "</s>",
    ]  # fmt: skip
    assert labelled(reader, tokens) == [["\u2581red", "\u2581fish", "</s>"], ["\u2581yes", "</s>"]]


def test_answers_and_ends_by_hand_on_nano():
    model, processor = load_nano()
    made = fuse(model, processor, blocks=2)
    reader = Reader(made.processor, "chat", 2048)
    tokens = reader.tokens(row(("Read RX.\n<image>", "591"), ("Where is RX?", "top right")))
    assert reader.visual == 64
    assert reader.tokenizer.convert_ids_to_tokens(tokens.ids) == [
        *["<image>"] * 64, "read", "r", "x", ".", "<answer>", "5", "9", "1", "</s>",
        "where", "is", "r", "x", "?", "<answer>", "top right", "</s>",
    ]  # fmt: skip
    assert labelled(reader, tokens) == [["5", "9", "1", "</s>"], ["top right", "</s>"]]


@pytest.mark.parametrize("template", [VICUNA, OPEN])
@pytest.mark.parametrize("build", [letters, words])
@pytest.mark.parametrize("picture", [True, False])
def test_ids_are_the_processors(template, build, picture):
    processor = processor_of(build(), template)
    reader = Reader(processor, "chat", 2048)
    first = "<image>\nwhat?" if picture else "what?"
    asked = row((first, "red fish"), ("sure?", "yes"), picture=picture)
    ended = [answer + reader.end for _, answer in asked.turns]
    assert reader.tokens(asked).ids == by_processor(processor, asked, ended)


def test_ids_are_the_fused_processors():
    loaded = toy()
    asked = row(("it?\n<image>", "a cat"), ("A chat.", "USER"))
    tokens = Reader(loaded.processor, "chat", 2048).tokens(asked)
    assert tokens.ids == by_processor(loaded.processor, asked)
    assert tokens.ids.count(4) == 4


def test_an_answer_that_stands_in_the_prompt_too_is_found_where_it_is_said():
    reader = Reader(processor_of(letters()), "chat", 2048)
    turns = (("a chat or USER?", "USER"), ("USER: ASSISTANT: a", "a"), ("a", "ASSISTANT: a"))
    tokens = reader.tokens(row(*turns, picture=False))
    said = ["".join(run) for run in labelled(reader, tokens)]
    assert said == ["USER</s>", "a</s>", "ASSISTANT: a</s>"]
    first = next(i for i, label in enumerate(tokens.labels) if label != IGNORED)
    before = reader.tokenizer.convert_ids_to_tokens(tokens.ids[:first])
    assert "".join(before) == "<s>A chat. USER: a chat or USER? ASSISTANT: "


def test_where_the_template_has_no_end_the_end_of_sequence_is_put_there():
    reader = Reader(processor_of(words(), OPEN), "chat", 2048)
    assert reader.end == "</s>"
    tokens = reader.tokens(row(("<image>\nwhat?", "red"), ("sure?", "yes")))
    assert labelled(reader, tokens) == [["\u2581red", "</s>"], ["\u2581yes", "</s>"]]
    own = Reader(processor_of(letters(), OPEN), "chat", 2048, end=" END")
    said = labelled(own, own.tokens(row(("<image>\nwhat?", "red"))))
    assert said == [list("red END")]


def test_a_caption_is_read_behind_its_picture():
    reader = Reader(processor_of(words()), "plain", 2048)
    tokens = reader.tokens(row(("what? <image>", "red fish")))
    named = reader.tokenizer.convert_ids_to_tokens(tokens.ids)
    assert named == ["<s>", *["<image>"] * 16, "red", "\u2581fish", "</s>"]
    picture = Image.new("RGB", (80, 60))
    by_hand = reader.processor(text=["<image>red fish</s>"], images=[picture])["input_ids"][0]
    assert tokens.ids == list(by_hand)
    assert tokens.labels[:17] == [IGNORED] * 17
    assert tokens.labels[17:] == tokens.ids[17:]
    for wrong in (row(("x", "y"), picture=False), row(("<image>", "y"), ("x", "y"))):
        with pytest.raises(RowError, match="expected a picture and one answer") as caught:
            reader.tokens(wrong)
        assert caught.value.reason == "not a caption"


def test_nothing_is_cut():
    reader = Reader(processor_of(letters()), "chat", 72)
    asked = row(("<image>\nwhat?", "red"))
    length = len(reader.tokens(asked).ids)
    assert len(Reader(processor_of(letters()), "chat", length).tokens(asked).ids) == length
    with pytest.raises(RowError, match=f"row 3 .id x.: {length} tokens .* at most {length - 1}"):
        Reader(processor_of(letters()), "chat", length - 1).tokens(asked)


@pytest.mark.parametrize(
    "template",
    [
        VICUNA.replace("m['content'][0]['text']", "m['content'][0]['text'] | upper"),
        VICUNA.replace("{{ m['content'][0]['text'] }}", "{% if loop.last %}{{ 'x' }}{% endif %}"),
        VICUNA.replace("for m in messages", "for m in messages[-1:]"),
    ],
)
def test_a_template_that_hides_or_changes_answers_is_refused(template):
    reader = Reader(processor_of(letters(), template), "chat", 2048, end="")
    with pytest.raises(RowError, match="does not show its answers as they are") as caught:
        reader.tokens(row(("<image>\nwhat?", "red"), ("sure?", "yes")))
    assert caught.value.reason == "template"


def test_a_template_may_trim():
    template = VICUNA.replace("m['content'][0]['text']", "m['content'][0]['text'] | trim")
    reader = Reader(processor_of(letters(), template), "chat", 2048)
    said = labelled(reader, reader.tokens(row(("<image>\nwhat?", " red "))))
    assert said == [[*"red", "</s>"]]


def test_a_second_placeholder_of_the_models_own_is_refused():
    reader = Reader(processor_of(letters()), "chat", 2048)
    with pytest.raises(RowError, match=r"expected one <image>, the model's own .* Got 2"):
        reader.tokens(row(("<image>\nan <image>?", "red")))
    with pytest.raises(RowError, match=r"expected no <image>, the model's own .* Got 1"):
        reader.tokens(row(("an <image>?", "red"), picture=False))


def test_a_template_that_shows_no_picture_is_refused():
    blind = VICUNA.replace("<image>\n", "")
    reader = Reader(processor_of(letters(), blind), "chat", 2048)
    with pytest.raises(RowError, match=r"Got 0. .* a chat template that shows pictures") as caught:
        reader.tokens(row(("<image>\nwhat?", "red")))
    assert caught.value.reason == "placeholder"


def test_a_template_that_fails_says_so_of_the_row():
    strict = "{% if messages | length > 4 %}{{ raise_exception('too many') }}{% endif %}" + VICUNA
    reader = Reader(processor_of(letters(), strict), "chat", 2048)
    reader.tokens(row(("a", "b"), ("c", "d"), picture=False))
    with pytest.raises(RowError, match=r"row 3 .id x.: .* fails on it: too many") as caught:
        reader.tokens(row(("a", "b"), ("c", "d"), ("e", "f"), picture=False))
    assert caught.value.reason == "template"


@pytest.mark.parametrize(
    "template",
    ["{{ raise_exception('no') }}", "{{ messages.x.y }}", "{% for m in messages %}x{% endfor %}"],
)
def test_a_template_that_cannot_be_used_at_all_is_refused_once(template):
    with pytest.raises(ConfigError, match="Expected a chat template that shows two questions"):
        Reader(processor_of(letters(), template), "chat", 2048)


def test_what_cannot_be_learned_from_at_all():
    with pytest.raises(ConfigError, match="Expected a processor with a chat template"):
        Reader(processor_of(letters(), None), "chat", 2048)
    lame = processor_of(letters(), OPEN)
    lame.tokenizer.eos_token = None
    with pytest.raises(ConfigError, match=r"Set data\.end"):
        Reader(lame, "chat", 2048)
    assert Reader(lame, "chat", 2048, end="\n").end == "\n"
    some = VICUNA.replace("</s>", "{% if loop.last %}</s>{% endif %}")
    with pytest.raises(ConfigError, match="ends some"):
        Reader(processor_of(letters(), some), "chat", 2048)
    tiles = load_nano("llava-next")[1]
    with pytest.raises(UnsupportedError, match="same number of tokens"):
        Reader(tiles, "chat", 2048)


def test_a_tokenizer_without_offsets_is_refused():
    class Slow:
        is_fast = False

    class Processor:
        tokenizer = Slow()

    with pytest.raises(UnsupportedError, match="Expected a fast tokenizer"):
        Reader(Processor(), "chat", 2048)
