"""What a stage promises to write, and the blocks in which it does: plain data, shared by stages and store.

A `Schema` is JSON: a plan is made of them before anything runs, a record keeps the one that was promised, and a
committed artifact is held to it by `pandera.xarray` (`pandera_schemas.check_dataset`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil, prod
from typing import Any, ClassVar, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, JsonValue


class Frozen(BaseModel):
    """Base of every Spec and schema: immutable, no unknown fields, no NaN.

    left_out   fields that enter no key while they have their default, so that keys are those from before there were any
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    left_out: ClassVar[frozenset[str]] = frozenset()


class Array(Protocol):
    """What a stage may do with an input array: ask its shape, read a region as numpy."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def __getitem__(self, region: Any, /) -> Any: ...


Arrays = Mapping[str, Array]
"""An artifact as a stage sees it: variable name → array (a dict of numpy arrays will do)."""


class Variable(Frozen):
    """One array of an artifact: named dimensions, shape, dtype, chunks, and the rules that its values keep."""

    dims: tuple[str, ...]
    shape: tuple[int | None, ...]  # None, first dimension only: not known beforehand, grows as blocks arrive
    dtype: str
    chunks: tuple[int, ...]
    description: str = ""
    units: str = ""
    finite: bool = False
    ge: float | None = None
    le: float | None = None
    sums_to_one: str | None = None  # the dimension over which values sum to one
    compress: bool = False  # blosc-zstd-bitshuffle; float16 noise is stored raw

    def nbytes(self, grown: int = 0) -> int:
        """Bytes before compression, a growing dimension counted as `grown`."""
        return prod(grown if size is None else size for size in self.shape) * np.dtype(self.dtype).itemsize


class Schema(Frozen):
    """One artifact: its noun, variables, coordinates, attributes, and how the work on it may be divided."""

    artifact: str
    variables: dict[str, Variable]
    coordinates: dict[str, tuple[int, ...]] = {}  # dimension → its labels, e.g. timestep → (981, 961, …)
    attrs: dict[str, JsonValue] = {}
    parts: tuple[str, int] | None = None  # (dimension, length): the work may be done in such pieces, in any order

    def size(self, dim: str) -> int | None:
        """Length of a dimension, None where it is not known beforehand."""
        for variable in self.variables.values():
            if dim in variable.dims:
                return variable.shape[variable.dims.index(dim)]
        raise KeyError(f"{self.artifact} has no dimension {dim!r}")

    def nbytes(self, grown: int = 0) -> int:
        """Bytes of all variables before compression."""
        return sum(variable.nbytes(grown) for variable in self.variables.values())

    def divided(self) -> list[range]:
        """The parts of the work: ranges along the dimension of `parts`; one range(0, 1) where it is not divided."""
        if self.parts is None:
            return [range(1)]
        dim, length = self.parts
        size = self.size(dim)
        assert size is not None, f"{self.artifact} cannot be divided along {dim}: its size is not known"
        return [range(k * length, min((k + 1) * length, size)) for k in range(ceil(size / length))]


@dataclass(frozen=True)
class Block:
    """A rectangle of one variable, ready to be written: `values` go at `start` (one offset per dimension)."""

    variable: str
    start: tuple[int, ...]
    values: np.ndarray[Any, Any]


Blocks = Iterator[Block]
