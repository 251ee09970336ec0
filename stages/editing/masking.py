"""Where an edit may change the picture: masks in pixels and in latents, and the source put back outside of them.

Source: Avrahami et al., Blended Latent Diffusion, arXiv 2206.02779, section 3.2: at every step the latents outside the
mask are those of the source at the same noise level, here its own inverted ones.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from store.schemas import Schema, Variable

from ..diffusion.chunks import FRAMES_PER_BLOCK


def mask_schema(frames: Schema, height: int, width: int) -> Schema:
    """mask (frame, height, width) uint8 for each of `frames`: 255 is edited, 0 keeps the source, the edge is soft."""
    count = frames.size("frame")
    assert count is not None
    variable = Variable(
        dims=("frame", "height", "width"),
        shape=(count, height, width),
        dtype="uint8",
        chunks=(min(count, FRAMES_PER_BLOCK), height, width),
        description="255: edited, 0: as in the source",
        compress=True,
    )
    return Schema(artifact="mask", variables={"mask": variable})


def softened(mask: np.ndarray[Any, Any], feather: int) -> np.ndarray[Any, Any]:
    """mask (height, width) uint8 with an edge that falls from 255 to 0 over `feather` pixels, half of them outside.

    An edge that lies outside keeps less of the background, one that lies inside leaves the object's rim as it was:
    `python -m benchmarks.local`.
    """
    return cv2.blur(mask, (feather + 1, feather + 1)) if feather else mask


def in_latents(mask: np.ndarray[Any, Any], height: int, width: int) -> Tensor:
    """mask (frame, height, width) uint8 → share of each latent pixel that is edited (frame, 1, height, width)."""
    pixels = torch.from_numpy(np.ascontiguousarray(mask)).float() / 255
    return F.adaptive_avg_pool2d(pixels[:, None], (height, width))


def edited_in_latents(mask: np.ndarray[Any, Any], height: int, width: int) -> Tensor:
    """The same, but a latent pixel that is half or more in the mask is edited whole (frame, 1, height, width).

    Mixed anew at every step, a latent pixel on the border takes the source's colour, and the object a rim of it:
    `python -m benchmarks.local`. What of it lies outside is put back in pictures, see `decoding`.
    """
    return (2 * in_latents(mask, height, width)).clamp(max=1)


def put_back(edited: Tensor, source: Tensor, share: Tensor) -> Tensor:
    """The source's latents wherever `share` (frame, 1, height, width) is 0, the edit's where it is 1."""
    return torch.lerp(source, edited, share)
