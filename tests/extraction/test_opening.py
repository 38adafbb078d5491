"""A run read back: exact, lazily, by key and row, with what failed and what is not done yet in words."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from finished_run import ALL, FAILURE, SHAPES, finished_run

import ziggurat.extraction.opening as module
from ziggurat.errors import BadArgument, IncompleteRun
from ziggurat.extraction.opening import Run
from ziggurat.extraction.opening import open as open_run
from ziggurat.extraction.outputs import Outputs
from ziggurat.extraction.plan import Plan

FAILED = (0, 3, *range(16, 32), 39)  # the first, one within, a whole unit, the last
GOOD = [row for row in range(40) if row not in FAILED]
FORMATS = [("parquet", "safetensors"), ("npy", "zarr"), ("lance", "safetensors")]


@pytest.fixture(scope="module", params=FORMATS, ids="-".join)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    """A run with failures and an extension, in each format, and the numbers that were put into it."""
    vectors, maps = request.param
    path = tmp_path_factory.mktemp("runs") / "run"
    return path, finished_run(path, replace(ALL, vectors=vectors, maps=maps), failed=FAILED, extension=7)


@pytest.fixture
def run(written: tuple[Path, dict[str, np.ndarray]]) -> Run:
    return open_run(written[0])


@pytest.fixture
def values(written: tuple[Path, dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return written[1]


def equal(found: dict, expected: dict) -> bool:
    return found.keys() == expected.keys() and all(np.array_equal(found[name], expected[name]) for name in expected)


def test_all_numbers_in_the_order_of_the_plan(run: Run, values: dict[str, np.ndarray]) -> None:
    assert (len(run), run.images, len(run.embedding)) == (len(GOOD), 40, len(GOOD))
    assert run.rows.tolist() == GOOD and run.rows.dtype == np.int64
    assert list(run.keys) == [f"images/{row:03d}.jpg" for row in GOOD]
    for view, name in ((run.embedding, "embedding"), (run.logits, "logits"), (run.taps["blocks.7"], "taps/blocks.7")):
        everything = view.numpy()
        assert everything.dtype == np.float16 and type(everything) is np.ndarray
        assert np.array_equal(everything, values[name][GOOD])
    assert equal(run.pyramid.numpy(), {stride: values[f"pyramid/stride_{stride}"][GOOD] for stride in (8, 16)})
    assert equal(run.tokens.numpy(), {name: values[f"tokens/{name}"][GOOD] for name in ("cls", "patches")})


def test_one_image_by_key_and_by_row(run: Run, values: dict[str, np.ndarray]) -> None:
    for row in reversed(GOOD):
        key = f"images/{row:03d}.jpg"
        for which in (key, row, np.int32(row)):
            assert np.array_equal(run.embedding[which], values["embedding"][row])
            assert equal(run.pyramid[which], {stride: values[f"pyramid/stride_{stride}"][row] for stride in (8, 16)})
            assert equal(run.tokens[which], {name: values[f"tokens/{name}"][row] for name in ("cls", "patches")})
        assert run.row_of(key) == row and run.keys_of([row]) == [key] and key in run.keys and key in run.embedding
    vector = run.embedding[GOOD[0]]
    vector[:] = 0  # it is the caller's own
    assert np.array_equal(run.embedding[GOOD[0]], values["embedding"][GOOD[0]])


@pytest.mark.parametrize(("start", "stop"), [(0, 40), (2, 5), (5, 36), (15, 33), (16, 32), (20, 20), (39, 40), (30, 10), (-8, None)])
def test_slices_are_of_rows(run: Run, values: dict[str, np.ndarray], start: int, stop: int | None) -> None:
    rows = [row for row in range(40)[start:stop] if row in GOOD]
    assert np.array_equal(run.embedding[start:stop], values["embedding"][rows])
    assert np.array_equal(run.pyramid[start:stop][8], values["pyramid/stride_8"][rows])


def test_keys_are_a_sequence(run: Run) -> None:
    keys = [f"images/{row:03d}.jpg" for row in GOOD]
    assert isinstance(run.keys, Sequence) and len(run.keys) == len(keys)
    assert (run.keys[0], run.keys[-1], run.keys[2:9], run.keys[::-5]) == (keys[0], keys[-1], keys[2:9], keys[::-5])
    assert run.keys_of([33, 1, 1, 16]) == [f"images/{row:03d}.jpg" for row in (33, 1, 1, 16)]  # of failed ones too
    with pytest.raises(IndexError):
        run.keys[len(keys)]
    with pytest.raises(IndexError, match="the plan's go from 0 to 39"):
        run.keys_of([40])


@pytest.mark.parametrize("size", [1, 4, 5, 100])
def test_batches_are_aligned_and_cover_all(run: Run, values: dict[str, np.ndarray], size: int) -> None:
    seen: list[int] = []
    for batch in run.batches(size):
        assert batch.keys() == {"row", "key", *SHAPES}
        assert batch["key"] == run.keys_of(batch["row"])
        assert all(np.array_equal(batch[name], values[name][batch["row"]]) for name in SHAPES)
        seen += batch["row"].tolist()
    assert seen == GOOD
    parts = list(run.embedding.batches(size, start=3))
    assert [len(rows) for rows, _ in parts[:-1]] == [size] * (len(parts) - 1)
    assert np.concatenate([rows for rows, _ in parts]).tolist() == GOOD[3:]
    assert all(np.array_equal(part, values["embedding"][rows]) for rows, part in parts)


def test_iteration_gives_keys_with_their_values(run: Run, values: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AT_ONCE", 200)  # bytes: several batches
    for row, (key, vector) in zip(GOOD, run.embedding, strict=True):
        assert key == f"images/{row:03d}.jpg" and np.array_equal(vector, values["embedding"][row])
    for row, (key, maps) in zip(GOOD, run.pyramid, strict=True):
        assert key == f"images/{row:03d}.jpg" and np.array_equal(maps[16], values["pyramid/stride_16"][row])


def test_failed_images_say_why(run: Run) -> None:
    assert [failure["row"] for failure in run.failures] == list(FAILED)
    assert run.failures[1] == {"row": 3, "key": "images/003.jpg", **FAILURE}
    for which in ("images/003.jpg", 3, 16, 31, 39):
        with pytest.raises(KeyError, match="has no numbers, it failed: decode, truncated: the file ends too early"):
            run.embedding[which]
    assert "images/003.jpg" not in run.keys and "images/003.jpg" not in run.embedding


def test_what_is_not_there_is_told(run: Run) -> None:
    for key in ("", "images/", "images/0005.jpg", "zzz", "images/032.jpg.png"):
        with pytest.raises(KeyError, match=f"no image of this run has the key '{key}'"):
            run.embedding[key]
        assert key not in run.keys
    for row in (-1, 40):
        with pytest.raises(IndexError, match=f"row {row}: rows of this run go from 0 to 39"):
            run.embedding[row]
    with pytest.raises(BadArgument, match="a step of 2"):
        run.embedding[::2]
    with pytest.raises(BadArgument, match="size=0"):
        run.batches(0).__next__()
    with pytest.raises(TypeError):
        run.embedding[1.5]  # type: ignore[index]


def test_a_run_goes_to_another_process_and_tells_what_it_is(run: Run, values: dict[str, np.ndarray]) -> None:
    run.embedding[GOOD[0]]  # files are open
    assert np.array_equal(pickle.loads(pickle.dumps(run)).embedding[5], values["embedding"][5])
    assert "21 of 40 images by tiny, embedding, logits, taps/blocks.7, pyramid, tokens" in repr(run)
    assert "21 images: pyramid/stride_8 (4, 3, 3), pyramid/stride_16 (6, 2, 2) f16" in repr(run.pyramid)


def test_an_output_that_was_not_asked_for(tmp_path: Path) -> None:
    finished_run(tmp_path / "run", Outputs.make(strides=8))
    run = open_run(tmp_path / "run")
    for name in ("embedding", "logits", "tokens"):
        with pytest.raises(AttributeError, match=f"has no {name}, which was not asked for; it holds pyramid"):
            getattr(run, name)
    assert run.taps == {} and run.pyramid[3].keys() == {8}


def test_a_folder_that_holds_no_run(tmp_path: Path) -> None:
    with pytest.raises(BadArgument, match="holds no extraction"):
        open_run(tmp_path)


# -------------------------------------------------------------------- runs that are not complete


@pytest.mark.parametrize(("done", "rows"), [(set(), []), ({0, 2}, [*range(1, 16), 32, *range(33, 40)]), ({1}, list(range(16, 32)))])
def test_an_incomplete_run_is_refused_and_opens_if_asked(done: set[int], rows: list[int], tmp_path: Path) -> None:
    values = finished_run(tmp_path / "run", ALL, failed=(0,), done=done)
    with pytest.raises(IncompleteRun, match="is not complete.*incomplete=True opens what is there"):
        open_run(tmp_path / "run")
    run = open_run(tmp_path / "run", incomplete=True)
    assert run.rows.tolist() == rows and list(run.keys) == run.keys_of(rows)
    assert np.array_equal(run.embedding.numpy(), values["embedding"][rows])
    assert np.array_equal(run.pyramid[10:36][8], values["pyramid/stride_8"][[row for row in rows if 10 <= row < 36]])
    assert [failure["row"] for failure in run.failures] == [0] * (0 in done)
    for row in set(range(1, 40)) - set(rows):
        with pytest.raises(KeyError, match=rf"{row} has no numbers yet: its unit {row // 16} is not done"):
            run.logits[row]


def test_a_complete_run_opened_as_incomplete_is_the_same(run: Run) -> None:
    other = open_run(run.path, incomplete=True)
    assert np.array_equal(other.embedding.numpy(), run.embedding.numpy()) and other.failures == run.failures


def test_a_file_that_is_not_what_the_run_says(tmp_path: Path) -> None:
    finished_run(tmp_path / "run", Outputs.make(format="npy"), failed=(3,))
    np.save(tmp_path / "run" / "embedding" / "000001.npy", np.zeros((15, 12), np.float16))
    run = open_run(tmp_path / "run")
    assert run.embedding[5].shape == (12,)
    with pytest.raises(IncompleteRun, match="embedding of unit 1 .*'ziggurat verify"):
        run.embedding[20]


# -------------------------------------------------------------------- many images


def test_opening_reads_no_numbers(tmp_path: Path) -> None:
    finished_run(tmp_path / "run", ALL)
    for folder in ALL.directories():
        for path in (tmp_path / "run" / folder).iterdir():
            path.unlink()
    run = open_run(tmp_path / "run")
    assert len(run) == 40 and run.keys[-1] == "images/039.jpg" and len(run.embedding) == 40
    with pytest.raises(FileNotFoundError):
        run.embedding[0]


def test_keys_among_a_million_are_found_by_reading_a_few_parts_of_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two segments, the names of the second among those of the first."""
    total, later = 1_000_000, 200_000
    keys = [f"shard/{number:09d}.jpg" for number in range(0, 3 * (total - later), 3)]
    keys += [f"shard/{number:09d}.jpg" for number in range(1, 3 * later, 3)]
    save_plan(keys, tmp_path / "plan.parquet")
    monkeypatch.setattr(module._PlanKeys, "KEPT", 4)
    plan = module._PlanKeys(tmp_path / "plan.parquet", ((0, total - later), (total - later, total)))
    reads: list[int] = []

    class Counted:
        def __init__(self, file: pq.ParquetFile) -> None:
            self.file = file

        def read_row_group(self, number: int, columns: list[str]) -> pa.Table:
            reads.append(number)
            return self.file.read_row_group(number, columns)

    plan.file = Counted(plan.file)
    rows = [0, 1, 65_535, 65_536, total - later - 1, total - later, total - 1, *range(17, total, 41_234)]
    for row in rows:
        reads.clear()
        assert plan.find(keys[row]) == row
        assert len(reads) <= 7 + 5 + 2 and len(plan._kept) <= 4  # of 123 parts, by bisection of 98 and of 26, one of each again
    assert plan.at(np.array(rows)) == [keys[row] for row in rows]
    for absent in ("", "shard/000000002.jpg", "z"):
        with pytest.raises(KeyError, match="no image of this run has the key"):
            plan.find(absent)


def save_plan(keys: list[str], path: Path) -> None:
    """A plan of nothing but keys, as it is saved; made of columns, as a million items would take their time."""
    count = len(keys)
    empty = pa.array([""] * count, pa.string())
    unknown = pa.array(np.full(count, -1))
    Plan(pa.table({
        "row": pa.array(range(count), pa.int64()), "key": pa.array(keys), "container": empty, "member": empty,
        "offset": unknown, "size": unknown, "stamp": empty,
    })).save(path)
