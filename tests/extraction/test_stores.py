"""Every format: exact both ways, the same bytes each time, and open to the programs that it is for."""

from __future__ import annotations

import errno
import json
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import duckdb
import lance
import numpy as np
import pandas
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from finished_run import ALL, SHAPES
from safetensors import safe_open

from ziggurat.extraction.commit import sha256_of, size_of
from ziggurat.extraction.outputs import DTYPES, Outputs
from ziggurat.extraction.stores import finalise, read_unit, view_unit, write_unit

EVERY = [("parquet", "safetensors"), ("npy", "zarr"), ("lance", "safetensors")]
ROWS = np.array([100, 101, 103, 107, 110], np.int64)
KEYS = ["a/1.jpg", "a/2.jpg", "b/ü.jpg", "b/\U0001f600.png", "c"]


def numbers(outputs: Outputs, count: int = len(ROWS), seed: int = 0) -> dict[str, np.ndarray]:
    """Random numbers, with the largest, the smallest and negative zero of their type among them."""
    random, dtype = np.random.default_rng(seed), np.dtype(DTYPES[outputs.dtype])
    values = {name: random.standard_normal((count, *shape)).astype(dtype) for name, shape in SHAPES.items()}
    for value in values.values():
        value.reshape(-1)[:4] = [np.finfo(dtype).max, np.finfo(dtype).smallest_subnormal, -0.0, 0.1][: value.size]
    return values


def same_bits(left: np.ndarray, right: np.ndarray) -> bool:
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()


@pytest.mark.parametrize("dtype", ["f16", "f32"])
@pytest.mark.parametrize(("vectors", "maps"), EVERY)
def test_what_is_read_is_what_was_written(vectors: str, maps: str, dtype: str, tmp_path: Path) -> None:
    outputs = replace(ALL, vectors=vectors, maps=maps, dtype=dtype)
    values = numbers(outputs)
    facts = write_unit(tmp_path, outputs, 3, ROWS, KEYS, values, about={"model": "tiny"})
    rows, keys, read = read_unit(tmp_path, outputs, 3)
    assert rows.tolist() == ROWS.tolist() and keys == KEYS
    assert read.keys() == values.keys() and all(same_bits(read[name], values[name]) for name in values)
    written = {path.relative_to(tmp_path).as_posix(): path for path in tmp_path.rglob("000003*")}
    assert written.keys() == {fact.path for fact in facts}
    assert all((fact.bytes, fact.sha256) == (size_of(written[fact.path]), sha256_of(written[fact.path])) for fact in facts)
    assert not any((tmp_path / "_ziggurat" / "partial").iterdir())


@pytest.mark.parametrize(("vectors", "maps"), EVERY)
def test_equal_numbers_give_equal_bytes(vectors: str, maps: str, tmp_path: Path) -> None:
    outputs = replace(ALL, vectors=vectors, maps=maps)
    about = {"model": "tiny", "preprocessing": "abc", "z": [1], "a": {"b": 2}}
    facts = [write_unit(tmp_path / name, outputs, 0, ROWS, KEYS, numbers(outputs), about) for name in "ab"]
    facts.append(write_unit(tmp_path / "a", outputs, 0, ROWS, KEYS, numbers(outputs), about))  # once more, over the first
    assert facts[0] == facts[1] == facts[2]
    # a view into something larger is the same numbers
    wide = {name: np.asfortranarray(np.concatenate([value, value]))[: len(value)] for name, value in numbers(outputs).items()}
    assert write_unit(tmp_path / "c", outputs, 0, ROWS, KEYS, wide, about) == facts[0]
    other = {**numbers(outputs), "embedding": numbers(outputs, seed=1)["embedding"]}
    changed = write_unit(tmp_path / "d", outputs, 0, ROWS, KEYS, other, about)
    assert [fact.path for old, fact in zip(facts[0], changed, strict=True) if old != fact] == [facts[0][0].path]


