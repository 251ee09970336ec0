"""Masks that the user has drawn: a picture, a folder of pictures or a video → a mask per frame.

White is edited, black is kept. A picture is the mask of every frame; of a folder (in natural order of its names) or a
video picture n is the mask of the clip's frame n, counted from the beginning of the file that is edited.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image
from pydantic import Field

from stages.media.letterbox import Bars, padded
from stages.media.video import read_pictures, survey
from store.errors import InputError
from store.schemas import Block, Blocks, Frozen, Schema

from .diffusion.chunks import blocks_of
from .editing.masking import mask_schema, softened
from .media.picture_folders import PICTURES, pictures_in, read_rgba

VERSION = 2
NOISE = 16  # a grey this near to black or white is meant to be it: video codecs leave so much
LARGEST_DISTORTION = 0.02  # of the aspect ratio

Grey = np.ndarray[Any, Any]
"""(height, width) uint8."""


class Spec(Frozen):
    """Which of the pictures are wanted, the frames' size, and how wide the soft edge is, in their pixels."""

    start: int = Field(0, ge=0)
    step: int = Field(1, ge=1)
    width: int = Field(ge=1)
    height: int = Field(ge=1)
    feather: int = Field(8, ge=0, le=512)
    taken: tuple[int, ...] | None = None  # the pictures that are wanted, where `start` and `step` do not say it
    bars: Bars | None = None  # cut off, as off the frames
    padding: tuple[int, int] = (0, 0)  # of width and height, at right and bottom, as of the frames
    left_out: ClassVar[frozenset[str]] = frozenset({"taken", "bars", "padding"})


def outputs(spec: Spec, *, frames: Schema) -> Schema:
    """A mask per frame."""
    return mask_schema(frames, spec.height, spec.width)


def mask_files(place: Path) -> list[Path]:
    """The files that a mask is read from: the pictures of a folder in order of their names, or the file itself.

    raises   InputError where there are none
    """
    if not place.is_dir():
        if not place.is_file():
            raise InputError(f"--mask {place} does not exist; give a picture, a folder of pictures or a video")
        return [place]
    files = pictures_in(place)
    if not files:
        raise InputError(f"--mask {place} holds no picture ({', '.join(PICTURES)}); white is edited, black is kept")
    return files


def run(spec: Spec, part: range, *, frames: int, mask: Path, aspect: float) -> Blocks:
    """Read the masks of `frames` frames.

    aspect   width by height of the video that is edited: a mask of another shape would lie beside its object
    yields   mask (frame, height, width) uint8
    raises   InputError where there are too few, they have another shape, or all are black
    """
    assert part == range(1), "pictures are read in one piece"
    chosen, empty = _chosen(spec, mask, frames), True
    for block in blocks_of(frames):
        masks = np.stack([_fitted(spec, grey, mask, aspect) for grey in islice(chosen, len(block))])
        empty = empty and not masks.any()
        yield Block("mask", (block.start, 0, 0), masks)
    if empty:
        raise InputError(f"--mask {mask} is black in every frame, so nothing would be edited; white is edited")


def _fitted(spec: Spec, grey: Grey, mask: Path, aspect: float) -> Grey:
    height, width = grey.shape
    if abs(width / height / aspect - 1) > LARGEST_DISTORTION:
        raise InputError(
            f"--mask {mask} is {width}×{height}, another shape than the video's ({aspect:.3f}:1); draw it on the "
            "video's own frames"
        )
    inside = spec.bars.cut(grey) if spec.bars else grey
    size = (spec.width - spec.padding[0], spec.height - spec.padding[1])
    fitted = Image.fromarray(inside).resize(size, Image.Resampling.BOX)
    return softened(padded(np.asarray(fitted), spec.padding), spec.feather)


def _chosen(spec: Spec, mask: Path, count: int) -> Iterator[Grey]:
    files = mask_files(mask)
    if mask.is_dir() or files[0].suffix.lower() in PICTURES:
        pictures: Iterator[Grey] = (_grey(file) for file in files)
        if len(files) == 1:
            first = _grey(files[0])
            yield from (first for _ in range(count))
            return
    else:
        last = (spec.taken[-1] if spec.taken else spec.start + (count - 1) * spec.step) + 1
        pictures = (_clean(_luminance(picture.rgb)) for picture in read_pictures(survey(mask), last))
    if spec.taken is None:
        chosen: Iterator[Grey] = islice(pictures, spec.start, None, spec.step)
    else:
        wanted = frozenset(spec.taken)
        chosen = (grey for place, grey in enumerate(pictures) if place in wanted)
    given = 0
    for grey in islice(chosen, count):
        given += 1
        yield grey
    if given < count:
        raise InputError(
            f"--mask {mask} has pictures for {given} of the {count} frames that are edited; it needs one for each, or "
            "one for all"
        )


def _grey(file: Path) -> Grey:
    """A picture's mask: its lightness, and nothing where it is transparent."""
    rgba = read_rgba(file, "--mask")
    return _clean((_luminance(rgba[..., :3]) * (rgba[..., 3] / 255)).round().astype(np.uint8))


def _luminance(rgb: Grey) -> Grey:
    return np.asarray(Image.fromarray(np.ascontiguousarray(rgb)).convert("L"))


def _clean(grey: Grey) -> Grey:
    """Grey stretched so that what is nearly black or white is black or white."""
    stretched = (grey.astype(np.float32) - NOISE) * (255 / (255 - 2 * NOISE))
    return np.clip(np.rint(stretched), 0, 255).astype(np.uint8)
