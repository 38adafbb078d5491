"""From how many queries at once an index of FAISS is worth building: exact search against it, in seconds of the CPU.

    OMP_NUM_THREADS=1 python benchmarks/neighbours.py --vectors 10000 100000 --width 384

Vectors are in clusters of about 50, as images of like things are; queries are vectors with noise. Both ways read the same
blocks of float16 and end with the same ten neighbours, or with the share of them that is printed. Time is that of the CPU,
summed over threads, so that a machine with other work gives the same ratios. Building is of the index; that of a search
of one query more is what the queries add. `line` is the number of queries at which both cost the same.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from ziggurat.extraction.neighbours import BLOCK, nearest, nearest_by_faiss

K = 10


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--vectors", type=int, nargs="+", default=[10_000, 100_000])
    arguments.add_argument("--queries", type=int, default=1_000)
    arguments.add_argument("--width", type=int, default=384)
    asked = arguments.parse_args()
    print(f"load {os.getloadavg()[0]:.1f}; {asked.width} numbers a vector, {K} neighbours, {asked.queries} queries, seconds of the CPU")
    print(f"{'vectors':>9}  {'exact, 1':>9}  {'exact':>7}  {'faiss, 1':>9}  {'faiss':>7}  {'recall':>6}  {'exact / faiss':>13}  {'line':>6}")
    for count in asked.vectors:
        vectors, queries = clustered(count, asked.queries, asked.width)
        blocks = partial(in_blocks, vectors)
        exact_one, _ = seconds(nearest, blocks, queries[:1], K)
        exact, (rows, _) = seconds(nearest, blocks, queries, K)
        faiss_one, _ = seconds(nearest_by_faiss, blocks, queries[:1], K)
        faiss, (found, _) = seconds(nearest_by_faiss, blocks, queries, K)
        recall = np.mean([len(set(one) & set(other)) / K for one, other in zip(rows, found)])
        # both are a part that every search pays, and a part for each query
        a_query = ((exact - exact_one) - (faiss - faiss_one)) / (asked.queries - 1)
        line = f"{(faiss_one - exact_one) / a_query:,.0f}" if a_query > 0 else "none"
        print(f"{count:>9,}  {exact_one:>9.3f}  {exact:>7.3f}  {faiss_one:>9.3f}  {faiss:>7.3f}  {recall:>6.3f}  {exact / faiss:>13.2f}  {line:>6}")


def clustered(count: int, queries: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Vectors (N D) float16 and queries (Q D) float32."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((max(16, count // 50), width), np.float32)
    vectors = centres[random.integers(len(centres), size=count)]
    vectors += 0.7 * random.standard_normal((count, width), np.float32)
    asked = vectors[random.integers(count, size=queries)] + 0.3 * random.standard_normal((queries, width), np.float32)
    return vectors.astype(np.float16), asked


def in_blocks(vectors: np.ndarray, start: int) -> Any:
    for first in range(start, len(vectors), BLOCK):
        yield np.arange(first, min(first + BLOCK, len(vectors))), vectors[first : first + BLOCK]


def seconds(call: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    began = time.process_time()
    result = call(*arguments)
    return time.process_time() - began, result


if __name__ == "__main__":
    main()
