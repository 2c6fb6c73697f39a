"""Strangers' pictures come in by one door: formats, faults, sizes, and nothing else opened."""

from __future__ import annotations

import ast
import io
import logging
import struct
import subprocess
import sys
import threading
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import tokensieve
from tokensieve.data.extraction.read import _joined, read_batch
from tokensieve.data.extraction.room import Room
from tokensieve.data.pictures import decode as pictures
from tokensieve.data.pictures.decode import Limits, animated, decode_picture, open_picture, quiet
from tokensieve.data.sources import Listing, open_source
from tokensieve.data.sources.content import inside, plain
from tokensieve.errors import InputError, PictureError
from toys.extract_tiny import SMALL, noise

DOOR = Path(pictures.__file__)


def opens_pictures(source: str) -> list[int]:
    """Lines that ask Pillow to open a file."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute)
        and node.attr == "open"
        and ast.unparse(node.value).rpartition(".")[2] in ("Image", "_Image", "PILImage")
    ]


def test_pictures_are_opened_in_one_place():
    root = Path(tokensieve.__file__).parent
    found = {path for path in root.rglob("*.py") if opens_pictures(path.read_text("utf-8"))}
    assert found == {DOOR}
    assert opens_pictures("import PIL.Image\nPIL.Image.open(x)") == [2], "the check can fail"


def encoded(picture: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def no_dimensions() -> bytes:
    """A TIFF whose directory holds one tag, which is neither width nor height."""
    entry = struct.pack("<HHII", 258, 3, 1, 8)
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", 1) + entry + struct.pack("<I", 0)


def broken_avif() -> bytes:
    whole = bytearray(encoded(noise(40, 40), "AVIF"))
    start = whole.index(b"mdat") + 4
    whole[start : start + 40] = b"\xff" * 40  # the picture's own data
    return bytes(whole)


EPS = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n"
    b"(ran) (w) file closefile\nshowpage\n%%EOF\n"
)
BROKEN = {
    "eps.png": EPS,
    "dos.png": b"\xc5\xd0\xd3\xc6" + struct.pack("<I", 32) + bytes(24) + EPS,
    "pdf.jpg": b"%PDF-1.4\n",
    "tiff.tiff": no_dimensions(),
    "avif.avif": broken_avif(),
    "nan.tiff": encoded(Image.fromarray(np.full((2, 2), np.nan, np.float32)), "TIFF"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_one_line_that_names_it(name, tmp_path, monkeypatch):
    from PIL import EpsImagePlugin

    def start(*args, **more):
        raise AssertionError("an EPS was opened")

    monkeypatch.setattr(EpsImagePlugin, "EpsImageFile", start)
    monkeypatch.setattr("subprocess.Popen", start)
    (tmp_path / name).write_bytes(BROKEN[name])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(PictureError) as caught:
            open_picture(tmp_path / name)
        with pytest.raises(PictureError, match="row 7"):
            decode_picture(BROKEN[name], "row 7")
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_whatever_a_decoder_raises(monkeypatch):
    whole = encoded(noise(5, 5), "PNG")
    raised = (MemoryError, RecursionError, KeyError, SyntaxError, AttributeError, AssertionError)
    bombs = (Image.DecompressionBombError, Image.DecompressionBombWarning)
    for error in (*raised, *bombs, struct.error):

        def fail(self, error=error):
            raise error

        monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fail)
        with pytest.raises(PictureError, match="in row 3"):
            decode_picture(whole, "row 3")


def test_extract_goes_on_after_every_broken_file(made, tmp_path):
    folder = tmp_path / "p"
    folder.mkdir()
    for name, data in BROKEN.items():
        (folder / name).write_bytes(data)
    noise(30, 30).save(folder / "whole.png")
    (folder / "pipe.png").symlink_to("/dev/zero")
    summary = made("store", str(folder))
    assert (summary.pictures, summary.crops, summary.skipped) == (8, 1, 7)


def test_the_limit_of_extract_can_be_raised(made, tmp_path):
    (tmp_path / "p").mkdir()
    noise(30, 30).save(tmp_path / "p" / "a.png")
    noise(30, 31).save(tmp_path / "p" / "b.png")
    summary = made("store", str(tmp_path / "p"), replace(SMALL, max_pixels=900))
    assert (summary.crops, summary.skipped) == (1, 1)
    assert "Got 31 x 30 pixels in p/b.png" in summary.skipped_first[0][1]
    assert made("store", str(tmp_path / "p"), SMALL, retry_skipped=True).skipped == 0


def test_only_some_formats_are_opened(tmp_path):
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF"):
        assert decode_picture(encoded(noise(6, 7), kind), "x").size == (7, 6)
    for kind in ("TGA", "ICO", "PCX", "SGI", "PDF"):
        with pytest.raises(PictureError, match=r"\(JPEG, PNG, .*\) in x\. Got a file that begins"):
            decode_picture(encoded(noise(16, 16), kind), "x")


def test_noise_of_decoders_is_silent_and_what_was_before_is_back(capfd):
    before = (list(warnings.filters), warnings.showwarning, logging.getLogger("PIL").handlers[:])
    start = threading.Barrier(4)

    def work():
        start.wait()
        for _ in range(20):
            with quiet(), quiet():
                warnings.warn_explicit("noise", UserWarning, "x", 1, module="PIL.TiffImagePlugin")
                logging.getLogger("PIL.TiffImagePlugin").error("noise")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not capfd.readouterr().err
    after = (list(warnings.filters), warnings.showwarning, logging.getLogger("PIL").handlers[:])
    assert after == before
    with quiet(), pytest.warns(UserWarning, match="mine"):
        warnings.warn("mine", stacklevel=1)


def test_frames_of_an_animation_are_within_the_limits(tmp_path):
    noise(30, 30).save(tmp_path / "a.gif", save_all=True, append_images=[noise(30, 30, 1)])
    with animated(tmp_path / "a.gif") as (total, size, frame):
        assert (total, size, frame(1).mode) == (2, (30, 30), "RGB")
    with pytest.raises(PictureError, match=r"a\.gif"), animated(tmp_path / "a.gif", Limits(899)):
        pass
    (tmp_path / "b.gif").write_bytes(EPS)
    with pytest.raises(InputError, match=r"b\.gif"):
        open_source(str(tmp_path / "b.gif"))


def test_a_frame_that_turns_out_to_have_alpha_is_rgb(tmp_path):
    """Pillow says RGB of it until it is decoded: two bytes doubled in the second frame's header."""
    values = np.random.default_rng(0).integers(0, 256, (12, 17, 3), dtype=np.uint8)
    picture, path = Image.fromarray(values), tmp_path / "a.gif"
    whole = encoded(picture, "GIF", save_all=True, append_images=[picture.rotate(90)])
    found = set()
    for at in range(1000, 1060):
        path.write_bytes(whole[: at + 2] + whole[at:])
        try:
            with animated(path) as (total, _, frame):
                found.add(frame(total - 1).mode)
        except PictureError:
            continue
    assert found == {"RGB"}


