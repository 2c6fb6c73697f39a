"""Stores that somebody, or a disk, has changed: each ends in one clear error, in both readers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tokensieve.data.store.features import FeatureStore, write_store
from tokensieve.data.store.verify import verify_store
from tokensieve.errors import NonFiniteError, TokensieveError, WeightsError
from tokensieve.types import EncoderInfo

ENCODER = EncoderInfo("toy", 16, -1, 2, 2, 32, (5, 5))
FIRST, SECOND = "shard-000000.safetensors", "shard-000001.safetensors"
CROPS = 300


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokens = torch.randn(CROPS, 25, 16, generator=torch.Generator().manual_seed(0))
    return write_store(tmp_path_factory.mktemp("stores") / "toy", tokens, ENCODER, source="a")


@pytest.fixture
def store(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "store"))


def read_all(folder: Path) -> None:
    FeatureStore([folder]).batch(torch.arange(CROPS))


def record(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Change what store.json says."""

    def tamper(store: Path) -> None:
        told = json.loads((store / "store.json").read_text())
        change(told)
        (store / "store.json").write_text(json.dumps(told))

    return tamper


def listing(change: Callable[[list[list[Any]]], object]) -> Callable[[Path], None]:
    """Change the manifest's list of shards."""

    def tamper(store: Path) -> None:
        table = pq.read_table(store / "manifest.parquet")
        shards = json.loads(pq.read_metadata(store / "manifest.parquet").metadata[b"shards"])
        change(shards)
        table = table.replace_schema_metadata({"shards": json.dumps(shards)})
        pq.write_table(table, store / "manifest.parquet")

    return tamper


def rows(change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], None]:
    """Change the manifest's rows."""

    def tamper(store: Path) -> None:
        path = store / "manifest.parquet"
        kept = {"shards": pq.read_metadata(path).metadata[b"shards"]}
        pq.write_table(change(pq.read_table(path)).replace_schema_metadata(kept), path)

    return tamper


def column(name: str, values: Callable[[list[Any]], list[Any]]) -> Callable[[Path], None]:
    def change(table: pa.Table) -> pa.Table:
        at, field = table.schema.get_field_index(name), table.schema.field(name)
        return table.set_column(at, field, pa.array(values(table[name].to_pylist()), field.type))

    return rows(change)


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    """Change a shard's tensors and forge its size in the manifest."""

    def tamper(store: Path) -> None:
        path = store / SECOND
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            found = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        change(found)
        save_file(found, path, metadata=metadata)
        listing(lambda shards: shards[1].__setitem__(3, path.stat().st_size))(store)

    return tamper


def flip(name: str, at: int) -> Callable[[Path], None]:
    def tamper(store: Path) -> None:
        data = bytearray((store / name).read_bytes())
        data[at] ^= 1
        (store / name).write_bytes(data)

    return tamper


def unhashed(change: Callable[[Path], None]) -> Callable[[Path], None]:
    """The same where no hash tells."""

    def tamper(store: Path) -> None:
        change(store)
        listing(lambda shards: [shard.__setitem__(1, "") for shard in shards])(store)

    return tamper


def swapped(store: Path) -> None:
    one, two = (store / FIRST).read_bytes(), (store / SECOND).read_bytes()
    (store / FIRST).write_bytes(two)
    (store / SECOND).write_bytes(one)


def linked(store: Path) -> None:
    (store / FIRST).rename(store.parent / FIRST)
    (store / FIRST).symlink_to(store.parent / FIRST)


def a_folder(store: Path) -> None:
    (store / FIRST).unlink()
    (store / FIRST).mkdir()


def not_a_number(found: dict[str, torch.Tensor]) -> None:
    found["tokens"][3, 3] = torch.nan


