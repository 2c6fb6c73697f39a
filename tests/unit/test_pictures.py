"""Every kind of picture file a user may hand in, and every kind of broken one."""

import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from tokensieve.data import pictures
from tokensieve.data.pictures import open_picture, to_rgb
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

    def refuse(path):
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


def test_a_picture_of_exactly_the_limit_passes(tmp_path, monkeypatch):
    ramp((20, 10)).save(tmp_path / "a.png")
    monkeypatch.setattr(pictures, "MAX_PIXELS", 200)
    assert open_picture(tmp_path / "a.png").size == (20, 10)
    monkeypatch.setattr(pictures, "MAX_PIXELS", 199)
    with pytest.raises(PictureError, match="Got 20 x 10 pixels"):
        open_picture(tmp_path / "a.png")


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


def test_16_bit_greys_are_scaled_and_not_clipped(tmp_path):
    values = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    for name in ("a.png", "a.tiff"):
        Image.fromarray(values).save(tmp_path / name)
        got = np.asarray(open_picture(tmp_path / name))[0, :, 0]
        np.testing.assert_array_equal(got, [0, 1, 128, 255])
    clipped = np.asarray(Image.fromarray(values.astype(np.int32)).convert("L"))[0]
    assert clipped[1] == 255, "Pillow's own conversion clips: the check above can fail"


def test_float_pictures_are_scaled():
    unit = np.array([[0, 0.5, 1]], dtype=np.float32)
    wide = np.array([[-10, 0, 10]], dtype=np.float32)
    for values in (unit, wide):
        got = np.asarray(to_rgb(Image.fromarray(values)))[0, :, 0]
        np.testing.assert_array_equal(got, [0, 128, 255])
    with pytest.raises(PictureError, match="finite pixel values"):
        to_rgb(Image.fromarray(np.array([[np.nan]], dtype=np.float32)))


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


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_other_modes_become_rgb(tmp_path, mode):
    Image.new(mode, (4, 4), 0).save(tmp_path / "a.png")
    got = open_picture(tmp_path / "a.png")
    assert (got.mode, got.size) == ("RGB", (4, 4))


def test_exif_rotation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying: to be turned a quarter to the right
    ramp((40, 30)).save(tmp_path / "a.png", exif=exif)
    got = open_picture(tmp_path / "a.png")
    assert got.size == (30, 40)
    assert got.getpixel((29, 0)) == ramp((40, 30)).getpixel((0, 0))
