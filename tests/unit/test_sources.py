"""Sources of pictures: what is listed, in what order, and what is said when there is nothing."""

from __future__ import annotations

import builtins
import hashlib
import io
import os
import tarfile
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from tokensieve.data.sources import Listing, content_hash, open_source, video
from tokensieve.data.synth import ROTATION, generate
from tokensieve.errors import (
    ConfigError,
    InputError,
    MissingPackageError,
    PictureError,
    UnknownNameError,
)
from toys.extract_tiny import noise


def png(seed: int, height: int = 20, width: int = 30) -> bytes:
    file = io.BytesIO()
    noise(height, width, seed).save(file, "PNG")
    return file.getvalue()


def pixels(picture: Image.Image) -> bytes:
    return picture.convert("RGB").tobytes()


def test_a_folder_is_listed_in_order_with_what_lies_below(tmp_path) -> None:
    for i, name in enumerate(("b.png", "a/z.JPG", "a/c.webp", ".hidden.png", "notes.txt")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png(i))
    source = open_source(f"mine={tmp_path}")
    assert (source.name, list(source.keys)) == ("mine", ["a/c.webp", "a/z.JPG", "b.png"])
    assert source.read(2) == png(0)
    listing = Listing([source, open_source("synth:scene:2")])
    assert len(listing) == 5
    assert listing.label(3) == ("scene", "train/scene-000000")
    read = listing.read(2)
    assert read.sha256 == hashlib.sha256(png(0)).hexdigest()
    assert pixels(read.picture) == pixels(noise(20, 30, 0))
    (tmp_path / "b.png").unlink()
    gone = listing.read(2)
    assert gone.picture is None
    assert "Got nothing. Check the path" in gone.error


def test_the_listing_hash_sees_names_keys_and_columns(tmp_path) -> None:
    (tmp_path / "a.png").write_bytes(png(0))
    one = Listing([open_source(f"x={tmp_path}")]).hash()
    assert one == Listing([open_source(f"x={tmp_path}")]).hash()
    other_name = Listing([open_source(f"y={tmp_path}")]).hash()
    (tmp_path / "b.png").write_bytes(png(1))
    assert len({one, other_name, Listing([open_source(f"x={tmp_path}")]).hash()}) == 3
    table = pa.table({"one": [png(0)], "two": [png(1)]})
    pq.write_table(table, tmp_path / "t.parquet")
    hashes = {
        Listing([open_source(str(tmp_path / "t.parquet"), column=column)]).hash()
        for column in ("one", "two")
    }
    assert len(hashes) == 2


def make_tar(path, members) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_tar_shards(tmp_path) -> None:
    make_tar(tmp_path / "s-1.tar", [("x/2.png", png(2)), ("x/2.json", b"{}")])
    make_tar(tmp_path / "s-0.tar", [("1.png", png(1)), ("0.jpg", png(0))])
    source = open_source(str(tmp_path / "s-*.tar"))
    assert source.name == "s"
    assert list(source.keys) == ["s-0.tar/1.png", "s-0.tar/0.jpg", "s-1.tar/x/2.png"]
    assert [source.read(i) for i in range(3)] == [png(1), png(0), png(2)]
    alone = open_source(str(tmp_path / "s-1.tar"))
    assert (alone.name, list(alone.keys)) == ("s-1", ["x/2.png"])
    whole = (tmp_path / "s-1.tar").read_bytes()
    (tmp_path / "s-1.tar").write_bytes(whole[:600])
    with pytest.raises(PictureError, match=r"Expected \d+ bytes of x/2\.png"):
        alone.read(0)


@pytest.mark.parametrize("struct", [False, True])
def test_parquet(struct, tmp_path) -> None:
    cells = [{"bytes": png(i), "path": f"{i}.png"} if struct else png(i) for i in range(5)]
    empty = {"bytes": None, "path": None} if struct else None
    table = pa.table({"caption": ["a"] * 6, "image": [*cells, empty]})
    pq.write_table(table, tmp_path / "d.parquet", row_group_size=2)
    source = open_source(str(tmp_path / "d.parquet"))
    assert list(source.keys) == [f"{i:08d}" for i in range(6)]
    assert [source.read(i) for i in (4, 0, 3)] == [png(4), png(0), png(3)]
    with pytest.raises(PictureError, match="Expected the bytes of a picture in d/00000005"):
        source.read(5)
    both = open_source(str(tmp_path / "*.parquet"), column="image")
    assert both.read(1) == png(1)
    with pytest.raises(ConfigError, match=r"'photo', which is not.*--column: caption, image"):
        open_source(str(tmp_path / "d.parquet"), column="photo")


