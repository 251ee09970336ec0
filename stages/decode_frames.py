"""Decoding: a video file → RGB frames at the size of the edit, each with its exact time.

Source: the input of TokenFlow (arXiv 2307.10373). Frames are decoded once, in order, a few at a time.
Differs: the reference code resizes every video to a square and forgets its times; here the size is said aloud, nothing
but black bars is cropped, and times are kept exactly
(tests/stages/test_decode_frames.py::test_variable_frame_rate_keeps_exact_times).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image
from pydantic import Field

from stages.media.letterbox import Bars, padded
from stages.media.video import Colour, Picture, VideoInfo, frames_at, read_pictures, survey
from store.errors import InputError
from store.schemas import Block, Blocks, Frozen, Schema, Variable

VERSION = 1

FRAMES_PER_BLOCK = 16
BYTES_PER_BLOCK = 4 * 2**20
TIMES_PER_BLOCK = 4096


class Spec(Frozen):
    """Which frames of the video, and at what size."""

    start: int = Field(0, ge=0, description="first frame")
    stop: int | None = Field(None, ge=1, description="frame after the last one; none: to the end of the video")
    step: int = Field(1, ge=1, description="every how many frames one is taken")
    width: int = Field(ge=1, description="pixels")
    height: int = Field(ge=1, description="pixels")
    tone_map: bool = Field(False, description="a high dynamic range is brought into that of BT.709")
    fps: str | None = Field(
        None, description="a fraction: at most so many frames per second are taken, those on screen at its ticks"
    )
    bars: Bars | None = Field(None, description="black bars, cut off; width and height are of what is between them")
    background: Colour = Field((0, 0, 0), description="under what is transparent; RGB of 255")
    padding: tuple[int, int] = Field(
        (0, 0),
        description="of width and height, pixels at right and bottom that repeat the picture's last, for the model",
    )
    vpx_alpha: bool = Field(False, description="of VP8 or VP9 whose transparency lies beside its pictures: it is read")
    left_out: ClassVar[frozenset[str]] = frozenset({"tone_map", "fps", "bars", "background", "padding", "vpx_alpha"})

    @property
    def shown(self) -> tuple[int, int]:
        """(width, height) of the picture itself: without padding, and between the bars."""
        return self.width - self.padding[0], self.height - self.padding[1]

    @property
    def around(self) -> tuple[int, int, int, int]:
        """Top, right, bottom and left bar of the written clip, in its pixels."""
        return self.bars.around(*self.shown) if self.bars else (0, 0, 0, 0)


def taken(spec: Spec, info: VideoInfo, times: Sequence[Fraction] | None = None) -> Sequence[int]:
    """Positions in the file of the frames that are chosen.

    times     of `Clip`; needed only where `spec.fps` is said and frames are not evenly spaced
    raises    InputError where a rate is above the clip's own
    """
    stop = info.frames if spec.stop is None else spec.stop
    if spec.fps is None:
        return range(spec.start, stop, spec.step)
    return frames_at(Fraction(spec.fps), info, times, spec.start, stop)


def rate(spec: Spec, info: VideoInfo) -> Fraction:
    """Frames per second of those chosen, on average."""
    return Fraction(spec.fps) if spec.fps else Fraction(info.average_fps) / spec.step


def outputs(spec: Spec, *, video: VideoInfo) -> Schema:
    """frames: rgb (frame, height, width, channel) uint8; pts and duration (frame) float64 in seconds."""
    return Schema(
        artifact="frames",
        variables={
            "rgb": Variable(
                dims=("frame", "height", "width", "channel"),
                shape=(None, spec.height, spec.width, 3),
                dtype="uint8",
                chunks=(frames_per_block(spec), spec.height, spec.width, 3),
                description="frames upright, RGB, full range",
                compress=True,
            ),
            "pts": Variable(
                dims=("frame",),
                shape=(None,),
                dtype="float64",
                chunks=(TIMES_PER_BLOCK,),
                description="time at which the frame appears, as in the file",
                units="s",
                finite=True,
            ),
            "duration": Variable(
                dims=("frame",),
                shape=(None,),
                dtype="float64",
                chunks=(TIMES_PER_BLOCK,),
                description="time until the next of these frames",
                units="s",
                finite=True,
                ge=0,
            ),
        },
        attrs={
            "average_fps": spec.fps or video.average_fps,
            "variable": video.variable or spec.fps is not None,
            "source_width": video.width,
            "source_height": video.height,
            "rotation": video.rotation,
            "mirrored": video.mirrored,
            "colour_matrix": video.colour_matrix,
            "colour_range": video.colour_range,
            "has_audio": video.has_audio,
            **({"bars": list(spec.around)} if spec.bars else {}),
            **({"padding": list(spec.padding)} if any(spec.padding) else {}),
        },
    )


def run(spec: Spec, part: range, *, video: Path) -> Blocks:
    """Decode the chosen frames in order, holding no more than one block of them.

    yields    rgb (frame, height, width, channel) uint8; at the end pts, duration (frame) float64, in seconds
    raises    InputError where the file is no video, or holds fewer sound frames than were asked
    """
    assert part == range(1), "frames are decoded in one piece"
    pts, duration = array("d"), array("d")
    chosen = _chosen(spec, video)
    while block := list(islice(chosen, frames_per_block(spec))):
        rgb = np.stack([fitted(spec, picture.rgb) for picture, _ in block])
        yield Block("rgb", (len(pts), 0, 0, 0), rgb)
        pts.extend(picture.pts for picture, _ in block)
        duration.extend(seconds for _, seconds in block)
    yield Block("pts", (0,), np.array(pts))
    yield Block("duration", (0,), np.array(duration))


def pictures(spec: Spec, video: Path) -> Iterator[np.ndarray[Any, Any]]:
    """The chosen frames as `run` yields them, one by one: rgb (height, width, channel) uint8."""
    return (fitted(spec, picture.rgb) for picture, _ in _chosen(spec, video))


def transparency(spec: Spec, video: Path) -> Iterator[np.ndarray[Any, Any]]:
    """How opaque the chosen frames of a video that has transparency are: (height, width) uint8, bars and all.

    Of the size of the written clip, which `spec` gives.
    """
    (width, height), (top, right, bottom, left) = spec.shown, spec.around
    inside = slice(top, top + height), slice(left, left + width)
    for picture, _ in _chosen(spec, video):
        assert picture.alpha is not None, "the video has transparency"
        alpha = _resized(picture.alpha, left + width + right, top + height + bottom)
        if spec.bars:
            alpha = alpha.copy()
            alpha[inside] = _resized(spec.bars.cut(picture.alpha), width, height)
        yield alpha


def frames_per_block(spec: Spec) -> int:
    """Frames written at a time: at most 16, about 4 MB."""
    return max(1, min(FRAMES_PER_BLOCK, BYTES_PER_BLOCK // (spec.height * spec.width * 3)))


def _chosen(spec: Spec, video: Path) -> Iterator[tuple[Picture, float]]:
    """The chosen frames, each with the seconds until the next of them.

    The last is shown for `step` times its own; where frames are chosen by their times, until the clip ends.
    """
    clip = survey(video)
    resampled = None if spec.fps is None else frozenset(taken(spec, clip.info, clip.times))
    kept: Picture | None = None
    end = 0.0
    for picture in read_pictures(clip, spec.stop, spec.tone_map, spec.background):
        end = picture.pts + picture.duration
        if resampled is not None:
            wanted = picture.index in resampled
        else:
            wanted = picture.index >= spec.start and (picture.index - spec.start) % spec.step == 0
        if not wanted:
            continue
        if kept is not None:
            yield kept, picture.pts - kept.pts
        kept = picture
    if kept is None:
        raise InputError(f"no frame of {video} is at or after {spec.start}; choose others with --frames START:STOP")
    yield kept, kept.duration * spec.step if resampled is None else end - kept.pts


def fitted(spec: Spec, rgb: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A picture (height, width, channel) as the edit has it: without bars, at its size, padded for the model."""
    return padded(_resized(spec.bars.cut(rgb) if spec.bars else rgb, *spec.shown), spec.padding)


def _resized(rgb: np.ndarray[Any, Any], width: int, height: int) -> np.ndarray[Any, Any]:
    """Lanczos where pixels get fewer (antialiased), bicubic where they get more; never a crop."""
    if rgb.shape[:2] == (height, width):
        return rgb
    shrinks = width * height < rgb.shape[0] * rgb.shape[1]
    kernel = Image.Resampling.LANCZOS if shrinks else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(rgb).resize((width, height), kernel))
