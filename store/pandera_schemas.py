"""A Schema as a `pandera.xarray` schema: what a dataset is held to before it is committed and when it is opened."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import xarray
from pandera.errors import SchemaErrors
from pandera.xarray import Check, Coordinate, DataArraySchema, DatasetSchema

from store.errors import SchemaError
from store.rules import broken_rule
from store.schemas import Schema, Variable

SMALL = 1_000_000  # bytes up to which a variable's values are read and checked on opening


def check_dataset(dataset: xarray.Dataset, schema: Schema, name: str) -> None:
    """Raise SchemaError when `dataset`, the artifact `name`, breaks `schema`: it names the variables and the rules.

    Dims, sizes, dtypes and coordinates of every variable, and the value rules of those up to `SMALL` bytes. Larger
    variables stay unread: their values were checked block by block while they were written.
    """
    broken = _broken(_dataset_schema(schema), dataset, "the dataset")
    for each, variable in schema.variables.items():  # by itself: a DatasetSchema would merge it back into the dataset
        if each in dataset:
            broken += _broken(_data_array_schema(each, variable), dataset[each], each)
    if broken:
        raise SchemaError(f"{schema.artifact} {name} breaks its schema: {'; '.join(broken)}")


def _broken(schema: DatasetSchema | DataArraySchema, found: Any, named: str) -> list[str]:
    """What is broken of `schema`: name and rule of each, `named` where pandera gives no name."""
    try:
        schema.validate(found, lazy=True, inplace=True)
    except SchemaErrors as errors:
        return [
            f"{case['column'] or named}: {_plain(case['error'])}"
            for kind in errors.message.values()
            for cases in kind.values()
            for case in cases
        ]
    return []


def _dataset_schema(schema: Schema) -> DatasetSchema:
    return DatasetSchema(
        dict.fromkeys(schema.variables),
        coords={dim: _coordinate(dim, labels) for dim, labels in schema.coordinates.items()},
        strict=True,
        strict_coords=True,
        name=schema.artifact,
    )


def _data_array_schema(name: str, variable: Variable) -> DataArraySchema:
    sizes = {dim: size for dim, size in zip(variable.dims, variable.shape, strict=True) if size is not None}
    checks = [Check(_holds(variable), name="values")] if variable.nbytes() <= SMALL else []
    return DataArraySchema(
        dtype=variable.dtype, dims=variable.dims, sizes=sizes, nullable=True, checks=checks, name=name
    )


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