def test_a_column_is_guessed_only_where_one_is_likely(tmp_path) -> None:
    pq.write_table(pa.table({"left": [png(0)], "right": [png(1)]}), tmp_path / "d.parquet")
    with pytest.raises(ConfigError, match="several or none that fit"):
        open_source(str(tmp_path / "d.parquet"))
    pq.write_table(pa.table({"mask": [png(0)], "n": [1]}), tmp_path / "e.parquet")
    assert open_source(str(tmp_path / "e.parquet")).read(0) == png(0)


def test_a_local_data_set(tmp_path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"photo": datasets.Image(), "label": datasets.Value("int32")})
    rows = {"photo": [{"bytes": png(i), "path": None} for i in range(3)], "label": [0, 1, 2]}
    table = datasets.Dataset.from_dict(rows, features=features)
    table.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": table, "test": table.select([2])}).save_to_disk(
        str(tmp_path / "two")
    )
    source = open_source(f"hf:{tmp_path / 'one'}")
    assert (source.name, len(source.keys), source.read(1)) == ("one", 3, png(1))
    assert open_source(str(tmp_path / "one")).read(2) == png(2)
    assert open_source(f"hf:{tmp_path / 'two'}:test").read(0) == png(2)
    with pytest.raises(ConfigError, match=r"a split of .*: train, test\. Got none"):
        open_source(f"hf:{tmp_path / 'two'}")
    with pytest.raises(ConfigError, match="label"):
        open_source(f"hf:{tmp_path / 'one'}", column="picture")


def flicker(count: int) -> list[Image.Image]:
    """Frames of one grey each, lighter and lighter."""
    return [Image.new("RGB", (32, 24), (i * 10,) * 3) for i in range(count)]


def test_frames_of_a_gif(tmp_path) -> None:
    path = tmp_path / "clip.gif"
    first, *rest = flicker(20)
    first.save(path, save_all=True, append_images=rest)
    source = open_source(str(path), frames=4)
    assert list(source.keys) == [f"clip.gif#{i}" for i in range(4)]
    greys = [source.read(i).getpixel((0, 0))[0] for i in (3, 0, 1, 2)]
    assert greys == [170, 20, 70, 120]  # the middles of 4 stretches of 20 frames
    assert len(set(open_source(str(path), frames=40).keys)) == 40
    as_picture = open_source(str(tmp_path))  # in a folder, a GIF is a picture
    assert list(as_picture.keys) == ["clip.gif"]


def test_a_video_without_a_length_has_so_many_frames_at_most(tmp_path, monkeypatch) -> None:
    counted = [SimpleNamespace() for _ in range(5)]
    container = SimpleNamespace(decode=lambda video: iter(counted))
    assert video._counted(container, tmp_path / "clip.avi") == 5
    monkeypatch.setattr(video, "MOST", 4)
    with pytest.raises(PictureError, match=r"Expected a video of at most 4 frames.*clip\.avi"):
        video._counted(container, tmp_path / "clip.avi")


@pytest.mark.parametrize("suffix", ["mp4", "webm"])
def test_frames_of_a_video(suffix, tmp_path) -> None:
    av = pytest.importorskip("av")
    (tmp_path / "v").mkdir()
    path = tmp_path / "v" / f"clip.{suffix}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4" if suffix == "mp4" else "libvpx", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 24, "yuv420p"
        for picture in flicker(20):
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode())
    for source in (open_source(str(path), frames=4), open_source(str(tmp_path / "v"), frames=4)):
        assert list(source.keys) == [f"clip.{suffix}#{i}" for i in range(4)]
        greys = np.array([source.read(i).getpixel((5, 5))[0] for i in range(4)])
        assert (abs(greys - np.array([20, 70, 120, 170])) <= 12).all(), greys
    path.write_bytes(b"no video")
    with pytest.raises(InputError, match=r"Expected a whole video in .*clip"):
        open_source(str(path))
    broken = Listing([open_source(str(tmp_path / "v"))]).read(0)
    assert "Expected a whole video in" in broken.error