# Memory


def test_a_parquet_cell_that_unpacks_to_too_much_is_not_unpacked(tmp_path, monkeypatch):
    cells = pa.array([bytes(3_000_000), encoded(noise(9, 9), "PNG")], pa.large_binary())
    path = tmp_path / "bomb.parquet"
    pq.write_table(pa.table({"image": cells}), path, compression="zstd", use_dictionary=False)
    source = open_source(str(path))
    small, large = Limits(pixels=100_000), Limits(pixels=4_000_000)
    with pytest.raises(PictureError, match=r"bomb/00000000\. Write it with smaller row groups"):
        source.read(0, small)
    assert Listing([source]).read(1, small).picture is None
    assert len(source.read(0, large)) == 3_000_000
    assert Listing([source]).read(1, large).picture.size == (9, 9)


PEAK = """
import resource, sys
from tokensieve.data.sources import Listing, open_source
listing = Listing([open_source(sys.argv[1])])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
read = listing.read(0)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, read.error)
"""


def peak(path: Path) -> tuple[float, str]:
    """Megabytes that reading the first picture takes in a process of its own, and its error."""
    command = [sys.executable, "-c", PEAK, str(path)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    kilobytes, _, error = said.partition(" ")
    return int(kilobytes) / 1024, error.strip()


@pytest.mark.slow
def test_the_memory_that_hostile_files_take(tmp_path):
    cells = pa.array([bytes(150_000_000)], pa.large_binary())
    pq.write_table(
        pa.table({"image": cells}), tmp_path / "a.parquet", compression="zstd", use_dictionary=False
    )
    assert (tmp_path / "a.parquet").stat().st_size < 50_000
    megabytes, error = peak(tmp_path / "a.parquet")
    assert "unpack to at most 100 times" in error
    assert megabytes < 60
    deep = np.tile(np.arange(3000, dtype=np.uint16) * 20, (3000, 1))
    Image.fromarray(deep).save(tmp_path / "a.png", compress_level=1)
    megabytes, error = peak(tmp_path / "a.png")
    assert not error
    assert megabytes < 130, "9 million pixels: 18 MB, 36 MB as RGB, and its strips; 280 before"


def test_one_cell_repeated_is_not_held_as_often(tmp_path):
    cell = encoded(noise(300, 300), "BMP")
    pq.write_table(pa.table({"image": [cell] * 900}), tmp_path / "d.parquet")
    source = open_source(str(tmp_path / "d.parquet"))
    before = pa.total_allocated_bytes()
    assert source.read(899) == source.read(3) == cell
    assert pa.total_allocated_bytes() - before < 400 * len(cell), "not all 900"


def test_rows_beyond_what_a_file_can_hold(tmp_path, monkeypatch):
    monkeypatch.setattr("tokensieve.data.sources.tables.ROWS", 10)
    pq.write_table(pa.table({"image": [b"x"] * 100_000}), tmp_path / "d.parquet")
    with pytest.raises(InputError, match=r"Got 100,000 rows in [\d,]+ bytes"):
        open_source(str(tmp_path / "d.parquet"))


def test_a_tar_member_that_is_too_large_is_not_read(tmp_path):
    import tarfile

    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        info = tarfile.TarInfo("big.png")
        info.size = 2_000_000
        tar.addfile(info, io.BytesIO(bytes(info.size)))
    source = open_source(str(tmp_path / "t.tar"))
    with pytest.raises(PictureError, match=r"at most 1 MB .* Got 2 MB in big\.png of .*t\.tar"):
        source.read(0, Limits(pixels=1000))


def test_a_tar_of_names_upon_names_is_one_line(tmp_path):
    import tarfile

    info = tarfile.TarInfo("a.png")
    long = {**info.get_info(), "name": "a" * 120}
    block = info.create_gnu_header(long, "utf-8", "surrogateescape")
    (tmp_path / "t.tar").write_bytes(block[:1024] * 2000)
    with pytest.raises(InputError, match="Expected an uncompressed tar file"):
        open_source(str(tmp_path / "t.tar"))


def test_tables_read_no_file_outside_their_folder(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("secret.png", "in/own.png"):
        noise(8, 8).save(tmp_path / name)
    paths = ["own.png", "../secret.png", str(tmp_path / "secret.png"), "x/../../secret.png", "\0"]
    cells = [{"bytes": None, "path": path} for path in paths]
    pq.write_table(pa.table({"image": cells}), tmp_path / "in" / "d.parquet")
    listing = Listing([open_source(str(tmp_path / "in" / "d.parquet"))])
    assert listing.read(0).picture.size == (8, 8)
    for row in (1, 2, 3):
        assert "to name a picture below" in listing.read(row).error
    assert listing.read(4).picture is None


def test_paths_inside_a_folder(tmp_path):
    assert inside(tmp_path, "a/../b.png") == tmp_path / "b.png"
    assert inside(tmp_path, str(tmp_path / "b.png")) == tmp_path / "b.png"
    for path in ("", ".", "..", "a/../..", "/", f"{tmp_path}x/a.png", "../" + tmp_path.name):
        assert inside(tmp_path, path) is None
    assert plain("a\ud800\udce9") == "a\\ud800\\udce9"


def test_few_pictures_of_a_batch_are_held(nano, tmp_path, monkeypatch):
    """Pictures go through the processor as they come, and features stay what they were."""
    from tokensieve.data.extraction.crops import CropEncoder
    from tokensieve.data.extraction.extract import DTYPES, _encode
    from tokensieve.types import Site

    for i in range(6):
        noise(40 + i, 50, i).save(tmp_path / f"{i}.png")
    (tmp_path / "2.png").write_bytes(b"broken")
    listing = Listing([open_source(str(tmp_path))])
    encoder = CropEncoder(nano, Site.FEATURES, DTYPES["float16"], pixels=False)
    seen, whole = [], encoder.prepare
    monkeypatch.setattr(
        encoder, "prepare", lambda many, *rest: seen.append(len(many)) or whole(many, *rest)
    )
    together = read_batch(encoder, listing, range(6))
    monkeypatch.setattr("tokensieve.data.extraction.read.TOGETHER", 50 * 90)
    apart = read_batch(encoder, listing, range(6))
    assert seen == [5, 2, 2, 1]
    assert apart.records == together.records
    assert len(apart.calls) == 1
    one, other = _encode(encoder, together), _encode(encoder, apart)
    assert [len(crops) for _, crops in one] == [1, 1, 0, 1, 1, 1]
    for (_, a), (_, b) in zip(one, other, strict=True):
        assert all((x.tokens == y.tokens).all() for x, y in zip(a, b, strict=True))


def test_inputs_of_other_shapes_are_not_joined():
    import torch

    one, two = {"x": torch.zeros(2, 3)}, {"x": torch.ones(1, 3)}
    ((rows, inputs),) = _joined([([0, 2], one), ([3], two)])
    assert (rows, inputs["x"].shape) == ([0, 2, 3], (3, 3))
    for other in ({"x": torch.ones(1, 4)}, {"x": torch.ones(2, 3)}, {"x": [1]}, {"y": two["x"]}):
        calls = [([0, 2], one), ([3], other)]
        assert _joined(calls) is calls


def test_those_who_come_later_wait_and_the_next_one_does_not():
    room, order = Room(10), []
    room.take(0, 8)
    room.take(0, 50)  # comes next: never waits
    room.swap(0, 50, 0)

    def late():
        room.take(1, 5)
        order.append("late")

    thread = threading.Thread(target=late)
    thread.start()
    thread.join(0.05)
    order.append("first")
    room.done(0)
    thread.join()
    assert order == ["first", "late"]
    waiting = threading.Thread(target=lambda: room.take(3, 100))
    waiting.start()
    room.close()
    waiting.join(5)
    assert not waiting.is_alive(), "an end of the run keeps nobody waiting"
