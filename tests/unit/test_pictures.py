"""Every kind of picture file a user may hand in, and every kind of broken one."""

import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from tokensieve.data.pictures import decode as pictures
from tokensieve.data.pictures.decode import Limits, decode_picture, open_picture
from tokensieve.errors import PictureError


def ramp(size=(40, 30)):
    """A picture in which every pixel differs."""
    height, width = size[1], size[0]
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x * 6, y * 8, x + y], -1).astype(np.uint8))


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tiff", "a.webp"])
def test_plain_pictures_come_back_pixel_for_pixel(tmp_path, name):
    ramp().save(tmp_path / name, **({"lossless": True} if name == "a.webp" else {}))
    got = open_picture(tmp_path / name)
    assert got.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(got), np.asarray(ramp()))


def test_files_that_may_not_be_read(tmp_path, monkeypatch):
    ramp().save(tmp_path / "a.png")

    def refuse(path, formats):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pictures.Image, "open", refuse)
    with pytest.raises(PictureError, match="Got no permission to read"):
        open_picture(tmp_path / "a.png")
    with pytest.raises(PictureError, match="File name too long"):
        open_picture("what is this " * 40)


def write(path, content):
    path.write_bytes(content)
    return path


def test_files_that_are_no_pictures(tmp_path):
    with pytest.raises(PictureError, match=r"Expected a picture file at .*gone\.png. Got nothing"):
        open_picture(tmp_path / "gone.png")
    with pytest.raises(PictureError, match="Got the directory"):
        open_picture(tmp_path)
    with pytest.raises(PictureError, match="Got an empty file"):
        open_picture(write(tmp_path / "empty.png", b""))
    with pytest.raises(PictureError, match="begins with b'not a pi'"):
        open_picture(write(tmp_path / "text.png", b"not a picture"))


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.gif", "a.tiff", "a.webp"])
def test_truncated_pictures_at_any_length(tmp_path, name):
    noise = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    for share in (0.02, 0.3, 0.6, 0.9):
        cut = write(tmp_path / f"cut-{name}", whole[: int(len(whole) * share)])
        with pytest.raises(PictureError) as caught:
            open_picture(cut)
        assert "\n" not in str(caught.value)


def bomb(path, side):
    """A PNG that claims side x side pixels in a few bytes."""

    def chunk(kind, data):
        crc = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    return write(path, b"\x89PNG\r\n\x1a\n" + body)


@pytest.mark.parametrize("side", [9_500, 20_000, 100_000])
def test_decompression_bombs_are_refused_before_decoding(tmp_path, side):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(PictureError, match="Expected at most 89 million pixels"):
            open_picture(bomb(tmp_path / "bomb.png", side))


def test_a_picture_of_exactly_the_limit_passes(tmp_path):
    ramp((20, 10)).save(tmp_path / "a.png")
    assert open_picture(tmp_path / "a.png", Limits(200)).size == (20, 10)
    with pytest.raises(PictureError, match=r"Got 20 x 10 pixels in .*--max-pixels"):
        open_picture(tmp_path / "a.png", Limits(199))


def test_a_file_larger_than_any_picture_within_the_limit_is_not_read(tmp_path):
    ramp((20, 10)).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    most = Limits(200).bytes
    padded = write(tmp_path / "b.png", whole + bytes(most - len(whole)))
    assert open_picture(padded, Limits(200)).size == (20, 10)
    write(padded, whole + bytes(most - len(whole) + 1))
    with pytest.raises(PictureError, match=r"at most 1 MB in a .* Got 1 MB in .*b\.png"):
        open_picture(padded, Limits(200))
    with pytest.raises(PictureError, match="at most 1 MB"):
        decode_picture(padded.read_bytes(), "b", Limits(200))


def test_thin_strips_are_refused_and_single_pixels_are_not(tmp_path):
    Image.new("RGB", (201, 1)).save(tmp_path / "strip.png")
    with pytest.raises(PictureError, match="sides within 1 : 200"):
        open_picture(tmp_path / "strip.png")
    Image.new("RGB", (1, 1), "red").save(tmp_path / "dot.png")
    assert open_picture(tmp_path / "dot.png").getpixel((0, 0)) == (255, 0, 0)


