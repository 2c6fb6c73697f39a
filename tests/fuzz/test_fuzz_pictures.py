"""Spoilt pictures and containers of pictures: RGB within the limits, or one error that names them.

The limits are small, so that nothing large is ever decoded; what may be within them is bounded.
"""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from PIL import Image

from fuzz.common import bounded, check_told, fuzzed, spoilt
from tokensieve.data.pictures.decode import Limits, PictureNote, decode_picture, open_picture
from tokensieve.data.sources import Listing, open_source
from tokensieve.errors import InputError, PictureError, TokensieveError

SMALL = Limits(pixels=400_000)


def _encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def _seeds() -> list[bytes]:
    """Valid files of every format that is opened, in many modes, and of some that are not."""
    values = np.random.default_rng(0).integers(0, 256, (12, 17, 4), dtype=np.uint8)
    rgb, rgba = Image.fromarray(values[..., :3].copy()), Image.fromarray(values)
    grey, deep = Image.fromarray(values[..., 0].copy()), values[..., 0].astype(np.uint16) * 257
    wide = [Image.fromarray(deep), Image.fromarray(deep.astype(np.int32)),
            Image.fromarray(deep.astype(np.float32) / 65535)]  # fmt: skip
    palette, bits, cmyk = rgb.quantize(16), grey.convert("1"), rgb.convert("CMYK")
    turned = Image.Exif()
    turned[0x0112], turned[0x010E] = 6, "x" * 20
    more = {"save_all": True, "append_images": [rgb.rotate(90), rgba.convert("RGB")]}
    files = [
        *(_encoded(picture, "PNG") for picture in (rgb, rgba, grey, wide[0], bits)),
        _encoded(palette, "PNG", transparency=3),
        _encoded(rgb, "PNG", exif=turned, **more),
        *(_encoded(p, "JPEG", exif=turned, progressive=p is rgb) for p in (rgb, grey, cmyk)),
        *(_encoded(p, "WEBP", lossless=p is rgb) for p in (rgb, rgba)),
        _encoded(rgb, "WEBP", **more),
        _encoded(palette, "GIF", transparency=1),
        _encoded(rgb, "GIF", **more),
        *(_encoded(picture, "BMP") for picture in (rgb, grey, palette, bits)),
        *(_encoded(p, "TIFF") for p in (rgb, rgba, grey, *wide, palette, bits, cmyk)),
        *(_encoded(rgb, "TIFF", compression=c) for c in ("tiff_lzw", "jpeg", "tiff_deflate")),
        _encoded(bits, "TIFF", compression="group4"),
        _encoded(rgb, "TIFF", **more),
        *(_encoded(picture, "PPM") for picture in (rgb, grey, bits, wide[0])),
        *(_encoded(p, "AVIF", exif=turned, quality=q) for p, q in ((rgb, 50), (rgba, 100))),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n",
        _encoded(rgb, "PDF"),
        *(_encoded(rgb, kind) for kind in ("TGA", "PCX", "SGI", "ICO", "JPEG2000")),
    ]
    assert len(files) > 40
    return files


SEEDS = _seeds()


@pytest.fixture(autouse=True)
def _no_programs(monkeypatch):
    def start(*args, **more):
        raise SystemExit(f"a picture started {args}")  # no `except Exception` hides it

    monkeypatch.setattr("subprocess.Popen", start)
    monkeypatch.setattr("os.system", start)


@fuzzed
@given(data=spoilt(SEEDS))
def test_spoilt_bytes(data):
    with bounded():
        try:
            picture = decode_picture(data, "shard-3.tar/x.png", SMALL)
        except PictureError as error:
            check_told(error, "shard-3.tar/x.png")
        else:
            assert (picture.mode, type(picture)) == ("RGB", Image.Image)
            assert 0 < picture.width * picture.height <= SMALL.pixels
            assert len(picture.tobytes()) == 3 * picture.width * picture.height


@fuzzed
@given(data=spoilt(SEEDS))
def test_spoilt_files(data, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "spoilt.png"
    path.write_bytes(data)
    with bounded():
        try:
            picture = open_picture(path, SMALL)
        except PictureError as error:
            check_told(error, str(path))
        except PictureNote:  # an animation; `bounded` makes notes errors
            pass
        else:
            assert picture.tobytes() == decode_picture(data, "x", SMALL).tobytes()


@fuzzed
@given(data=spoilt([s for s in SEEDS if s[:3] == b"GIF"]))
def test_spoilt_animations(data, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "spoilt.gif"
    path.write_bytes(data)
    with bounded():
        try:
            source = open_source(str(path), frames=3)
        except InputError as error:
            check_told(error, str(path))
        else:
            _all_told(Listing([source]))


def _all_told(listing: Listing) -> None:
    for index in range(min(len(listing), 20)):
        read = listing.read(index, SMALL)
        assert (read.picture is None) == bool(read.error)
        assert read.picture is None or read.picture.mode == "RGB"
        read.error.encode()


def _tar() -> bytes:
    file = io.BytesIO()
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(fileobj=file, mode="w", format=form) as tar:
            for name in ("a.png", "é" * 80 + ".png", "b/" * 60 + "c.png"):
                info = tarfile.TarInfo(name)
                info.size = len(SEEDS[2])
                tar.addfile(info, io.BytesIO(SEEDS[2]))
    return file.getvalue()


def _parquet(compression: str, cells: list[object], **options: object) -> bytes:
    file = io.BytesIO()
    table = pa.table({"image": cells, "n": list(range(len(cells)))})
    pq.write_table(table, file, compression=compression, **options)
    return file.getvalue()


@fuzzed
@given(data=spoilt([_tar()]))
def test_spoilt_tars(data, tmp_path_factory):
    _listed(tmp_path_factory.getbasetemp() / "spoilt.tar", data)


PARQUETS = [
    _parquet("none", [SEEDS[0], None, SEEDS[8], SEEDS[0]], row_group_size=2),
    _parquet("zstd", [{"bytes": SEEDS[0], "path": "a.png"}, {"bytes": None, "path": "../b.png"}]),
    _parquet("snappy", [SEEDS[1]] * 5, use_dictionary=False, data_page_version="2.0"),
]


@fuzzed
@given(data=spoilt(PARQUETS))
def test_spoilt_tables(data, tmp_path_factory):
    _listed(tmp_path_factory.getbasetemp() / "spoilt.parquet", data)


def _listed(path: Path, data: bytes) -> None:
    """What is listed can be read or is told, and so is a file of which nothing can be listed."""
    path.write_bytes(data)
    with bounded():
        try:
            source = open_source(str(path))
        except TokensieveError as error:
            check_told(error, str(path))
        else:
            _all_told(Listing([source]))
