"""What may be done to an edit's pictures once they are decoded, without a model: steadier, and in the source's colours.

Both look at the frame's own keyframes alone, as decoded, so that a window of the clip needs no other one and the clip
has the same bytes however it is divided.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from store.schemas import Array, Arrays

FLICKER = 12.0  # levels of 255; patches that differ by much more are no flicker but a match that is none
GAINS = 0.5, 2.0  # contrast is not changed by more

Rgb = NDArray[np.uint8]


class Wanted(Protocol):
    """How strongly: shares from 0 to 1."""

    @property
    def deflicker(self) -> float: ...

    @property
    def match_colours(self) -> float: ...


def patch_colours(rgb: Rgb, grid: tuple[int, int]) -> Tensor:
    """Mean colours (frame, token, 3) float32 of the patches that tokens of a grid (rows, columns) stand for."""
    pictures = torch.from_numpy(rgb).permute(0, 3, 1, 2).float()
    return F.adaptive_avg_pool2d(pictures, grid).flatten(2).transpose(1, 2)


def steadied(rgb: Rgb, aims: Tensor, grid: tuple[int, int], strength: float) -> Rgb:
    """Pictures (frame, height, width, 3) whose patches are drawn to the colours `aims` (frame, token, 3).

    What is finer than a patch stays, so nothing is blurred. Differences much above `FLICKER` are left alone.
    """
    change = aims - patch_colours(rgb, grid)
    change *= strength * torch.exp(-(change / FLICKER).square().mean(-1, keepdim=True))
    spread = F.interpolate(
        change.transpose(1, 2).unflatten(2, grid), rgb.shape[1:3], mode="bilinear", align_corners=False
    )  # fmt: skip
    return _levels(torch.from_numpy(rgb).float() + spread.permute(0, 2, 3, 1))


def colour_transform(rgb: Rgb, source: Rgb) -> Tensor:
    """Per picture and channel (frame, 2, 3): the gain and the offset that give it the source's mean and deviation."""
    mean, aim = (torch.from_numpy(pictures).float().mean((1, 2)) for pictures in (rgb, source))
    deviation, wanted = (torch.from_numpy(pictures).float().std((1, 2)) for pictures in (rgb, source))
    gain = (wanted / deviation.clamp(min=1)).clamp(*GAINS)
    return torch.stack([gain, aim - gain * mean], 1)


def recoloured(rgb: Rgb, transform: Tensor, strength: float) -> Rgb:
    """Pictures moved that far towards what their `transform` (frame, 2, 3) makes of them."""
    plain = torch.from_numpy(rgb).float()
    moved = plain * transform[:, None, None, 0] + transform[:, None, None, 1]
    return _levels(torch.lerp(plain, moved, strength))


class Finish:
    """The pictures of an edit, finished a few frames at a time along the field of the last step.

    index           of the field, the finest layer's (timestep, frame, side, token)
    grid            rows and columns of that layer's tokens
    keyframe_edit   of edit_keyframes: the pictures of the support
    frames          of decode_frames: only for `match_colours`
    """

    def __init__(
        self, wanted: Wanted, *, field: Arrays, index: Array, grid: tuple[int, int], keyframe_edit: Arrays,
        frames: Arrays | None,
    ) -> None:  # fmt: skip
        self.wanted, self.index, self.grid = wanted, index, grid
        self.keyframe_edit, self.frames = keyframe_edit, frames
        self.drawn, self.neighbour = field["keyframes"][-1], field["neighbour"][-1]
        self.weights = torch.from_numpy(field["weights"][-1])
        self.support = [int(frame) for frame in keyframe_edit["frame"][:]]

    def __call__(self, frames: range, rgb: Rgb) -> Rgb:
        """The decoded pictures (frame, height, width, 3) of these frames, finished."""
        sides = self.drawn[self.neighbour[frames.start : frames.stop]]
        own = np.unique(sides)
        row = torch.from_numpy(np.searchsorted(own, sides))
        weights, edited = self.weights[frames.start : frames.stop], self._edited(own)
        if self.wanted.deflicker:
            index = torch.from_numpy(self.index[-1, frames.start : frames.stop].astype(np.int64))
            followed = patch_colours(edited, self.grid)[row[..., None], index]
            aims = (followed * weights[..., None, None]).sum(1)
            rgb = steadied(rgb, aims, self.grid, self.wanted.deflicker)
        if self.wanted.match_colours:
            assert self.frames is not None, "colours are matched to frames"
            source = np.stack([self.frames["rgb"][int(frame)] for frame in own])
            transform = (colour_transform(edited, source)[row] * weights[..., None, None]).sum(1)
            rgb = recoloured(rgb, transform, self.wanted.match_colours)
        return rgb

    def _edited(self, keyframes: NDArray[Any]) -> Rgb:
        """The edited pictures of some keyframes, ascending: those between are read along, which is few."""
        places = [self.support.index(int(frame)) for frame in keyframes]
        between: Rgb = self.keyframe_edit["rgb"][places[0] : places[-1] + 1]
        return between[[place - places[0] for place in places]]


def _levels(rgb: Tensor) -> Rgb:
    return rgb.round().clamp(0, 255).byte().numpy()
