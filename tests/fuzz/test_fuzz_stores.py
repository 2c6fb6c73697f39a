"""Feature stores from strangers: what was written comes back, or one error of ours."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import pyarrow.parquet as pq
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from fuzz.common import bounded, fuzzed, json_values, one_line, spoilt
from tokensieve.data.store.features import FeatureStore, write_store
from tokensieve.data.store.verify import verify_store
from tokensieve.errors import TokensieveError
from tokensieve.types import EncoderInfo

STORE, MANIFEST, SHARD = "store.json", "manifest.parquet", "shard-000000.safetensors"
ENCODER = EncoderInfo("toy", 8, -1, 2, 2, 32, (2, 3))
TOKENS = torch.randn(5, 6, 8, generator=torch.Generator().manual_seed(0)).half().float()


def _made() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        write_store(Path(folder) / "s", TOKENS, ENCODER, source="a")
        return {path.name: path.read_bytes() for path in (Path(folder) / "s").iterdir()}


FILES = _made()


def check(folder: Path, *, exact: bool = True) -> None:
    """Open, read and verify; nothing but the right features or one line of ours."""
    with bounded():
        try:
            found = FeatureStore([folder]).batch(torch.arange(5)).features
        except TokensieveError as error:
            one_line(error)
        else:
            assert not exact or torch.equal(found, TOKENS)
        try:
            problems = verify_store(folder).problems
        except TokensieveError as error:
            problems = (str(error),)
        assert all("\n" not in problem for problem in problems)


def put(folder: Path) -> Path:
    store = folder / "s"
    store.mkdir()
    for name, data in FILES.items():
        (store / name).write_bytes(data)
    return store


@fuzzed
@given(file=st.sampled_from(sorted(FILES)), data=st.data())
def test_spoilt_files(file: str, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = put(Path(folder))
        (store / file).write_bytes(data.draw(spoilt([FILES[file], *FILES.values()])))
        check(store)


@fuzzed
@given(path=st.lists(st.integers(0, 20), max_size=3), value=json_values())
def test_anything_in_what_the_store_was_made_with(path: list[int], value: object) -> None:
    told = json.loads(FILES[STORE])
    place = told
    for step in path[:-1]:
        names = sorted(place)
        if isinstance(place[names[step % len(names)]], dict) and place[names[step % len(names)]]:
            place = place[names[step % len(names)]]
    if path:
        place[sorted(place)[path[-1] % len(place)]] = value
    else:
        told = value
    with tempfile.TemporaryDirectory() as folder:
        store = put(Path(folder))
        (store / STORE).write_text(json.dumps(told))
        check(store)


@fuzzed
@given(at=st.integers(0, 4), value=json_values(), unhashed=st.booleans())
def test_anything_in_the_list_of_shards(at: int, value: object, unhashed: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = put(Path(folder))
        table = pq.read_table(store / MANIFEST)
        shards = json.loads(pq.read_metadata(store / MANIFEST).metadata[b"shards"])
        if unhashed:
            shards[0][1] = ""
        if at < 4:
            shards[0][at] = value
        else:
            shards = value
        pq.write_table(
            table.replace_schema_metadata({"shards": json.dumps(shards)}), store / MANIFEST
        )
        check(store)


@fuzzed
@given(
    name=st.sampled_from(["tokens", "offsets", "grids", "valid", "pixels", "more"]),
    shape=st.lists(st.integers(0, 9), max_size=4),
    dtype=st.sampled_from([torch.float16, torch.float32, torch.int64, torch.int32, torch.bool]),
    fill=st.sampled_from([0, 1, -1, 65504, float("nan"), float("inf")]),
    records=st.none() | json_values(),
)
def test_any_tensors_where_no_hash_tells(
    name: str, shape: list[int], dtype: torch.dtype, fill: float, records: object
) -> None:
    number = fill if dtype.is_floating_point or abs(fill) < 2**17 else 1
    with tempfile.TemporaryDirectory() as folder:
        store = put(Path(folder))
        with safe_open(store / SHARD, "pt") as file:
            told = json.loads(file.metadata()["shard"])
            found = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
        found[name] = torch.full(shape, number, dtype=dtype)
        if records is not None:
            told["records"] = json.dumps(records)
        save_file(found, store / SHARD, metadata={"shard": json.dumps(told)})
        table = pq.read_table(store / MANIFEST)
        shards = [[SHARD, "", 5, (store / SHARD).stat().st_size]]
        pq.write_table(
            table.replace_schema_metadata({"shards": json.dumps(shards)}), store / MANIFEST
        )
        check(store, exact=False)


@fuzzed
@given(name=st.text(max_size=300) | st.sampled_from(["\0", "a" * 5000, "../..", "/dev/null"]))
def test_any_folder(name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            check(Path(folder) / "none" / name.lstrip("/"))
        finally:
            shutil.rmtree(Path(folder) / "none", ignore_errors=True)
