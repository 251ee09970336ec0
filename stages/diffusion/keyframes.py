"""Which frames are keyframes at which step, which of them each frame follows, and how much: a schedule, no pixels.

Source: TokenFlow (arXiv 2307.10373), section 4: one keyframe per interval, drawn anew at each timestep; section 4.2
for the blend weights.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from .choices import Blend


def intervals(frames: int, interval: int) -> list[range]:
    """The clip in pieces of `interval` frames; the last may be shorter, and none is ever dropped."""
    return [range(first, min(first + interval, frames)) for first in range(0, frames, interval)]


def allowed_places(piece: range, offsets: int) -> list[int]:
    """Up to `offsets` frames of one interval that may be its keyframe, evenly spread; all of them when it is short."""
    places = min(offsets, len(piece))
    return [piece[(2 * place + 1) * len(piece) // (2 * places)] for place in range(places)]


def support(frames: int, interval: int, offsets: int) -> NDArray[np.int32]:
    """Every frame that may ever be a keyframe, in order: only these can influence a keyframe."""
    return np.array([f for piece in intervals(frames, interval) for f in allowed_places(piece, offsets)], np.int32)


def drawn_keyframes(frames: int, interval: int, offsets: int, steps: int, seed: int) -> NDArray[np.int32]:
    """Keyframes (timestep, keyframe): at each step one of the allowed places of every interval."""
    places = [allowed_places(piece, offsets) for piece in intervals(frames, interval)]
    draws = torch.rand(steps, len(places), generator=torch.Generator().manual_seed(seed), dtype=torch.float64).numpy()
    return np.array([[own[int(u * len(own))] for own, u in zip(places, row, strict=True)] for row in draws], np.int32)


def neighbours(frames: int, keyframes: NDArray[np.int32]) -> NDArray[np.int32]:
    """Positions (frame, side) among `keyframes` (ascending) of the nearest at or before and at or after each frame.

    A keyframe has itself on both sides; a frame before the first or after the last has its one neighbour on both.
    """
    each = np.arange(frames)
    previous = np.searchsorted(keyframes, each, side="right") - 1
    following = np.searchsorted(keyframes, each, side="left")
    last = len(keyframes) - 1
    previous, following = np.where(previous < 0, following, previous), np.where(following > last, previous, following)
    return np.stack([previous, following], axis=1).astype(np.int32)


def blend_weights(frames: int, keyframes: NDArray[np.int32], blend: Blend) -> NDArray[np.float32]:
    """Weights (frame, side) of the previous and the next keyframe, summing to one.

    `linear` falls from 1 at the keyframe itself to 0 at the next one. `sigmoid` is the paper's σ(d₋/(d₋ + d₊)).
    `nearest` takes the nearer keyframe alone, the earlier of two as near; `previous` never looks at the next one.
    Differs: linear is the default, since the sigmoid never leaves 0.27–0.73 and so mixes 27 % of another keyframe into
    a keyframe itself, which reads as blur (tests/stages/test_keyframes.py::test_linear_weights_reach_one).
    """
    near = keyframes[neighbours(frames, keyframes)].astype(np.float64)
    each = np.arange(frames)
    before, after = np.abs(each - near[:, 0]), np.abs(near[:, 1] - each)
    one_sided = near[:, 0] == near[:, 1]
    share = np.divide(before, before + after, out=np.zeros(frames), where=~one_sided)  # 0 at k−, 1 at k+
    following = {
        "linear": share, "sigmoid": 1 / (1 + np.exp(-share)), "nearest": share > 0.5, "previous": np.zeros(frames),
    }[blend]  # fmt: skip
    following = np.where(one_sided, 0.0, following)
    return np.stack([1 - following, following], axis=1).astype(np.float32)
