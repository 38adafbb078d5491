"""A part of a safetensors file on the Hugging Face Hub: the tensors that one model takes, fetched by ranges of bytes.

The file's header says where each tensor lies, so a pyramid up to stride 16 need not fetch what makes stride 32. What is
fetched becomes a safetensors file of its own in the client's cache of assets (`HF_ASSETS_CACHE`), under the repository's
name and revision. It notes which file it is a part of, with that file's header, so that a model that takes as much or
less finds it without a network. Parts are never changed, only replaced by the same: several processes may make them at
once. Where the client has the whole file, that is used.
"""

from __future__ import annotations

import glob
import hashlib
import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from collections.abc import Set as AbstractSet
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ziggurat.errors import SourceUnavailable
from ziggurat.weights.hub import WEIGHT_FILES, aside, cached, unavailable

__all__ = ["Needs", "fetch_part"]

Needs = Callable[[Collection[str]], Collection[str] | None]
"""From the names in a file to those that are taken, or None where any may be."""

NOTE = "ziggurat.part"  # the entry of a part's metadata that says what it is a part of
SUFFIX = ".safetensors"
DIGEST = 16  # letters by which the names of a file's parts differ
FIRST = 2**16  # bytes that are asked for first: most headers fit
GAP = 2**16  # fewer unwanted bytes than this are fetched along, rather than asked around
PIECE = 2**24  # bytes of one request, which is what is repeated when a connection breaks
WORTHWHILE = 0.9  # of a file: where more is needed, all of it is fetched
HEADER_LIMIT = 100_000_000  # bytes, the format's own