def test_generated_pictures_are_those_of_the_pool() -> None:
    source = open_source("synth:mix:30")
    for i in (0, 8, 22):
        wanted = generate(ROTATION[i % len(ROTATION)], i, "train").image
        assert pixels(source.read(i)) == pixels(wanted)
    two = open_source("synth:dense,scene:4:val")
    assert (two.name, two.keys[1]) == ("dense-scene", "val/scene-000001")
    assert pixels(two.read(1)) == pixels(generate("scene", 1, "val").image)
    assert content_hash(two.read(1)) != content_hash(two.read(0))


@pytest.mark.parametrize(
    ("spec", "error", "told"),
    [
        ("nowhere/at/all", InputError, "Got nothing there"),
        ("{tmp}/empty", InputError, r"Expected pictures .* below"),
        ("{tmp}/notes.txt", InputError, r"Expected a folder, \.tar"),
        ("{tmp}/text.tar", InputError, r"Expected pictures .* in .*text\.tar"),
        ("{tmp}/bad.tar", InputError, "Expected an uncompressed tar file"),
        ("{tmp}/bad.parquet", InputError, "Expected a parquet file"),
        ("{tmp}/*.t*", InputError, "Give the folder instead"),
        ("synth:mix", ConfigError, "Expected synth:KINDS:COUNT"),
        ("synth:mixed,pge:3", UnknownNameError, "Unknown kind of picture 'pge'"),
        ("synth:mix:3:tset", UnknownNameError, "Did you mean 'test'"),
        ("synth:mix:0", ConfigError, "at least one generated picture"),
    ],
)
def test_sources_that_are_none(spec, error, told, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no")
    make_tar(tmp_path / "text.tar", [("a.txt", b"no")])
    (tmp_path / "bad.tar").write_bytes(b"no" * 600)
    (tmp_path / "bad.parquet").write_bytes(b"no")
    with pytest.raises(error, match=told):
        open_source(spec.format(tmp=tmp_path))


def test_a_folder_that_is_no_data_set(tmp_path) -> None:
    pytest.importorskip("datasets")
    with pytest.raises(InputError, match="Expected a data set that `datasets` can load"):
        open_source(f"hf:{tmp_path}")


def test_two_sources_of_one_name(tmp_path) -> None:
    (tmp_path / "a.png").write_bytes(png(0))
    with pytest.raises(ConfigError, match=r"Got two named 'mix'\..*NAME=SRC"):
        Listing([open_source("synth:mix:3"), open_source(f"mix={tmp_path}")])
    with pytest.raises(ConfigError, match="at least one source"):
        Listing([])
    with pytest.raises(ConfigError, match="`frames` of at least 1"):
        open_source("synth:mix:3", frames=0)


@pytest.mark.parametrize(("package", "extra"), [("av", "video"), ("datasets", "datasets")])
def test_a_missing_package_names_the_extra(package, extra, tmp_path, monkeypatch) -> None:
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.partition(".")[0] == package:
            raise ImportError(f"No module named '{package}'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr("tokensieve.data.extras.import_module", without)
    (tmp_path / "clip.mp4").write_bytes(b"")
    spec = str(tmp_path / "clip.mp4") if package == "av" else f"hf:{tmp_path}"
    with pytest.raises(MissingPackageError, match=rf"pip install 'tokensieve\[{extra}\]'"):
        open_source(spec)


def test_reading_from_several_threads(tmp_path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    pq.write_table(pa.table({"image": [png(i) for i in range(40)]}), tmp_path / "d.parquet",
                   row_group_size=3)  # fmt: skip
    source = open_source(str(tmp_path / "d.parquet"))
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0)).tolist()
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(source.read, order)) == [png(i) for i in order]


