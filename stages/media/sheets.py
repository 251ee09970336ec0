"""Sheets of frames: contact sheets of several videos, and rows of tiles with headings, captions and legends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from store.errors import InputError

PAPER, INK = (250, 250, 248), (40, 40, 44)
GAP, MARGIN = 6, 16
LABEL_LINE, CAPTION_LINE = 26, 18  # px
TILE_SIDE = 180  # px: about how large a tile's longer side is drawn


@dataclass(frozen=True)
class Row:
    """A labelled row of tiles: rgb (height, width, 3) uint8 each, with as many captions as tiles, or none at all.

    legend   a picture at the row's right end
    """

    label: str
    tiles: Sequence[np.ndarray[Any, Any]] | np.ndarray[Any, Any]
    captions: Sequence[str] = ()
    legend: Image.Image | None = None


def tile_size(height: int, width: int) -> tuple[int, int]:
    """(width, height) in pixels that a frame is drawn at: a small one enlarged by a whole number, none above 256."""
    longer = max(height, width)
    factor = max(1, round(TILE_SIDE / longer)) if longer <= 256 else 256 / longer
    return max(1, round(width * factor)), max(1, round(height * factor))


def tile_sheet(
    rows: Sequence[Row], size: tuple[int, int], title: str = "", headings: Sequence[str] = ()
) -> Image.Image:
    """Draw rows of tiles, all `size` = (width, height) pixels, one heading over each column; sides are even numbers.

    A smaller picture keeps its hard edges, since it is a grid of tokens or of pixels to be looked at.
    """
    assert rows, "a sheet has at least one row"
    columns, legends = max(len(row.tiles) for row in rows), [row.legend for row in rows if row.legend]
    body = columns * (size[0] + GAP) - GAP
    heights = [_row_height(row, size[1]) for row in rows]
    width = 2 * MARGIN + body + max((MARGIN + legend.width for legend in legends), default=0)
    above = MARGIN + LABEL_LINE * bool(title) + CAPTION_LINE * bool(headings)
    sheet = Image.new("RGB", (_even(width), _even(above + sum(heights) + MARGIN // 2)), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), _fitting(title, _font(16), width - 2 * MARGIN), fill=INK, font=_font(16))
    _captions(draw, headings, size[0], above - CAPTION_LINE)
    for row, top in zip(rows, np.cumsum([above, *heights[:-1]]), strict=True):
        _draw_row(draw, sheet, row, size, int(top), 2 * MARGIN + body)
    return sheet


def _row_height(row: Row, tile: int) -> int:
    drawn = LABEL_LINE * bool(row.label) + tile + CAPTION_LINE * bool(row.captions) + MARGIN // 2
    return max(drawn, LABEL_LINE * bool(row.label) + (row.legend.height if row.legend else 0) + MARGIN // 2)


def _draw_row(
    draw: ImageDraw.ImageDraw, sheet: Image.Image, row: Row, size: tuple[int, int], top: int, legend_left: int
) -> None:
    if row.label:
        draw.text((MARGIN, top), _fitting(row.label, _font(16), sheet.width - 2 * MARGIN), fill=INK, font=_font(16))
        top += LABEL_LINE
    for column, tile in enumerate(row.tiles):
        sheet.paste(_resized(tile, size), (MARGIN + column * (size[0] + GAP), top))
    _captions(draw, row.captions, size[0], top + size[1] + 2)
    if row.legend:
        sheet.paste(row.legend, (legend_left, top))


def _captions(draw: ImageDraw.ImageDraw, captions: Sequence[str], tile: int, top: int) -> None:
    for column, caption in enumerate(captions):
        fitting = _fitting(caption, _font(13), tile)
        draw.text((MARGIN + column * (tile + GAP), top), fitting, fill=INK, font=_font(13))


def _resized(tile: np.ndarray[Any, Any], size: tuple[int, int]) -> Image.Image:
    shrinks = tile.shape[1] > size[0] or tile.shape[0] > size[1]
    return Image.fromarray(tile).resize(size, Image.Resampling.LANCZOS if shrinks else Image.Resampling.NEAREST)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def _even(side: int) -> int:
    return side + side % 2


def contact_sheet(
    rows: Sequence[tuple[str, np.ndarray[Any, Any]]], columns: int = 8, scale: float | None = None
) -> Image.Image:
    """Draw each row's label and, below it, up to `columns` of its frames, evenly spaced from the first to the last.

    rows       (label of one or more lines, rgb (frame, height, width, channel) uint8); the sizes of two rows may differ
    columns    frames in a row, at least 1; a shorter row shows all it has
    scale      how many times larger a frame is drawn; without it, a whole number that makes frames about 160 px high
    """
    assert rows, "a sheet has at least one row"
    assert columns >= 1
    tallest = max(frames.shape[1] for _, frames in rows)
    factor = scale if scale is not None else max(1, round(160 / tallest))
    strips = [_strip(frames, columns, factor) for _, frames in rows]
    font = ImageFont.load_default(size=16)
    labels = [label.split("\n") for label, _ in rows]
    width = max(strip.width for strip in strips) + 2 * MARGIN
    height = sum(map(len, labels)) * LABEL_LINE + sum(strip.height + MARGIN for strip in strips) + MARGIN
    sheet = Image.new("RGB", (width, height), PAPER)
    draw, top = ImageDraw.Draw(sheet), MARGIN
    for lines, strip in zip(labels, strips, strict=True):
        for line in lines:
            draw.text((MARGIN, top), _fitting(line, font, width - 2 * MARGIN), fill=INK, font=font)
            top += LABEL_LINE
        sheet.paste(strip, (MARGIN, top))
        top += strip.height + MARGIN
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
