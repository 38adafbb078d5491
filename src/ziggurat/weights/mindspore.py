"""MindSpore's `.ckpt` files, read without MindSpore and without trusting them.

The format is one protobuf message without magic number or version: a list of values, each a name with dimensions, a
type and bytes. Everything that a file says of itself is checked against its size before memory is taken for it, and
whatever the format does not have is refused. A tensor whose bytes lie aligned is a view of the mapped file (private:
writing to it changes the copy in memory); the others are copied.
"""

from __future__ import annotations

import math
import mmap
import os
import re
import zlib
from collections.abc import Collection, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from ziggurat.errors import CheckpointMismatch, SourceUnavailable

__all__ = ["is_mindspore", "own_gammas", "read_mindspore", "read_tensors", "state_dicts", "torch_names"]

Buffer: TypeAlias = "mmap.mmap | bytearray"  # what tensors may share memory with: it can be written

# the ways in which protobuf stores the fields that occur here
NUMBER, BYTES = 0, 2

DTYPES = {
    "Bool": torch.bool,
    "Int4": torch.uint8,  # two to a byte, as they are packed
    "Int8": torch.int8,
    "UInt8": torch.uint8,
    "Int16": torch.int16,
    "UInt16": torch.uint16,
    "Int32": torch.int32,
    "UInt32": torch.uint32,
    "Int64": torch.int64,
    "UInt64": torch.uint64,
    "Float16": torch.float16,
    "BFloat16": torch.bfloat16,
    "Float32": torch.float32,
    "Float64": torch.float64,
    "Complex64": torch.complex64,
    "Complex128": torch.complex128,
}
NO_TENSORS = ("str", "random_op")  # text that the training added, the state of a random generator

# What no network comes near: more is taken for damage, so that reading ends soon whatever the file.
MAX_VALUES = 2**17
MAX_NAME = 4096  # bytes
MAX_DIMS = 32
MAX_ELEMENTS = 2**48

CHECKSUM = b"crc_num"  # at the end of a file, where it was asked for: this, and a CRC-32 as ten bytes
CHECKSUM_SIZE = len(CHECKSUM) + 10

# what encrypted files begin with: a number that names the cipher
CIPHERS = {(0x7F3A5ED8 + i).to_bytes(4, "little"): cipher for i, cipher in enumerate(("AES-GCM", "AES-CBC", "SM4-CBC"))}

AVERAGED = "ema."
# What optimizers keep of every parameter, `moments.conv1.weight` beside `conv1.weight`, and what they keep once.
KEPT = re.compile(
    r"accum(_update)?|(adam|lamb|nadam)_[mv]|lion_m|(max_)?exp_avg(_sq)?|moments?|moment[123]|mean_(grad|square)|"
    r"prev(_gradient)?|linear|stat|step_size|swap|vhat"
)
BOOKKEEPING = re.compile(
    r"(learning_rate|weight_decay)(_group_\d+)?|momentum|beta[12]_power|mu_schedule|afactor_step|(cov|global)_step|"
    r"(epoch|step)_num|updates|scale_sense|loss_scale|current_iterator_step|last_overflow_iterator_step"
)

# The parameters of a normalisation, by torch's names.
AFFINE = {"gamma": "weight", "beta": "bias"}
STATISTICS = {"moving_mean": "running_mean", "moving_variance": "running_var"}


class Malformed(ValueError):
    """What the format does not have."""


class Piece(NamedTuple):
    """One value of a file: a tensor, or a part of the one that values of the same name before and after it make."""

    name: str
    kind: str
    shape: tuple[int, ...]
    content: range


def is_mindspore(start: bytes) -> bool:
    """Whether a file that begins with these bytes (some 16 are enough) is a MindSpore checkpoint, encrypted or not."""
    if start[:4] in CIPHERS:
        return True
    try:
        if start[:1] != b"\x0a":
            return False
        length, at = varint(start, 1, len(start))
        name_length, name_at = varint(start, at + 1, len(start))
    except Malformed:
        return False
    name = start[name_at : name_at + name_length]
    return start[at : at + 1] == b"\x0a" and 0 < name_length < length - (name_at - at) and min(name, default=0) >= 0x20


def read_mindspore(path: str | os.PathLike[str]) -> dict[str, dict[str, Tensor]]:
    """The state dicts of a MindSpore checkpoint, under torch's names where these are the same for every network.

    `state_dict` holds the network, `state_dict_ema` its averaged weights (`ema.`), if the file has them; what an
    optimizer kept is left out. Raises what `read_tensors` raises.
    """
    return state_dicts(read_tensors(path))


