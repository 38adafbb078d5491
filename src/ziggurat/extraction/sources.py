"""What is to be extracted: every accepted source as a list of items that have unique keys, and the reading of one item.

    folder, image file, glob       shots  cat.png  'shots/**/*.jpg'
    list (.txt, .lst)              a path or URL a line
    tar or WebDataset shards       shard.tar  'shard-{000000..000099}.tar'  a folder of them
    Parquet                        a column of images (Hugging Face layout), of bytes, or of paths or URLs
    fsspec address of any of them  s3://bucket/shots  'hf://datasets/...'  'zip://*.jpg::s3://bucket/shots.zip'

Nothing is decoded and no image is opened when inputs are listed: a tar's headers and a Parquet's footer are all that is read.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
import tarfile
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from hashlib import sha256
from itertools import accumulate
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

from ..data.image import IMAGE_EXTENSIONS
from ..errors import BadArgument
from ..packages import require_packages
from .places import Disk, File, Place, ReadFailure, actual, failure_of, is_url, kept_open, links_of, place_of, printable

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Item", "Listing", "ReadFailure", "list_inputs", "read_bytes", "refreshed"]

Source = str | os.PathLike[str]

LISTS = (".txt", ".lst")
SHARDS = (".tar", ".parquet")
CLOSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip", ".7z", ".rar", ".gz", ".bz2", ".xz", ".zst")
ACCEPTED = ("a folder, an image, a glob such as 'shots/**/*.jpg', a list (.txt, .lst), a .tar, a .parquet, "
            "or an fsspec address of one of these")


class Item(NamedTuple):
    """One image: `key` is its unique name; the rest says where its bytes are.

    `container` is a file or a URL; `member` its name in a tar, or "column:row" of a Parquet file, else "". `offset` and
    `size` are in bytes, -1 where unknown; an offset is known in tars only. `stamp` is what changes when the content of
    the container does (mtime in ns, an etag), "" where unknown. Names that are no printable UTF-8 are escaped as
    `places.printable` does.
    """

    key: str
    container: str
    member: str = ""
    offset: int = -1
    size: int = -1
    stamp: str = ""


class Listing(NamedTuple):
    """The items behind sources, sorted by key; how many entries named again what had been named; the sources in words."""

    items: list[Item]
    duplicates: int
    description: str


def list_inputs(source: Source | Sequence[Source], *, column: str | None = None) -> Listing:
    """All images behind a source, or a sequence of sources, without opening one of them.

    A folder gives its images, at any depth; if it holds none, its tar and Parquet files. Hidden files are passed over,
    linked folders are followed, each folder once. A list's lines are relative to its folder or, where nothing is there,
    to the working directory; what they name is kept even if it is missing, so that it is filed as a failure.
    Keys are relative to the folder or to the fixed part of the glob; `shard.tar/name`, `file.parquet/000000012`; lines
    of a list and images that are named outright, as they were written. Of two that would be the same, the later source's
    gets `~` and a hash of its address. `column` names the column of Parquet files where it is not found by type and name.

    Raises BadArgument for a source that gives nothing, and for what cannot be read from the middle (.tar.gz, .zip).
    """
    sources = list(source) if isinstance(source, Iterable) and not isinstance(source, (str, os.PathLike)) else [source]
    wrong = [repr(one) for one in sources if not isinstance(one, (str, os.PathLike)) or not os.fspath(one)]
    if wrong or not sources:
        raise BadArgument(f"source is {(wrong or ['an empty sequence'])[0]}; it must be {ACCEPTED}; or a sequence of them")
    items: dict[tuple[str, str, int], Item] = {}  # by address: what is named twice is kept once
    named, words, has_parquet = 0, [], False
    for one in sources:
        before = named
        origin = _Origin(os.fspath(one), column, alone=len(sources) == 1)
        for item in origin.items():
            named += 1
            items.setdefault((item.container, item.member, item.offset), item)
        if named == before:
            raise BadArgument(f"source {origin.text!r} names no image: {origin.why_nothing()}. It must be {ACCEPTED}")
        has_parquet |= origin.has_parquet
        words.append(f"{origin.kind} {printable(origin.address)}")
    if column is not None and not has_parquet:
        raise BadArgument(f"column={column!r} names a column of Parquet files, and none is among the sources")
    shown = words[:8] + [f"{len(words) - 8} more"] * (len(words) > 8)
    return Listing(_with_unique_keys(list(items.values())), named - len(items), "; ".join(shown))


def _with_unique_keys(items: list[Item]) -> list[Item]:
    """Sorted by key; the first of several of one key keeps it, the others get a hash of where they are."""
    items.sort(key=lambda item: item.key)  # stable: of equal keys, the first named comes first
    twins = [index for index in range(1, len(items)) if items[index].key == items[index - 1].key]
    for index in twins:
        item = items[index]
        place = "\0".join((item.container, item.member, str(item.offset)))
        items[index] = item._replace(key=f"{item.key}~{sha256(place.encode()).hexdigest()[:12]}")
    return sorted(items, key=lambda item: item.key) if twins else items


class _Origin:
    """One source as it was given: what kind it is, and what it holds."""

    def __init__(self, text: str, column: str | None, alone: bool) -> None:
        self.text, self.column, self.alone = text, column, alone
        self.place, self.address = place_of(text)
        self.kind, self.has_parquet = "", False

    def items(self) -> Iterator[Item]:
        try:
            yield from self._items()
        except Exception as error:
            failure = failure_of(error)
            if failure is None:
                raise
            raise BadArgument(f"source {self.text!r} cannot be listed: {failure.message} ({error})") from error

    def _items(self) -> Iterator[Item]:
        place, address = self.place, self.address
        pattern = _has_wildcard(address) or _BRACE.search(address) is not None
        what = "" if pattern and is_url(address) else place.kind(address)  # on disk, a file may be called "cat[1].jpg"
        if what == "folder":
            self.kind = "folder"
            yield from self._search(place.below(address, _is_input))
        elif what == "file":
            yield from self._named(address)
        elif pattern:
            self.kind = "glob"
            for one in _without_braces(address):
                yield from self._pattern(one)
        elif not self.alone and _suffix(address) in IMAGE_EXTENSIONS:  # one of many: filed as missing
            self.kind = "image"
            yield _whole(File(_as_written(self.text), address, -1, ""))

    def _named(self, address: str) -> Iterator[Item]:
        """A file that is named outright; an image may be called anything."""
        suffix = _suffix(address)
        if suffix in LISTS:
            self.kind = "list"
            yield from self._lines(address)
        elif suffix in CLOSED:
            raise BadArgument(_why_closed(self.text))
        else:
            self.kind = suffix[1:] if suffix in SHARDS else "image"
            name = posixpath.basename(_own_part(address)) if suffix in SHARDS else _as_written(self.text)
            yield from self._inside(self.place.file(address, name))

    def _pattern(self, pattern: str) -> Iterator[Item]:
        """What one of the patterns gives that braces stand for; names begin where the whole pattern's fixed part ends."""
        root = len(_fixed_part(self.address))
        if not _has_wildcard(pattern):  # "shards/{a,b}.tar" names files outright
            if self.place.kind(pattern) != "file":
                raise BadArgument(f"source {self.text!r} names {pattern!r}, where no file is")
            yield from self._inside(self.place.file(pattern, pattern[root:]))
            return
        spelled = _suffix(pattern)
        if spelled in CLOSED:
            raise BadArgument(_why_closed(self.text))
        any_name = bool(spelled) and not _has_wildcard(spelled)
        wanted = (lambda name: _suffix(name) == spelled) if any_name else _is_input
        before = _fixed_part(pattern)[root:]
        files = (file._replace(name=before + file.name) for file in self.place.matching(pattern, wanted))
        if spelled in LISTS:
            for file in sorted(files):
                yield from self._lines(file.address)
        elif any_name:
            yield from self._each(files)
        else:
            yield from self._search(files)

    def _search(self, files: Iterable[File]) -> Iterator[Item]:
        """The images among files, or else the shards."""
        shards, images = [], False
        for file in files:
            if _suffix(file.name) in SHARDS + CLOSED:
                shards.append(file)
            else:
                images = True
                yield _whole(file)
        if not images:
            yield from self._each(shards)

    def _each(self, files: Iterable[File]) -> Iterator[Item]:
        for file in sorted(files):
            yield from self._inside(file)

    def _inside(self, file: File) -> Iterator[Item]:
        suffix = _suffix(file.name)
        if suffix in CLOSED:
            raise BadArgument(_why_closed(file.address))
        if suffix not in SHARDS:
            return iter([_whole(file)])
        place, address = place_of(file.address)  # a list on disk may name a shard that is elsewhere
        if not file.stamp:
            file = place.file(address, file.name)
        return _in_tar(place, file) if suffix == ".tar" else self._rows(place, file)

    def _lines(self, address: str) -> Iterator[Item]:
        text = os.fsdecode(self.place.read(address, "").removeprefix(b"\xef\xbb\xbf"))
        if "\0" in text:  # UTF-16, as Windows' shells write it
            raise BadArgument(f"the list {address!r} is no UTF-8 text: it holds zero bytes; save it as UTF-8")
        for line in text.split("\n"):
            if line.strip():
                yield from self._inside(_linked(self.place, address, line.removesuffix("\r")))

    def _rows(self, place: Place, file: File) -> Iterator[Item]:
        self.has_parquet = True
        parquet = _Parquet(place, file.address)
        column, of_paths = _image_column(parquet.file.schema_arrow, self.column, file.address)
        if not of_paths:
            yield from (_row_of(file, column, row) for row in range(parquet.file.metadata.num_rows))
            return
        row = 0
        for batch in parquet.file.iter_batches(columns=[column], use_threads=False):
            for path in batch.column(0).to_pylist():
                yield _whole(_linked(place, file.address, path)) if path else _row_of(file, column, row)
                row += 1

    def why_nothing(self) -> str:
        if self.kind == "folder":
            return "the folder holds no file with the suffix of an image, of a tar or of a Parquet file"
        if self.kind == "list":
            return "the list has no line"
        if self.kind in ("tar", "parquet"):
            return f"the {self.kind} file holds none"
        return "the pattern matches none" if self.kind else "there is nothing at this address"


