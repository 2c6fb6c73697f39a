"""Rows in LLaVA's layout: what is read, what is refused and why, and a set that is written."""

import json
import re

import pytest
from PIL import Image

from tokensieve.data.llava import __main__ as program
from tokensieve.data.llava import read_rows, reasons, refuse
from tokensieve.data.llava.values import values
from tokensieve.data.llava.write import write_llava
from tokensieve.errors import ConfigError, InputError, UnknownNameError
from toys.fusion_toys import rows_of, turns, write_rows

GOOD = {
    "id": "a",
    "image": "0.png",
    "conversations": turns(("human", "<image>\nx"), ("gpt", " y ")),
}


def read(tmp_path, *rows, name="rows.json"):
    file, images = write_rows(tmp_path, list(rows), name)
    return read_rows(file, images)


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_pictures_and_texts_are_read(name, tmp_path):
    found = read(tmp_path, *rows_of(3, 1), name=name)
    assert [row.id for row in found.rows] == ["p0", "p1", "p2", "t0"]
    assert found.rows[1].picture == tmp_path / "images" / "1.png"
    assert found.rows[3].picture is None
    assert found.rows[1].turns == (("<image>\nWhat is it?", "blue blue"), ("Sure?", "yes"))
    assert found.bad == []
    refuse(found)  # nothing to refuse


@pytest.mark.parametrize(
    ("change", "reason", "message"),
    [
        ({"image": "gone.png"}, "picture missing", "gone.png. Fetch it"),
        ({"image": ["0.png"]}, "layout", "expected `image` as one relative path"),
        ({"conversations": []}, "layout", "expected `conversations` as a list"),
        ({"conversations": [{"from": "human"}]}, "layout", "expected `conversations`"),
        ({"conversations": turns(("human", "<image>"))}, "turns", "gpt to have the last word"),
        ({"conversations": turns(("gpt", "y"), ("human", "<image>"))}, "turns", "human first"),
        (
            {"conversations": turns(("human", "<image>"), ("human", "x"), ("gpt", "y"))},
            "turns",
            "Got 'human' as turn 2",
        ),
        ({"conversations": turns(("human", "<image>"), ("gpt", " "))}, "empty answer", "answer 1"),
        ({"conversations": turns(("human", "x"), ("gpt", "y"))}, "placeholder", "Got 0"),
        (
            {"conversations": turns(("human", "<image> <image>"), ("gpt", "y"))},
            "placeholder",
            "expected one <image> for its picture. Got 2",
        ),
        (
            {"conversations": turns(("human", "<image>"), ("gpt", "an <image>"))},
            "placeholder",
            "in an answer",
        ),
        ({"image": None}, "placeholder", "without a picture"),
    ],
)
def test_a_bad_row_is_told_with_file_number_and_id(change, reason, message, tmp_path):
    file, images = write_rows(tmp_path, [GOOD])
    file.write_text(json.dumps([GOOD, {**GOOD, "id": "b7", **change}]))
    found = read_rows(file, images)
    assert [row.id for row in found.rows] == ["a"]
    assert reasons(found.bad) == {reason: 1}
    told = str(found.bad[0])
    assert f"{file}, row 2 (id b7)" in told
    assert message in told
    with pytest.raises(InputError, match=r"Got 1 of 2 that cannot .1 .*--skip-bad-rows"):
        refuse(found)


def test_a_refusal_shows_three_and_counts_all(tmp_path):
    rows = [GOOD, *({**GOOD, "image": f"gone{n}.png"} for n in range(5))]
    file, images = write_rows(tmp_path, [GOOD])
    file.write_text(json.dumps(rows))
    with pytest.raises(InputError, match=r"5 picture missing.*row 4 .*And 2 more") as caught:
        refuse(read_rows(file, images))
    assert "row 5" not in str(caught.value)


