"""Files of embeddings: what goes in comes out, in every format, complete or not at all."""

import csv
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from ziggurat.errors import BadArgument, MissingExtra
from ziggurat.extraction import open_writer

KEYS = [f"folder/{i}.jpg" for i in range(2500)]  # more than two blocks of rows
VECTORS = torch.randn(len(KEYS), 5, generator=torch.Generator().manual_seed(0))


def read(path):
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        assert table.schema.metadata[b"model"] == b"some"
        return table["path"].to_pylist(), np.array(table["embedding"].to_pylist()), str(table.schema.field("embedding").type)
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            assert json.loads(str(archive["about"]))["model"] == "some"
            return archive["path"].tolist(), archive["embedding"], str(archive["embedding"].dtype)
    if path.suffix == ".npy":
        array = np.load(path)
        return json.loads(path.with_suffix(".paths.json").read_text()), array, str(array.dtype)
    with path.open(newline="") as stream:
        head, *rows = csv.reader(stream)
    assert head == ["path", "e0", "e1", "e2", "e3", "e4"]
    return [row[0] for row in rows], np.array([[float(n) for n in row[1:]] for row in rows]), "text"


@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize("ending", [".parquet", ".npy", ".npz", ".csv"])
def test_round_trip(tmp_path, ending, dtype):
    path = tmp_path / "deep" / f"vectors{ending}"
    with open_writer(path, dtype, {"model": "some"}) as writer:
        for key, vector in zip(KEYS, VECTORS):
            writer.add(key, vector)
    assert (writer.count, writer.width) == (2500, 5)
    keys, rows, kind = read(path)
    assert keys == KEYS
    expected = VECTORS.numpy().astype(np.float16 if dtype == "f16" else np.float32)
    np.testing.assert_array_equal(rows.astype(expected.dtype), expected)
    assert kind == "text" or ("16" in kind or "half" in kind) == (dtype == "f16")
    assert not list(tmp_path.rglob("*.part*"))


@pytest.mark.parametrize("ending", [".parquet", ".npy", ".npz", ".csv"])
def test_an_error_leaves_what_was_there(tmp_path, ending):
    path = tmp_path / f"vectors{ending}"
    path.write_text("before")


    def interrupted():
        with open_writer(path) as writer:
            writer.add("a", VECTORS[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert path.read_text() == "before"


def test_nothing_added_writes_nothing(tmp_path):
    with open_writer(tmp_path / "vectors.npz"):
        pass
    assert not list(tmp_path.iterdir())


def test_refusals(tmp_path, monkeypatch):
    with pytest.raises(BadArgument, match=r"ends in '\.txt'; write to a file that ends in \.parquet"):
        open_writer(tmp_path / "vectors.txt")
    with pytest.raises(BadArgument, match="f16 or f32"):
        open_writer(tmp_path / "vectors.csv", "f8")
    (tmp_path / "file").write_text("")
    with pytest.raises(BadArgument, match="cannot be made"):
        open_writer(tmp_path / "file" / "vectors.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(BadArgument, match="cannot be written"):
        open_writer(tmp_path / "folder.csv")
    with open_writer(tmp_path / "vectors.csv", "f16") as writer:
        writer.add("a", VECTORS[0])
        with pytest.raises(BadArgument, match="write f32"):
            writer.add("b", torch.full((5,), 1e6))
        with pytest.raises(BadArgument, match="shape"):
            writer.add("b", torch.zeros(4))
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=r"ziggurat\[parquet\]"):
        open_writer(tmp_path / "vectors.parquet")
