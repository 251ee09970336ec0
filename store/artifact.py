"""What came out: a committed object, read by variable name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import JsonValue

from store.errors import StoreError
from store.records import Record
from store.schemas import Schema

if TYPE_CHECKING:
    import xarray

_checked: set[tuple[Path, str]] = set()  # (object, key); objects are immutable: one check per process


class Values:
    """One array of an artifact, to be read: bytes that have rotted are told as such, with a name and the way out."""

    def __init__(self, array: Any, name: str) -> None:
        self._array, self._name = array, name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._array, name)

    def __len__(self) -> int:
        return int(self._array.shape[0])

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray[Any, Any]:
        return np.asarray(self[:], *args, **kwargs)

    def __getitem__(self, region: Any) -> Any:
        try:
            return self._array[region]
        except (ValueError, RuntimeError) as error:  # of the checksum, or of what unpacks
            raise StoreError(
                f"{self._name} is damaged ({error}); tf verify --repair drops it, and the next run computes it again"
            ) from error


class Artifact(Mapping[str, Any]):
    """A committed artifact: `artifact["latents"]` is a read-only array with shape, dtype and regions as numpy.

    Coordinates are read likewise (`artifact["timestep"]`); iteration is over the variables alone.

    The first read checks the object against its schema: SchemaError names artifact, variable and rule.
    """

    def __init__(self, path: Path, record: Record) -> None:
        self.path = path
        self.record = record

    @property
    def key(self) -> str:
        """64 hexadecimal digits: what was asked."""
        return self.record.hex

    @property
    def stage(self) -> str:
        return self.record.stage

    @property
    def digest(self) -> str:
        """64 hexadecimal digits: what came out."""
        return self.record.digest

    @property
    def attrs(self) -> dict[str, JsonValue]:
        """Attributes that the schema promised and those found while computing (a video's fps)."""
        return self.record.attrs

    @property
    def schema(self) -> Schema:
        """The schema with the sizes that growing dimensions ended at."""
        return self.record.promised

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return self.record.bytes

    def __getitem__(self, variable: str) -> Any:
        if variable not in self.schema.variables and variable not in self.schema.coordinates:
            raise KeyError(f"{self} has no variable {variable!r}; it has {', '.join(self)}")
        return Values(self._group[variable], f"{self}: {variable}")

    def __iter__(self) -> Iterator[str]:
        return iter(self.schema.variables)

    def __len__(self) -> int:
        return len(self.schema.variables)

    def __hash__(self) -> int:
        return hash(self.path)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Artifact) and (self.path, self.key) == (other.path, other.key)

    def __repr__(self) -> str:
        return f"{self.schema.artifact} {self.stage}/{self.key[:12]}"

    def dataset(self) -> xarray.Dataset:
        """The artifact as a lazy xarray Dataset with named dimensions and labelled coordinates."""
        self._check()
        return self._open()

    @cached_property
    def _group(self) -> Any:
        from store.zarr_io import open_group

        self._check()
        return open_group(self.path)

    def _check(self) -> None:
        if (self.path, self.key) in _checked:
            return
        from store.pandera_schemas import check_dataset

        with self._open() as dataset:
            check_dataset(dataset, self.schema, f"{self.stage}/{self.key[:12]}")
        _checked.add((self.path, self.key))

    def _open(self) -> xarray.Dataset:
        import xarray

        from store.zarr_io import Committed, check_metadata

        try:
            check_metadata(self.path, self.schema, self.attrs, f"{self.stage}/{self.key[:12]}")
            return xarray.open_zarr(Committed(self.path, read_only=True), chunks=None, consolidated=True)
        except (OSError, ValueError, KeyError) as error:
            raise StoreError(
                f"{self} is damaged: {self.path} cannot be opened ({error}); delete that folder"
            ) from error