def _own_part(address: str) -> str:
    """The link of a chain of URLs that names the file: zip://a/b.jpg of zip://a/b.jpg::s3://bucket/c.zip."""
    return next((link for link in links_of(address) if "://" in link), address) if is_url(address) else address


def _suffix(name: str) -> str:
    """The last suffix of a file's name in lower case, with the .tar before a compression's: .jpg, .tar, .tar.gz."""
    found = re.search(r"(?:\.tar(?=\.(?:gz|bz2|xz|zst)$))?\.[^./]+$", _own_part(name).lower())
    return found[0] if found else ""


def _is_input(name: str) -> bool:
    suffix = _suffix(name)
    return suffix in IMAGE_EXTENSIONS or suffix in SHARDS or suffix in CLOSED[:5]


def _why_closed(address: str) -> str:
    return (f"{address!r} is compressed as a whole, so that an image in it cannot be read without all before it; unpack it "
            "first (tar: gzip -d, which leaves a .tar; zip: unzip, or zip://*::FILE through fsspec)")


_BRACE = re.compile(r"\{([^{}]*(?:,|\.\.)[^{}]*)\}")


def _has_wildcard(address: str) -> bool:
    """Whether an address is a pattern; behind http:// a question mark begins a query."""
    return bool(re.search(r"\*" if address.startswith("http") else r"[*?\[]", address))