def read_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """All tensors of a MindSpore checkpoint under its own names; text in it is passed over.

    Parts of a tensor that the writer split (above 512 MiB) are joined; a checksum is compared where the file has one.
    Four-bit integers stay packed, two to a byte (uint8). Raises `SourceUnavailable` for a file that is encrypted,
    damaged or cut off, `CheckpointMismatch` for one with hash tables (`MapTensor`) in it.
    """
    path = Path(path)
    try:
        with path.open("rb") as stream:
            data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
    except (OSError, ValueError) as error:  # an empty file cannot be mapped
        raise SourceUnavailable(f"{path} cannot be opened: {error}.") from error
    cipher = CIPHERS.get(data[:4])
    if cipher:
        raise SourceUnavailable(
            f"{path} is encrypted ({cipher}): load it in MindSpore with its key (dec_key=), save it there without one "
            "(no enc_key=), and give that file."
        )
    try:
        return parsed(data)
    except ValueError as error:
        raise SourceUnavailable(
            f"{path} ({len(data)} bytes) is a damaged MindSpore checkpoint: {error}. Fetch it again."
        ) from error
    except NotImplementedError as error:
        raise CheckpointMismatch(f"{path} holds {error}, which no vision network has; save it without.") from error


def state_dicts(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """What `read_mindspore` returns, of tensors under MindSpore's names."""
    averaged = {name[len(AVERAGED) :]: tensor for name, tensor in tensors.items() if name.startswith(AVERAGED)}
    network = {
        name: tensor
        for name, tensor in tensors.items()
        if not name.startswith(AVERAGED) and not is_of_training(name, tensors)
    }
    found = {"state_dict": torch_names(network), "state_dict_ema": torch_names(averaged)}
    return {key: part for key, part in found.items() if part}


def is_of_training(name: str, names: Mapping[str, Any]) -> bool:
    """Whether a tensor is an optimizer's, not the network's."""
    prefix, dot, parameter = name.partition(".")
    if dot:
        return parameter in names and KEPT.fullmatch(prefix) is not None
    return BOOKKEEPING.fullmatch(name) is not None


def torch_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under torch's names for the parameters and running statistics of normalisations.

    A normalisation is what has both of a pair in one shape: a `gamma` alone is a layer scale, and keeps its name.
    """
    renamed = {}
    for name, tensor in tensors.items():
        owner, dot, leaf = name.rpartition(".")
        for pair in (AFFINE, STATISTICS):
            if leaf in pair:
                shapes = {tensors[other].shape if other in tensors else None for other in (owner + dot + n for n in pair)}
                if shapes == {tensor.shape} and not any(owner + dot + new in tensors for new in pair.values()):
                    leaf = pair[leaf]
        renamed[owner + dot + leaf] = tensor
    return renamed


def own_gammas(tensors: dict[str, Tensor], own: Collection[str]) -> dict[str, Tensor]:
    """Tensors with `gamma` and `beta` where the model itself, of the names `own`, calls its parameters so."""
    back = {
        f"{path}.{new}": f"{path}.{old}"
        for path, _, leaf in (name.rpartition(".") for name in own if name not in tensors)
        for old, new in AFFINE.items()
        if leaf == old and f"{path}.{new}" not in own
    }
    return {back.get(name, name): tensor for name, tensor in tensors.items()}


def parsed(data: Buffer) -> dict[str, Tensor]:
    """The tensors in the bytes of a file; raises `ValueError` for whatever the format does not have."""
    tensors = {}
    for name, pieces in groupby(pieces_of(data, checked_size(data)), key=lambda piece: piece.name):
        parts = list(pieces)
        if parts[-1].kind not in NO_TENSORS:
            tensors[name] = joined(data, parts)
    return tensors


def checked_size(data: Buffer) -> int:
    """The size of the message: the file's, less that of a checksum, which is compared."""
    size = len(data) - CHECKSUM_SIZE
    if size < 0 or data[size : size + len(CHECKSUM)] != CHECKSUM:
        return len(data)
    stated = int.from_bytes(data[size + len(CHECKSUM) :], "big")
    with memoryview(data) as view:
        found = zlib.crc32(view[:size])
    if found != stated:
        raise Malformed(f"its checksum is {found:#x} where {stated:#x} is stated")
    return size


def pieces_of(data: Buffer, size: int) -> Iterator[Piece]:
    """The values of a file, in its order."""
    for count, (_, value) in enumerate(fields(data, range(size), {1: BYTES})):
        if count == MAX_VALUES:
            raise Malformed(f"it has more than {MAX_VALUES} values")
        entry = message(data, value, {1: BYTES, 2: BYTES, 3: BYTES})
        name = text(data, only(entry, 1, "a value's name"))
        if 3 in entry:
            raise NotImplementedError(f"a hash table ({name!r:.100}, a MapTensor)")
        tensor = message(data, only(entry, 2, f"the tensor of {name!r:.100}"), {1: NUMBER, 2: BYTES, 3: BYTES})
        kind = text(data, only(tensor, 2, f"the type of {name!r:.100}"))
        if kind not in DTYPES and kind not in NO_TENSORS:
            raise Malformed(f"{name!r:.100} is of type {kind!r:.100}; known are {', '.join(DTYPES)}")
        yield Piece(name, kind, tuple(tensor.get(1, ())), only(tensor, 3, f"the content of {name!r:.100}"))


def joined(data: Buffer, parts: list[Piece]) -> Tensor:
    """The tensor that values of one name make together."""
    name, kind, shape, content = parts[-1]
    if any((part.kind, part.shape) != (kind, shape) for part in parts):
        raise Malformed(f"the parts of {name!r:.100} differ in shape or type")
    dtype = DTYPES[kind]
    size = sum(len(part.content) for part in parts)
    if shape == (0,) and size == dtype.itemsize:
        shape = ()  # as MindSpore takes it
    if math.prod(shape) * dtype.itemsize != size or math.prod(max(n, 1) for n in shape) > MAX_ELEMENTS:
        raise Malformed(f"{name!r:.100} of type {kind} and shape {shape} has {size} bytes")
    if size and len(parts) == 1 and content.start % dtype.itemsize == 0:
        flat = view(data, content, dtype)
    else:
        flat = torch.empty(size // dtype.itemsize, dtype=dtype)
        at = 0
        for part in parts:
            if part.content:  # torch cannot view nothing
                flat.view(torch.uint8)[at : at + len(part.content)] = view(data, part.content, torch.uint8)
                at += len(part.content)
    if dtype == torch.bool and size and flat.view(torch.uint8).max() > 1:
        raise Malformed(f"{name!r:.100} holds what is neither true nor false")
    return flat.reshape(shape)


def view(data: Buffer, content: range, dtype: torch.dtype) -> Tensor:
    """Bytes of the mapped file as a vector that shares their memory."""
    return torch.frombuffer(data, dtype=dtype, count=len(content) // dtype.itemsize, offset=content.start)


# ---------------------------------------------------------------- protobuf


def message(data: Buffer, span: range, known: Mapping[int, int]) -> dict[int, list[Any]]:
    """The fields of a message by their numbers, each a list of what it was given."""
    found: dict[int, list[Any]] = {}
    for number, value in fields(data, span, known):
        values = found.setdefault(number, [])
        if len(values) == MAX_DIMS:
            raise Malformed(f"field {number} at byte {span.start} is there more than {MAX_DIMS} times")
        values.append(value)
    return found


def fields(data: Buffer, span: range, known: Mapping[int, int]) -> Iterator[tuple[int, Any]]:
    """The fields of a message in order: numbers as they are, bytes as the range in which they lie.

    `known` says which fields there are and how each is stored; another raises `Malformed`.
    """
    at, stop = span.start, span.stop
    while at < stop:
        start = at
        key, at = varint(data, at, stop)
        number, wire = key >> 3, key & 7
        if known.get(number) != wire:
            raise Malformed(f"there is no field {number} of wire type {wire} (byte {start})")
        value, at = varint(data, at, stop)
        if wire == NUMBER:
            yield number, value
            continue
        if value > stop - at:
            raise Malformed(f"{value} bytes are announced at byte {start} where {stop - at} are left")
        yield number, range(at, at + value)
        at += value


def varint(data: Buffer | bytes, at: int, stop: int) -> tuple[int, int]:
    """The number below 2^63 that starts at a byte, seven bits to a byte and the lowest first, and where it ends."""
    value = 0
    for shift in range(0, 63, 7):
        if at >= stop:
            raise Malformed(f"it ends within a number (byte {at})")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise Malformed(f"the number that ends at byte {at} is negative or too large")


def only(found: Mapping[int, list[Any]], number: int, what: str) -> range:
    """The value of a field that must be there once."""
    values = found.get(number, [])
    if len(values) != 1:
        raise Malformed(f"{what} is {'missing' if not values else 'there more than once'}")
    span: range = values[0]
    return span


def text(data: Buffer, span: range) -> str:
    if len(span) > MAX_NAME:
        raise Malformed(f"a name at byte {span.start} is {len(span)} bytes long")
    return data[span.start : span.stop].decode()
