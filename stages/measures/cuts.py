"""Where a clip's shots begin, and how much moves from one frame to the next, from its pictures alone.

Source: PySceneDetect's AdaptiveDetector: a cut is a change of colours that is large, and large beside those around it,
so fast motion is none. On made-up clips it found all of 120 hard cuts and no other; dissolves it does not find, of a
fade through black it finds the black, and a flash counts as a shot of its own (tests/stages/test_cuts.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import cv2
import numpy as np
from scenedetect import AdaptiveDetector, FrameTimecode

from .optical_flow import Dis

LONGEST_SIDE = 256  # pixels; larger pictures are shrunk, since cuts are large

Rgb = np.ndarray[Any, Any]


def cuts_of(frames: Iterable[Rgb]) -> list[int]:
    """The frames at which a new shot begins, ascending; not among the first or last two, which have no neighbours.

    frames   rgb (height, width, channel) uint8, in order
    """
    detector, found = AdaptiveDetector(min_scene_len=1), []
    for number, rgb in enumerate(frames):
        bgr = np.ascontiguousarray(shrunk(rgb)[..., ::-1])
        found += [cut.frame_num for cut in detector.process_frame(FrameTimecode(number, fps=1.0), bgr)]
    return found


def motion_of(frames: Iterable[Rgb]) -> list[float]:
    """How far the points of a frame lie from where they were one frame before, on average (frame): share of the width.

    The first frame's is 0. Optical flow is OpenCV's DIS, on pictures as small as `shrunk` makes them.

    frames   rgb (height, width, channel) uint8, in order
    """
    estimator, found, before = Dis(), [], None
    for rgb in map(shrunk, frames):
        moved = 0.0 if before is None else float(np.linalg.norm(estimator(rgb, before), axis=-1).mean()) / rgb.shape[1]
        found.append(round(moved, 6))
        before = rgb
    return found


def shrunk(rgb: Rgb, longest_side: int = LONGEST_SIDE) -> Rgb:
    """The picture (height, width, channel) uint8 with no side longer than that, averaged over areas."""
    height, width = rgb.shape[:2]
    scale = longest_side / max(height, width)
    if scale >= 1:
        return rgb
    return cv2.resize(rgb, (max(1, round(width * scale)), max(1, round(height * scale))), interpolation=cv2.INTER_AREA)
