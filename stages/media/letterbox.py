"""What surrounds a picture: black bars, cut off for an edit and put back on its clip, and padding, the other way round.

Bars are cut only where there is no doubt: they come in pairs of one width, are nearly black in every frame that is
looked at, and end in an edge. What is dark for another reason stays with the picture.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from pydantic import Field

from store.errors import InputError
from store.schemas import Frozen

from .video import Clip, VideoInfo, pictures_at

FRAMES_SEEN = 12  # spread over the clip
BLACK = 20  # of 255: what codecs leave of black bars is below
EDGE = 24  # of 255: the picture's outermost line is brighter than that somewhere by this, in some frame
SMEARED = 3  # lines of a bar at its edge, into which codecs smear the picture
SMALLEST_SHARE = 0.02  # of a side, for each bar; less is dirt at the border
LARGEST_SHARE = 0.35
UNEQUAL = 2  # pixels by which two bars of a pair may differ

Rgb = np.ndarray[Any, Any]


class Bars(Frozen):
    """Pixels that black bars take of a picture of `width` by `height`, square and upright as it is shown."""

    top: int = Field(0, ge=0)
    right: int = Field(0, ge=0)
    bottom: int = Field(0, ge=0)
    left: int = Field(0, ge=0)
    width: int = Field(ge=1)
    height: int = Field(ge=1)

    @property
    def inside(self) -> tuple[int, int]:
        """(width, height) of the picture between the bars."""
        return self.width - self.left - self.right, self.height - self.top - self.bottom

    def cut(self, picture: Rgb) -> Rgb:
        """What lies between the bars of a picture (height, width, …), which may have another size than was seen."""
        high, wide = picture.shape[0] / self.height, picture.shape[1] / self.width
        rows = slice(round(self.top * high), round((self.height - self.bottom) * high))
        return picture[rows, round(self.left * wide) : round((self.width - self.right) * wide)]

    def around(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Top, right, bottom and left bar of an edit of `width` by `height`, in its own pixels.

        As wide as in the source where the picture between them has the source's size, so that the clip has it too; else
        as much wider or narrower, and one more where the sum of a pair would be odd: most codecs want even sides.
        """
        if (width, height) == self.inside:
            return self.top, self.right, self.bottom, self.left
        wide, high = width / self.inside[0], height / self.inside[1]
        top, bottom = _pair(self.top * high, self.bottom * high, height)
        left, right = _pair(self.left * wide, self.right * wide, width)
        return top, right, bottom, left

    def words(self) -> str:
        """As `--letterbox` reads them: top, right, bottom, left."""
        return f"{self.top},{self.right},{self.bottom},{self.left}"


def _pair(first: float, second: float, between: int) -> tuple[int, int]:
    one, two = round(first), round(second)
    return one, two + (one + two > 0 and between % 2 == 0 and (one + two) % 2)


def padded(picture: Rgb, padding: tuple[int, int]) -> Rgb:
    """A picture (height, width, …) whose last pixels are repeated so many times at right and bottom."""
    right, bottom = padding
    if not right and not bottom:
        return picture
    return np.pad(picture, ((0, bottom), (0, right), *[(0, 0)] * (picture.ndim - 2)), mode="edge")


def with_bars(rgb: Rgb, bars: tuple[int, int, int, int]) -> Rgb:
    """Frames (frame, height, width, channel) between black bars: top, right, bottom, left."""
    if not any(bars):
        return rgb
    top, right, bottom, left = bars
    return np.pad(rgb, ((0, 0), (top, bottom), (left, right), (0, 0)))


def parse_bars(text: str, info: VideoInfo) -> Bars:
    """Read "TOP,RIGHT,BOTTOM,LEFT" in pixels of the video as it is shown; InputError otherwise."""
    if not re.fullmatch(r"\s*\d{1,5}(\s*,\s*\d{1,5}){3}\s*", text, re.ASCII):
        raise InputError(
            f"--letterbox {text!r} is neither auto nor keep nor TOP,RIGHT,BOTTOM,LEFT in pixels, such as 60,0,60,0"
        )
    top, right, bottom, left = (int(each) for each in text.split(","))
    if top + bottom >= info.height or left + right >= info.width:
        raise InputError(f"--letterbox {text} leaves nothing of frames of {info.width}×{info.height}; cut off less")
    return Bars(top=top, right=right, bottom=bottom, left=left, width=info.width, height=info.height)


def find_bars(clip: Clip) -> Bars | None:
    """The bars of a clip, from a few frames all over it; None where there are none, or they are in doubt.

    raises   InputError where a frame that is looked at cannot be decoded
    """
    brightest: Rgb | None = None  # (height, width) of every pixel, over the frames seen
    count = clip.info.frames
    for picture in pictures_at(clip, np.unique(np.linspace(0, count - 1, min(FRAMES_SEEN, count)).round()).tolist()):
        level = picture.rgb.max(axis=-1)
        brightest = level if brightest is None else np.maximum(brightest, level)
        if not any(_dark_lines(brightest, side)[0] for side in range(4)):
            return None  # most clips: seen in the first frame
    if brightest is None or brightest.max() <= BLACK + EDGE:
        return None
    above, beside, below, before = (_dark_lines(brightest, side) for side in range(4))
    shown = clip.info.width, clip.info.height
    high, wide = shown[1] / brightest.shape[0], shown[0] / brightest.shape[1]
    top, bottom = _sure(above, below, high, shown[1])
    left, right = _sure(before, beside, wide, shown[0])
    if not top + bottom + left + right:
        return None
    return Bars(top=top, right=right, bottom=bottom, left=left, width=shown[0], height=shown[1])


Edge = tuple[int, bool]
"""Black lines at a side, and whether the last of them is as black as the others: then it is known where they end."""


def _dark_lines(brightest: Rgb, side: int) -> Edge:
    """Black lines at a side (0 top, 1 right, 2 bottom, 3 left) that end in an edge; 0 where they fade."""
    lines = np.rot90(brightest, side)
    levels = lines.max(axis=1).astype(int)
    lit = levels > BLACK + EDGE
    dark = int(np.argmax(lit)) if lit.any() else 0
    clean = max(dark - SMEARED, 0)
    sure = clean and levels[:clean].max() <= BLACK and _is_wide(lines[dark : dark + 2])
    return (dark, bool(levels[:dark].max() <= BLACK)) if sure else (0, True)


def _is_wide(lines: Rgb) -> bool:
    """Whether the picture's outermost lines are lit along a part of them, as no lone title or star does it."""
    return bool((lines.max(axis=0) > BLACK).mean() >= 0.25)


def _sure(one: Edge, other: Edge, scale: float, side: int) -> tuple[int, int]:
    """The two bars of a pair, both as wide as the wider where the end of one is smeared.

    scale    pixels of the shown picture per line
    returns  none where they differ, or are too narrow or too wide
    """
    first, second = round(one[0] * scale), round(other[0] * scale)
    widest = max(first, second)
    sure = abs(first - second) <= UNEQUAL and min(first, second) >= max(2, SMALLEST_SHARE * side)
    if not sure or widest > LARGEST_SHARE * side:
        return 0, 0
    return (first, second) if one[1] and other[1] else (widest, widest)
