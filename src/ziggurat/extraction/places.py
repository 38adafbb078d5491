"""Where files are: on this machine's disk, or anywhere that fsspec reaches. One set of four functions for both.

Names are kept as the operating system gives them; `printable` makes text of them that any file format can hold.
"""

from __future__ import annotations

import asyncio
import errno
import glob
import heapq
import os
import re
import stat
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any, BinaryIO, NamedTuple

from ..errors import BadArgument, MissingExtra

__all__ = ["Disk", "File", "Place", "ReadFailure", "Remote", "actual", "failure_of", "is_url", "kept_open", "links_of", "place_of",
           "printable"]

Wanted = Callable[[str], bool]  # by a file's name


class File(NamedTuple):
    """A file: its name relative to the folder that was searched (posix), how it is opened, bytes (-1: unknown), stamp."""

    name: str
    address: str
    size: int
    stamp: str


class ReadFailure(Exception):
    """Why an image's bytes could not be read: a cause of `failures.CAUSES`; `transient` if another try may succeed."""

    def __init__(self, cause: str, message: str, transient: bool = False) -> None:
        super().__init__(cause, message, transient)
        self.cause = cause
        self.message = message
        self.transient = transient

    def __str__(self) -> str:
        return f"{self.cause}: {self.message}"


def printable(name: str) -> str:
    r"""A name as text of printable Unicode: control characters and bytes that are no UTF-8 become `\xNN`, `\` becomes `\\`."""
    return _UNPRINTABLE.sub(_escape, name)


def actual(text: str) -> str:
    """The name that `printable` made `text` of."""
    return _ESCAPED.sub(_unescape, text) if "\\" in text else text


# undecodable bytes 80..FF are the surrogates DC80..DCFF in Python's names of files; Windows has other lone surrogates
_UNPRINTABLE = re.compile("[\\\\\x00-\x1f\x7f\x85\u2028\u2029\ud800-\udfff]")
_ESCAPED = re.compile(r"\\(?:\\|x([0-9a-f]{2})|u([0-9a-f]{4}))")


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if match[0] == "\\":
        return "\\\\"
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


def _unescape(match: re.Match[str]) -> str:
    if match[1]:
        code = int(match[1], 16)
        return chr(code if code < 0x80 else 0xDC00 + code)
    return chr(int(match[2], 16)) if match[2] else "\\"


class Disk:
    """The file system of this machine, whatever is mounted in it."""

    name = "disk"

    def check(self, address: str) -> None:
        """Raises for an address that could never be read here."""

    def kind(self, address: str) -> str:
        """'folder', 'file' (of any kind, a pipe too) or '' for nothing; a link that leads nowhere is a file."""
        if os.path.isdir(address):
            return "folder"
        return "file" if os.path.lexists(address) else ""

    def file(self, address: str, name: str) -> File:
        return File(name, address, *_size_and_stamp(address))

    def below(self, folder: str, wanted: Wanted) -> Iterator[File]:
        """Wanted files in a folder and below it; hidden ones are passed over, linked folders followed, each folder once.

        A folder that may not be read comes as a file of unknown size, so that it is not lost in silence.
        """
        return _walk(folder, lambda names: True, lambda names: wanted(names[-1]))

    def matching(self, pattern: str, wanted: Wanted) -> Iterator[File]:
        """Wanted files that a glob pattern names, or that are below folders that it names. `**` is any number of folders."""
        parts = pattern.split("/")
        fixed = next(index for index, part in enumerate(parts) if glob.has_magic(part))
        parts, root = parts[fixed:], "/".join(parts[:fixed]) or ("/" if fixed else ".")
        return _walk(root, lambda names: _may_lead_to(names, parts),
                     lambda names: wanted(names[-1]) and _matches(names, parts))

    def open(self, address: str) -> BinaryIO:
        return open(address, "rb")

    def read(self, address: str, stamp: str) -> bytes:
        handle = _Handle(address, stamp)  # a pipe must not be waited for
        if not stat.S_ISREG(os.fstat(handle.number).st_mode):
            raise ReadFailure("not_an_image", "it is a folder" if os.path.isdir(address) else "it is not a regular file")
        with open(handle.number, "rb", buffering=0, closefd=False) as file:
            return file.read()

    def read_part(self, address: str, stamp: str, start: int, size: int) -> bytes:
        """`size` bytes from `start` on, fewer where the file ends; the few files read last stay open."""
        handle, parts = kept_open(address, stamp), []  # held: another thread may put it out of those kept
        while size > 0 and (part := os.pread(handle.number, size, start)):  # one call gives 2 GB at most
            parts.append(part)
            start, size = start + len(part), size - len(part)
        return b"".join(parts)


class _Handle:
    """An open file that is closed when nobody holds it any more; a failure if it is not the one that had this stamp."""

    def __init__(self, path: str, stamp: str) -> None:
        self.number = -1
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        if stamp and str(os.fstat(self.number).st_mtime_ns) != stamp:
            raise ReadFailure("changed", "it is not as it was when the run was planned; 'ziggurat retry' takes it as it is now")

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


