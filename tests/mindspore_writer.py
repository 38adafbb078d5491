"""Writes MindSpore's `.ckpt` format, by hand: protobuf without its library, for the tests of the reader."""

from __future__ import annotations

import zlib


def varint(number):
    low = number & 0x7F
    return bytes([low]) if number < 0x80 else bytes([low | 0x80]) + varint(number >> 7)


def field(number, content):
    """A field of bytes, text, or (an int) a number."""
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    content = content.encode() if isinstance(content, str) else content
    return varint(number << 3 | 2) + varint(len(content)) + content


def value(name, content, kind="Float32", shape=()):
    tensor = b"".join(field(1, n) for n in shape) + field(2, kind) + field(3, content)
    return field(1, field(1, name) + field(2, tensor))


def value_of(name, array):
    kinds = {"float32": "Float32", "float16": "Float16", "int64": "Int64", "bool": "Bool", "uint8": "UInt8"}
    return value(name, array.tobytes(), kinds[array.dtype.name], array.shape)


def with_checksum(data):
    return data + b"crc_num" + zlib.crc32(data).to_bytes(10, "big")
