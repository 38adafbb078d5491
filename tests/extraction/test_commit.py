"""Files that are whole or not there, whatever is killed when; and one run at a time."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

import ziggurat.extraction.commit as module
from ziggurat.errors import BadArgument
from ziggurat.extraction.commit import clean_partial, committed, lock, sha256_of, size_of, write_json


def write_folder(path: Path, text: str) -> None:
    (path / "level").mkdir(parents=True)
    (path / "zarr.json").write_text(text)
    (path / "level" / "shard").write_text(text * 2)


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    final, partial = tmp_path / "taps" / "a" / "000001.npy", tmp_path / "partial"
    with committed(final, partial) as path:
        assert path.parent == partial and path.suffix == ".npy"
        path.write_text("new")
        assert not final.exists()
    assert final.read_text() == "new" and not any(partial.iterdir())
    with committed(final, partial) as path:
        path.write_text("newer")
        assert final.read_text() == "new"
    assert final.read_text() == "newer" and not any(partial.iterdir())


@pytest.mark.parametrize("make", [Path.write_text, write_folder])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt(), ValueError("no")])
def test_what_fails_leaves_nothing_and_is_raised_as_it_is(make, error: BaseException, tmp_path: Path) -> None:
    final, partial = tmp_path / "x", tmp_path / "partial"

    def fail() -> None:
        with committed(final, partial) as path:
            make(path, "half")
            raise error

    with pytest.raises(type(error)) as raised:
        fail()
    assert raised.value is error
    assert not final.exists() and not any(partial.iterdir())


def test_a_disk_that_is_full_only_when_it_is_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="No space left"), committed(tmp_path / "x", tmp_path / "partial") as path:
        path.write_text("half")
    assert not (tmp_path / "x").exists() and not any((tmp_path / "partial").iterdir())


def test_a_folder_takes_the_place_of_another(tmp_path: Path) -> None:
    final, partial = tmp_path / "pyramid" / "000000.zarr", tmp_path / "partial"
    for text in ("one", "two"):
        with committed(final, partial) as path:
            write_folder(path, text)
        assert (final / "level" / "shard").read_text() == text * 2
        assert not any(partial.iterdir())


def test_many_writers_of_one_folder_all_succeed(tmp_path: Path) -> None:
    final, partial = tmp_path / "000000.zarr", tmp_path / "partial"

    def write(number: int) -> None:
        with committed(final, partial) as path:
            write_folder(path, "same")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(40)))
    assert (final / "level" / "shard").read_text() == "samesame" and not any(partial.iterdir())


DIES = """
import os, sys
from pathlib import Path
from ziggurat.extraction.commit import committed

dest, kind, left = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])

def mortal(function):
    def call(*arguments, **options):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), 9)
        return function(*arguments, **options)
    return call

for name in ("fsync", "replace", "mkdir", "unlink", "rmdir", "open"):
    setattr(os, name, mortal(getattr(os, name)))
with committed(dest / "out" / "x", dest / "partial") as path:
    if kind == "file":
        path.write_text("new")
    else:
        (path / "level").mkdir(parents=True)
        (path / "level" / "shard").write_text("new")
