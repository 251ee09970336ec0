"""How many frames a stored chunk holds, and how rows of it are read back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    """array[step, frames], of an array (timestep, frame, …), see `frames_of`."""
    return _in_spans(lambda first, stop: array[step, first:stop], frames)


def frames_of(array: Array, frames: Sequence[int]) -> np.ndarray[Any, Any]:
    """array[frames], of an array (frame, …): in any order, each stored chunk read about once.

    Read in as few ranges as leave no block of frames between them out.
    """
    return _in_spans(lambda first, stop: array[first:stop], frames)


def _in_spans(read: Callable[[int, int], np.ndarray[Any, Any]], frames: Sequence[int]) -> np.ndarray[Any, Any]:
    ordered = sorted(set(frames))
    breaks = [0, *(n for n in range(1, len(ordered)) if ordered[n] - ordered[n - 1] > FRAMES_PER_BLOCK), len(ordered)]
    spans = [(ordered[first], ordered[last - 1] + 1) for first, last in pairwise(breaks)]
    found = np.concatenate([read(start, stop) for start, stop in spans])
    place = {frame: row for row, frame in enumerate(f for start, stop in spans for f in range(start, stop))}
    in_order: np.ndarray[Any, Any] = found[[place[frame] for frame in frames]]
    return in_order
