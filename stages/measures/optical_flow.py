"""Optical flow of clips whose true motion nobody knows, and which points are hidden.

Source: Kroeger et al., arXiv 1603.03590 (DIS); Teed & Deng, arXiv 2003.12039 (RAFT); Sundaram, Brox & Keutzer, ECCV
2010, section 4, for the forward–backward check.
"""

from __future__ import annotations

from contextlib import suppress
from importlib.util import find_spec
from typing import Any, Protocol

import cv2
import numpy as np
import torch

from store.errors import InputError

from .frames import Motion, warped

Rgb = np.ndarray[Any, Any]
DIS_SIDE = 128  # pixels; a smaller picture is enlarged until its shorter side has them (benchmarks/flow_estimators.py)
RAFT_SIDE = 128  # RAFT's smallest side; both sides are multiples of 8


class Estimator(Protocol):
    """Finds where the points of one picture are in another."""

    name: str

    def __call__(self, source: Rgb, target: Rgb) -> Rgb:
        """Displacement (height, width, 2) float32, (x, y) in pixels, of source's pixels; rgb (h, w, 3) uint8 each."""


class Dis:
    """OpenCV's dense inverse search, on small pictures enlarged: its coarsest scale needs something to look at."""

    name = "OpenCV DIS"

    def __init__(self, side: int = DIS_SIDE, preset: int = cv2.DISOPTICAL_FLOW_PRESET_MEDIUM) -> None:
        self.side, self.search = side, cv2.DISOpticalFlow.create(preset)

    def __call__(self, source: Rgb, target: Rgb) -> Rgb:
        height, width = source.shape[:2]
        scale = max(1.0, self.side / min(height, width))
        size = round(width * scale), round(height * scale)
        grey = [
            cv2.cvtColor(cv2.resize(rgb, size, interpolation=cv2.INTER_CUBIC), cv2.COLOR_RGB2GRAY)
            for rgb in (source, target)
        ]
        large: Any = self.search.calc(grey[0], grey[1], None)
        found = cv2.resize(large, (width, height), interpolation=cv2.INTER_AREA)
        return (found * [width / size[0], height / size[1]]).astype(np.float32)


class Raft:
    """torchvision's RAFT with its published weights, where they can be had. Not tried on the machine it was written on.

    raises   InputError where torchvision or the weights are missing
    """

    name = "RAFT"

    def __init__(self) -> None:
        try:
            from torchvision.models.optical_flow import Raft_Large_Weights, raft_large

            self.model = raft_large(weights=Raft_Large_Weights.DEFAULT).eval()
        except (ImportError, RuntimeError, OSError) as error:  # not installed, for another torch, or no weights
            reason = " ".join(str(error).split())[:160]
            raise InputError(
                f"optical flow by raft needs torchvision, fit for this torch, and its weights ({reason}); use dis"
            ) from None

    @torch.inference_mode()
    def __call__(self, source: Rgb, target: Rgb) -> Rgb:
        height, width = source.shape[:2]
        scale = max(1.0, RAFT_SIDE / min(height, width))
        size = [8 * round(side * scale / 8) for side in (height, width)]
        pair = torch.from_numpy(np.stack([source, target])).permute(0, 3, 1, 2).float() / 127.5 - 1
        large = torch.nn.functional.interpolate(pair, size, mode="bilinear", antialias=True)
        found = self.model(large[:1], large[1:])[-1]
        small = torch.nn.functional.interpolate(found, (height, width), mode="bilinear", antialias=True)
        return (small[0].permute(1, 2, 0) * torch.tensor([width / size[1], height / size[0]])).numpy()


def choose(method: str = "auto") -> Estimator:
    """By name: "raft", "dis", or "auto": RAFT where torchvision and its weights are to be had, else DIS."""
    if method not in ("auto", "raft", "dis"):
        raise InputError(f"no optical flow {method!r}; have auto, raft, dis")
    if method == "raft":
        return Raft()
    if method == "auto" and find_spec("torchvision") is not None:
        with suppress(InputError):
            return Raft()
    return Dis()


def displacement(source: Rgb, target: Rgb, estimator: Estimator) -> tuple[Rgb, Rgb]:
    """Where source's points are in target, (height, width, 2) float32 pixels, and whether they are hidden there (h, w).

    A point is hidden when it leaves the picture, or when the way there and back does not come home:
    |f + b∘f|² > 0.01 (|f|² + |b∘f|²) + 0.5.
    """
    there, back = estimator(source, target), estimator(target, source)
    height, width = source.shape[:2]
    returned = warped(torch.from_numpy(back)[None], torch.from_numpy(there)[None])[0].numpy()
    long = (there**2).sum(-1) + (returned**2).sum(-1)
    astray = ((there + returned) ** 2).sum(-1) > 0.01 * long + 0.5
    rows, columns = np.mgrid[:height, :width]
    x, y = columns + there[..., 0], rows + there[..., 1]
    outside = (x < -0.5) | (x > width - 0.5) | (y < -0.5) | (y > height - 0.5)
    return there, astray | outside


def estimated_motion(frames: Rgb, estimator: Estimator) -> Motion:
    """Motion of neighbouring frames (frame, height, width, 3) uint8."""
    pairs = [displacement(frames[i + 1], frames[i], estimator) for i in range(len(frames) - 1)]
    return Motion(
        torch.from_numpy(np.stack([moved for moved, _ in pairs])),
        ~torch.from_numpy(np.stack([hidden for _, hidden in pairs])),
    )
