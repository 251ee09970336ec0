"""Pictures inside a page: frames of clips as data URIs, as many and as large as a page can bear."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from store.schemas import Arrays

from .export import Unpadded

MOST_FRAMES = 240  # of a clip
MOST_PIXELS = 36 << 20  # of all clips together: about 8 MB
LONGEST_SIDE = 640
LOSSLESS_SIDE = 128  # smaller frames are magnified, where every artefact of a codec would show
THUMBNAIL_SIDE = 160
MOST_THUMBNAILS = 40


@dataclass(frozen=True)
class Shown:
    """What is shown of clips: which frames, for how many milliseconds each, and at what size in pixels."""

    frames: list[int]
    milliseconds: list[float]
    width: int
    height: int
    of_frames: int
    of_size: tuple[int, int]

    @classmethod
    def of(cls, frames: Arrays, clips: int) -> Shown:
        """Choose for a source's `frames` and as many clips of the same size in all."""
        count, height, width = frames["rgb"].shape[:3]
        shrunk = fitted(width, height, LONGEST_SIDE)
        bearable = max(2, MOST_PIXELS // (shrunk[0] * shrunk[1] * clips))
        chosen = evenly(count, min(MOST_FRAMES, bearable))
        starts = np.append(frames["pts"][:][chosen], frames["pts"][:][-1] + frames["duration"][:][-1])
        milliseconds = np.round(np.diff(starts) * 1000, 3).tolist()
        return cls(chosen, milliseconds, *shrunk, of_frames=count, of_size=(width, height))

    @property
    def note(self) -> str | None:
        """What is left out, in one sentence."""
        left_out = []
        if len(self.frames) < self.of_frames:
            left_out.append(f"{len(self.frames)} of {self.of_frames} frames, evenly spaced")
        if (self.width, self.height) != self.of_size:
            left_out.append(f"at {self.width}×{self.height} instead of {self.of_size[0]}×{self.of_size[1]} pixels")
        return (
            f"Shown here: {' and '.join(left_out)}; the measures below are of every frame at full size."
            if left_out
            else None
        )


def clip_pictures(clip: Unpadded, shown: Shown) -> list[str]:
    """The chosen frames of a clip as data URIs."""
    return [data_uri(rgb, shown.width, shown.height) for rgb in frames_of(clip, shown.frames)]


def thumbnails(clip: Unpadded, places: Sequence[int]) -> list[str]:
    """Frames of an artifact at `places` as small data URIs."""
    height, width = clip["rgb"].shape[1:3]
    return [data_uri(rgb, *fitted(width, height, THUMBNAIL_SIDE)) for rgb in frames_of(clip, places)]


def frames_of(clip: Unpadded, places: Sequence[int]) -> Iterator[np.ndarray[Any, Any]]:
    """Single frames, rgb (height, width, 3) uint8; a chunk is read once for all the places in it."""
    rgb = clip["rgb"]
    length = clip.schema.variables["rgb"].chunks[0]
    start, block = -1, None
    for place in places:
        if block is None or not start <= place < start + length:
            start = place // length * length
            block = rgb[start : start + length]
        yield block[place - start]


def data_uri(rgb: np.ndarray[Any, Any], width: int, height: int) -> str:
    """A picture as a WebP data URI of that size: lossless where it is tiny."""
    picture = Image.fromarray(rgb)
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    if max(width, height) <= LOSSLESS_SIDE:
        picture.save(file, "webp", lossless=True, quality=60, method=4)
    else:
        picture.save(file, "webp", quality=88, method=4)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


def fitted(width: int, height: int, longest: int) -> tuple[int, int]:
    """The size with the same shape whose longer side is at most `longest`."""
    scale = min(1.0, longest / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def evenly(count: int, most: int) -> list[int]:
    """At most `most` of `count` positions, evenly spaced, the first among them."""
    chosen: list[int] = np.floor(np.arange(min(count, most)) * count / min(count, most)).astype(int).tolist()
    return chosen
