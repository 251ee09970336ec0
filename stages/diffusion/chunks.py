"""How many frames a stored chunk holds, and how rows of it are read back."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from store.schemas import Array

CHUNK_BYTES = 4 << 20
FRAMES_PER_BLOCK = 16


def frames_per_chunk(frames: int, bytes_per_frame: int) -> int:
    """A power of two up to 16, about 4 MiB per chunk: files are few, and blocks of 16 frames cover whole chunks."""
    fitting = max(1, min(FRAMES_PER_BLOCK, CHUNK_BYTES // max(1, bytes_per_frame)))
    return min(frames, 1 << (fitting.bit_length() - 1))


def blocks_of(frames: int) -> list[range]:
    """The clip in blocks of 16 frames, the unit in which stages walk over it."""
    return [range(first, min(first + FRAMES_PER_BLOCK, frames)) for first in range(0, frames, FRAMES_PER_BLOCK)]


def rows(array: Array, step: int, frames: Sequence[int]) -> np.ndarray[Any, Any]:
    """array[step, frames]: frames in any order, read in as few ranges as leave no block of frames between them out."""
    ordered = sorted(set(frames))
    breaks = [0, *(n for n in range(1, len(ordered)) if ordered[n] - ordered[n - 1] > FRAMES_PER_BLOCK), len(ordered)]
    spans = [(ordered[first], ordered[last - 1] + 1) for first, last in pairwise(breaks)]
    read = np.concatenate([array[step, start:stop] for start, stop in spans])
    place = {frame: row for row, frame in enumerate(f for start, stop in spans for f in range(start, stop))}
    chosen: np.ndarray[Any, Any] = read[[place[frame] for frame in frames]]
    return chosen
