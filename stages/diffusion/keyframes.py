"""Which frames are keyframes at which step, which of them each frame follows, and how much: a schedule, no pixels.

Source: TokenFlow (arXiv 2307.10373), section 4: one keyframe per interval, drawn anew at each timestep; section 4.2
for the blend weights.
Differs: no interval reaches over a cut, and no frame follows a keyframe of another shot, where nothing it shows can be
found (tests/stages/test_keyframes.py::test_no_frame_follows_a_keyframe_of_another_shot).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from .choices import Blend


def shots(frames: int, cuts: Sequence[int]) -> list[range]:
    """The clip in shots; `cuts` are the frames at which one begins, the first one left out."""
    return _pieces(0, frames, cuts)


def intervals(frames: int, interval: int, cuts: Sequence[int] = (), starts: Sequence[int] = ()) -> list[range]:
    """Every shot in pieces of `interval` frames; the last may be shorter, and none is ever dropped.

    starts   where the pieces begin, if it is not every `interval` frames; at every cut one begins in any case
    """
    return [
        piece
        for shot in shots(frames, cuts)
        for piece in _pieces(shot.start, shot.stop, starts or range(shot.start, shot.stop, interval))
    ]


def adaptive_starts(motion: Sequence[float], cuts: Sequence[int], interval: int) -> list[int]:
    """Where intervals begin (the first left out) so that about as much moves in each, as many as of equal length.

    An interval has half to twice `interval` frames, unless it is a whole shot. Among all such divisions of a shot it is
    the one with the least sum of squared motion; a quarter of the mean motion counts for every frame, so that what is
    almost still is divided too.

    motion   of each frame against the one before (frame), in any unit
    """
    steps = np.asarray(motion, float)
    travelled = np.concatenate([[0.0], np.cumsum(steps + 0.25 * steps.mean() + 1e-9)])
    return [
        start
        for shot in shots(len(motion), cuts)
        for start in _divided(travelled[shot.start : shot.stop + 1], interval, shot.start)
        if start
    ]


def _divided(travelled: NDArray[np.float64], interval: int, first: int) -> list[int]:
    """The starts of a shot's intervals, by dynamic programming over (intervals so far, where the last one ends).

    travelled   motion up to each frame of the shot, and up to its end     first   the shot's first frame
    """
    frames = len(travelled) - 1
    count = -(-frames // interval)
    lengths = range(1, frames + 1) if count == 1 else range(max(1, interval // 2), 2 * interval + 1)
    best, chosen = np.full(frames + 1, np.inf), []
    best[0] = 0
    for _ in range(count):
        costs = np.full((len(lengths), frames + 1), np.inf)
        for row, length in enumerate(lengths):
            if length <= frames:
                costs[row, length:] = best[:-length] + (travelled[length:] - travelled[:-length]) ** 2
        chosen.append(costs.argmin(0).astype(np.min_scalar_type(len(lengths))))
        best = costs.min(0)
    ends = [frames]
    for last in reversed(chosen):
        ends.append(ends[-1] - lengths[last[ends[-1]]])
    return [first + end for end in ends[:0:-1]]


def allowed_places(piece: range, offsets: int) -> list[int]:
    """Up to `offsets` frames of one interval that may be its keyframe, evenly spread; all of them when it is short."""
    places = min(offsets, len(piece))
    return [piece[(2 * place + 1) * len(piece) // (2 * places)] for place in range(places)]


def support(pieces: Sequence[range], offsets: int) -> NDArray[np.int32]:
    """Every frame that may ever be a keyframe, in order: only these can influence a keyframe."""
    return np.array([frame for piece in pieces for frame in allowed_places(piece, offsets)], np.int32)


def drawn_keyframes(pieces: Sequence[range], offsets: int, steps: int, seed: int) -> NDArray[np.int32]:
    """Keyframes (timestep, keyframe): at each step one of the allowed places of every interval of `intervals`."""
    places = [allowed_places(piece, offsets) for piece in pieces]
    draws = torch.rand(steps, len(places), generator=torch.Generator().manual_seed(seed), dtype=torch.float64).numpy()
    return np.array([[own[int(u * len(own))] for own, u in zip(places, row, strict=True)] for row in draws], np.int32)


def neighbours(frames: int, keyframes: NDArray[np.int32], cuts: Sequence[int] = ()) -> NDArray[np.int32]:
    """Positions (frame, side) among `keyframes` (ascending) of the nearest at or before and at or after each frame.

    A keyframe has itself on both sides; a frame before the first or after the last of its shot has its one neighbour on
    both. Every shot between `cuts` has a keyframe.
    """
    each = np.arange(frames)
    previous = np.searchsorted(keyframes, each, side="right") - 1
    following = np.searchsorted(keyframes, each, side="left")
    shot_of = np.searchsorted(np.asarray(cuts, np.int32), keyframes, side="right")
    own = np.searchsorted(np.asarray(cuts, np.int32), each, side="right")
    last = len(keyframes) - 1
    no_previous = (previous < 0) | (shot_of[previous] != own)
    no_following = (following > last) | (shot_of[np.minimum(following, last)] != own)
    previous, following = np.where(no_previous, following, previous), np.where(no_following, previous, following)
    return np.stack([previous, following], axis=1).astype(np.int32)


def blend_weights(
    frames: int, keyframes: NDArray[np.int32], blend: Blend, cuts: Sequence[int] = ()
) -> NDArray[np.float32]:
    """Weights (frame, side) of the previous and the next keyframe, summing to one.

    `linear` falls from 1 at the keyframe itself to 0 at the next one. `sigmoid` is the paper's σ(d₋/(d₋ + d₊)).
    `nearest` takes the nearer keyframe alone, the earlier of two as near; `previous` never looks at the next one.
    Differs: linear is the default, since the sigmoid never leaves 0.27–0.73 and so mixes 27 % of another keyframe into
    a keyframe itself, which reads as blur (tests/stages/test_keyframes.py::test_linear_weights_reach_one).
    """
    near = keyframes[neighbours(frames, keyframes, cuts)].astype(np.float64)
    each = np.arange(frames)
    before, after = np.abs(each - near[:, 0]), np.abs(near[:, 1] - each)
    one_sided = near[:, 0] == near[:, 1]
    share = np.divide(before, before + after, out=np.zeros(frames), where=~one_sided)  # 0 at k−, 1 at k+
    following = {
        "linear": share, "sigmoid": 1 / (1 + np.exp(-share)), "nearest": share > 0.5, "previous": np.zeros(frames),
    }[blend]  # fmt: skip
    following = np.where(one_sided, 0.0, following)
    return np.stack([1 - following, following], axis=1).astype(np.float32)


def _pieces(start: int, stop: int, starts: Sequence[int]) -> list[range]:
    """The frames from `start` to `stop`, divided at those of `starts` that lie between them."""
    return [range(*ends) for ends in pairwise([start, *(at for at in starts if start < at < stop), stop])]