def test_the_listing_content_sees_other_pictures_of_the_same_names(tmp_path) -> None:
    def contents(folder: str, seed: int) -> list[str]:
        place = tmp_path / folder
        (place / "pics").mkdir(parents=True)
        for i in range(3):
            noise(20, 30, seed + i).save(place / "pics" / f"{i}.bmp")  # all of one size
        make_tar(place / "t.tar", [(f"{i}.bmp", (place / "pics" / f"{i}.bmp").read_bytes())
                                   for i in range(3)])  # fmt: skip
        cells = [(place / "pics" / f"{i}.bmp").read_bytes() for i in range(3)]
        pq.write_table(pa.table({"image": cells}), place / "d.parquet", compression="none")
        specs = ("pics", "t.tar", "d.parquet", "pics/1.bmp")
        return [Listing([open_source(f"p={place / spec}")]).content() for spec in specs]

    one, same, other = contents("a", 0), contents("b", 0), contents("c", 7)
    assert one == same, "a copy elsewhere is the same"
    assert all(a != b for a, b in zip(one, other, strict=True))


def test_the_content_of_a_data_set_sees_its_split(tmp_path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"photo": datasets.Image()})
    parts = {
        name: datasets.Dataset.from_dict(
            {"photo": [{"bytes": png(seed), "path": None}]}, features=features
        )
        for name, seed in (("train", 0), ("test", 1))
    }
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "d"))
    found = {open_source(f"hf:{tmp_path / 'd'}:{split}").content() for split in parts}
    assert len(found) == 2
    assert open_source(f"hf:{tmp_path / 'd'}:test").content() in found


def test_a_name_that_is_no_utf8_is_listed_escaped_and_read(tmp_path) -> None:
    place = tmp_path / "p"
    place.mkdir()
    with open(bytes(place) + b"/caf\xe9.png", "wb") as file:
        file.write(png(0))
    source = open_source(str(place))
    assert list(source.keys) == ["caf\\xe9.png"]
    assert source.read(0) == png(0)
    alone = open_source(str(next(place.iterdir())))
    assert (list(alone.keys), alone.read(0)) == (["caf\\xe9.png"], png(0))
    next(place.iterdir()).unlink()
    Listing([source]).read(0).error.encode()  # as the manifest does


def test_a_picture_named_like_a_frame(tmp_path) -> None:
    (tmp_path / "clip.mp4#t5.png").write_bytes(png(0))
    source = open_source(f"p={tmp_path}")
    assert source.read(0) == png(0)


def test_a_video_without_pyav_is_told_when_listing(tmp_path, monkeypatch) -> None:
    def without(name):
        raise ImportError(f"No module named '{name}'")

    monkeypatch.setattr("tokensieve.data.extras.import_module", without)
    (tmp_path / "a.png").write_bytes(png(0))
    assert len(open_source(f"p={tmp_path}").keys) == 1
    (tmp_path / "clip.mp4").write_bytes(b"")
    with pytest.raises(MissingPackageError, match=r"pip install 'tokensieve\[video\]'"):
        open_source(f"p={tmp_path}", frames=1)


def test_links_to_folders_are_followed_once(tmp_path) -> None:
    place, other = tmp_path / "p", tmp_path / "other"
    (place / "real").mkdir(parents=True)
    (other / "deep").mkdir(parents=True)
    (place / "real" / "a.png").write_bytes(png(0))
    (other / "deep" / "b.png").write_bytes(png(1))
    (place / "link").symlink_to(other)
    (place / "more").symlink_to(other / "deep")
    (place / "again").symlink_to(place / "real")
    (other / "loop").symlink_to(place)
    source = open_source(f"p={place}")
    assert list(source.keys) == ["link/deep/b.png", "real/a.png"]
    assert source.read(0) == png(1)


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path, monkeypatch) -> None:
    (tmp_path / "shut").mkdir()
    (tmp_path / "a.png").write_bytes(png(0))
    real = os.scandir

    def scandir(path):
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(InputError, match=r"readable folder at .*shut\. Got: Permission denied"):
        open_source(f"p={tmp_path}")


def test_a_name_in_any_script(tmp_path) -> None:
    (tmp_path / "a.png").write_bytes(png(0))
    assert open_source(f"фото={tmp_path}").name == "фото"