def put(name: str, value: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    return tensors(lambda found: found.__setitem__(name, value(found[name])))


TAMPERED: dict[str, tuple[Callable[[Path], None], str]] = {
    "a missing shard": (lambda s: (s / SECOND).unlink(), SECOND),
    "a folder for a shard": (a_folder, FIRST),
    "a cut shard": (lambda s: (s / SECOND).write_bytes((s / SECOND).read_bytes()[:-9]), SECOND),
    "an empty shard": (lambda s: (s / SECOND).write_bytes(b""), SECOND),
    "a flipped byte in features": (flip(FIRST, -100), FIRST),
    "a flipped byte in a header": (flip(FIRST, 40), FIRST),
    "a flipped length of a header": (flip(FIRST, 7), FIRST),
    "swapped shards": (swapped, FIRST),
    "swapped shards, told so": (
        lambda s: (swapped(s), listing(lambda x: x.__setitem__(
            slice(None), [[x[0][0], *x[1][1:]], [x[1][0], *x[0][1:]]]))(s))[0], "manifest.parquet"),
    "another dtype": (put("tokens", lambda t: t.float()), SECOND),
    "fewer rows": (put("tokens", lambda t: t[:-1].clone()), SECOND),
    "another width": (put("tokens", lambda t: t[:, :8].clone()), SECOND),
    "offsets beyond the tokens": (put("offsets", lambda t: t * 1000), SECOND),
    "falling offsets": (unhashed(put("offsets", lambda t: t.flip(0))), SECOND),
    "offsets as floats": (unhashed(put("offsets", lambda t: t.float())), SECOND),
    "a grid of other tokens": (unhashed(put("grids", lambda t: t * 7)), SECOND),
    "a negative grid": (unhashed(put("grids", lambda t: -t)), SECOND),
    "no grids": (tensors(lambda found: found.pop("grids")), SECOND),
    "a tensor nobody knows": (
        unhashed(tensors(lambda found: found.__setitem__("more", torch.zeros(1)))), SECOND),
    "pixels that the store has not": (
        unhashed(tensors(lambda f: f.__setitem__("pixels", torch.zeros(44, 3, 2, 2).byte()))),
        SECOND),
    "not a number": (tensors(not_a_number), SECOND),
    "not a number where no hash tells": (unhashed(tensors(not_a_number)), "NaN or Inf"),
    "a name that leaves the folder": (
        listing(lambda x: x[0].__setitem__(0, "../" + FIRST)), "manifest.parquet"),
    "an absolute name": (listing(lambda x: x[0].__setitem__(0, "/etc/passwd")), "manifest.parquet"),
    "a name with NUL": (listing(lambda x: x[0].__setitem__(0, "a\0b")), "manifest.parquet"),
    "a name without end": (listing(lambda x: x[0].__setitem__(0, "a" * 9999)), "manifest.parquet"),
    "a number for a name": (listing(lambda x: x[0].__setitem__(0, 3)), "manifest.parquet"),
    "a link out of the folder": (linked, FIRST),
    "a shard twice": (listing(lambda x: x[1].__setitem__(0, FIRST)), "manifest.parquet"),
    "negative crops": (listing(lambda x: x[0].__setitem__(2, -256)), "manifest.parquet"),
    "countless crops": (listing(lambda x: x[0].__setitem__(2, 10**18)), "manifest.parquet"),
    "crops moved to the next shard": (
        listing(lambda x: (x[0].__setitem__(2, 255), x[1].__setitem__(2, 45))), "manifest.parquet"),
    "a negative size": (listing(lambda x: x[0].__setitem__(3, -1)), "manifest.parquet"),
    "a size without end": (listing(lambda x: x[0].__setitem__(3, 10**30)), "manifest.parquet"),
    "true for a count": (listing(lambda x: x[0].__setitem__(2, True)), "manifest.parquet"),
    "short entries": (listing(lambda x: x[0].pop()), "manifest.parquet"),
    "no shards": (listing(lambda x: x.clear()), "manifest.parquet"),
    "another hash": (listing(lambda x: x[0].__setitem__(1, "0" * 64)), FIRST),
    "no list of shards": (rows(lambda t: t), "manifest.parquet"),
    "rows taken out": (rows(lambda t: t.slice(0, 200)), "manifest.parquet"),
    "rows in another order": (rows(lambda t: t.take(pa.array(range(299, -1, -1)))), "manifest"),
    "a column missing": (rows(lambda t: t.drop(["sha256"])), "manifest.parquet"),
    "a column of another type": (
        rows(lambda t: t.set_column(2, "picture", t["picture"].cast("string"))), "manifest"),
    "a row without a value": (column("picture", lambda v: [None, *v[1:]]), "manifest.parquet"),
    "negative pictures": (column("picture", lambda v: [x - 5 for x in v]), "manifest.parquet"),
    "other pictures": (column("picture", lambda v: [x + 5 for x in v]), FIRST),
    "a cut manifest": (
        lambda s: (s / "manifest.parquet").write_bytes((s / "manifest.parquet").read_bytes()[:-50]),
        "manifest.parquet"),
    "no parquet": (lambda s: (s / "manifest.parquet").write_text("{}"), "manifest.parquet"),
    "a manifest that is a folder": (
        lambda s: ((s / "manifest.parquet").unlink(), (s / "manifest.parquet").mkdir())[0],
        "manifest.parquet"),
    "another version": (record(lambda r: r.update(format=2)), "format 1"),
    "no JSON": (lambda s: (s / "store.json").write_text("{"), "store.json"),
    "JSON without end": (lambda s: (s / "store.json").write_text("[" * 10**5), "store.json"),
    "no object": (lambda s: (s / "store.json").write_text("[1]"), "store.json"),
    "a name of JSON twice": (
        lambda s: (s / "store.json").write_text('{"format": 1, "format": 1}'), "store.json"),
    "no encoder": (record(lambda r: r.pop("encoder")), "store.json"),
    "an encoder without a width": (record(lambda r: r["encoder"].pop("width")), "store.json"),
    "an encoder of another width": (record(lambda r: r["encoder"].update(width=32)), FIRST),
    "a width of 10^30": (record(lambda r: r["encoder"].update(width=10**30)), "store.json"),
    "a width in words": (record(lambda r: r["encoder"].update(width="wide")), "store.json"),
    "a grid that is none": (record(lambda r: r["encoder"].update(grid=[5])), "store.json"),
    "a grid without end": (record(lambda r: r["encoder"].update(grid=[10**9] * 2)), "store.json"),
    "no dtype": (record(lambda r: r.pop("dtype")), "store.json"),
    "a dtype nobody knows": (record(lambda r: r.update(dtype="int4")), "store.json"),
    "a dtype of another store": (record(lambda r: r.update(dtype="bfloat16")), FIRST),
    "pixels that are not there": (record(lambda r: r.update(pixels=True)), FIRST),
    "a setting nobody knows": (record(lambda r: r.update(dtipe="x")), "store.json"),
}  # fmt: skip


@pytest.mark.parametrize("name", TAMPERED)
def test_a_tampered_store_is_refused_by_file(name: str, store: Path) -> None:
    change, words = TAMPERED[name]
    change(store)
    if name == "no list of shards":
        path = store / "manifest.parquet"
        pq.write_table(pq.read_table(path).replace_schema_metadata({"a": "b"}), path)
    with pytest.raises(TokensieveError) as told:
        read_all(store)
    assert words in str(told.value)
    assert "xpected" in str(told.value)
    try:
        problems = verify_store(store).problems
    except WeightsError as error:  # what it was made with cannot be read
        problems = (str(error),)
    assert problems
    assert all("\n" not in problem and len(problem) < 1000 for problem in problems)


def test_a_whole_store_is_verified(store: Path) -> None:
    found = verify_store(store)
    assert (found.shards, found.crops, found.problems) == (2, CROPS, ())
    assert found.finished
    found.require(store)
    (store / "manifest.parquet").unlink()
    (store / SECOND).unlink()
    begun = verify_store(store)
    assert (begun.shards, begun.crops, begun.finished, begun.problems) == (1, 256, False, ())
    flip(FIRST, -100)(store)
    assert "other bytes than were written" in verify_store(store).problems[0]


def test_bytes_are_compared_once_and_only_where_asked(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tokensieve.data.store import shards

    seen: list[int] = []
    monkeypatch.setattr(
        shards, "_content", lambda told, found, hash_of=shards._content: (
            seen.append(1), hash_of(told, found))[1],
    )  # fmt: skip
    opened = FeatureStore([store])
    assert seen == []
    for _ in range(3):
        opened.batch(torch.tensor([0, 1]))
    assert len(seen) == 1
    opened.batch(torch.tensor([299, 5]))
    assert len(seen) == 2
    FeatureStore([store], verify=False).batch(torch.tensor([0]))
    assert len(seen) == 2


def test_stores_without_hashes_open_and_say_so(
    store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    unhashed(lambda folder: None)(store)
    read_all(store)
    assert [r.message for r in caplog.records] == [
        f"{store} was written without hashes: its bytes are not checked"
    ]
    found = verify_store(store)
    assert (found.unhashed, found.problems) == (2, ())


def test_training_and_the_command_refuse_a_flipped_byte(store: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from tokensieve.cli import app

    flip(FIRST, -100)(store)
    with pytest.raises(WeightsError, match=rf"{FIRST}.*Delete it and run extract again"):
        read_all(store)
    out = CliRunner().invoke(app, ["extract", "--verify", "--out", str(store)])
    assert isinstance(out.exception, WeightsError)
    assert FIRST in out.output
    assert "damaged" in out.output
    (store / FIRST).unlink()
    with pytest.raises(NonFiniteError):
        write_store(tmp_path / "nan", torch.full((3, 25, 16), torch.nan), replace(ENCODER))
