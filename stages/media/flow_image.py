"""Fields as pictures: displacements as colours of a wheel, values as colours of a scale, each with its legend."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .sheets import INK, PAPER

Rgb = np.ndarray[Any, np.dtype[np.uint8]]
UNKNOWN = (176, 176, 180)  # where there is no value


def flow_colours(displacement: np.ndarray[Any, Any], full: float) -> Rgb:
    """Displacement (…, height, width, 2), (x, y), as rgb uint8: hue is direction, saturation length.

    No displacement is white; `full` and longer ones have full colour. Red is to the right, and hues turn clockwise.
    """
    x, y = displacement[..., 0], displacement[..., 1]
    hue = np.degrees(np.arctan2(y, x)) % 360
    saturation = np.clip(np.hypot(x, y) / max(full, 1e-12), 0, 1)
    return _from_hsv(hue, saturation)


def heat(values: np.ndarray[Any, Any], low: float, high: float) -> Rgb:
    """Values (…, height, width) as rgb uint8, dark blue at `low` to yellow at `high`; NaN is grey."""
    import cv2

    unit = np.clip((np.nan_to_num(values) - low) / max(high - low, 1e-12), 0, 1)
    grey = np.rint(unit * 255).astype(np.uint8)
    flat = cv2.applyColorMap(grey.reshape(-1, 1), cv2.COLORMAP_VIRIDIS)[..., ::-1]
    rgb: Rgb = np.ascontiguousarray(flat).reshape(*values.shape, 3)
    rgb[np.isnan(values)] = UNKNOWN
    return rgb


def wheel(side: int, label: str) -> Image.Image:
    """The legend of `flow_colours`: where each colour points to, `label` saying how far the rim is."""
    line = np.linspace(-1, 1, side)
    x, y = np.meshgrid(line, line)
    disc = flow_colours(np.stack([x, y], -1), 1.0)
    disc[np.hypot(x, y) > 1] = PAPER
    return _labelled(Image.fromarray(disc), label)


def scale(height: int, low: float, high: float, label: str, *, unknown: str = "") -> Image.Image:
    """The legend of `heat`: a bar from `low` below to `high` above; `unknown` names what is grey."""
    bar = Image.fromarray(heat(np.repeat(np.linspace(high, low, height)[:, None], 14, 1), low, high))
    font = ImageFont.load_default(size=13)
    marks = [f"{high:.3g}", f"{(low + high) / 2:.3g}", f"{low:.3g}"]
    width = 20 + round(max(font.getlength(mark) for mark in marks))
    picture = Image.new("RGB", (width, height), PAPER)
    picture.paste(bar, (0, 0))
    draw = ImageDraw.Draw(picture)
    for mark, (top, anchor) in zip(marks, ((0, "la"), (height // 2, "lm"), (height - 1, "ld")), strict=True):
        draw.text((20, top), mark, fill=INK, font=font, anchor=anchor)
    return _labelled(picture, label, unknown)


def _labelled(picture: Image.Image, label: str, unknown: str = "") -> Image.Image:
    """A legend with its words below, and what is grey below them."""
    font, line = ImageFont.load_default(size=13), 17
    words = label.split("\n")
    width = max([picture.width, *(round(font.getlength(word)) for word in words), 18 + round(font.getlength(unknown))])
    whole = Image.new("RGB", (width, picture.height + 4 + line * (len(words) + bool(unknown))), PAPER)
    whole.paste(picture, (0, 0))
    draw, top = ImageDraw.Draw(whole), picture.height + 4
    for word in words:
        draw.text((0, top), word, fill=INK, font=font)
        top += line
    if unknown:
        draw.rectangle((0, top + 2, 12, top + 14), fill=UNKNOWN)
        draw.text((18, top), unknown, fill=INK, font=font)
    return whole


def _from_hsv(hue: np.ndarray[Any, Any], saturation: np.ndarray[Any, Any]) -> Rgb:
    """Hue in degrees and saturation in [0, 1], at full value, as rgb uint8."""
    import cv2

    hsv = np.stack([hue, saturation, np.ones_like(hue)], -1).astype(np.float32)
    rgb = cv2.cvtColor(hsv.reshape(-1, 1, 3), cv2.COLOR_HSV2RGB).reshape(hsv.shape)
    return np.rint(rgb * 255).astype(np.uint8)
