"""What an inspection leaves: its pictures, a table, and the facts that belong to them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.table import Table

from stages.media.export import write_video
from stages.media.sheets import Row, save_png, tile_sheet, tile_size

from .source import Rgb, Source

TILES = 8  # frames of the clip in a sheet


@dataclass
class Inspection:
    """What came of it.

    facts   what the pictures were made with and what they show, by name
    rows    a table of numbers, its columns the names of the first row
    files   what was written, by name
    """

    what: str
    facts: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The one JSON object of `tf inspect --json`."""
        return {"inspection": self.what, **self.facts, "rows": self.rows, "files": self.files}

    def sentences(self) -> list[str]:
        """The facts, as a person reads them."""
        return [f"{name.replace('_', ' ')} {_written(value)}" for name, value in self.facts.items()]

    def table(self) -> Table:
        """The rows, as a person reads them."""
        table = Table(box=None, pad_edge=False)
        for name in self.rows[0] if self.rows else ():
            table.add_column(name.replace("_", " "), justify="right")
        for row in self.rows:
            table.add_row(*(_written(value) for value in row.values()))
        return table

    def save_picture(self, picture: Image.Image, file: Path) -> None:
        """Write a PNG, whole or not at all."""
        save_png(picture, file)
        self.files[file.name] = str(file)

    def save_clip(
        self, source: Source, panels: Sequence[tuple[str, Rgb]], captions: Sequence[Sequence[str]], file: Path
    ) -> None:
        """Write panels (heading, frames) side by side as a video with the source's times; captions are per frame."""
        frames, spec = source.frames, source.plan.decode.spec
        write_video(
            file, _blocks(panels, captions), pts=frames["pts"][:], durations=frames["duration"][:],
            fps=str(frames.attrs["average_fps"]), variable=bool(frames.attrs["variable"]), step=spec.step,
        )  # fmt: skip
        self.files[file.name] = str(file)


def spaced(frames: int, most: int = TILES) -> list[int]:
    """Up to `most` frames of the clip, evenly spread from the first to the last."""
    return [int(frame) for frame in np.unique(np.linspace(0, frames - 1, min(most, frames)).round())]


def _blocks(panels: Sequence[tuple[str, Rgb]], captions: Sequence[Sequence[str]]) -> Iterator[Rgb]:
    """One frame of the video at a time (1, height, width, 3)."""
    size = tile_size(*panels[0][1].shape[1:3])
    for place, words in enumerate(captions):
        row = Row("", [frames[place] for _, frames in panels], words)
        yield np.asarray(tile_sheet([row], size, headings=[heading for heading, _ in panels]))[None]


def _written(value: Any) -> str:
    if value is None or value != value:
        return "–"
    if isinstance(value, list):
        return ", ".join(_written(each) for each in value)
    return f"{value:.2f}" if isinstance(value, float) else str(value)
