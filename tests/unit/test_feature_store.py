"""Feature stores: what is read is what was written, and damage is named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tokensieve.data.store.features import FeatureStore, write_store
from tokensieve.data.store.groups import grouped
from tokensieve.data.store.identity import make_identity
from tokensieve.data.store.manifest import write_manifest
from tokensieve.data.store.shards import Crop, Record, write_shard
from tokensieve.errors import (
    ConfigError,
    EncoderMismatchError,
    InputError,
    NonFiniteError,
    UnsupportedError,
    WeightsError,
)
from tokensieve.types import EncoderInfo, Site

ENCODER = EncoderInfo("toy", 16, -1, 2, 2, 32, (5, 5))


def features(crops: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(crops, 25, 16, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    return write_store(tmp_path / "toy", features(300), ENCODER, source="a")


def test_rows_of_several_stores_in_order(stored: Path, tmp_path: Path) -> None:
    more = write_store(tmp_path / "more", features(3, 1), ENCODER, source="b")
    again = write_store(tmp_path / "again", features(2, 2), ENCODER, source="a")
    store = FeatureStore([stored, more, again])
    assert len(store) == 305
    assert store.sources == ("a", "b")
    assert store.source_N.tolist() == [0] * 300 + [1] * 3 + [0] * 2
    assert store.encoder == ENCODER
    whole = torch.cat([features(300), features(3, 1), features(2, 2)]).half().float()
    rows = torch.tensor([0, 255, 256, 299, 300, 302, 303, 304, 7, 7])
    batch = store.batch(rows)
    assert torch.equal(batch.features, whole[rows])
    assert batch.features.dtype == torch.float32
    assert (batch.valid, batch.pixels) == (None, None)
    assert batch.grids == ((5, 5),) * 10
    for bad in ([305], [-1]):
        with pytest.raises(InputError, match=r"Expected rows from 0 to 304\. Got"):
            store.batch(torch.tensor(bad))


def test_pixels(tmp_path: Path) -> None:
    images = torch.rand(4, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    folder = write_store(tmp_path / "p", features(4), ENCODER, pixels_N3HV=images)
    store = FeatureStore([folder])
    assert store.has_pixels
    assert store.batch(torch.tensor([2])).pixels is None
    found = store.batch(torch.tensor([2, 0]), pixels=True).pixels
    torch.testing.assert_close(found, images[[2, 0]], atol=0.5 / 255 + 1e-6, rtol=0)
    plain = write_store(tmp_path / "q", features(4), ENCODER)
    with pytest.raises(InputError, match=r"Expected pixels in the store.*Extract again with --pix"):
        FeatureStore([plain]).batch(torch.tensor([0]), pixels=True)
    with pytest.raises(InputError, match=r"pixels=True in .*/p and pixels=False in .*/q"):
        FeatureStore([folder, plain])


def ragged(folder: Path) -> tuple[FeatureStore, list[Crop]]:
    """A store of two pictures, three crops of lengths 6, 4 and 6, one with a token nobody reads."""
    g = torch.Generator().manual_seed(3)
    crops = [
        Crop(torch.randn(6, 16, generator=g).half(), (2, 3)),
        Crop(torch.randn(4, 16, generator=g).half(), None, torch.tensor([True, False, True, True])),
        Crop(torch.randn(6, 16, generator=g).half(), (3, 2)),
    ]
    records = [Record(0, "s", "a", "00", crops=2), Record(1, "s", "b", "", error="broken"),
               Record(2, "s", "c", "01", crops=1)]  # fmt: skip
    identity = make_identity(replace(ENCODER, grid=None), dtype="float16", chunk=3, pixels=False)
    folder.mkdir()
    (folder / "store.json").write_text(json.dumps(identity))
    write_shard(folder / "shard-000000.safetensors", records, crops, 16, torch.float16)
    summary = write_manifest(folder, ["shard-000000.safetensors"])
    assert (summary.pictures, summary.crops, summary.tokens, summary.skipped) == (3, 3, 16, 1)
    return FeatureStore([folder]), crops


def test_crops_of_different_lengths_are_padded_with_zeros(tmp_path: Path) -> None:
    store, crops = ragged(tmp_path / "r")
    batch = store.batch(torch.tensor([1, 2]))
    assert torch.equal(batch.features[0, :4], crops[1].tokens.float())
    assert torch.equal(batch.features[0, 4:], torch.zeros(2, 16))
    assert torch.equal(batch.features[1], crops[2].tokens.float())
    assert batch.valid is not None
    assert batch.valid.tolist() == [[True, False, True, True, False, False], [True] * 6]
    assert batch.grids is None
    even = store.batch(torch.tensor([0, 2]))
    assert even.valid is None
    assert even.grids == ((2, 3), (3, 2))


def test_the_fingerprint_follows_what_is_stored(stored: Path, tmp_path: Path) -> None:
    base = FeatureStore([stored]).fingerprint
    assert FeatureStore([stored]).fingerprint == base
    same = write_store(tmp_path / "same", features(300), ENCODER, source="a")
    assert FeatureStore([same]).fingerprint == base
    changed = features(300)
    changed[299, 24, 15] += 1
    others = [
        write_store(tmp_path / "value", changed, ENCODER, source="a"),
        write_store(tmp_path / "source", features(300), ENCODER, source="b"),
        write_store(tmp_path / "fewer", features(299), ENCODER, source="a"),
    ]
    assert len({base, *(FeatureStore([other]).fingerprint for other in others)}) == 4


def test_nothing_is_read_before_it_is_asked_for(stored: Path) -> None:
    store = FeatureStore([stored])
    assert store._shards == {}
    store.batch(torch.tensor([0]))
    assert list(store._shards) == [0]
    tokens = store._shards[0].crop(0).tokens
    assert tokens.untyped_storage().nbytes() > 200 * tokens.nbytes, "a copy, not the mapped file"


def test_folders_that_are_no_stores(stored: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"Expected a feature store.*tokensieve extract"):
        FeatureStore([tmp_path])
    with pytest.raises(InputError, match="at least one feature store"):
        FeatureStore([])
    shard = stored / "shard-000001.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-10])
    with pytest.raises(
        WeightsError, match=rf"a shard of {len(whole)} bytes .*Got {len(whole) - 10}"
    ):
        FeatureStore([stored])
    shard.write_bytes(b"\0" * len(whole))
    store = FeatureStore([stored])
    with pytest.raises(WeightsError, match="Expected a whole shard"):
        store.batch(torch.tensor([299]))
    shard.unlink()
    with pytest.raises(WeightsError, match=r"Got none\. Delete it"):
        FeatureStore([stored])
    shard.write_bytes(whole)
    (stored / "manifest.parquet").write_bytes(b"PAR1")
    with pytest.raises(WeightsError, match=r"Expected a whole .*manifest\.parquet"):
        FeatureStore([stored])
    (stored / "manifest.parquet").unlink()
    with pytest.raises(WeightsError, match="goes on where it stopped"):
        FeatureStore([stored])
    record = json.loads((stored / "store.json").read_text())
    (stored / "store.json").write_text(json.dumps({**record, "format": 7}))
    with pytest.raises(WeightsError, match="format 1"):
        FeatureStore([stored])


def test_stores_that_do_not_belong_together(stored: Path, tmp_path: Path) -> None:
    behind = write_store(tmp_path / "e", features(3), replace(ENCODER, site=Site.EMBEDS))
    with pytest.raises(EncoderMismatchError, match="site=embeds instead of features"):
        FeatureStore([stored, behind])
    rough = write_store(tmp_path / "b", features(3).bfloat16(), ENCODER)
    with pytest.raises(InputError, match=r"dtype=float16 in .* and dtype=bfloat16 in"):
        FeatureStore([stored, rough])
    tuned = write_store(tmp_path / "t", features(3), ENCODER)
    for folder, weights in ((stored, "aaaa"), (tuned, "bbbb")):
        record = json.loads((folder / "store.json").read_text())
        (folder / "store.json").write_text(json.dumps({**record, "weights": weights}))
    with pytest.raises(EncoderMismatchError, match=r"another weights in .*bbbb instead of aaaa"):
        FeatureStore([stored, tuned])


def test_what_cannot_be_stored(tmp_path: Path) -> None:
    loud = features(2)
    loud[1, 3, 4] = 1e6
    with pytest.raises(NonFiniteError, match="as bfloat16"):
        write_store(tmp_path / "a", loud, ENCODER)
    write_store(tmp_path / "b", loud.bfloat16(), ENCODER)
    with pytest.raises(InputError, match=r"Expected features \(N, L, 16\) on a grid \(5, 5\)"):
        write_store(tmp_path / "c", features(2)[:, :24], ENCODER)
    with pytest.raises(InputError, match=r"Expected pixels of 2 crops\. Got 1"):
        write_store(tmp_path / "d", features(2), ENCODER, pixels_N3HV=torch.zeros(1, 3, 4, 4))
    with pytest.raises(ConfigError, match="Expected what the store in"):
        write_store(tmp_path / "b", features(3), ENCODER)
    images = [torch.zeros(3, 4, n, dtype=torch.uint8) for n in (4, 5)]
    crops = [Crop(torch.zeros(1, 16).half(), pixels=image) for image in images]
    with pytest.raises(UnsupportedError, match=r"one size .*Got 4 x 4, 5 x 4"):
        write_shard(tmp_path / "s.safetensors", [], crops, 16, torch.float16)
    assert not list(tmp_path.glob("*.safetensors"))


def labelled(folder: Path, source: str, pictures: list[tuple[str, str, int]]) -> Path:
    """A store of pictures (key, sha256, crops; 0 crops for a skipped one)."""
    folder.mkdir()
    identity = make_identity(ENCODER, dtype="float16", chunk=9, pixels=False)
    (folder / "store.json").write_text(json.dumps(identity))
    records = [
        Record(i, source, key, sha, crops=crops, error="" if crops else "broken")
        for i, (key, sha, crops) in enumerate(pictures)
    ]
    crops = [Crop(torch.zeros(25, 16).half(), (5, 5)) for _, _, n in pictures for _ in range(n)]
    write_shard(folder / "shard-000000.safetensors", records, crops, 16, torch.float16)
    write_manifest(folder, ["shard-000000.safetensors"])
    return folder


def test_groups_hold_together_what_must_not_be_split(stored: Path, tmp_path: Path) -> None:
    one = labelled(tmp_path / "one", "s", [
        ("a.png", "a0", 2), ("broken.png", "", 0), ("v/clip.MP4#0", "b0", 1),
        ("v/clip.MP4#1", "b1", 1), ("v/other.mp4#0", "b2", 1), ("copy.png", "a0", 1),
        ("d.parquet#00000001", "c1", 1), ("d.parquet#00000002", "c2", 1),
    ])  # fmt: skip
    two = labelled(tmp_path / "two", "t", [
        ("a.png", "b1", 1), ("b.png", "a0", 2), ("v/clip.MP4#0", "d0", 1), ("w.gif#1", "d1", 1),
        ("w.gif#0", "d2", 1), ("v/other.mp4#3", "d3", 1), ("new.png", "d4", 1),
    ])  # fmt: skip
    first = FeatureStore([one])
    assert first.group_N.tolist() == [0, 0, 2, 2, 4, 0, 6, 7]
    assert first.picture_N.tolist() == [0, 0, 2, 3, 4, 5, 6, 7]
    both = FeatureStore([one, two]).group_N.tolist()
    assert both == [0, 0, 2, 2, 4, 0, 6, 7, 2, 0, 0, 10, 11, 11, 13, 14]
    own = FeatureStore([stored, stored])  # written without hashes: each picture alone
    assert torch.equal(own.group_N, own.picture_N)


def test_groups_hang_together_over_several_steps() -> None:
    kinds = torch.tensor([[5, 5, -1, 7, 7, -1], [-1, 3, 3, 3, -1, -1]])
    found = grouped(torch.tensor([0, 1, 2, 3, 4, 5]), *kinds)
    assert found.tolist() == [0, 0, 0, 0, 0, 5]