def test_pictures_need_their_folder(tmp_path):
    file, _ = write_rows(tmp_path, [GOOD])
    assert "--images" in str(read_rows(file).bad[0])
    with pytest.raises(InputError, match="Expected a folder of pictures"):
        read_rows(file, tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "{", "Expected conversations as JSON"),
        ("a.json", '{"a": 1}', "Expected a list of rows"),
        ("a.json", "[]", "Expected rows in"),
        ("a.jsonl", "\n", "Expected rows in"),
    ],
)
def test_a_file_of_no_rows_is_refused(name, content, message, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        read_rows(tmp_path / name)
    with pytest.raises(InputError, match="Expected conversations as JSON"):
        read_rows(tmp_path / "gone.json")


def test_a_broken_line_is_one_bad_row(tmp_path):
    file, images = write_rows(tmp_path, [GOOD, GOOD], "rows.jsonl")
    file.write_text(file.read_text() + '\n{"id": \n[1]\n')
    found = read_rows(file, images)
    assert len(found.rows) == 2
    assert [str(error).split(": expected")[0] for error in found.bad] == [
        f"{file}, row 3", f"{file}, row 4",
    ]  # fmt: skip


DEEP = "[" * 100_000 + "]" * 100_000
STRANGE = [
    # the row as JSON text, the reason, what is said
    (json.dumps({**GOOD, "image": "a" * 300 + ".png"}), "picture missing", "no picture file"),
    (json.dumps({**GOOD, "image": "a/" * 3000 + "a.png"}), "picture missing", "no picture file"),
    (json.dumps({**GOOD, "image": "a\0.png"}), "picture missing", "no picture file"),
    (json.dumps({**GOOD, "image": "\ud800.png"}), "picture missing", r"\\ud800\.png"),
    (json.dumps({**GOOD, "image": "../rows.png"}), "picture outside", "expected a picture below"),
    (json.dumps({**GOOD, "image": "/etc/passwd"}), "picture outside", "got /etc/passwd"),
    (json.dumps({**GOOD, "image": "x/../../0.png"}), "picture outside", "Move it there"),
    (json.dumps({**GOOD, "image": "."}), "picture outside", "Move it there"),
    (json.dumps({**GOOD, "conversations": turns(("human", "<image>"), ("gpt", "\udfff"))}),
     "no text", "lone surrogate in turn 2"),
    (json.dumps({**GOOD, "id": "\ud800", "image": 3}), "layout", r"id \\ud800"),
    (f'{{"id": {DEEP}}}', "layout", "got no JSON"),
    (f'{{"id": "]", "image": {"[" * 900 + "]" * 900}}}', "layout", "one relative path"),
    (f'{{"id": {"7" * 9000}}}', "layout", "a number of 9000 digits"),
    (f'{{"id": 1e999, "image": {"7" * 200}}}', "layout", r"id inf.* path, got 7+\.\.\."),
    ('{"id": NaN, "image": null}', "layout", "expected `conversations`"),
    (f'"{"a" * 10_000}"', "layout", "got str"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "reason", "message"), STRANGE)
@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_what_strangers_write_is_one_bad_row(name, text, reason, message, tmp_path):
    file, images = write_rows(tmp_path, [GOOD])
    file = tmp_path / name
    good = json.dumps(GOOD)
    lines = [good, text, good]
    file.write_text("\n".join(lines) if name.endswith("l") else f"[{', '.join(lines)}]")
    found = read_rows(file, images)
    assert [row.number for row in found.rows] == [1, 3]
    assert reasons(found.bad) == {reason: 1}
    told = str(found.bad[0])
    assert told.startswith(f"{file}, row 2")
    assert re.search(message, told)
    assert len(told.encode()) < 900, "short, and can be written"
    with pytest.raises(InputError, match="1 of 3"):
        refuse(found)


def test_bytes_that_are_no_text_are_one_bad_line(tmp_path):
    file, images = write_rows(tmp_path, [GOOD], "rows.jsonl")
    file.write_bytes(file.read_bytes() + b'\n{"id": "\xff"}\n')
    found = read_rows(file, images)
    assert len(found.rows) == 1
    assert "row 2: expected an object, got no JSON ('utf-8' codec" in str(found.bad[0])


@pytest.mark.parametrize(
    "text",
    ["", "[", "[1", "[1,", "[1 2]", "[1]]", "[1] x", DEEP[:1000], '{"a": 1}', DEEP, '["a', "[1,]"],
)
def test_a_file_that_is_no_list_is_one_line(text, tmp_path):
    (tmp_path / "a.json").write_text(text)
    if text == DEEP:  # a list of one row, which is too deep
        assert len(read_rows(tmp_path / "a.json").bad) == 1
        return
    with pytest.raises(InputError, match=r"a\.json\. Got") as caught:
        read_rows(tmp_path / "a.json")
    assert len(str(caught.value)) < 500


def test_lists_are_read_as_json_reads_them(tmp_path):
    for text in ("[]", " [ ] ", '[1, "a,]", {"b": [2, {}]}, null]', "[\n1\n,\n[[]]\n]\n"):
        (tmp_path / "a.json").write_text(text)
        assert [v for _, v in values(tmp_path / "a.json")] == json.loads(text)


def test_the_written_set_is_in_that_layout_and_repeats(tmp_path):
    captions, instruct = write_llava(tmp_path / "a", 16)
    told, asked = (
        read_rows(captions, tmp_path / "a/images"),
        read_rows(instruct, tmp_path / "a/images"),
    )
    assert told.bad == asked.bad == []
    assert len(told.rows) == 16
    assert all(len(row.turns) == 1 for row in told.rows)
    assert [row.picture is None for row in asked.rows].count(True) == 2
    assert max(len(row.turns) for row in asked.rows) > 3
    firsts = [row.turns[0][0] for row in asked.rows if row.picture]
    assert {text.startswith("<image>\n") for text in firsts} == {True, False}  # before and behind
    assert Image.open(asked.rows[0].picture).size == (192, 192)
    again = write_llava(tmp_path / "b", 16)[1]
    assert again.read_bytes() == instruct.read_bytes()
    assert told.rows[0].turns[0][1].count(asked.rows[0].turns[0][1]) >= 1


def test_the_writer_as_a_program(tmp_path, capsys):
    assert program.main(["--out", str(tmp_path), "--pictures", "1"]) == 0
    assert str(tmp_path / "instruct.json") in capsys.readouterr().out
    assert program.main(["--out", str(tmp_path), "--pictures", "0"]) == 2
    assert "at least one picture" in capsys.readouterr().err
    with pytest.raises(UnknownNameError, match="train"):
        write_llava(tmp_path, 1, "trian")
    with pytest.raises(ConfigError, match="Got -1"):
        write_llava(tmp_path, -1)