def _fixed_part(pattern: str) -> str:
    """A pattern up to the folder in which its first wildcard or brace is: 'a/b/' of 'a/b/*.jpg' and of 'a/b/c{1,2}/*'."""
    return re.split(r"[*?\[{]", pattern, maxsplit=1)[0].rpartition("/")[0] + "/"


def _without_braces(pattern: str) -> list[str]:
    """'a{0..2}{x,y}' as the six patterns it stands for; numbers keep the width that they are written with."""
    brace = _BRACE.search(pattern)
    if not brace:
        return [pattern]
    span = re.fullmatch(r"(\d+)\.\.(\d+)", brace[1])
    if span:
        is_padded = any(len(number) > 1 and number[0] == "0" for number in span.groups())
        width = max(len(span[1]), len(span[2])) if is_padded else 0
        choices = [f"{number:0{width}d}" for number in range(int(span[1]), int(span[2]) + 1)]
    else:
        choices = brace[1].split(",")
    return [whole for choice in choices
            for whole in _without_braces(pattern[: brace.start()] + choice + pattern[brace.end():])]


def _as_written(text: str) -> str:
    return text if is_url(text) else posixpath.normpath(text)


def _linked(place: Place, container: str, text: str) -> File:
    """The file that a line of a list, or a path in a Parquet file, names."""
    if is_url(text):
        target, address = place_of(text)
        target.check(address)
        return target.file(address, text) if isinstance(target, Disk) else File(text, address, -1, "")
    name = posixpath.normpath(text)
    if not isinstance(place, Disk):
        return File(name, place.join(posixpath.dirname(container), name), -1, "")
    beside = place.file(os.path.join(os.path.dirname(container), os.path.expanduser(name)), name)
    here = os.path.abspath(name)
    return beside if beside.stamp or not os.path.lexists(here) else place.file(here, name)


