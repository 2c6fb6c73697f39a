"""The generated pictures: same seed same picture, right answers, labels where the ink is."""

from __future__ import annotations

import numpy as np
import pytest

from tokensieve.data.synth import (
    CHARS,
    GRID,
    IGNORE,
    KEY_LETTERS,
    KINDS,
    PATCH,
    SIZE,
    Picture,
    generate,
)
from tokensieve.errors import ConfigError, UnknownNameError

PAGES = ("plain", "cluttered", "mixed")


def pixels(picture: Picture) -> np.ndarray:
    return np.asarray(picture.image)


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_same_picture_and_splits_differ(kind: str) -> None:
    first, again = generate(kind, 3), generate(kind, 3)
    assert first.image.size == (SIZE, SIZE)
    assert first.image.mode == "RGB"
    np.testing.assert_array_equal(pixels(first), pixels(again))
    np.testing.assert_array_equal(first.labels.stack(), again.labels.stack())
    assert first.questions == again.questions
    for other in (generate(kind, 4), generate(kind, 3, "val"), generate(kind, 3, "test")):
        assert not np.array_equal(pixels(first), pixels(other))


@pytest.mark.parametrize("kind", PAGES)
@pytest.mark.parametrize("seed", range(6))
def test_labels_of_a_line_spell_its_question_and_answer(kind: str, seed: int) -> None:
    picture = generate(kind, seed)
    labels, keys = picture.labels, set()
    asked = [q for q in picture.questions if q.about == "text"]
    assert asked
    for question in asked:
        value = picture.value_mask[question.line]
        assert value.any()
        assert (picture.text_mask | ~value).all()
        key = {KEY_LETTERS[i] for i in labels.key1[value]}
        second = {KEY_LETTERS[i] for i in labels.key2[value]}
        assert len(key) == len(second) == 1
        name = key.pop() + second.pop()
        assert name in question.text
        assert name not in keys
        keys.add(name)
        for place, digit in enumerate(question.answer, start=3):
            here = value & (labels.index == place)
            read = {CHARS[i] for i in labels.char[here] if i != IGNORE}
            assert read <= {digit}


@pytest.mark.parametrize("kind", ["plain", "cluttered", "mixed", "dense"])
def test_labelled_characters_have_ink_and_blank_patches_have_none(kind: str) -> None:
    labels = generate(kind, 1).labels
    written = (labels.char != 0) & (labels.char != IGNORE)
    assert written.any()
    assert (labels.ink[written] > 0).all()
    assert (labels.ink[labels.char == 0] < 40).all()


def test_objects_are_labelled_where_they_stand() -> None:
    for seed in range(10):
        picture = generate("scene", seed)
        count = next(q.answer for q in picture.questions if q.topic == "count")
        seen = np.unique(picture.labels.ordinal[picture.labels.ordinal != IGNORE])
        assert seen.tolist() == list(range(int(count)))
        places = [picture.labels.place[picture.labels.ordinal == i].max() for i in seen]
        assert places == sorted(places)  # objects are counted by place
        objects = picture.labels.shape != IGNORE
        assert not (objects & (picture.labels.background != IGNORE)).any()


def test_no_label_of_a_coarse_answer_reaches_the_whole_picture() -> None:
    labels = generate("scene", 2).labels
    for name in ("colour", "shape", "ordinal", "place", "background"):
        assert (getattr(labels, name) == IGNORE).any()


def test_mixed_asks_about_text_and_panel() -> None:
    abouts = {q.about for q in generate("mixed", 5).questions}
    assert {"text", "panel"} <= abouts <= {"text", "panel", "place"}


@pytest.mark.parametrize("kind", PAGES)
def test_places_asked_for_are_where_the_line_stands(kind: str) -> None:
    seen = set()
    for seed in range(12):
        picture = generate(kind, seed)
        for question in [q for q in picture.questions if q.about == "place"]:
            down, across = np.argwhere(picture.value_mask[question.line]).mean(0) - (GRID - 1) / 2
            vertical, horizontal = question.answer.split()
            assert vertical == ("bottom" if down > 0 else "top")
            # digits are the right half of a line: its middle lies further left
            assert horizontal == "right" or across < 4
            assert horizontal == "left" or across > 0
            seen.add(question.answer)
    assert len(seen) == 4


def test_every_page_has_a_line_to_ask_for() -> None:
    """Clutter left no room on the first attempt at this page."""
    assert generate("cluttered", 118, "test").value_mask.any()
    with pytest.raises(ConfigError, match="at least one line"):
        generate("plain", 0, max_lines=0)


def test_max_lines_caps_a_page() -> None:
    assert generate("plain", 0, max_lines=3).value_mask.shape[0] <= 3


def test_unseen_faces_only_in_test() -> None:
    flags = {
        split: sum(generate("plain", seed, split).unseen_font for seed in range(30))
        for split in ("train", "val", "test")
    }
    assert flags["train"] == flags["val"] == 0
    assert 3 <= flags["test"] <= 20


def test_text_is_not_told_from_the_rest_by_variance_on_cluttered_pages() -> None:
    text, rest = [], []
    for seed in range(20):
        picture = generate("cluttered", seed)
        grey = pixels(picture).mean(2).reshape(GRID, PATCH, GRID, PATCH)
        spread = grey.std((1, 3))
        text.extend(spread[picture.text_mask])
        rest.extend(spread[~picture.text_mask])
    better = np.mean(np.array(text)[:, None] > np.array(rest)[None, :])
    assert better < 0.9  # 1 would mean: pixel variance alone finds all text


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("plane", 0), UnknownNameError, "Did you mean 'plain'"),
        (("plain", 0, "tset"), UnknownNameError, "Did you mean 'test'"),
        (("plain", -1), ConfigError, "seed of 0 or more"),
    ],
)
def test_bad_arguments_say_what_was_expected(
    arguments: tuple[object, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        generate(*arguments)  # type: ignore[arg-type]
