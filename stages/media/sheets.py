"""Contact sheets: frames of several videos side by side, one labelled row each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from store.errors import InputError

PAPER, INK = (250, 250, 248), (40, 40, 44)
GAP, MARGIN = 6, 16


def contact_sheet(
    rows: Sequence[tuple[str, np.ndarray[Any, Any]]], columns: int = 8, scale: float | None = None
) -> Image.Image:
    """Draw each row's label and, below it, up to `columns` of its frames, evenly spaced from the first to the last.

    rows       (label, rgb (frame, height, width, channel) uint8); the sizes of two rows may differ
    columns    frames in a row, at least 1; a shorter row shows all it has
    scale      how many times larger a frame is drawn; without it, a whole number that makes frames about 160 px high
    """
    assert rows, "a sheet has at least one row"
    assert columns >= 1
    tallest = max(frames.shape[1] for _, frames in rows)
    factor = scale if scale is not None else max(1, round(160 / tallest))
    strips = [_strip(frames, columns, factor) for _, frames in rows]
    font = ImageFont.load_default(size=16)
    label_height = 26
    width = max(strip.width for strip in strips) + 2 * MARGIN
    height = sum(strip.height + label_height for strip in strips) + MARGIN * (len(strips) + 1)
    sheet = Image.new("RGB", (width, height), PAPER)
    draw, top = ImageDraw.Draw(sheet), MARGIN
    for (label, _), strip in zip(rows, strips, strict=True):
        draw.text((MARGIN, top), _fitting(label, font, width - 2 * MARGIN), fill=INK, font=font)
        sheet.paste(strip, (MARGIN, top + label_height))
        top += label_height + strip.height + MARGIN
    return sheet


def save_png(sheet: Image.Image, path: Path) -> None:
    """Write a picture under `path`, whole or not at all; InputError if that cannot be done."""
    part = path.with_name(f".{uuid4().hex}.part.png")
    try:
        sheet.save(part, format="PNG")
        part.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror or error}); choose another folder") from error
    finally:
        part.unlink(missing_ok=True)


def _strip(frames: np.ndarray[Any, Any], columns: int, factor: float) -> Image.Image:
    """One row of frames, `GAP` apart."""
    chosen = np.unique(np.linspace(0, len(frames) - 1, min(columns, len(frames))).round().astype(int))
    height, width = (max(1, round(side * factor)) for side in frames.shape[1:3])
    strip = Image.new("RGB", (len(chosen) * (width + GAP) - GAP, height), PAPER)
    for place, frame in enumerate(frames[chosen]):
        strip.paste(
            Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS), (place * (width + GAP), 0)
        )
    return strip


def _fitting(label: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """The label on one line, its end replaced by … where it is wider than `width` pixels."""
    line = whole = " ".join(label.split())
    while font.getlength(line) > width and len(line) > 1:
        line = whole[: len(line) - 2] + "…"
    return line
