"""Extraction: exact, resumable after a kill at any moment, shared by processes, honest about
pictures it cannot read."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from lab.nano.clip import normalise
from tokensieve.data.extraction.crops import CropEncoder
from tokensieve.data.extraction.extract import ExtractSettings
from tokensieve.data.store import manifest, shards
from tokensieve.data.store.features import FeatureStore
from tokensieve.data.store.identity import remove_leftovers
from tokensieve.data.store.manifest import write_manifest
from tokensieve.data.synth import ROTATION, generate
from tokensieve.errors import (
    ConfigError,
    InputError,
    WeightsError,
)
from tokensieve.files import machine
from tokensieve.types import Site
from toys.extract_tiny import contents, in_child, noise


@pytest.mark.parametrize("site", [Site.FEATURES, Site.EMBEDS])
def test_equals_the_encoder_on_the_pictures_of_the_pool(site, nano, made, tmp_path) -> None:
    summary = made("store", "synth:mix:25", ExtractSettings(site, pixels=True, chunk=10, batch=4))
    assert (summary.pictures, summary.crops, summary.tokens) == (25, 25, 25 * 256)
    images = [generate(ROTATION[i % len(ROTATION)], i, "train").image for i in range(25)]
    bytes_NHW3 = torch.stack([torch.frombuffer(bytearray(i.tobytes()), dtype=torch.uint8)
                              .view(192, 192, 3) for i in images])  # fmt: skip
    with torch.no_grad():
        wanted = nano.model.model.vision_tower(normalise(bytes_NHW3)).last_hidden_state[:, 1:]
        if site is Site.EMBEDS:
            wanted = nano.model.model.multi_modal_projector(wanted)
    store = FeatureStore([tmp_path / "store"])
    batch = store.batch(torch.arange(25), pixels=True)
    assert torch.equal(batch.features, wanted.half().float())
    assert batch.valid is None
    assert batch.grids == ((16, 16),) * 25
    assert torch.equal(batch.pixels, bytes_NHW3.permute(0, 3, 1, 2).float() / 255)
    assert store.encoder.site is site


@pytest.mark.slow
def test_twenty_kills_lose_and_double_nothing(made, tmp_path) -> None:
    pictures, draw, settings = "synth:scene:24", random.Random(4), ExtractSettings(chunk=2, batch=2)
    made("warm", "synth:scene:1")
    start = time.perf_counter()
    made("whole", pictures, settings)
    span = 0.5 * (time.perf_counter() - start)
    store, hits, moments = tmp_path / "killed", 0, set()
    for _ in range(20):
        before = len(list(store.glob("shard-*")))
        if before == 12:  # nearly done: take something away again
            (store / "manifest.parquet").unlink(missing_ok=True)
            for path in sorted(store.glob("shard-*"))[::2]:
                path.unlink()
        delay = draw.uniform(0.005, span)
        status = in_child(lambda: made("killed", pictures, settings), delay)
        struck = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        after = len(list(store.glob("shard-*")))
        span *= 0.7 if not struck else 1.3 if after == before else 1.0  # other loads come and go
        hits += struck
        moments.add(after)
    assert hits >= 12, "too few kills struck a running process to show anything"
    assert len(moments) >= 4, "the kills did not fall into different moments"
    made("killed", pictures, settings)
    assert contents(store) == contents(tmp_path / "whole")


def _killed_while_writing(monkeypatch, number: int) -> None:
    """From now on, the process dies half way through the shard of that number."""
    save = shards.save_file

    def dying(tensors, path, metadata):
        save(tensors, path, metadata=metadata)
        if f"{number:06d}" in Path(path).name:
            os.truncate(path, 500)
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(shards, "save_file", dying)


def test_killed_while_writing_a_shard(made, tmp_path, monkeypatch) -> None:
    made("whole")
    with monkeypatch.context() as patch:
        _killed_while_writing(patch, 1)
        assert os.WTERMSIG(in_child(lambda: made("store"))) == signal.SIGKILL
    left = sorted(path.name for path in (tmp_path / "store").iterdir())
    assert any(name.endswith(".part") for name in left)
    assert "shard-000001.safetensors" not in left
    made("store")
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


def test_a_writer_that_is_not_whole_would_be_noticed(made, tmp_path, monkeypatch) -> None:
    @contextmanager
    def in_place(path):
        yield path

    with monkeypatch.context() as patch:
        patch.setattr(shards, "staged", in_place)
        _killed_while_writing(patch, 1)
        in_child(lambda: made("store"))
    with pytest.raises(WeightsError, match=r"Expected a whole shard at .*shard-000001"):
        made("store")


def test_resuming_reads_only_what_is_missing(made, tmp_path) -> None:
    made("store")
    before = contents(tmp_path / "store")
    seen: list[tuple[int, int]] = []
    made("store", progress=lambda done, total: seen.append((done, total)))
    assert seen == []
    (tmp_path / "store" / "shard-000001.safetensors").unlink()
    made("store", progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (3, 3)
    assert contents(tmp_path / "store") == before


def test_processes_share_the_work(made, tmp_path) -> None:
    made("whole")
    first = made("store", share=(0, 2))
    assert first is None
    assert sorted(p.name for p in (tmp_path / "store").glob("shard*")) == [
        "shard-000000.safetensors", "shard-000002.safetensors",
    ]  # fmt: skip
    with pytest.raises(WeightsError, match=r"without manifest\.parquet.*again"):
        FeatureStore([tmp_path / "store"])
    assert made("store", share=(1, 2)).pictures == 8
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")
    with pytest.raises(ConfigError, match=r"Expected a rank from 0 to 1\. Got 2"):
        made("store", share=(2, 2))


def test_two_processes_at_once(made, tmp_path) -> None:
    made("whole", "synth:scene:20")
    pid = os.fork()
    if pid == 0:
        made("store", "synth:scene:20", share=(1, 2))
        os._exit(0)
    made("store", "synth:scene:20", share=(0, 2))
    assert os.waitpid(pid, 0)[1] == 0
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


def test_leftovers_of_the_living_and_of_other_machines_stay(tmp_path) -> None:
    here, dead = machine(), 4194000
    names = (f"000001.{here}.{dead}", f"000002.{here}.{os.getppid()}", f"000003.{here}.{dead}",
             f"000001.elsewhere-1.{dead}")  # fmt: skip
    gone, *stay = (tmp_path / f".shard-{name}.0123abcd.part" for name in names)
    for path in (gone, *stay):
        path.mkdir()
        (path / ".tmpAbC").write_bytes(b"half")
    (tmp_path / f".store.{here}.{dead}.0123abcd.part.json").write_text("{")
    mine = {"shard-000001.safetensors", "shard-000002.safetensors", "store.json"}
    remove_leftovers(tmp_path, mine)
    assert sorted(tmp_path.iterdir()) == sorted(stay)


def test_a_manifest_written_twice_at_once_is_whole(made, tmp_path, monkeypatch) -> None:
    made("store")
    before, other = contents(tmp_path / "store"), []
    read = manifest.read_info

    def meanwhile(path):  # the other machine has the same process number
        if not other:
            other.append(None)
            write_manifest(tmp_path / "store", sorted(before[0]))
        return read(path)

    monkeypatch.setattr(manifest, "read_info", meanwhile)
    (tmp_path / "store" / "manifest.parquet").unlink()
    write_manifest(tmp_path / "store", sorted(before[0]))
    assert contents(tmp_path / "store") == before


def test_another_process_begins_the_store_first(made, tmp_path, monkeypatch) -> None:
    made("store")
    listed = Path.exists

    def late(path, **options):  # store.json appears after it was looked for
        return path.name != "store.json" and listed(path, **options)

    monkeypatch.setattr(Path, "exists", late)
    assert made("store").pictures == 8
    (tmp_path / "fresh").mkdir()
    (tmp_path / "fresh" / ".shard-000001.elsewhere.7.0123abcd.part").mkdir()
    assert made("fresh").pictures == 8


@pytest.fixture
def folder(tmp_path):
    """Five files of which two are no pictures, and one copy."""
    place = tmp_path / "pictures"
    place.mkdir()
    noise(50, 70).save(place / "a.png")
    noise(64, 64, 1).save(place / "c.png")
    (place / "b.png").write_bytes((place / "a.png").read_bytes()[:900])
    (place / "d.jpg").write_bytes(b"not a picture at all")
    shutil.copy(place / "c.png", place / "e.png")
    return place


def test_corrupt_pictures_are_skipped_and_listed(made, folder, tmp_path) -> None:
    summary = made("store", f"pics={folder}")
    assert (summary.pictures, summary.crops, summary.skipped) == (5, 3, 2)
    assert summary.duplicates == 1
    assert [where for where, _ in summary.skipped_first] == ["pics/b.png", "pics/d.jpg"]
    assert "damaged" in summary.skipped_first[0][1]
    rows = contents(tmp_path / "store")[1]
    assert [(row["key"], row["status"], row["row"]) for row in rows] == [
        ("a.png", "ok", 0), ("b.png", "skipped", -1), ("c.png", "ok", 1),
        ("d.jpg", "skipped", -1), ("e.png", "ok", 0),
    ]  # fmt: skip
    assert (rows[0]["width"], rows[0]["height"]) == (70, 50)
    assert rows[2]["sha256"] == rows[4]["sha256"] != rows[0]["sha256"]
    store = FeatureStore([tmp_path / "store"])
    assert torch.equal(store.batch(torch.tensor([1])).features,
                       store.batch(torch.tensor([2])).features)  # fmt: skip


def test_a_picture_the_processor_refuses_is_skipped(made, folder, nano, monkeypatch) -> None:
    whole = CropEncoder.prepare

    def picky(self, pictures, *rest):
        if any(picture.width == 70 for picture in pictures):
            raise ValueError("too wide")
        return whole(self, pictures, *rest)

    monkeypatch.setattr(CropEncoder, "prepare", picky)
    summary = made("store", f"pics={folder}")
    assert summary.crops == 2
    assert summary.skipped_first[0] == (
        "pics/a.png", "Expected a picture that the processor takes. Got: too wide."
    )  # fmt: skip


def test_nothing_readable_is_an_error(made, tmp_path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"no")
    with pytest.raises(InputError, match=r"at least one readable picture\. Got 1.*bad/a\.png"):
        made("store", str(tmp_path / "bad"))
    assert not (tmp_path / "store" / "manifest.parquet").exists()


def test_a_name_that_is_no_utf8_can_be_finished(made, tmp_path) -> None:
    place = tmp_path / "odd"
    place.mkdir()
    noise(50, 70).save(place / "a.png")
    os.rename(place / "a.png", os.fsencode(place) + b"/caf\xe9.png")
    Path(os.fsdecode(os.fsencode(place) + b"/\xe8.png")).write_bytes(b"no")
    for _ in range(2):
        summary = made("store", f"p={place}")
        assert (summary.crops, summary.skipped) == (1, 1)
    assert contents(tmp_path / "store")[1][0]["key"] == "caf\\xe9.png"


def test_repaired_pictures_are_read_again(made, folder, tmp_path) -> None:
    made("store", f"pics={folder}")
    noise(64, 64, 5).save(folder / "b.png")
    with pytest.raises(ConfigError, match="--retry-skipped if some that were skipped"):
        made("store", f"pics={folder}")
    seen: list[tuple[int, int]] = []
    summary = made("store", f"pics={folder}", retry_skipped=True,
                   progress=lambda done, total: seen.append((done, total)))  # fmt: skip
    assert (summary.crops, summary.skipped, seen[-1]) == (4, 1, (5, 5))
    made("anew", f"pics={folder}")
    assert contents(tmp_path / "store") == contents(tmp_path / "anew")
    assert made("store", f"pics={folder}").crops == 4, "what the files are now is recorded"
    noise(64, 64, 9).save(folder / "a.png")
    with pytest.raises(ConfigError, match=r"begun with\. Got another pics/a\.png"):
        made("store", f"pics={folder}", retry_skipped=True)


def test_retrying_with_fewer_pictures_is_refused(made) -> None:
    made("store")
    with pytest.raises(ConfigError, match=r"listing\.pictures=5 \(there: 8\)"):
        made("store", "synth:mix:5", retry_skipped=True)
