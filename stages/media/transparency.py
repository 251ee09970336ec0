"""Transparency put back on pictures that were edited over one colour."""

from __future__ import annotations

from typing import Any

import numpy as np

from .video import Colour

Rgb = np.ndarray[Any, Any]


def with_alpha(rgb: Rgb, alpha: Rgb, background: Colour) -> Rgb:
    """Pictures rgba (…, height, width, 4) uint8 that are `rgb` again once laid over `background`.

    alpha    (…, height, width) uint8; of a colour c that is seen to a share a, the picture over b is a c + (1 - a) b

    Colours are not multiplied by alpha, as files hold them: c is solved for, so that no rim of the background is left.
    Where nothing is seen the picture's own colour stays.
    """
    under = np.array(background, np.float32)
    share = alpha[..., None].astype(np.float32) / 255
    colours = under + (rgb.astype(np.float32) - under) / np.where(share > 0, share, 1)
    return np.concatenate([np.clip(np.rint(colours), 0, 255).astype(np.uint8), alpha[..., None]], axis=-1)
