"""Tidy tables: one row per observation, one column per variable, held to a `pandera.xarray` schema, as CSV and Zarr."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from store.errors import InputError, SchemaError

if TYPE_CHECKING:
    import xarray


@dataclass(frozen=True)
class Column:
    """One variable of a table: text, or a number (NaN where it was not measured) within a range."""

    description: str
    text: bool = False
    units: str = ""
    ge: float | None = None
    le: float | None = None


def make_table(name: str, columns: Mapping[str, Column], rows: Sequence[Mapping[str, Any]]) -> xarray.Dataset:
    """A dataset of `columns` along the dimension `row`; what a row does not name is NaN, or empty text.

    raises   SchemaError, naming the column and the rule, where a value breaks it
    """
    import numpy as np
    import xarray
    from pandera.errors import SchemaErrors

    unknown = {field for row in rows for field in row} - set(columns)
    assert not unknown, f"{name} has no column {', '.join(sorted(unknown))}"
    variables = {}
    for field, column in columns.items():
        values = [row.get(field, "" if column.text else float("nan")) for row in rows]
        array = np.array(values, dtype=object if column.text else "float64")
        attrs = {"description": column.description} | ({"units": column.units} if column.units else {})
        variables[field] = ("row", array, attrs)
    table = xarray.Dataset(variables, attrs={"table": name})
    try:
        table_schema(name, columns).validate(table, lazy=True)
    except SchemaErrors as error:
        raise SchemaError(f"table {name} breaks its schema: {' '.join(str(error).split())[:300]}") from error
    return table


def table_schema(name: str, columns: Mapping[str, Column]) -> Any:
    """The schema that a table's dataset is held to."""
    from pandera.xarray import Check, DatasetSchema, DataVar

    def checks(column: Column) -> list[Any]:
        bounds = [(column.ge, Check.ge), (column.le, Check.le)]
        return [check(bound) for bound, check in bounds if bound is not None]

    return DatasetSchema(
        {
            field: DataVar(
                dtype=object if column.text else "float64", dims=("row",), nullable=True, checks=checks(column)
            )
            for field, column in columns.items()
        },
        strict=True,
        name=name,
    )


def write_table(table: xarray.Dataset, folder: Path) -> tuple[Path, Path]:
    """Write `<folder>/<name>.csv` and `<folder>/<name>.zarr`, each whole or not at all; returns their paths."""
    csv, zarr = (folder / f"{table.attrs['table']}.{kind}" for kind in ("csv", "zarr"))
    parts = [path.with_name(f".{uuid4().hex}.part") for path in (csv, zarr)]
    try:
        table.to_dataframe().to_csv(parts[0], index=False)
        # Zarr 3 has no settled way to write text, and says so at every write; format 2 has.
        table.to_zarr(parts[1], mode="w", zarr_format=2, consolidated=True)
        parts[0].replace(csv)
        if zarr.exists():
            shutil.rmtree(zarr)
        parts[1].replace(zarr)
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror or error}); choose another folder") from error
    finally:
        parts[0].unlink(missing_ok=True)
        shutil.rmtree(parts[1], ignore_errors=True)
    return csv, zarr
