"""One room writes files: whole or not there, and a disk that refuses is one line."""

from __future__ import annotations

import ast
import errno
import os
import resource
import signal
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lab.report.draw import Plot, Scale, Series, compose, save
from tokensieve.data.store.features import write_store
from tokensieve.data.store.manifest import write_manifest
from tokensieve.errors import ConfigError
from tokensieve.files import Lines, make_folder, write_text, written_folder, written_whole
from tokensieve.nn.pretrained import write_json, write_weights
from toys.train_toys import ENCODER, toy

SRC = Path(__file__).parents[2] / "src" / "tokensieve"
LAB = Path(__file__).parents[2] / "lab"
ROOM = ("written_whole", "staged", "written_folder")  # what they name may be written to
WRITERS = {
    "write_text", "write_bytes", "save", "savez", "savez_compressed", "savefig", "save_file",
    "save_pretrained", "ParquetWriter", "to_parquet", "to_csv", "mkdir", "rename",
    "touch", "truncate", "copyfile", "copytree", "move", "makedirs", "tofile",
}  # fmt: skip
ELSEWHERE = {  # file: what is written past the room, and why it may
    "train/selector/run.py": ("save_pretrained", "our own modules', which goes through the room"),
    "train/calibration/selector.py": (
        "save_pretrained",
        "our own modules', which goes through the room",
    ),
    "train/calibration/dymu.py": ("save", "of Thresholds, which goes through the room"),
    "evaluate/tesseract.py": ("save", "to memory"),
    "data/synth/paper.py": ("save", "to memory"),
    "view/told.py": ("save", "to memory"),
    "view/dropped.py": ("write_bytes", "to a folder of the moment, gone once the video is read"),
    "lab/nano/llava.py": ("save_pretrained", "Transformers' own, which names the files"),
    "lab/nano2/pages.py": ("save", "to memory"),
    "lab/serving/load.py": ("save", "to memory"),
    "lab/serving/server.py": ("open", "lines of another process, as they come"),
    "cost/memory.py": ("write_text", "to the kernel, which counts anew"),
}