@pytest.mark.parametrize(("vectors", "maps"), EVERY)
def test_a_unit_without_any_good_image(vectors: str, maps: str, tmp_path: Path) -> None:
    outputs = replace(ALL, vectors=vectors, maps=maps)
    write_unit(tmp_path, outputs, 0, ROWS[:0], [], numbers(outputs, 0))
    rows, keys, values = read_unit(tmp_path, outputs, 0)
    assert rows.dtype == np.int64 and len(rows) == 0 and keys == []
    assert {name: value.shape for name, value in values.items()} == {name: (0, *shape) for name, shape in SHAPES.items()}
    assert all(value.dtype == np.float16 for value in values.values())


@pytest.mark.parametrize(("vectors", "maps"), EVERY)
def test_a_unit_is_written_anew_with_other_rows(vectors: str, maps: str, tmp_path: Path) -> None:
    outputs = replace(ALL, vectors=vectors, maps=maps)
    values = numbers(outputs)
    write_unit(tmp_path, outputs, 0, ROWS[1:], KEYS[1:], {name: value[1:] for name, value in values.items()})
    write_unit(tmp_path, outputs, 0, ROWS, KEYS, values)
    rows, _, read = read_unit(tmp_path, outputs, 0)
    assert rows.tolist() == ROWS.tolist() and all(same_bits(read[name], values[name]) for name in values)


