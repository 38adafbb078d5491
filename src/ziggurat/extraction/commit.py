"""Files and folders that are there in full or not at all, whatever dies and whenever; and one run at a time.

A file grows in a folder `partial` on the same file system, is flushed to the disk, and takes its name in one step.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import uuid4

from ..errors import BadArgument

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

__all__ = ["STATE", "clean_partial", "committed", "flush_tree", "lock", "sha256_of", "size_of", "write_json"]

log = logging.getLogger(__name__)
STATE = "_ziggurat"  # the folder of a run that holds what is no output
BLOCK = 1 << 20  # bytes read at a time for a hash


@contextmanager
def committed(final: Path, partial: Path) -> Iterator[Path]:
    """`with committed(final, partial) as path:` write a file or a folder at `path`; then it is at `final`, and durable.

    Until then `final` is what it was before. `path` is new, in the folder `partial`, which is made if need be. When the
    block raises (a full disk raises `OSError`), what it wrote is removed. A process that is killed leaves it there for
    `clean_partial`. Two processes that write the same `final` at once both succeed, and one of their files stays.
    """
    partial.mkdir(parents=True, exist_ok=True)
    path = partial / f"{final.stem}-{uuid4().hex}{final.suffix}"
    try:
        yield path
        flush_tree(path)
        _make_folder(final.parent)
        _replace(path, final)
    except BaseException:
        _remove(path)
        raise
    _flush_folder(final.parent)


def write_json(final: Path, value: Any, partial: Path) -> None:
    """Commits a value as JSON, with keys in their order, so that the same value gives the same bytes."""
    with committed(final, partial) as path:
        path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's content; of a folder, that of its files' relative paths and hashes in their order."""
    if path.is_dir():
        lines = [f"{sha256_of(file)}  {name}\n" for name, file in _files(path)]
        return hashlib.sha256("".join(lines).encode()).hexdigest()
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    return sum(file.stat().st_size for _, file in _files(path)) if path.is_dir() else path.stat().st_size


def clean_partial(dest: Path) -> None:
    """Removes what killed processes left unfinished; to be called while nobody else works on the run (`lock`)."""
    _remove(dest / STATE / "partial")


# by this process: a second lock of the same file would not conflict, and closing the file a second time would end both
_held: set[Path] = set()


@contextmanager
def lock(dest: Path, shared: bool = False) -> Iterator[None]:
    """Holds the run at `dest`: alone, or `shared` with others who share it. The kernel releases it when a process dies.

    Raises `BadArgument` if another process holds it in a way that does not go with this one. On a file system or a
    platform without locks a warning is logged, and nothing is held.
    """
    path = dest.resolve() / STATE / "lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    if path in _held:
        if not shared:
            raise _busy(dest)
        yield
        return
    with path.open("ab+") as stream:
        _held.add(path)
        try:
            _take(stream.fileno(), shared, dest)
            yield
        finally:
            _held.remove(path)


def _take(descriptor: int, shared: bool, dest: Path) -> None:
    # lockf, not flock: children made by fork would keep flock's lock when this process is killed
    if fcntl is None:
        log.warning("%s is not locked, as there are no locks on this platform; start no second run on it meanwhile", dest)
        return
    try:
        fcntl.lockf(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise _busy(dest) from error
        log.warning("%s is not locked, as its file system has no locks (%s); start no second run on it meanwhile",
                    dest, error.strerror)


def _busy(dest: Path) -> BadArgument:
    return BadArgument(f"another process is at work on {str(dest)!r}; wait until it has ended, or write to another folder")


def _replace(path: Path, final: Path) -> None:
    while True:
        try:
            os.replace(path, final)
            return
        except OSError as error:
            is_taken = error.errno in (errno.ENOTEMPTY, errno.EEXIST) or (os.name == "nt" and final.is_dir())
            if not (path.is_dir() and is_taken):
                raise
        # a folder takes the place of an empty one at most, so the former one steps aside
        aside = path.with_name(f"{final.stem}-{uuid4().hex}{final.suffix}")
        try:
            os.replace(final, aside)
        except FileNotFoundError:
            continue  # another process moved it first
        _remove(aside)


def _make_folder(folder: Path) -> None:
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _flush_folder(folder.parent)


def flush_tree(path: Path) -> None:
    """Has a file, or a folder with all that is in it, written to the disk before it returns."""
    if path.is_dir():
        for entry in path.iterdir():
            flush_tree(entry)
        _flush_folder(path)
    else:
        with path.open("r+b") as stream:
            os.fsync(stream.fileno())


def _flush_folder(folder: Path) -> None:
    if os.name == "nt":
        return  # folders cannot be opened there
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _files(folder: Path) -> list[tuple[str, Path]]:
    return sorted((file.relative_to(folder).as_posix(), file) for file in folder.rglob("*") if file.is_file())
