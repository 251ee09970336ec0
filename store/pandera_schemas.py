"""A Schema as a `pandera.xarray` schema: what a dataset is held to before it is committed and when it is opened."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import xarray
from pandera.errors import SchemaErrors
from pandera.xarray import Check, Coordinate, DatasetSchema, DataVar

from store.errors import SchemaError
from store.rules import broken_rule
from store.schemas import Schema, Variable

SMALL = 1_000_000  # bytes up to which a variable's values are read and checked on opening


def dataset_schema(schema: Schema) -> DatasetSchema:
    """Dims, sizes, dtypes and coordinates of every variable, and the value rules of those up to `SMALL` bytes.

    Larger variables stay unread: their values were checked block by block while they were written.
    """
    return DatasetSchema(
        {name: _data_var(variable) for name, variable in schema.variables.items()},
        coords={dim: _coordinate(dim, labels) for dim, labels in schema.coordinates.items()},
        strict=True,
        strict_coords=True,
        name=schema.artifact,
    )


def check_dataset(dataset: xarray.Dataset, schema: Schema, name: str) -> None:
    """Raise SchemaError when `dataset`, the artifact `name`, breaks `schema`: it names the variable and the rule."""
    try:
        dataset_schema(schema).validate(dataset, lazy=True)
    except SchemaErrors as errors:
        broken = [
            f"{case['column'] or 'the dataset'}: {_plain(case['error'])}"
            for kind in errors.message.values()
            for cases in kind.values()
            for case in cases
        ]
        raise SchemaError(f"{schema.artifact} {name} breaks its schema: {'; '.join(broken)}") from errors


def _data_var(variable: Variable) -> DataVar:
    sizes = {dim: size for dim, size in zip(variable.dims, variable.shape, strict=True) if size is not None}
    checks = [Check(_holds(variable), name="values")] if variable.nbytes() <= SMALL else []
    return DataVar(dtype=variable.dtype, dims=variable.dims, sizes=sizes, nullable=True, checks=checks)


def _holds(variable: Variable) -> Callable[[xarray.DataArray], bool]:
    def holds(values: xarray.DataArray) -> bool:
        broken = broken_rule(variable, values.values)
        if broken:
            raise ValueError(broken)  # pandera reports the text of what a check raises
        return True

    return holds


def _coordinate(dim: str, labels: tuple[int, ...]) -> Coordinate:
    def labelled(values: xarray.DataArray) -> bool:
        if not np.array_equal(values.values, labels):
            raise ValueError(f"the labels of {dim} differ from the promised ones")
        return True

    return Coordinate(dtype="int64", dims=(dim,), checks=Check(labelled, name="labels"))


def _plain(error: Any) -> str:
    """The sentence inside pandera's 'ValueError("…")', or that of another error."""
    text = str(error)
    inside = re.fullmatch(r'\w+Error\("(.*)"\)', text, re.DOTALL)
    return inside[1] if inside else text