"""


@pytest.mark.parametrize(("kind", "before"), [("file", None), ("file", "old"), ("folder", None), ("folder", "old")])
def test_killed_at_any_step_it_is_the_old_the_new_or_none_and_never_a_part(
    kind: str, before: str | None, tmp_path: Path
) -> None:
    final = tmp_path / "out" / "x"
    file = final if kind == "file" else final / "level" / "shard"
    seen = set()
    for step in range(100):
        if before is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(before)
        run = subprocess.run([sys.executable, "-c", DIES, tmp_path, kind, str(step)], check=False)
        found = file.read_text() if final.exists() else None
        seen.add(found)
        if run.returncode == 0:
            break
        assert run.returncode == -signal.SIGKILL
        # a folder has no way to take another's place in one step: for a moment there is none
        assert found in ({"new", before} if kind == "file" else {"new", before, None})
    assert found == "new" and step >= 4
    assert {"new", before} <= seen


def test_what_the_dead_left_is_cleaned(tmp_path: Path) -> None:
    partial = tmp_path / "_ziggurat" / "partial"
    write_folder(partial / "000000-x.zarr", "half")
    (partial / "000001-y.npy").write_text("half")
    clean_partial(tmp_path)
    assert not partial.exists()
    clean_partial(tmp_path)
    write_json(tmp_path / "_ziggurat" / "manifest.json", {}, partial)  # the folder is made again


def test_json_of_equal_values_has_equal_bytes(tmp_path: Path) -> None:
    for name in "ab":
        write_json(tmp_path / name, {"b": [1, 2.5], "a": "Zürich"}, tmp_path / "partial")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert "Zürich".encode() in (tmp_path / "a").read_bytes()


def test_the_hash_of_a_folder_is_of_names_and_contents(tmp_path: Path) -> None:
    for name in "ab":
        write_folder(tmp_path / name, "text")
    assert sha256_of(tmp_path / "a") == sha256_of(tmp_path / "b")
    assert size_of(tmp_path / "a") == 12
    (tmp_path / "b" / "zarr.json").rename(tmp_path / "b" / "zarr.jsn")
    assert sha256_of(tmp_path / "a") != sha256_of(tmp_path / "b")
    (tmp_path / "b" / "zarr.jsn").rename(tmp_path / "b" / "zarr.json")
    (tmp_path / "b" / "level" / "shard").write_text("TEXTtext")
    assert sha256_of(tmp_path / "a") != sha256_of(tmp_path / "b")
    (tmp_path / "empty").write_bytes(b"")
    assert sha256_of(tmp_path / "empty") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


# -------------------------------------------------------------------- locks

HOLDS = """
import os, sys, time
from ziggurat.extraction.commit import lock
with lock(__import__("pathlib").Path(sys.argv[1]), shared=sys.argv[2] == "shared"):
    child = os.fork() if sys.argv[2] == "with a child" else None
    if child == 0:
        time.sleep(60)
    print(child, flush=True)
    time.sleep(60)
"""


@contextmanager
def holder(dest: Path, how: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Another process that holds the lock, and what it printed."""
    process = subprocess.Popen([sys.executable, "-c", HOLDS, dest, how], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_second_run_at_the_same_time_is_refused(tmp_path: Path) -> None:
    with holder(tmp_path, "alone"):
        for shared in (False, True):
            with pytest.raises(BadArgument, match="another process is at work on"), lock(tmp_path, shared):
                pass
    with lock(tmp_path):
        pass


def test_ranks_share_and_keep_out_who_would_be_alone(tmp_path: Path) -> None:
    with holder(tmp_path, "shared"):
        with lock(tmp_path, shared=True):
            pass
        with pytest.raises(BadArgument, match="another process"), lock(tmp_path):
            pass


def test_a_lock_dies_with_its_process_though_a_child_of_it_lives(tmp_path: Path) -> None:
    with holder(tmp_path, "with a child") as (process, child):
        process.kill()
        process.wait()
        try:
            os.kill(int(child), 0)  # it is there
            with lock(tmp_path):
                pass
        finally:
            os.kill(int(child), signal.SIGKILL)


def test_within_a_process_a_run_is_locked_too(tmp_path: Path) -> None:
    with lock(tmp_path):
        with lock(tmp_path, shared=True):  # a part of the same work
            pass
        with pytest.raises(BadArgument, match="another process"), lock(tmp_path):
            pass
        probe = "import sys, pathlib; from ziggurat.extraction.commit import lock; lock(pathlib.Path(sys.argv[1])).__enter__()"
        refused = subprocess.run([sys.executable, "-c", probe, tmp_path], capture_output=True, text=True, check=False)
        assert "another process is at work" in refused.stderr  # what was refused or shared did not release it
    with lock(tmp_path):
        pass


def test_without_locks_work_goes_on_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoLocks:
        LOCK_EX = LOCK_SH = LOCK_NB = 0

        @staticmethod
        def lockf(descriptor: int, how: int) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

    for replacement, sentence in ((NoLocks, "file system has no locks (No locks available)"), (None, "no locks on this platform")):
        monkeypatch.setattr(module, "fcntl", replacement)
        with caplog.at_level(logging.WARNING), lock(tmp_path):
            assert sentence in caplog.text
        caplog.clear()