class Span(NamedTuple):
    """One tensor in a safetensors file: its type and shape, and its bytes from the header's end, [start, stop)."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @classmethod
    def of(cls, dtype: Any, shape: Iterable[Any], start: Any, stop: Any) -> Span:
        """The span of which a file says this. Raises `ValueError` or `TypeError` where no file can mean it."""
        span = cls(dtype, tuple(shape), start, stop)
        numbers = (*span.shape, start, stop)
        if not isinstance(dtype, str) or not all(type(n) is int and n >= 0 for n in numbers) or start > stop:
            raise ValueError(f"no tensor of a file: {span}")
        return span


Spans = dict[str, Span]


class Part(NamedTuple):
    """A part on the disk: the names of its tensors, and the tensors of the file that it is a part of."""

    names: AbstractSet[str]
    whole: Spans


class Remote(NamedTuple):
    """A file of a repository at one commit."""

    repo_id: str
    commit: str
    url: str
    etag: str
    size: int

    def gives_ranges(self) -> bool:
        """Whether the server gives a byte that is asked for, and not the whole file, which is then not read."""
        from huggingface_hub import utils as client

        before_1: Any = partial(client.http_backoff, stream=True)
        get = getattr(client, "http_stream_backoff", before_1)
        try:
            with get("GET", self.url, **self.asked(0, 1)) as response:
                return bool(response.status_code == 206)
        except Exception as error:  # clients of other versions raise errors of other HTTP libraries
            raise unavailable(self.repo_id, self.commit, error) from error

    def asked(self, start: int, stop: int) -> dict[str, Any]:
        """How the client's requests ask for the bytes [start, stop)."""
        from huggingface_hub import constants
        from huggingface_hub.utils import build_hf_headers

        headers = build_hf_headers(library_name="ziggurat")
        headers |= {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        return {"headers": headers, "timeout": constants.HF_HUB_DOWNLOAD_TIMEOUT}

    def read(self, start: int, stop: int) -> bytes:
        """The bytes [start, stop). A broken connection is tried again; raises `SourceUnavailable`."""
        from huggingface_hub.utils import HfHubHTTPError, hf_raise_for_status, http_backoff

        for is_last in (False, True):  # older clients do not repeat what breaks in the middle
            try:
                response = http_backoff("GET", self.url, **self.asked(start, stop))
                hf_raise_for_status(response)
                break
            except Exception as error:  # clients of other versions raise errors of other HTTP libraries
                if is_last or isinstance(error, HfHubHTTPError):
                    raise unavailable(self.repo_id, self.commit, error) from error
        data: bytes = response.content
        given = response.headers.get("Content-Range")
        if given != f"bytes {start}-{stop - 1}/{self.size}" or len(data) != stop - start:
            raise SourceUnavailable(
                f"{self.url} gave {len(data)} bytes as {given!r} where bytes {start}-{stop - 1} of {self.size} were asked "
                "for: try again later."
            )
        return data


def fetch_part(
    repo_id: str, filename: str | None, revision: str | None, cache_dir: str | Path | None, needs: Needs
) -> Path | None:
    """The path of a safetensors file with those tensors of a repository's file that are needed, and perhaps more.

    None where the whole file is to be used: it is in the cache, more than nine tenths of it (or any of its tensors) may
    be needed, it is no (sound) safetensors file, its server gives no ranges, a part cannot be written, or the file cannot
    be reached, which fetching the whole will tell of. `filename` is as in `hub.download`. Raises `SourceUnavailable` where
    the connection breaks later on.
    """
    from safetensors import SafetensorError

    if cached(repo_id, filename, revision, cache_dir):
        return None
    filename = filename or WEIGHT_FILES[0]
    if not filename.endswith(SUFFIX):
        return None
    folder, name, stem = place(repo_id, filename, revision, cache_dir)
    reference = folder / "refs" / name
    commit = reference.read_text() if reference.is_file() else name
    for path, part in kept(folder / commit, stem):
        taken = needs(part.whole)
        if taken is not None and part.names >= set(taken):
            return path
    remote = located(repo_id, filename, revision)
    if remote is None or not remote.gives_ranges():
        return None
    begin, metadata, whole = header(remote)
    taken = needs(whole) if whole else None
    if taken is None:
        return None
    wanted = {name: whole[name] for name in taken}
    if sum(span.stop - span.start for span in wanted.values()) > WORTHWHILE * remote.size:
        return None
    note = json.dumps({"commit": remote.commit, "etag": remote.etag, "size": remote.size, "whole": whole})
    digest = hashlib.sha256(json.dumps(sorted(wanted)).encode()).hexdigest()
    path = folder / remote.commit / f"{stem}-{digest[:DIGEST]}{SUFFIX}"
    try:
        for file in (path, reference):
            file.parent.mkdir(parents=True, exist_ok=True)
        write(path, remote, begin, wanted, metadata | {NOTE: note})
        with aside(reference) as file:
            file.write_text(remote.commit)
    except SourceUnavailable:
        raise
    except (SafetensorError, OSError):
        return None  # the file is not sound, or no part can be put there: the client's cache may lie elsewhere
    return path


def place(repo_id: str, filename: str, revision: str | None, cache_dir: str | Path | None) -> tuple[Path, str, str]:
    """Where a file's parts are: a repository's folder, in the client's cache of assets or the one asked for, the name of
    the revision in it, and how the parts' names begin."""
    from huggingface_hub import constants

    root = Path(cache_dir or constants.HF_ASSETS_CACHE).expanduser() / "ziggurat"
    repo_id, revision, stem = (
        re.sub(r"[/\\]", "--", name) for name in (repo_id, revision or "main", filename.removesuffix(SUFFIX))
    )
    return root / repo_id, revision, stem


def kept(folder: Path, stem: str) -> Iterator[tuple[Path, Part]]:
    """The parts of a file that are there. One that is damaged or cut off is removed."""
    from safetensors import SafetensorError, safe_open

    for path in sorted(folder.glob(f"{glob.escape(stem)}-{'[0-9a-f]' * DIGEST}{SUFFIX}")):
        try:
            with safe_open(path, framework="pt") as file:
                said = json.loads(file.metadata()[NOTE])["whole"]
                whole = {name: Span.of(*facts) for name, facts in said.items()}
                part = Part(frozenset(file.keys()), whole)
        except OSError:
            continue  # a folder, or another process has removed it
        except (SafetensorError, KeyError, ValueError, TypeError, AttributeError):
            path.unlink(missing_ok=True)
        else:
            yield path, part


def located(repo_id: str, filename: str, revision: str | None) -> Remote | None:
    """A repository's file as the hub has it now; None where it cannot be had, for whatever reason."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url

    if constants.HF_HUB_OFFLINE:
        return None
    try:
        found = get_hf_file_metadata(hf_hub_url(repo_id, filename, revision=revision), library_name="ziggurat")
    except Exception:  # the client meets it again at once, fetching the whole file, and `hub.download` tells of it
        return None
    if not (found.commit_hash and found.etag and found.size):
        return None
    url = hf_hub_url(repo_id, filename, revision=found.commit_hash)
    return Remote(repo_id, found.commit_hash, url, found.etag, found.size)


def header(remote: Remote) -> tuple[int, dict[str, str], Spans]:
    """Of a safetensors file on the hub, where its tensors' bytes begin, its metadata, and its tensors.

    No tensors of another file, and of one whose header cannot be right.
    """
    start = remote.read(0, min(FIRST, remote.size))
    begin = 8 + int.from_bytes(start[:8], "little")
    if start[8:9] != b"{" or begin > min(8 + HEADER_LIMIT, remote.size):
        return 0, {}, {}
    if len(start) < begin:
        start += remote.read(len(start), begin)
    try:
        found = json.loads(start[8:begin])
        metadata = dict(found.pop("__metadata__", {}))
        whole = {name: Span.of(said["dtype"], said["shape"], *said["data_offsets"]) for name, said in found.items()}
    except (ValueError, KeyError, TypeError, RecursionError):
        return 0, {}, {}
    if begin + max((span.stop for span in whole.values()), default=0) != remote.size:
        return 0, {}, {}
    return begin, metadata, whole


def write(path: Path, remote: Remote, begin: int, wanted: Spans, metadata: dict[str, str]) -> None:
    """Fetches the tensors `wanted` of a file, whose bytes begin at `begin`, and writes them as a file of their own.

    Raises `SafetensorError`, and leaves no file, where types, shapes and bytes do not fit one another.
    """
    from huggingface_hub.utils import tqdm
    from safetensors import safe_open

    moved, end = {}, 0
    for name, span in sorted(wanted.items(), key=lambda item: (-itemsize(item[1]), item[1].start)):
        moved[name] = span._replace(start=end, stop=end + span.stop - span.start)
        end = moved[name].stop
    told: dict[str, Any] = {"__metadata__": metadata}
    told |= {name: {"dtype": s.dtype, "shape": s.shape, "data_offsets": (s.start, s.stop)} for name, s in moved.items()}
    text = json.dumps(told).encode()
    text += b" " * (-len(text) % 8)
    ranges = list(pieces(wanted))
    count = sum(stop - start for start, stop in ranges)
    with aside(path) as part:
        with (
            part.open("wb") as file,
            tqdm(total=count, unit="B", unit_scale=True, desc=f"{len(wanted)} tensors of {remote.repo_id}") as bar,
        ):
            file.write(len(text).to_bytes(8, "little") + text)
            for start, stop in ranges:
                data = remote.read(begin + start, begin + stop)
                for name, span in wanted.items():
                    low, high = max(start, span.start), min(stop, span.stop)
                    if low < high:
                        file.seek(8 + len(text) + moved[name].start + low - span.start)
                        file.write(data[low - start : high - start])
                bar.update(stop - start)
        with safe_open(part, framework="pt"):
            pass  # what a damaged header led to is refused by the format's own reader


def itemsize(span: Span) -> float:
    """Bytes of one number. The wider types come first, so that each tensor lies at a multiple of its own."""
    return (span.stop - span.start) / max(1, math.prod(span.shape))


def pieces(spans: Spans) -> Iterator[tuple[int, int]]:
    """The ranges to ask for, [start, stop): what lies close together at once, and none longer than `PIECE`."""
    joined: list[tuple[int, int]] = []
    for start, stop in sorted((span.start, span.stop) for span in spans.values() if span.stop > span.start):
        if joined and start - joined[-1][1] < GAP:
            joined[-1] = joined[-1][0], max(stop, joined[-1][1])
        else:
            joined.append((start, stop))
    for start, stop in joined:
        for low in range(start, stop, PIECE):
            yield low, min(low + PIECE, stop)