@lru_cache(maxsize=8)
def kept_open(path: str, stamp: str) -> _Handle:
    return _Handle(path, stamp)  # pread has no position to share: a forked process may use it too


def _size_and_stamp(path: str) -> tuple[int, str]:
    try:
        status = os.stat(path)
    except OSError:
        return -1, ""
    return (status.st_size, str(status.st_mtime_ns)) if stat.S_ISREG(status.st_mode) else (-1, "")


def _walk(root: str, enter: Callable[[list[str]], bool], take: Callable[[list[str]], bool]) -> Iterator[File]:
    """Files below `root`; real folders come before linked ones, so that a folder's files have the name without links."""
    pending: list[tuple[list[str], str]] = [([], root)]
    links: list[tuple[list[str], str]] = []
    seen: set[tuple[int, int]] = set()
    while pending or links:
        names, folder = pending.pop() if pending else heapq.heappop(links)
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            entries = os.scandir(folder)
        except PermissionError:
            if not names:
                raise
            yield File("/".join(names), folder, -1, "")
            continue
        with entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                below = [*names, entry.name]
                if entry.is_dir(follow_symlinks=False):
                    if enter(below):
                        pending.append((below, entry.path))
                elif entry.is_symlink() and os.path.isdir(entry.path):
                    if enter(below):
                        heapq.heappush(links, (below, entry.path))
                elif take(below):
                    yield File("/".join(below), entry.path, *_size_and_stamp(entry.path))


def _matches(names: list[str], parts: list[str]) -> bool:
    """Whether the names of a path fit the parts of a pattern; what is below a folder that fits does, too."""
    if not parts:
        return True
    if parts[0] == "**":
        return _matches(names, parts[1:]) or (bool(names) and _matches(names[1:], parts))
    return bool(names) and fnmatchcase(names[0], parts[0]) and _matches(names[1:], parts[1:])


def _may_lead_to(names: list[str], parts: list[str]) -> bool:
    """Whether something below the folder of these names can fit the pattern."""
    if not names or not parts or parts[0] == "**":
        return True
    return fnmatchcase(names[0], parts[0]) and _may_lead_to(names[1:], parts[1:])


class Remote:
    """Whatever fsspec reaches: s3://, gs://, hf://, https://, memory://, zip://*.jpg::s3://... Its own settings apply."""

    name = "fsspec"

    def join(self, folder: str, name: str) -> str:
        if is_url(name):
            return name
        first, *rest = links_of(folder)
        return "::".join([f"{first.rstrip('/')}/{name.lstrip('/')}", *rest])

    def check(self, address: str) -> None:
        """Raises MissingExtra where a package is missing, BadArgument for an unknown protocol; asks no server."""
        _check_protocol(address.partition(":")[0])

    def kind(self, address: str) -> str:
        system, path = _system(address)
        try:
            return "folder" if system.info(path)["type"] == "directory" else "file"
        except FileNotFoundError:
            return ""

    def file(self, address: str, name: str) -> File:
        system, path = _system(address)
        system.invalidate_cache()
        try:
            return File(name, address, *_facts(system.info(path)))
        except FileNotFoundError:
            return File(name, address, -1, "")

    def below(self, folder: str, wanted: Wanted) -> Iterator[File]:
        system, root = _system(folder)
        return self._files(folder, root, system.find(root, detail=True), wanted)

    def matching(self, pattern: str, wanted: Wanted) -> Iterator[File]:
        system, path = _system(pattern)
        parts = path.split("/")
        root = "/".join(parts[: next(index for index, part in enumerate(parts) if glob.has_magic(part))])
        found = dict(system.glob(path, detail=True))
        for folder in [name for name, info in found.items() if info["type"] == "directory"]:
            found.update(system.find(folder, detail=True))
        return self._files(pattern, root, found, wanted)

    def _files(self, address: str, root: str, found: dict[str, Any], wanted: Wanted) -> Iterator[File]:
        for path in sorted(found):
            name = path[len(root):].lstrip("/")
            if found[path]["type"] != "directory" and wanted(name) and not re.search(r"(^|/)\.", name):
                yield File(name, _with_path(address, path), *_facts(found[path]))

    def open(self, address: str) -> BinaryIO:
        system, path = _system(address)
        return system.open(path, "rb")

    def read(self, address: str, stamp: str) -> bytes:
        system, path = _system(address)
        return system.cat_file(path)

    def read_part(self, address: str, stamp: str, start: int, size: int) -> bytes:
        system, path = _system(address)
        return system.cat_file(path, start=start, end=start + size) if size else b""


Place = Disk | Remote


def is_url(address: str) -> bool:
    """Whether an address has a protocol (two letters at least: C: is a drive)."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+(://|::)", address) is not None


_INSIDE = ("zip", "tar", "libarchive", "simplecache", "filecache", "blockcache", "cached", "reference", "dir")


def links_of(url: str) -> list[str]:
    """The links of a chain, zip://cat.jpg and s3://bucket/a.zip; of any other URL itself, for a name may hold ::, too."""
    links = url.split("::")
    return links if "://" in links[-1] or links[0].partition(":")[0] in _INSIDE else [url]


