"""Stages without a disk: blocks are collected into a dict of numpy arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from store.schemas import Blocks, Schema


def collect(
    schema: Schema, run: Callable[[range], Blocks], parts: Sequence[range] | None = None
) -> dict[str, np.ndarray[Any, Any]]:
    """Run every part of a stage and put its blocks together; what was promised and not written fails.

    parts   the work in other pieces, in another order, or not all of it: the rest stays zero
    """
    arrays = {
        name: np.zeros([0 if size is None else size for size in variable.shape], variable.dtype)
        for name, variable in schema.variables.items()
    }
    written = {name: np.zeros(array.shape, bool) for name, array in arrays.items()}
    for part in schema.divided() if parts is None else parts:
        for block in run(part):
            region = tuple(slice(s, s + n) for s, n in zip(block.start, block.values.shape, strict=True))
            assert block.values.dtype == arrays[block.variable].dtype, block.variable
            assert arrays[block.variable][region].shape == block.values.shape, block.variable
            arrays[block.variable][region] = block.values
            written[block.variable][region] = True
    for name, mask in written.items():
        dims = schema.variables[name].dims
        if parts is not None and schema.parts and schema.parts[0] in dims:
            mask = mask.take([place for part in parts for place in part], dims.index(schema.parts[0]))
        assert mask.all(), f"{name} was not written completely"
    return arrays | {name: np.array(labels) for name, labels in schema.coordinates.items()}
