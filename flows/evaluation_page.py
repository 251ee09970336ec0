"""What an evaluation found, for people: a table in the terminal, and one self-contained page with its pictures."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from rich.table import Table

from stages.measures.statistics import interval, paired_difference
from stages.media.sheets import contact_sheet
from store.errors import InputError
from store.tables import Column

from .evaluate import Evaluation, Row, Shown
from .measure import MEASURES

DIGITS = {"warp_error": 2, "inversion_psnr": 1, "reconstruction_psnr": 1, "background_psnr": 1, "seconds": 1}


@dataclass(frozen=True)
class Cell:
    """A mean over clips with its 95 % interval, and the mean difference from the first setting with its own."""

    mean: float
    lower: float
    upper: float
    difference: tuple[float, float, float]

    def text(self, digits: int) -> str:
        """Such as "5.81 [4.9, 6.7]"."""
        if math.isnan(self.mean):
            return "–"
        if math.isnan(self.lower):
            return f"{self.mean:.{digits}f}"
        return f"{self.mean:.{digits}f} [{self.lower:.{digits}f}, {self.upper:.{digits}f}]"

    def difference_text(self, digits: int) -> str:
        """Such as "+0.31 [0.1, 0.5]"; empty where there is nothing to compare."""
        mean, lower, upper = self.difference
        if math.isnan(lower) or mean == lower == upper == 0:
            return ""
        return f"{mean:+.{digits}f} [{lower:+.{digits}f}, {upper:+.{digits}f}]"


@dataclass(frozen=True)
class Line:
    """One setting's means over its clips; differences are over the clips that the first setting shares."""

    setting: str
    clips: int
    cells: dict[str, Cell]


def summarized(evaluation: Evaluation) -> tuple[list[str], list[Line]]:
    """Measures that were taken at all, and a line per setting: the floor, the suite's own in order, per-frame."""
    measures = [name for name in MEASURES if any(not math.isnan(row.get(name, math.nan)) for row in evaluation.rows)]
    present = {row["setting"]: None for row in evaluation.rows}
    settings = [setting.name for setting in evaluation.suite.all_settings()]
    order = [name for name in ("autoencoder", *settings) if name in present]
    return measures, [_line(evaluation.rows, name, settings[0], measures) for name in order]


def _line(rows: Sequence[Row], setting: str, first: str, measures: Sequence[str]) -> Line:
    own = {(row["clip"], row["prompt"]): row for row in rows if row["setting"] == setting}
    reference = {(row["clip"], row["prompt"]): row for row in rows if row["setting"] == first}
    shared = [key for key in own if key in reference]
    cells = {}
    for name in measures:
        values = np.array([row.get(name, math.nan) for row in own.values()], float)
        pairs = [(own[key].get(name, math.nan), reference[key].get(name, math.nan)) for key in shared]
        both = np.array(pairs, float).reshape(-1, 2)
        cells[name] = Cell(*interval(values), paired_difference(both[:, 0], both[:, 1]))
    return Line(setting, len(own), cells)


def summary_table(evaluation: Evaluation) -> Table:
    """The means, for the terminal."""
    measures, lines = summarized(evaluation)
    table = Table("setting", box=None, pad_edge=False)
    table.add_column("edits", justify="right")
    for name in measures:
        table.add_column(_heading(name, MEASURES[name]), justify="right")
    for line in lines:
        cells = [line.cells[name] for name in measures]
        means = [
            "–" if math.isnan(c.mean) else f"{c.mean:.{DIGITS.get(n, 3)}f}"
            for n, c in zip(measures, cells, strict=True)
        ]
        table.add_row(line.setting, str(line.clips), *means)
    return table


def definitions(measures: Sequence[str]) -> list[str]:
    """A sentence per measure: papers differ by factors of a thousand."""
    return [f"{_heading(name, MEASURES[name])}: {MEASURES[name].description}" for name in measures]


def write_page(evaluation: Evaluation, file: Path) -> None:
    """The page, whole or not at all; it opens from disk and loads nothing."""
    from jinja2 import Environment, FileSystemLoader

    measures, lines = summarized(evaluation)
    template = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    ).get_template("evaluation.html")
    page = template.render(
        suite=evaluation.suite, estimator=evaluation.estimator, digits=DIGITS,
        measures=[(name, _heading(name, MEASURES[name])) for name in measures], lines=lines,
        definitions=definitions(measures), rows=evaluation.rows, fields=list(_field_tables(evaluation.field_rows)),
        pictures=[(shown.clip, _picture(shown)) for shown in evaluation.pictures],
    )  # fmt: skip
    part = file.with_name(f".{uuid4().hex}.part")
    try:
        part.write_text(page, "utf-8")
        part.replace(file)
    except OSError as error:
        raise InputError(f"{file} cannot be written ({error.strerror or error}); choose another folder") from error
    finally:
        part.unlink(missing_ok=True)


@dataclass(frozen=True)
class FieldTable:
    """Mean accuracy of one setting's field over clips: layers down, timesteps across."""

    setting: str
    timesteps: list[int]
    layers: list[tuple[str, int, list[float]]]  # name, tokens, accuracy per timestep


def _field_tables(rows: Sequence[Row]) -> Iterator[FieldTable]:
    for setting in {row["setting"]: None for row in rows}:
        own = [row for row in rows if row["setting"] == setting and "accuracy" in row]
        everywhen = sorted({row["timestep"] for row in own}, reverse=True)
        shown = [everywhen[k] for k in sorted({round(k) for k in np.linspace(0, len(everywhen) - 1, 9)})]
        sizes = {row["layer"]: row["tokens"] for row in own}
        layers = []
        for layer, tokens in sizes.items():
            means = [
                float(np.mean([row["accuracy"] for row in own if row["layer"] == layer and row["timestep"] == when]))
                for when in shown
            ]
            layers.append((layer, tokens, means))
        yield FieldTable(setting, shown, layers)


def _picture(shown: Shown) -> str:
    """A contact sheet as a data URI."""
    file = io.BytesIO()
    sheet = contact_sheet(shown.rows, columns=8, scale=max(1, round(96 / shown.rows[0][1].shape[1])))
    sheet.save(file, "WEBP", quality=85)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def _heading(name: str, column: Column) -> str:
    units = {"1e-3": "×10⁻³"}.get(column.units, column.units)
    return name.replace("_", " ").replace("psnr", "PSNR") + (f", {units}" if units else "")


def as_json(evaluation: Evaluation, files: dict[str, str]) -> dict[str, Any]:
    """The one JSON object of `tf eval --json`."""
    measures, lines = summarized(evaluation)
    return {
        "suite": evaluation.suite.name,
        "flow": evaluation.estimator,
        "settings": [
            {
                "setting": line.setting, "edits": line.clips,
                **{name: None if math.isnan(line.cells[name].mean) else line.cells[name].mean for name in measures},
            }
            for line in lines
        ],
        "measures": {name: MEASURES[name].description for name in measures},
        "files": files,
    }  # fmt: skip