@pytest.mark.parametrize("format", ["parquet", "npy", "lance"])
def test_a_slice_of_many_vectors_is_read_across_what_the_file_is_cut_into(format: str, tmp_path: Path) -> None:
    outputs = Outputs.make(format=format)
    values = np.arange(20_000, dtype=np.float32).astype(np.float16)[:, None] * np.ones((1, 3), np.float16)
    write_unit(tmp_path, outputs, 0, np.arange(20_000), [f"{i:05d}" for i in range(20_000)], {"embedding": values})
    array = view_unit(tmp_path, outputs, "embedding", 0)["embedding"]
    assert array.shape == (20_000, 3)
    for first, last in ((0, 1), (8191, 8193), (8192, 16384), (100, 19_999), (0, 20_000), (7, 7)):
        assert np.array_equal(array[first:last], values[first:last])
    for row in (0, 8191, 8192, 16_383, 16_384, 19_999):
        assert np.array_equal(array[row], values[row])


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """A disk, as far as a writer can tell, that takes no more than so many bytes of a file."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("outputs", [
    *(Outputs.make(format=name) for name in ("parquet", "npy", "lance")),
    *(Outputs.make(strides=8, format=name) for name in ("safetensors", "zarr")),
], ids=lambda outputs: f"{outputs.vectors}-{outputs.maps}")
def test_a_disk_that_takes_no_more(outputs: Outputs, tmp_path: Path) -> None:
    count = 1000
    name = "embedding" if outputs.embed else "pyramid/stride_8"
    values = {name: np.ones((count, 256) if outputs.embed else (count, 4, 8, 8), np.float16)}
    keys = [str(i) for i in range(count)]
    with no_file_above(200_000), pytest.raises(OSError) as raised:
        write_unit(tmp_path, outputs, 0, np.arange(count), keys, values)
    assert raised.value.errno == errno.EFBIG
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    write_unit(tmp_path, outputs, 0, np.arange(count), keys, values)  # there is room again
    assert same_bits(read_unit(tmp_path, outputs, 0)[2][name], values[name])


# -------------------------------------------------------------------- other programs


@pytest.mark.parametrize("dtype", ["f16", "f32"])
def test_parquet_opens_in_pandas_polars_duckdb_and_arrow(dtype: str, tmp_path: Path) -> None:
    outputs = replace(ALL, strides=(), tokens=False, dtype=dtype)
    values = numbers(replace(ALL, dtype=dtype))
    values = {name: values[name] for name in ("embedding", "logits", "taps/blocks.7")}
    write_unit(tmp_path, outputs, 0, ROWS, KEYS, values)
    kind = np.dtype(DTYPES[dtype])
    for folder, column in (("embedding", "embedding"), ("logits", "logits"), ("taps/blocks.7", "feature")):
        path, vectors = tmp_path / folder / "000000.parquet", values[folder]

        frame = pandas.read_parquet(path)
        assert frame.columns.tolist() == ["key", "row", column] and frame["key"].tolist() == KEYS
        assert same_bits(np.stack(frame[column]), vectors)

        table = polars.read_parquet(path)
        assert table["row"].to_list() == ROWS.tolist()
        assert same_bits(np.array(table[column].to_list(), kind), vectors)

        found = duckdb.sql(f"select key, row, {column} from '{path}' where key = 'b/ü.jpg'").fetchall()
        assert [row[:2] for row in found] == [("b/ü.jpg", 103)]
        assert same_bits(np.array(found[0][2], kind), vectors[2])

        stored = pq.read_schema(path)
        assert stored.field(column).type.list_size == vectors.shape[1]


def test_a_vector_in_parquet_is_stored_plainly(tmp_path: Path) -> None:
    count = 10_000
    values = {"embedding": np.random.default_rng(0).standard_normal((count, 16)).astype(np.float16)}
    write_unit(tmp_path, Outputs.make(), 0, np.arange(count), [f"{i:08d}" for i in range(count)], values,
               about={"model": "tiny", "preprocessing": "abc"})
    path = tmp_path / "embedding" / "000000.parquet"
    facts = pq.read_metadata(path)
    assert [facts.row_group(group).num_rows for group in range(facts.num_row_groups)] == [8192, 1808]
    key, row, vector = (facts.row_group(0).column(place) for place in range(3))
    assert not vector.has_dictionary_page and vector.statistics is None and vector.compression == "UNCOMPRESSED"
    assert set(vector.encodings) == {"PLAIN", "RLE"}  # RLE is of the lengths
    assert (key.statistics.min, key.statistics.max, row.statistics.max) == ("00000000", "00008191", 8191)
    about = json.loads(pq.read_schema(path).metadata[b"ziggurat"])
    assert about == {"model": "tiny", "preprocessing": "abc", "dtype": "f16"}
    assert path.stat().st_size < values["embedding"].nbytes + 40 * count


@pytest.mark.parametrize("dtype", ["f16", "f32"])
def test_safetensors_are_read_by_their_own_package(dtype: str, tmp_path: Path) -> None:
    outputs = replace(ALL, dtype=dtype)
    values = numbers(outputs)
    write_unit(tmp_path, outputs, 0, ROWS, KEYS, values, about={"model": "tiny"})
    for folder, names in (("pyramid", ["stride_16", "stride_8"]), ("tokens", ["cls", "patches"])):
        with safe_open(tmp_path / folder / "000000.safetensors", framework="numpy") as file:
            assert sorted(file.keys()) == names
            assert json.loads(file.metadata()["ziggurat"]) == {"model": "tiny", "dtype": dtype}
            for name in names:
                assert same_bits(file.get_tensor(name), values[f"{folder}/{name}"])
                assert same_bits(file.get_slice(name)[2:3], values[f"{folder}/{name}"][2:3])
        index = pq.read_table(tmp_path / folder / "000000.rows.parquet")
        assert index.to_pydict() == {"key": KEYS, "row": ROWS.tolist()}
    assert (tmp_path / "pyramid" / "000000.safetensors").stat().st_size % 2 == 0


def test_zarr_has_an_image_a_chunk_and_the_unit_a_shard(tmp_path: Path) -> None:
    outputs = replace(ALL, maps="zarr")
    values = numbers(outputs)
    write_unit(tmp_path, outputs, 0, ROWS, KEYS, values, about={"model": "tiny"})
    group = zarr.open_group(tmp_path / "pyramid" / "000000.zarr", mode="r")
    assert group.metadata.zarr_format == 3
    assert json.loads(group.attrs["ziggurat"])["model"] == "tiny"
    level = group["stride_8"]
    assert (level.chunks, level.shards, level.compressors) == ((1, 4, 3, 3), (5, 4, 3, 3), ())
    assert same_bits(level[:], values["pyramid/stride_8"])
    files = [path for path in (tmp_path / "pyramid" / "000000.zarr" / "stride_8").rglob("*") if path.is_file()]
    assert len(files) == 2  # its description and one shard


def test_npy_is_mapped_and_not_read(tmp_path: Path) -> None:
    outputs = Outputs.make(format="npy")
    values = {"embedding": numbers(outputs)["embedding"]}
    write_unit(tmp_path, outputs, 0, ROWS, KEYS, values)
    assert same_bits(np.load(tmp_path / "embedding" / "000000.npy"), values["embedding"])
    assert isinstance(view_unit(tmp_path, outputs, "embedding", 0)["embedding"], np.memmap)
    assert pq.read_table(tmp_path / "embedding" / "000000.rows.parquet")["key"].to_pylist() == KEYS


def test_lance_is_one_data_set_once_it_is_finalised(tmp_path: Path) -> None:
    outputs = Outputs.make(embed=True, taps="blocks.7", format="lance")
    values = {name: value for name, value in numbers(replace(ALL, dtype="f16")).items() if name in ("embedding", "taps/blocks.7")}
    none = {name: value[:0] for name, value in values.items()}
    write_unit(tmp_path, outputs, 0, ROWS[1:], KEYS[1:], {name: value[1:] for name, value in values.items()})
    write_unit(tmp_path, outputs, 1, ROWS[:0], [], none)
    facts = write_unit(tmp_path, outputs, 2, ROWS + 100, [f"z/{key}" for key in KEYS], values)
    finalise(tmp_path, outputs)
    assert lance.dataset(tmp_path / "embedding").count_rows() == 9
    once = sha256_of(tmp_path)
    finalise(tmp_path, outputs)
    assert sha256_of(tmp_path) == once
    next((tmp_path / "embedding" / "_versions").glob("*.manifest")).unlink()  # as of a process that died in between
    finalise(tmp_path, outputs)
    assert lance.dataset(tmp_path / "embedding").count_rows() == 9

    write_unit(tmp_path, outputs, 0, ROWS, KEYS, values)  # a retry
    finalise(tmp_path, outputs)
    for folder, column in (("embedding", "embedding"), ("taps/blocks.7", "feature")):
        data = lance.dataset(tmp_path / folder)
        assert data.version == 1 and data.count_rows() == 10
        table = data.to_table()
        assert table["key"].to_pylist() == [*KEYS, *(f"z/{key}" for key in KEYS)]
        vectors = table[column].combine_chunks().flatten().to_numpy().reshape(10, -1)
        assert same_bits(vectors, np.concatenate([values[folder]] * 2))
        assert data.take([7], columns=["row"]).to_pydict() == {"row": [203]}
        assert data.to_table(filter="key = 'a/2.jpg'").num_rows == 1
    # what finalising adds is all that is not the unit's own file
    assert all(sha256_of(tmp_path / fact.path) == fact.sha256 for fact in facts)
    added = {path.relative_to(tmp_path).parts[1] for path in (tmp_path / "embedding").rglob("*") if path.is_file()}
    assert added == {"data", "_versions", "_transactions"}


def test_formats_without_a_last_step_are_left_alone_by_it(tmp_path: Path) -> None:
    write_unit(tmp_path, ALL, 0, ROWS, KEYS, numbers(ALL))
    before = sha256_of(tmp_path)
    finalise(tmp_path, ALL)
    assert sha256_of(tmp_path) == before


def test_a_column_of_vectors_has_no_missing_values(tmp_path: Path) -> None:
    write_unit(tmp_path, ALL, 0, ROWS, KEYS, numbers(ALL))
    schema = pq.read_schema(tmp_path / "embedding" / "000000.parquet")
    assert [field.nullable for field in schema] == [False] * 3
    assert schema.field("embedding").type.value_field == pa.field("element", pa.float16(), nullable=False)