def _written(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """(writer, line) of every call in `tree` that writes to what the room did not name."""

    def visit(node: ast.AST, named: frozenset[str]) -> Iterator[tuple[str, int]]:
        if isinstance(node, ast.With):
            given = {
                item.optional_vars.id
                for item in node.items
                if isinstance(item.context_expr, ast.Call)
                and isinstance(item.optional_vars, ast.Name)
                and _name(item.context_expr) in ROOM
            }
            named |= given
        if isinstance(node, ast.Call) and (name := _writes(node)):
            used = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
            if not used & named:
                yield name, node.lineno
        for child in ast.iter_child_nodes(node):
            yield from visit(child, named)

    return visit(tree, frozenset())


def _name(call: ast.Call) -> str:
    target = call.func
    return target.attr if isinstance(target, ast.Attribute) else getattr(target, "id", "")


def _writes(call: ast.Call) -> str:
    """The name of a writer that is called, or nothing."""
    name = _name(call)
    if name == "open":
        texts = [a.value for a in call.args if isinstance(a, ast.Constant)]
        texts += [k.value.value for k in call.keywords if isinstance(k.value, ast.Constant)]
        modes = [t for t in texts if isinstance(t, str) and len(t) < 4 and set(t) & set("wax+")]
        return name if modes else ""
    if name in ("write_text", "save") and isinstance(call.func, ast.Name):  # our own
        return ""
    if name == "save" and not call.args and not call.keywords:  # our own: where to is known
        return ""
    if name == "replace":  # of a path: str.replace takes two, dataclasses.replace keywords
        root = isinstance(call.func, ast.Attribute) and getattr(call.func.value, "id", "")
        return name if root == "os" or (len(call.args) == 1 and not call.keywords) else ""
    return name if name in WRITERS else ""


def test_files_are_written_in_one_room():
    past = {}
    for path in sorted([*SRC.rglob("*.py"), *LAB.rglob("*.py")]):
        root = LAB.parent if path.is_relative_to(LAB) else SRC
        name = path.relative_to(root).as_posix()
        found = list(_written(ast.parse(path.read_text(encoding="utf-8"))))
        allowed, _ = ELSEWHERE.get(name, (None, ""))
        if name != "files.py" and (found := [one for one in found if one[0] != allowed]):
            past[name] = found
    assert not past, "write these through tokensieve.files"


@pytest.mark.parametrize(
    "line",
    [
        "path.write_text('x')", "open(path, 'w')", "path.open('ab')", "image.save(path)",
        "np.save(path, x)", "model.save_pretrained(out)", "os.replace(a, b)", "part.replace(path)",
        "out.mkdir()", "with anything(path) as part: part.write_text('x')",
        "with written_whole(path) as part: other.write_text('x')",
    ],
)  # fmt: skip
def test_a_writer_past_the_room_is_seen(line):
    assert list(_written(ast.parse(line)))


def test_a_writer_inside_the_room_is_not():
    assert not list(_written(ast.parse("with written_whole(path) as part: image.save(part)")))


def in_child(work: Callable[[], object], limit: int) -> None:
    """`work` in a process whose files may not grow beyond `limit` bytes, as on a full disk."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            work()
        except ConfigError as error:
            said = str(error)
            whole = said.startswith("Expected room and rights to write ") and ". Got: " in said
            code = 0 if whole and "Make room" in said and "\n" not in said else 2
        except BaseException:
            code = 3
            traceback.print_exc()
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, "refused in one line"


def _sheet(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    with written_whole(path) as part:
        Image.fromarray(noise).save(part)


def _figure(path: Path) -> None:
    axis = Scale("", (0, 1), (0, 1))
    save(compose("One.", [Plot("", axis, axis, [Series((0, 1), (0, 1), "a")])], 1), path)


def _array(path: Path) -> None:
    with written_whole(path) as part:
        np.save(part, np.zeros(4000))


WRITING = {
    "a.json": lambda path: write_json(path, {"x": ["much"] * 2000}),
    "a.safetensors": lambda path: write_weights(path, {"x": torch.zeros(4000)}),
    "a.png": _sheet,
    "figure.png": _figure,
    "rows.npy": _array,
}


@pytest.mark.parametrize("name", WRITING)
def test_a_full_disk_is_one_line_and_leaves_what_was(name, tmp_path):
    path = tmp_path / name
    in_child(lambda: WRITING[name](path), 4000)
    assert list(tmp_path.iterdir()) == []
    path.write_bytes(b"old")
    in_child(lambda: WRITING[name](path), 4000)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert path.read_bytes() == b"old"
    WRITING[name](path)
    assert path.stat().st_size > 4000


def test_a_full_disk_while_a_store_is_written(tmp_path):
    in_child(lambda: write_store(tmp_path / "store", toy(64)[0], ENCODER), 4000)
    assert [p.name for p in (tmp_path / "store").iterdir()] == ["store.json"]
    write_store(tmp_path / "store", toy(64)[0], ENCODER)  # goes on
    manifest = tmp_path / "store" / "manifest.parquet"
    before = manifest.read_bytes()
    names = sorted(p.name for p in (tmp_path / "store").glob("shard-*"))
    in_child(lambda: write_manifest(tmp_path / "store", names), 1000)
    assert manifest.read_bytes() == before


def test_a_full_disk_while_a_folder_is_written(tmp_path):
    def work(folder: Path) -> None:
        with written_folder(folder, replace=True) as part:
            write_json(part / "config.json", {"x": 1})
            write_weights(part / "model.safetensors", {"x": torch.zeros(4000)})

    out = tmp_path / "model"
    in_child(lambda: work(out), 4000)
    assert list(tmp_path.iterdir()) == []
    work(out)
    (out / "old.json").write_text("{}")
    in_child(lambda: work(out), 4000)
    assert sorted(p.name for p in out.iterdir()) == [
        "config.json", "model.safetensors", "old.json",
    ]  # fmt: skip
    work(out)
    assert sorted(p.name for p in out.iterdir()) == ["config.json", "model.safetensors"]
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_lines_stay_whole_on_a_full_disk(tmp_path):
    path = tmp_path / "log.jsonl"

    def work() -> None:
        lines = Lines(path, ["first"])
        while True:
            lines.write("x" * 99)

    in_child(work, 1050)
    assert path.read_text() == "first\n" + ("x" * 99 + "\n") * 10


def _half(path: Path, error: Exception) -> None:
    with written_whole(path) as part:
        part.write_text("half")
        raise error


class ArrowLikeError(Exception):
    """As pyarrow's, no OSError."""

    __module__ = "pyarrow.lib"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EROFS, "Read-only"),
        PermissionError(errno.EACCES, "Permission denied"), ArrowLikeError("no space\nsecond line"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_whatever_a_library_calls_a_refusal(error, tmp_path):
    path = tmp_path / "a.bin"
    path.write_text("old")
    with pytest.raises(ConfigError, match=r"^Expected room .* Got: .* Make room[^\n]*$") as told:
        _half(path, error)
    assert str(path) in str(told.value)
    assert ".part" not in str(told.value)
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]


