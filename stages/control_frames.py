"""Control images: what a ControlNet is shown of every frame, such as its edges.

Source: Zhang et al., arXiv 2302.05543, section 3.3; Canny, IEEE PAMI 1986. Nothing here depends on a prompt or a model,
so all edits of a clip share them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from store.errors import InputError
from store.schemas import Arrays, Block, Blocks, Frozen, Schema, Variable

from .diffusion.chunks import blocks_of

VERSION = 2

Detector = Literal["canny", "softedge", "depth", "openpose", "given"]
ANNOTATORS = {"softedge": "HEDdetector", "depth": "MidasDetector", "openpose": "OpenposeDetector"}
"""Classes of controlnet_aux by detector."""
LEAST_SIDE = 33  # pixels: that library rounds sides to multiples of 64, smaller ones to none at all

Picture = NDArray[np.uint8]
"""rgb (height, width, channel)."""


class Spec(Frozen):
    """What is looked for; of Canny's edges the thresholds of their gradient's hysteresis."""

    detector: Detector = "canny"
    low: int = Field(100, ge=0, le=1000)
    high: int = Field(200, ge=0, le=1000)

    @model_validator(mode="after")
    def _in_order(self) -> Spec:
        if self.low > self.high:
            raise ValueError("low is above high")
        return self


def outputs(spec: Spec, *, frames: Schema) -> Schema:
    """control: rgb (frame, height, width, channel) uint8."""
    rgb = frames.variables["rgb"].model_copy(update={"description": f"{spec.detector}, as a ControlNet is shown it"})
    assert isinstance(rgb, Variable)
    return Schema(artifact="control", variables={"rgb": rgb})


def run(spec: Spec, part: range, *, frames: Arrays, annotator: str | None = None) -> Blocks:
    """Look at every frame on its own, a few at a time.

    frames      rgb (frame, height, width, channel) uint8
    annotator   folder with the weights of controlnet_aux's detector
    yields      rgb (frame, height, width, channel) uint8
    raises      InputError where the detector's library is not installed
    """
    assert part == range(1), "control images are made in one piece"
    rgb, look = frames["rgb"], _looking(spec, annotator)
    for block in blocks_of(rgb.shape[0]):
        yield Block("rgb", (block.start, 0, 0, 0), np.stack([look(frame) for frame in rgb[block.start : block.stop]]))


def run_given(spec: Spec, part: range, *, pictures: Blocks, frames: int) -> Blocks:
    """Take control images that somebody else has made.

    pictures   what decoding them gives; of it rgb (frame, height, width, channel) uint8 is taken
    frames     of the clip
    raises     InputError where they are not as many
    """
    count = 0
    for block in pictures:
        if block.variable == "rgb":
            count += len(block.values)
            yield block
    if count != frames:
        raise InputError(f"there are {count} control images for {frames} frames; give a --control-video of as many")


def in_blocks(pictures: Iterator[Picture], count: int) -> Blocks:
    """`count` pictures rgb (height, width, channel), one per frame, as `run_given` takes them."""
    for block in blocks_of(count):
        yield Block("rgb", (block.start, 0, 0, 0), np.stack([*islice(pictures, len(block))]))


def check_installed(detector: Detector) -> None:
    """InputError where the library of `detector` is not there."""
    if detector in ANNOTATORS:
        _annotators(detector)


def canny(rgb: Picture, low: int, high: int) -> Picture:
    """White edges on black, of a picture rgb (height, width, channel), in three equal channels."""
    edges = cv2.Canny(np.ascontiguousarray(rgb), low, high)
    return np.repeat(edges[..., None], 3, axis=2)


def _looking(spec: Spec, annotator: str | None) -> Callable[[Picture], Picture]:
    if spec.detector == "canny":
        return lambda picture: canny(picture, spec.low, spec.high)
    assert annotator is not None, f"{spec.detector} has weights"
    detector: Any = getattr(_annotators(spec.detector), ANNOTATORS[spec.detector]).from_pretrained(annotator)

    def look(picture: Picture) -> Picture:
        height, width = picture.shape[:2]
        side = max(LEAST_SIDE, min(height, width))
        seen = np.asarray(detector(picture, detect_resolution=side, image_resolution=side))
        return cv2.resize(seen, (width, height), interpolation=cv2.INTER_LINEAR)

    return look


def _annotators(detector: Detector) -> Any:
    try:
        import controlnet_aux
    except ImportError as error:
        raise InputError(
            f"--control {detector} is drawn by controlnet_aux, which cannot be imported here ({error}); pip install "
            "controlnet-aux, choose canny, or give the control images with --control-video"
        ) from None
    return controlnet_aux