def place_of(address: str) -> tuple[Place, str]:
    """Where an address leads, and the address in the spelling of that place: absolute on disk, as it is elsewhere."""
    if address.startswith(("file://", "local://")) and "::" not in address:
        address = "/" + address.partition("://")[2].lstrip("/")
    if is_url(address):
        return _REMOTE, address
    return _DISK, os.path.abspath(os.path.expanduser(address))


_DISK, _REMOTE = Disk(), Remote()


def _system(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL and the path in it. fsspec keeps the instances, and makes new ones after a fork."""
    protocol = url.partition(":")[0]
    _check_protocol(protocol)
    from fsspec.core import get_filesystem_class, url_to_fs

    # s3fs would ask for the size of every image first, to read it in several pieces at a time
    settings = {"max_concurrency": 1} if protocol in ("s3", "s3a") else {}
    if "::" not in url or len(links_of(url)) > 1:
        return url_to_fs(url, **settings)
    system, _ = url_to_fs(url.partition("::")[0], **settings)  # the rest is part of a name, no link of a chain
    return system, get_filesystem_class(protocol)._strip_protocol(url)


@lru_cache(maxsize=64)
def _check_protocol(protocol: str) -> None:
    try:
        from fsspec import get_filesystem_class

        get_filesystem_class(protocol)
    except ImportError as error:  # fsspec itself, or s3fs, gcsfs, aiohttp ..., which fsspec's sentence names
        raise MissingExtra(f"{protocol}:// needs a package that is not installed ({error}); "
                           "pip install 'ziggurat[extract]' brings fsspec and what s3:// needs") from error
    except ValueError as error:
        raise BadArgument(f"{protocol}:// is no protocol that fsspec knows") from error


def _with_path(address: str, path: str) -> str:
    """The address of another path in the file system that `address` (a chain a://b::c://d, it may be) leads to."""
    links = links_of(address)
    first = next(index for index, link in enumerate(links) if "://" in link)
    protocol = links[first].partition("://")[0]
    links[first] = path if "://" in path else f"{protocol}://{path}"
    return "::".join(links)


def _facts(info: dict[str, Any]) -> tuple[int, str]:
    """Size and stamp out of what a file system says of a file: each has its own word for what changes with the content."""
    size = info.get("size")
    words = ("ETag", "etag", "checksum", "md5", "sha256", "blob_id", "mtime", "LastModified", "last_modified", "created")
    value = next((info[word] for word in words if info.get(word)), "")
    text = str(value.timestamp() if hasattr(value, "timestamp") else value)  # memory:// gives the one here, the other there
    return (-1 if size is None else int(size)), printable(text.strip('"'))


_PASSING = {  # errors of a network or an overloaded server, not of a file
    errno.EAGAIN, errno.EBUSY, errno.ECONNABORTED, errno.ECONNREFUSED, errno.ECONNRESET, errno.EHOSTDOWN,
    errno.EHOSTUNREACH, errno.EINTR, errno.EIO, errno.EMFILE, errno.ENETDOWN, errno.ENETRESET, errno.ENETUNREACH,
    errno.ENFILE, errno.ENOBUFS, errno.ENOLCK, errno.ENOTCONN, errno.EPIPE, errno.ESHUTDOWN, errno.ESTALE, errno.ETIMEDOUT,
}
_NOWHERE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}
_CLIENTS = {"aiobotocore", "aiohttp", "azure", "botocore", "fsspec", "gcsfs", "google", "httpcore", "httpx",
            "huggingface_hub", "requests", "s3fs", "urllib3"}


def failure_of(error: Exception) -> ReadFailure | None:
    """What an error of reading means, or None for one that is no matter of reading. The words hold no host and no time."""
    if isinstance(error, ReadFailure):
        return error
    status = _http_status(error)
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, FileNotFoundError) or status in (404, 410) or number in _NOWHERE:
        return ReadFailure("missing", "there is nothing at this address")
    if isinstance(error, PermissionError) or status in (401, 403) or "Credential" in type(error).__name__:
        return ReadFailure("denied", "it may not be read: no permission")
    if isinstance(error, IsADirectoryError):
        return ReadFailure("not_an_image", "it is a folder")
    from_client = type(error).__module__.partition(".")[0] in _CLIENTS
    if status is not None and 400 <= status < 500 and status not in (408, 425, 429):
        return ReadFailure("denied", f"the server refuses to give it (HTTP {status})")
    if isinstance(error, (OSError, asyncio.TimeoutError, TimeoutError)) or from_client:
        if number in _PASSING:
            reason = os.strerror(number or 0)
        else:
            reason = f"HTTP {status}" if status else type(error).__name__
        return ReadFailure("unavailable", f"reading failed ({reason})", transient=True)
    return None


def _http_status(error: Exception) -> int | None:
    """The status of an HTTP answer that an error was made of; each client has its own place for it."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        value = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        holders = [(error, name) for name in ("status", "status_code", "code")] + [(response, "status_code")]
        value = next((got for holder, name in holders if (got := getattr(holder, name, None)) is not None), None)
    return value if isinstance(value, int) and 100 <= value < 600 else None
