"""Edges of pictures, as the pocket model's ControlNet is shown them, and how well a picture keeps to them."""

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["THRESHOLDS", "agreement", "edges"]

THRESHOLDS = (100, 200)  # Canny's, the customary ones


def edges(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Canny edges, 0 or 255, (frame, height, width) of pictures rgb (frame, height, width, channel) uint8."""
    return np.stack([cv2.Canny(np.ascontiguousarray(picture), *THRESHOLDS) for picture in rgb])


def agreement(wanted: NDArray[np.uint8], found: NDArray[np.uint8]) -> float:
    """F1 of two edge maps (frame, height, width), mean over frames; a pixel off is no miss, as lines are one wide."""
    return float(np.mean([_f1(one > 0, other > 0) for one, other in zip(wanted, found, strict=True)]))


def _f1(wanted: NDArray[np.bool_], found: NDArray[np.bool_]) -> float:
    recall, precision = _share_near(wanted, found), _share_near(found, wanted)
    return 2 * precision * recall / max(precision + recall, 1e-9)


def _share_near(lines: NDArray[np.bool_], others: NDArray[np.bool_]) -> float:
    """The share of edge pixels that have an edge of `others` at most a pixel away."""
    near = cv2.dilate(others.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    return float((lines & near).sum() / max(1, lines.sum()))
