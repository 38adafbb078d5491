"""What a backend makes of a view of a network: a program for images of one size."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import BadArgument
from .memory import OutputMemory

__all__ = ["PRECISIONS", "PartsProgram", "Program", "Recipe", "Unavailable", "in_brief", "is_of_memory", "one_thread_each",
           "torch_threads"]

PRECISIONS = ("fp32", "bf16", "fp16", "int8")


class Unavailable(BadArgument):
    """A backend that cannot run this network, or not here; the message says why and what can."""


@dataclass(frozen=True)
class Recipe:
    """How a view is computed: by which backend, in which arithmetic, in which memory layout, how many images at once.

    `part` images are computed in one thread, as many parts at a time as there are threads; with 0 the whole batch is
    computed at once, by all threads. `layout`, of torch's backends, is 'channels_last' or 'contiguous'.
    """

    backend: str
    precision: str = "fp32"
    part: int = 0
    layout: str = ""

    def __str__(self) -> str:
        how = [self.backend, self.precision, self.layout.replace("_", " ")]
        if self.part:
            how.append("one image a thread" if self.part == 1 else f"{self.part} images a thread")
        return ", ".join(filter(None, how))


class Program(ABC):
    """A view for batches of one shape, type and device: those of the images that it was made with.

    With parts it takes any whole number of them, up to that batch. It gives a tuple of float32 tensors, in the order of `view.names`, which are the caller's to keep.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    @abstractmethod
    def __call__(self, images: Tensor) -> tuple[Tensor, ...]: ...

    def close(self) -> None:  # noqa: B027
        """Lets go of threads and memory; the program is not called again. Most hold nothing that goes by itself."""


class PartsProgram(Program):
    """A program that computes parts of a batch in a thread each, and writes them into one tensor an output."""

    def __init__(self, recipe: Recipe, shapes: Sequence[tuple[int, ...]], threads: int) -> None:
        super().__init__(recipe)
        assert recipe.part, "a recipe without parts"
        self.shapes = tuple(shapes)
        self.memory = OutputMemory()
        self.pool = ThreadPoolExecutor(threads, f"ziggurat-{recipe.backend}")

    @abstractmethod
    def write(self, images: Tensor, outputs: Sequence[Tensor]) -> None:
        """Computes one part (part C H W) into `outputs`, slices of the batch's outputs; called in several threads at once."""

    def empty(self, batch: int) -> tuple[Tensor, ...]:
        """Memory for the outputs of `batch` images; in the order in which parts have theirs, writing is quickest."""
        return tuple(self.memory.empty((batch, *shape)) for shape in self.shapes)

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        outputs = self.empty(len(images))
        starts = range(0, len(images), self.recipe.part)
        slices = [slice(start, start + self.recipe.part) for start in starts]
        futures = [self.pool.submit(self.write, images[rows], [output[rows] for output in outputs]) for rows in slices]
        errors = [error for error in (future.exception() for future in futures) if error is not None]
        if errors:
            raise errors[0]
        return outputs

    def close(self) -> None:
        self.pool.shutdown()


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Has torch compute each call of this thread in `number` threads, for as long as the block lasts.

    It is the number of threads that begin to compute within the block, too; others keep theirs.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def one_thread_each() -> AbstractContextManager[None]:
    """Has torch compute each call in the thread that makes it, for as long as the block lasts."""
    return torch_threads(1)


def is_of_memory(error: BaseException) -> bool:
    """Whether `error` says that there is not enough memory, on a GPU or in the host."""
    signs = ("can't allocate memory", "not enough memory", "out of memory", "bad_alloc", "Cannot allocate memory")
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs))


def in_brief(error: BaseException) -> str:
    """The kind of an error and the first 200 characters of what it says."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"
