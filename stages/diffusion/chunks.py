"""How many frames a stored chunk holds, and how rows of it are read back."""

from __future__ import annotations

from collections.abc import Sequence
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
    """array[step, frames]: frames in any order, in one read of the range that they span."""
    first = min(frames)
    spanned: np.ndarray[Any, Any] = array[step, first : max(frames) + 1]
    return spanned[[frame - first for frame in frames]]
