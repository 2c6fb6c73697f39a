"""Greys of more than 8 bits, each value by hand; and that strips change nothing."""

import numpy as np
import pytest
from PIL import Image

from tokensieve.data.pictures import colours
from tokensieve.data.pictures.colours import to_rgb
from tokensieve.data.pictures.decode import open_picture
from tokensieve.errors import PictureError


def greys(values, kind):
    got = np.asarray(to_rgb(Image.fromarray(np.array([values], dtype=kind))))
    assert (got[..., 0] == got[..., 1]).all()
    assert (got[..., 0] == got[..., 2]).all()
    return got[0, :, 0].tolist()


@pytest.mark.parametrize(
    ("kind", "values", "wanted"),
    [
        # 16 bits: v * 255 / 65535, whatever else is on the picture
        ("uint16", [0, 128, 129, 257, 32768, 65535], [0, 0, 1, 1, 128, 255]),
        ("uint16", [0, 100, 255], [0, 0, 1]),
        ("uint16", [65535, 65535], [255, 255]),
        # int32: 8 bits, 16 bits, or stretched
        ("int32", [0, 1, 100, 255], [0, 1, 100, 255]),
        ("int32", [0, 256, 32768, 65535], [0, 1, 128, 255]),  # 256 / 257 = 0.996
        ("int32", [-10, 0, 10], [0, 128, 255]),
        ("int32", [0, 65536, 131072], [0, 128, 255]),
        ("int32", [-(2**31), 2**31 - 1], [0, 255]),
        ("int32", [7, 7], [7, 7]),
        ("int32", [70000, 70000], [255, 255]),
        ("int32", [-3, -3], [0, 0]),
        # float: unit, 8 bits, 16 bits, or stretched
        ("float32", [0, 0.25, 0.5, 1], [0, 64, 128, 255]),  # 63.75, 127.5
        ("float32", [0, 1, 127.5, 254.4, 255], [0, 1, 128, 254, 255]),
        ("float32", [0, 256, 32768, 65535], [0, 1, 128, 255]),
        ("float32", [-10, 0, 10], [0, 128, 255]),
        ("float32", [-1, -0.5, 0], [0, 128, 255]),
        ("float32", [1e-45, 0], [0, 0]),
        ("float32", [-3e38, 0, 3e38], [0, 128, 255]),
        ("float32", [0.5, 0.5], [128, 128]),
        ("float32", [200, 200], [200, 200]),
        ("float32", [1e30, 1e30], [255, 255]),
        ("float32", [-1e30, -1e30], [0, 0]),
    ],
)
def test_greys_of_many_bits(kind, values, wanted, tmp_path):
    assert greys(values, kind) == wanted
    Image.fromarray(np.array([values], dtype=kind)).save(tmp_path / "a.tiff")
    assert np.asarray(open_picture(tmp_path / "a.tiff"))[0, :, 0].tolist() == wanted


@pytest.mark.parametrize("name", ["a.png", "a.tiff", "a.ppm"])
def test_16_bit_files_have_16_bits_however_dark_they_are(name, tmp_path):
    Image.fromarray(np.array([[0, 128, 200, 255]], dtype=np.uint16)).save(tmp_path / name)
    assert np.asarray(open_picture(tmp_path / name))[0, :, 0].tolist() == [0, 0, 1, 1]
    turned = Image.Exif()
    turned[0x0112] = 3
    if name == "a.png":
        Image.fromarray(np.array([[0, 65535]], np.uint16)).save(tmp_path / name, exif=turned)
        assert np.asarray(open_picture(tmp_path / name))[0, :, 0].tolist() == [255, 0]


def test_pillow_itself_would_clip():
    values = np.array([[0, 257, 32768, 65535]], dtype=np.int32)
    assert np.asarray(Image.fromarray(values).convert("L"))[0, 1] == 255


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_inf_are_refused_and_named(bad, tmp_path, monkeypatch):
    monkeypatch.setattr(colours, "STRIP", 2)
    for place in range(6):
        values = np.linspace(0, 1, 6, dtype=np.float32).reshape(3, 2)
        values.flat[place] = bad
        picture = Image.fromarray(values)
        with pytest.raises(PictureError, match=r"in the picture\. Got NaN or Inf"):
            to_rgb(picture)
    picture.save(tmp_path / "a.tiff")
    with pytest.raises(PictureError, match=r"finite pixel values in .*a\.tiff"):
        open_picture(tmp_path / "a.tiff")


def test_a_transparent_grey_of_16_bits_is_white(tmp_path):
    values = np.array([[0, 300, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png", transparency=0)
    assert np.asarray(open_picture(tmp_path / "a.png"))[0, :, 0].tolist() == [255, 1, 255]


@pytest.mark.parametrize("mode", ["I;16", "I", "F", "RGBA", "LA", "P"])
def test_strips_change_nothing(mode, monkeypatch):
    values = np.random.default_rng(0).integers(0, 256, (7, 5, 4))
    if mode in ("RGBA", "LA"):
        picture = Image.fromarray(values[..., : len(mode)].astype(np.uint8), mode)
    elif mode == "P":
        picture = Image.fromarray(values[..., 0].astype(np.uint8)).convert("P")
        picture.info["transparency"] = bytes(range(256))
    else:
        kind = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        picture = Image.fromarray((values[..., 0] * 300 - 9 * (mode != "I;16")).astype(kind))
    whole = to_rgb(picture).tobytes()
    for pixels in (1, 5, 12):
        monkeypatch.setattr(colours, "STRIP", pixels)
        assert to_rgb(picture).tobytes() == whole