def test_what_is_no_refusal_is_left_alone(tmp_path):
    with pytest.raises(RuntimeError, match="mine"):
        _half(tmp_path / "a", RuntimeError("mine"))
    assert list(tmp_path.iterdir()) == []


def test_a_file_where_a_folder_is_wanted_and_the_other_way_round(tmp_path):
    (tmp_path / "file").write_text("mine")
    for work in (
        lambda: make_folder(tmp_path / "file"), lambda: write_text(tmp_path / "file" / "a", "x"),
        lambda: written_folder(tmp_path / "file").__enter__(),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=r"Expected a folder at .*Got a file\. Name another"):
            work()
    with pytest.raises(ConfigError, match=r"Got the directory .*Name a file in it"):
        write_text(tmp_path, "x")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_that_may_not_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    with pytest.raises(ConfigError, match=r"Expected a writable directory.*Write elsewhere"):
        write_text(tmp_path / "a", "x")
    monkeypatch.undo()

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", "here")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(ConfigError, match=r"Expected rights to make .*Permission denied.*another"):
        make_folder(tmp_path / "new")


def test_files_of_others_in_a_model_folder_stay(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "config.json").write_text("old")
    with written_folder(tmp_path) as part:
        write_json(part / "config.json", {"new": 1})
        write_json(make_folder(part / "deep") / "a.json", {})
    found = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    assert found == {"notes.txt", "config.json", "deep/a.json"}
    assert "new" in (tmp_path / "config.json").read_text()


def test_the_folder_one_stands_in_and_what_is_mounted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with written_folder(".") as part:
        assert part.resolve().parent == tmp_path  # beside it may be another disk
        write_json(part / "config.json", {})
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


def test_a_file_system_that_syncs_no_folders(tmp_path, monkeypatch):
    sync = os.fsync

    def only_files(handle):
        if os.path.isdir(f"/proc/self/fd/{handle}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        sync(handle)

    monkeypatch.setattr(os, "fsync", only_files)
    write_text(tmp_path / "a", "x")
    monkeypatch.setattr(os, "fsync", lambda _: only_files(os.open(tmp_path, os.O_RDONLY)))
    with pytest.raises(ConfigError, match="Invalid argument"):  # a file that is not synced is none
        write_text(tmp_path / "b", "x")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_long_names_and_names_with_dots(tmp_path):
    path = tmp_path / ("a.b" * 80 + ".json")
    write_text(path, "x")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    with pytest.raises(ConfigError, match="File name too long"):
        write_text(tmp_path / ("a" * 300), "x")
