"""What can go wrong with one image, in words that programs can count."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["CAUSES", "STAGES", "Failure"]

STAGES = ("read", "decode", "preprocess", "forward", "nonfinite")

CAUSES = {
    "missing": "there is nothing at the address any more",
    "denied": "the address may not be read",
    "unavailable": "reading failed again and again, though it may succeed another time; never a statement about the image",
    "empty": "zero bytes",
    "truncated": "the file ends too early",
    "not_an_image": "no format that Pillow knows",
    "corrupt": "a known format whose content cannot be decoded",
    "too_large": "more pixels than Pillow's limit against decompression bombs",
    "timeout": "decoding took longer than allowed, and its process was ended",
    "signal": "the process that decoded it died of a signal, twice",
    "memory": "there was not enough memory for this image alone",
    "nan": "the network put out NaN or infinity for it",
    "overflow": "a value is beyond what float16 holds; float32 would keep it",
}


class Failure(NamedTuple):
    """Why an image has no row: at which stage, of which cause (of `CAUSES`), in which words.

    `bytes` is the length of what was read (-1 if nothing was) and `sha256` its hash, so that a bad file can be told from
    one that was replaced since. Messages hold nothing that another run would write differently.
    """

    stage: str
    cause: str
    message: str
    bytes: int = -1
    sha256: str = ""
