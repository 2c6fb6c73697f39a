"""Pages of nano 2: labels by hand, the same page every time, splits that share nothing."""

from __future__ import annotations

import numpy as np
import pytest

from lab.nano2 import fonts, layouts, words
from lab.nano2.labels import IGNORE, slots
from toys.fonts import with_fonts

A, B, C = (words.CODE[char] for char in "abc")


def labels(*chars: tuple[float, float, int]) -> np.ndarray:
    return slots(
        np.array([c[:2] for c in chars], float).reshape(-1, 2), np.array([c[2] for c in chars])
    )


def test_a_character_belongs_to_the_patch_its_place_lies_in() -> None:
    found = labels((13.9, 0.0, A), (14.0, 13.9, B), (0.0, 14.0, C))
    assert found[0, 0].tolist() == [A, 0, 0, 0]
    assert found[0, 1].tolist() == [B, 0, 0, 0]
    assert found[1, 0].tolist() == [C, 0, 0, 0]
    assert (found > 0).sum() == 3


def test_characters_of_a_patch_stand_by_line_then_from_the_left() -> None:
    assert labels((9, 4, C), (5, 4.4, B), (2, 12, A))[0, 0].tolist() == [B, C, A, 0]


def test_a_fifth_character_and_what_lies_outside_have_no_room() -> None:
    found = labels(*[(x, 5, A) for x in (1, 3, 5, 7)], (9, 5, B), (336, 5, C), (-0.1, 5, C))
    assert found[0, 0].tolist() == [A] * 4
    assert (found > 0).sum() == 4


def test_a_patch_with_a_hidden_character_is_no_lesson() -> None:
    assert labels((3, 3, A), (8, 3, words.UNSURE))[0, 0].tolist() == [IGNORE] * 4


def test_fonts_and_layouts_of_the_splits_are_disjoint() -> None:
    families = [
        {name.split("-")[0].split("*")[0].split(".")[0] for name in split}
        for split in (fonts.TRAIN, fonts.VAL, fonts.TEST)
    ]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert not families[one] & families[other]
    held = [set(part) for part in layouts.HELD_OUT.values()]
    assert not held[0] & held[1]
    assert not set(layouts.TRAIN) & (held[0] | held[1])
    assert not set(words.WORDS) & set(words.TEST_WORDS)


@with_fonts
def test_a_page_is_the_same_every_time_and_no_other() -> None:
    from lab.nano2.pages import page

    for level in (0, 3):
        one, again = page(1, "train", 7, level), page(1, "train", 7, level)
        np.testing.assert_array_equal(one.image, again.image)
        np.testing.assert_array_equal(one.places, again.places)
        assert one.asked == again.asked
    images = [page(*who, 0).image for who in ((1, "train", 7), (2, "train", 7), (1, "val", 7))]
    images.append(page(1, "train", 8, 0).image)
    assert len({image.tobytes() for image in images}) == 4


@with_fonts
@pytest.mark.parametrize("kind", [*layouts.TRAIN, "margin", "leaders", "upside", "mixed"])
def test_keys_and_values_are_the_characters_they_say(kind: str) -> None:
    from lab.nano2.pages import page

    asked = 0
    for index in range(3):
        drawn = page(0, "test", index, 3, kind=kind)
        for one in drawn.asked:
            for text, span in ((one.question, one.key), (one.answer, one.value)):
                if span:
                    said = "".join(words.CHARS[code - 1] for code in drawn.codes[list(span)])
                    plain = text if text == one.answer else text.replace(", ", "")
                    assert said == plain.replace(" ", "")
            asked += len(one.value) > 0
    assert asked >= 3


@with_fonts
def test_ink_stands_where_a_character_is_said_to_be() -> None:
    from lab.nano2.pages import page

    for turn in range(6):
        drawn = page(3, "train", turn, 3, kind="lines", dark=False)
        grey = drawn.image.mean(-1)
        ink = 0
        for x, y in drawn.places:
            around = grey[max(0, int(y) - 7) : int(y) + 8, max(0, int(x) - 4) : int(x) + 5]
            ink += around.min() < np.median(grey) - 45
        assert ink > 0.97 * len(drawn.places)


@with_fonts
def test_unseen_pages_use_only_what_train_never_does(monkeypatch: pytest.MonkeyPatch) -> None:
    from lab.nano2 import sheet
    from lab.nano2.pages import page

    used: set[str] = set()
    real = sheet.font

    def noted(name: str, size: int) -> object:
        used.add(name)
        return real(name, size)

    monkeypatch.setattr(sheet, "font", noted)
    kinds = {page(0, "test", index, 3, seen=False).kind for index in range(12)}
    assert used <= set(fonts.TEST)
    assert kinds <= {*layouts.HELD_OUT["test"], "scene", "mixed"}