def test_of_an_animation_the_first_frame_with_a_warning(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    with pytest.warns(
        pictures.PictureNote, match=r"animated \(3 frames\): the first frame is used"
    ):
        got = open_picture(tmp_path / "a.gif")
    assert got.getpixel((4, 4)) == (255, 0, 0)


def test_cmyk_is_converted(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    red, green, blue = open_picture(tmp_path / "a.jpg").getpixel((4, 4))
    assert red > 200
    assert green < 60
    assert blue < 60


def test_transparency_is_laid_on_white(tmp_path):
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert open_picture(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)
    Image.new("RGBA", (4, 4), (255, 0, 0, 128)).save(tmp_path / "half.png")
    assert open_picture(tmp_path / "half.png").getpixel((0, 0)) == (255, 127, 127)
    palette = ramp().quantize(4)
    palette.save(tmp_path / "palette.png", transparency=palette.getpixel((0, 0)))
    assert open_picture(tmp_path / "palette.png").getpixel((0, 0)) == (255, 255, 255)
    Image.new("LA", (4, 4), (0, 0)).save(tmp_path / "grey.png")
    assert open_picture(tmp_path / "grey.png").getpixel((0, 0)) == (255, 255, 255)
    Image.new("LA", (4, 4), (40, 255)).save(tmp_path / "solid.png")
    assert open_picture(tmp_path / "solid.png").getpixel((0, 0)) == (40, 40, 40)
    several = Image.new("P", (3, 1))  # of each palette entry its own alpha
    several.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    several.putdata([0, 1, 2])
    several.save(tmp_path / "several.png", transparency=bytes([255, 128, 0]))
    got = open_picture(tmp_path / "several.png")
    assert [got.getpixel((x, 0)) for x in range(3)] == [(255, 0, 0), (127, 255, 127), (255,) * 3]
    Image.new("RGB", (2, 1), (9, 9, 9)).save(tmp_path / "one.png", transparency=(9, 9, 9))
    assert open_picture(tmp_path / "one.png").getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_other_modes_become_rgb(tmp_path, mode):
    Image.new(mode, (4, 4), 0).save(tmp_path / "a.png")
    got = open_picture(tmp_path / "a.png")
    assert (got.mode, got.size) == ("RGB", (4, 4))


def test_a_bit_a_pixel_is_black_and_white(tmp_path):
    bits = Image.new("1", (2, 1))
    bits.putdata([0, 255])
    bits.save(tmp_path / "a.png")
    got = open_picture(tmp_path / "a.png")
    assert [got.getpixel((x, 0)) for x in range(2)] == [(0, 0, 0), (255, 255, 255)]


@pytest.mark.parametrize(
    ("tag", "corner"),  # where the stored top left corner belongs, by the EXIF standard
    [(1, "top left"), (2, "top right"), (3, "bottom right"), (4, "bottom left"),
     (5, "top left"), (6, "top right"), (7, "bottom right"), (8, "bottom left")],
)  # fmt: skip
@pytest.mark.parametrize("mode", ["RGB", "I;16"])
def test_exif_rotation_is_applied(mode, tag, corner, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = tag
    stored = Image.new(mode, (40, 30))
    stored.putpixel((0, 0), (255,) * 3 if mode == "RGB" else 65535)
    stored.save(tmp_path / "a.png", exif=exif)
    got = open_picture(tmp_path / "a.png")
    assert got.size == ((40, 30) if tag <= 4 else (30, 40))
    x, y = (0 if "left" in corner else got.width - 1), (0 if "top" in corner else got.height - 1)
    assert got.getpixel((x, y)) == (255, 255, 255)
    assert np.asarray(got).sum() == 3 * 255


def test_a_garbled_exif_block_is_no_reason_to_refuse(tmp_path):
    ramp().save(tmp_path / "a.png", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12")
    np.testing.assert_array_equal(np.asarray(open_picture(tmp_path / "a.png")), np.asarray(ramp()))
