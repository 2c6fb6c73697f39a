"""Spoilt files of rows: every row is read or told with file and number, or the file is refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzz.common import bounded, check_told, fuzzed, json_values, spoilt
from tokensieve.data.llava import Found, read_rows, reasons, refuse
from tokensieve.data.llava.values import values
from tokensieve.errors import InputError, TokensieveError

GOOD = {
    "id": "a",
    "image": "0.png",
    "conversations": [
        {"from": "human", "value": "<image>\nWhat?"},
        {"from": "gpt", "value": 'A "[cat]".'},
        {"from": "human", "value": "Sure?"},
        {"from": "gpt", "value": "Yes, \\ é."},
    ],
}
TEXT = {**GOOD, "id": 7, "conversations": GOOD["conversations"][2:]}
del TEXT["image"]
ROWS = [GOOD, TEXT, {**GOOD, "image": "sub/1.png"}]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    (folder / "images" / "sub").mkdir(parents=True)
    for name in ("images/0.png", "images/sub/1.png", "secret.png"):
        (folder / name).write_bytes(b"not opened")
    return folder


def read(place, name, data):
    """What becomes of a file: never anything but rows, bad rows with their number, or one line."""
    file, images = place / name, place / "images"
    file.write_bytes(data)
    with bounded():
        try:
            found = read_rows(file, images)
        except InputError as error:
            check_told(error, str(file))
            return None
        check(found, images)
        try:
            refuse(found)
        except InputError as error:
            check_told(error, str(file))
            assert found.bad
        else:
            assert not found.bad
    return found


def check(found: Found, images) -> None:
    for error in found.bad:
        check_told(error, f"{found.file}, row ")
    assert sum(reasons(found.bad).values()) == len(found.bad)
    for row in found.rows:
        row.name.encode()
        assert row.turns
        assert all(
            answer.encode() and question.encode() is not None for question, answer in row.turns
        )
        if row.picture is not None:
            assert row.picture.is_file()
            assert row.picture.resolve().is_relative_to(images.resolve())


@fuzzed
@given(data=spoilt([json.dumps(ROWS).encode(), json.dumps(ROWS, indent=1).encode()]))
def test_spoilt_lists(place, data):
    read(place, "rows.json", data)


@fuzzed
@given(data=spoilt(["\n".join(json.dumps(row) for row in ROWS).encode()]))
def test_spoilt_lines(place, data):
    found = read(place, "rows.jsonl", data)
    lines = [line for line in data.split(b"\n") if line.strip()]
    assert len(lines) == (len(found.rows) + len(found.bad) if found else 0)


changes = st.dictionaries(st.sampled_from(["id", "image", "conversations"]), json_values())
turns = st.fixed_dictionaries({}, optional={"from": json_values(), "value": json_values()})
paths = st.lists(
    st.sampled_from(
        ["..", ".", "0.png", "sub", "1.png", "", "/", "secret.png", "images", "\0", "a" * 300]
    )
).map("/".join)


@fuzzed
@given(
    rows=st.lists(
        changes.map(lambda change: {**GOOD, **change})
        | st.lists(turns, max_size=3).map(lambda said: {**GOOD, "conversations": said})
        | paths.map(lambda path: {**GOOD, "image": path})
        | json_values(),
        min_size=1,
        max_size=3,
    ),
    deep=st.integers(0, 3000),
    place_of=st.integers(0, 3),
)
def test_strange_rows(place, rows, deep, place_of):
    texts = [json.dumps(row) for row in (*rows, GOOD)]
    texts.insert(place_of % len(texts), "[" * deep + "1" * (1 + deep) + "]" * deep)
    one = read(place, "rows.jsonl", "\n".join(texts).encode())
    other = read(place, "rows.json", f"[{', '.join(texts)}]".encode())
    assert one.rows == other.rows
    assert reasons(one.bad) == reasons(other.bad)
    assert len(one.rows) + len(one.bad) == len(texts)
    assert one.rows, "the good one"


@fuzzed
@given(value=st.lists(json_values(), max_size=4), indent=st.none() | st.integers(0, 2))
def test_lists_are_read_as_json_reads_them(place, value, indent):
    (place / "v.json").write_text(json.dumps(value, indent=indent))
    with bounded():
        got = [read for _, read in values(place / "v.json")]
    for own, read_one in zip(value, got, strict=True):
        assert isinstance(read_one, Exception) or repr(read_one) == repr(own)
    assert not any(isinstance(read_one, TokensieveError) for read_one in got)