def _whole(file: File) -> Item:
    return Item(printable(file.name), printable(file.address), "", -1, file.size, file.stamp)


def _row_of(file: File, column: str, row: int) -> Item:
    return Item(f"{printable(file.name)}/{row:09d}", printable(file.address), f"{printable(column)}:{row}", -1, -1, file.stamp)


def _in_tar(place: Place, file: File) -> Iterator[Item]:
    """The images in a tar, and if it ends too early an item for what is lost: reading that one says so."""
    key, container = printable(file.name), printable(file.address)
    held: dict[str, tuple[int, int]] = {}  # where the images are that hard links may lead to

    def wanted(name: str) -> bool:
        return _suffix(name) in IMAGE_EXTENSIONS and not re.search(r"(^|/)\.[^.]", name)

    with place.open(file.address) as stream:
        try:
            with tarfile.open(fileobj=stream, mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
                cut = False
                try:
                    while (member := tar.next()) is not None:
                        tar.members = []  # type: ignore[attr-defined]  # it would keep them all
                        name = posixpath.normpath(member.name)
                        if member.islnk():  # tar writes a file of two names once
                            at, size = held.get(posixpath.normpath(member.linkname), (-1, -1))
                            if at >= 0 and wanted(name):
                                yield Item(f"{key}/{printable(name)}", container, printable(name), at, size, file.stamp)
                            continue
                        cut = member.offset_data + member.size > file.size >= 0
                        if member.isreg() and wanted(name):
                            if member.sparse is not None:
                                raise BadArgument(f"{file.address!r} holds a sparse member, {name!r}, whose bytes are not "
                                                  "in one piece; write the tar without --sparse")
                            held[name] = member.offset_data, member.size
                            member_name = printable(name)
                            yield Item(f"{key}/{member_name}", container, member_name, member.offset_data, member.size,
                                       file.stamp)
                except tarfile.ReadError:
                    cut = True
                end = tar.offset
        except tarfile.ReadError as error:
            raise BadArgument(f"{file.address!r} cannot be read as a tar: {error}") from error
        stream.seek(end)
        if cut or stream.read(512) != bytes(512):  # tarfile takes a damaged header for the end, too
            end = min(end, file.size) if file.size >= 0 else end
            yield Item(f"{key}/{LOST}", container, LOST, end, -1, file.stamp)


ROWS = 16  # of a Parquet file that are read together
LOST = "(what follows the break)"  # the member that stands for all that a damaged tar does not give


class _Parquet:
    """A Parquet file that is open until nobody holds it."""

    def __init__(self, place: Place, address: str) -> None:
        require_packages("Parquet", ["pyarrow"], "extract")
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.stream = place.open(address)  # not by its path, which may be no UTF-8
        try:
            self.file = pq.ParquetFile(self.stream, buffer_size=1 << 20)  # in pieces, not a column of a row group at once
        except pa.ArrowInvalid as error:
            raise BadArgument(f"{address!r} cannot be read as Parquet ({error}); if it was cut off, copy it again") from error
        groups = range(self.file.metadata.num_row_groups)
        self.starts = list(accumulate((self.file.metadata.row_group(group).num_rows for group in groups), initial=0))

    def __del__(self) -> None:
        if hasattr(self, "stream"):
            self.stream.close()


_IMAGE_NAMES = ("image", "img", "picture", "photo", "jpg", "jpeg", "png", "webp", "bytes", "content", "data")
_PATH_NAMES = ("path", "file", "filename", "file_name", "filepath", "file_path", "image_path", "image_file", "url",
               "image_url", "uri", "image_uri", *_IMAGE_NAMES)


def _image_column(schema: pa.Schema, asked: str | None, address: str) -> tuple[str, bool]:
    """The column that holds images, and whether it holds their paths rather than their bytes."""
    from pyarrow import types

    def is_text(kind: pa.DataType) -> bool:
        return types.is_string(kind) or types.is_large_string(kind) or str(kind) == "string_view"

    def is_bytes(kind: pa.DataType) -> bool:
        return types.is_binary(kind) or types.is_large_binary(kind) or str(kind) == "binary_view"

    def is_image(kind: pa.DataType) -> bool:  # Hugging Face's Image: struct<bytes, path>
        return types.is_struct(kind) and any(field.name == "bytes" and is_bytes(field.type) for field in kind)

    kinds = {field.name: field.type.value_type if types.is_dictionary(field.type) else field.type for field in schema}
    if asked is not None:
        if asked not in kinds:
            raise BadArgument(f"column={asked!r} is none of {address!r}'s: {', '.join(kinds)}")
        if not (is_text(kinds[asked]) or is_bytes(kinds[asked]) or is_image(kinds[asked])):
            raise BadArgument(f"column={asked!r} of {address!r} is of type {kinds[asked]}; it must hold bytes, "
                              "struct<bytes, path>, or paths or URLs as text")
        return asked, is_text(kinds[asked])
    features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    declared = [name for name in kinds if isinstance(features.get(name), dict) and features[name].get("_type") == "Image"]
    images = [name for name in kinds if is_image(kinds[name])]
    binary = [name for name in kinds if is_bytes(kinds[name])]
    paths = [name for name in kinds if is_text(kinds[name]) and name.lower() in _PATH_NAMES]
    for found in (declared, images, binary, paths):
        named = [name for wanted in _PATH_NAMES for name in found if name.lower() == wanted]
        if len(found) == 1 or "image" in found:
            return ("image" if "image" in found else found[0]), found is paths
        if len(named) == 1:
            return named[0], found is paths
        if found:
            raise BadArgument(f"{address!r} has several columns that may hold images, {', '.join(found)}: choose with column=")
    raise BadArgument(f"{address!r} has no column of images, of bytes, or of paths by a usual name (path, file_name, url "
                      f"...); its columns are {', '.join(f'{name} ({kind})' for name, kind in kinds.items())}. "
                      "Name one with column=")


def read_bytes(item: Item) -> bytes:
    """The bytes of an image as they are stored. Raises ReadFailure, whose `transient` says that another try may succeed.

    Can be called in any process and thread: what it keeps open (8 tars, a few rows of 2 Parquet row groups) it opened there.
    """
    try:
        place, address = place_of(actual(item.container))
        if item.offset >= 0:
            return _read_member(place, address, item)
        if item.member:
            return _read_row(place, address, item)
        return place.read(address, item.stamp)
    except ReadFailure:
        raise
    except Exception as error:
        failure = failure_of(error)
        if failure is None:
            raise
        for cache in (kept_open, _kept_parquet, _kept_group):  # what is open may be stale
            cache.cache_clear()
        raise failure from error


def _read_member(place: Place, address: str, item: Item) -> bytes:
    if item.member == LOST:
        raise ReadFailure("truncated", f"the tar breaks off at byte {item.offset}; the files that followed are lost")
    data = place.read_part(address, item.stamp, item.offset, item.size)
    if len(data) < item.size:
        raise ReadFailure("truncated", f"the tar ends after {len(data)} of the image's {item.size} bytes")
    return data


@lru_cache(maxsize=4)
def _kept_parquet(container: str, stamp: str) -> _Parquet:
    return _Parquet(*place_of(actual(container)))


class _RowGroup:
    """The images of a row group, read forward a few rows at a time: a whole one may be gigabytes."""

    def __init__(self, parquet: _Parquet, column: str, group: int) -> None:
        self.parquet, self.column, self.group = parquet, column, group
        self._begin()

    def _begin(self) -> None:
        self.first = 0
        self.rows: Any = ()  # those in hand
        self.batches = self.parquet.file.iter_batches(
            ROWS, row_groups=[self.group], columns=[self.column], use_threads=False)

    def __getitem__(self, index: int) -> Any:
        if index < self.first:
            self._begin()
        while index >= self.first + len(self.rows):
            self.first, self.rows = self.first + len(self.rows), next(self.batches).column(0)
        return self.rows[index - self.first].as_py()


@lru_cache(maxsize=2)
def _kept_group(container: str, stamp: str, column: str, group: int) -> _RowGroup:
    return _RowGroup(_kept_parquet(container, stamp), column, group)


def _read_row(place: Place, address: str, item: Item) -> bytes:
    column, _, number = item.member.rpartition(":")
    try:
        value = _value(item.container, item.stamp, actual(column), int(number))
    except BadArgument as error:
        raise ReadFailure("corrupt", "the Parquet file cannot be read") from error
    except (OSError, ValueError) as error:
        # pyarrow: ArrowInvalid is a ValueError; damaged pages are an OSError without a number
        if isinstance(error, ValueError) or (type(error) is OSError and error.errno is None):
            raise ReadFailure("corrupt", f"row {number} of the Parquet file cannot be read") from error
        raise
    if isinstance(value, dict):
        value = value["bytes"] if value["bytes"] is not None else value.get("path")
    if value is None or value == "":
        raise ReadFailure("missing", f"row {number} of column {column!r} is {'null' if value is None else 'an empty path'}")
    if isinstance(value, str):  # Hugging Face: bytes that were not embedded
        value = read_bytes(_whole(_linked(place, address, value)))
    return value


def _value(container: str, stamp: str, column: str, row: int) -> Any:
    with _PARQUET:
        parquet = _kept_parquet(container, stamp)
        if column not in parquet.file.schema_arrow.names or row >= parquet.starts[-1]:
            raise ReadFailure("missing", f"the Parquet file has no column {column!r} any more, or no row {row}")
        group = bisect_right(parquet.starts, row) - 1
        return _kept_group(container, stamp, column, group)[row - parquet.starts[group]]


_PARQUET = Lock()  # threads share the place in a file


def refreshed(item: Item) -> Item:
    """The item with the stamp, the size and, in a tar, the offset that it has now; unknown ones if it is gone."""
    place, address = place_of(actual(item.container))
    file = place.file(address, "")
    if not item.member:
        return item._replace(size=file.size, stamp=file.stamp)
    if item.offset >= 0 and file.stamp and file.stamp != item.stamp:
        offset, size = _kept_index(item.container, file).get(item.member, (item.offset, item.size))
        item = item._replace(offset=offset, size=size)
    return item._replace(stamp=file.stamp)


@lru_cache(maxsize=2)
def _kept_index(container: str, file: File) -> dict[str, tuple[int, int]]:
    place, _ = place_of(actual(container))
    return {item.member: (item.offset, item.size) for item in _in_tar(place, file)}
