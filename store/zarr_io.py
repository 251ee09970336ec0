"""A Schema as a Zarr v3 group on disk: metadata, chunk files, and handles to write and to read.

Zarr reads a lost chunk as its fill value, so floats are filled with NaN, every chunk is written even when it is empty,
and no group is taken for complete because it exists: that is for the record's list of files to say.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from pydantic import JsonValue
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.storage import LocalStore

from store.errors import SchemaError, StoreError
from store.guard import Refused, parse_json, read_small, shown
from store.schemas import Schema, Variable

# xarray turns these words of a `units` attribute into times; the symbols it leaves alone
SYMBOLS = {"seconds": "s", "milliseconds": "ms", "microseconds": "us", "nanoseconds": "ns", "minutes": "min"}

CODEC = {"name", "configuration"}
CODEC_SETTINGS = {
    "bytes": {"endian"},
    "blosc": {"typesize", "cname", "clevel", "shuffle", "blocksize"},
    "crc32c": set(),
}

Region = tuple[slice, ...]


def create_arrays(group: Path, schema: Schema, grown: dict[str, int]) -> dict[str, Any]:
    """Write the metadata of all arrays under `group`, leaving chunk files as they are; return handles to write.

    grown   length of each growing variable's first dimension so far
    """
    group.mkdir(parents=True, exist_ok=True)
    for metadata in group.glob("*/zarr.json"):
        metadata.unlink()
    for dim, labels in schema.coordinates.items():
        coordinate = zarr.create_array(
            group / dim, shape=(len(labels),), dtype="int64", chunks=(max(len(labels), 1),), fill_value=0,
            compressors=[Crc32cCodec()], dimension_names=(dim,), config={"write_empty_chunks": True}, overwrite=True,
        )  # fmt: skip
        coordinate[:] = np.asarray(labels, dtype=np.int64)
    return {name: _create(group / name, variable, grown.get(name, 0)) for name, variable in schema.variables.items()}


def _create(path: Path, variable: Variable, grown: int) -> Any:
    packed = [BloscCodec(cname="zstd", shuffle="bitshuffle")] if variable.compress else []
    described = {"description": variable.description, "units": SYMBOLS.get(variable.units, variable.units)}
    return zarr.create_array(
        path,
        shape=tuple(grown if size is None else size for size in variable.shape),
        dtype=variable.dtype,
        chunks=variable.chunks,
        fill_value=np.nan if np.dtype(variable.dtype).kind == "f" else 0,
        compressors=[*packed, Crc32cCodec()],
        dimension_names=variable.dims,
        attributes={name: text for name, text in described.items() if text},
        config={"write_empty_chunks": True},
    )


def write_group(group: Path, schema: Schema, attrs: dict[str, JsonValue]) -> None:
    """Write the group's own metadata, those of its arrays in the schema's order included.

    By hand, because zarr lists the arrays as the disk happens to name them, and equal data must be equal bytes.
    """
    names = [*schema.variables, *schema.coordinates]
    arrays = {name: json.loads((group / name / "zarr.json").read_text()) for name in names}
    consolidated = {"kind": "inline", "must_understand": False, "metadata": arrays}
    described = {"artifact": schema.artifact, **schema.attrs, **attrs}
    metadata = {"zarr_format": 3, "node_type": "group", "attributes": described, "consolidated_metadata": consolidated}
    (group / "zarr.json").write_text(json.dumps(metadata, indent=1, allow_nan=False, ensure_ascii=False))


def check_metadata(group: Path, schema: Schema, attrs: Mapping[str, JsonValue], name: str) -> None:
    """Hold the metadata of a committed group to what is written for `schema`, before Zarr is told of them.

    So nothing is read through a codec, a fill value, a scale or a shape that is not our own.

    raises    SchemaError, naming the artifact `name`, where dims, sizes or dtypes are not the schema's; Refused where
              anything else is not ours
    """
    root = parse_json(read_small(group / "zarr.json"))
    consolidated = root.pop("consolidated_metadata", None)
    arrays = consolidated.pop("metadata", None) if isinstance(consolidated, dict) else None
    expected = {"zarr_format": 3, "node_type": "group", "attributes": {"artifact": schema.artifact, **attrs}}
    if root != expected or consolidated != {"kind": "inline", "must_understand": False} or not isinstance(arrays, dict):
        raise Refused("its zarr.json is not what is written for its schema")
    labelled = {
        dim: Variable(dims=(dim,), shape=(len(labels),), dtype="int64", chunks=(max(len(labels), 1),))
        for dim, labels in schema.coordinates.items()
    }
    variables = {**schema.variables, **labelled}
    if set(arrays) != set(variables):
        raise Refused("its zarr.json names other variables than its schema")
    for variable_name, variable in variables.items():
        own = parse_json(read_small(group / variable_name / "zarr.json"))
        if own != arrays[variable_name]:
            raise Refused(f"the two metadata of {variable_name} differ")
        broken = _broken_promise(variable, own)
        if broken:
            raise SchemaError(f"{schema.artifact} {name} breaks its schema: {variable_name}: {broken}")
        _check_array(variable_name, variable, own)


def _broken_promise(variable: Variable, own: dict[str, Any]) -> str | None:
    if own.get("dimension_names") != list(variable.dims):
        return f"expected dims {variable.dims}, got {shown(own.get('dimension_names'))}"
    if own.get("shape") != list(variable.shape):
        sizes = ", ".join(f"{dim}={size}" for dim, size in zip(variable.dims, variable.shape, strict=True))
        return f"expected size {sizes}, got {shown(own.get('shape'))}"
    if own.get("data_type") != variable.dtype:
        return f"expected dtype {variable.dtype}, got {shown(own.get('data_type'))}"
    return None


def _check_array(name: str, variable: Variable, own: dict[str, Any]) -> None:
    """Raise Refused unless the rest of an array's metadata is what `_create` writes."""
    codecs = own.get("codecs")
    sound = isinstance(codecs, list) and all(isinstance(codec, dict) and set(codec) <= CODEC for codec in codecs)
    steps = ["bytes", *(["blosc"] if variable.compress else []), "crc32c"]
    if not sound or [codec.get("name") for codec in codecs or ()] != steps:
        raise Refused(f"{name} is written with codecs other than {', '.join(steps)}")
    for codec in codecs or ():
        settings = codec.get("configuration") or {}
        if not isinstance(settings, dict) or not set(settings) <= CODEC_SETTINGS[codec["name"]]:
            raise Refused(f"{name} is written with an unknown setting of {codec['name']}")
        if settings.get("endian", "little") != "little":
            raise Refused(f"{name} is written with another order of bytes")
    rest = {field: value for field, value in own.items() if field not in ("codecs", "storage_transformers")}
    described = {"description": variable.description, "units": SYMBOLS.get(variable.units, variable.units)}
    expected = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(variable.shape),
        "data_type": variable.dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(variable.chunks)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": "NaN" if np.dtype(variable.dtype).kind == "f" else 0,
        "dimension_names": list(variable.dims),
        "attributes": {field: text for field, text in described.items() if text},
    }
    if rest != expected or own.get("storage_transformers", []) != []:
        raise Refused(f"the metadata of {name} is not what is written for its schema")


def chunk_files(name: str, variable: Variable, region: Region) -> list[str]:
    """Relative paths of the chunk files that `region` of the variable `name` touches."""
    touched = [range(s.start // c, -(-s.stop // c)) for s, c in zip(region, variable.chunks, strict=True)]
    return ["/".join([name, "c", *map(str, index)]) for index in product(*touched)]


def absent_chunks(array: Any) -> int:
    """How many chunks of the array have no file."""
    return int(array.nchunks - array.nchunks_initialized)


def open_array(path: Path) -> Any:
    """Read-only handle of one array."""
    return zarr.open_array(path, mode="r")


def open_group(path: Path) -> Any:
    """Read-only handle of a committed group; StoreError where a chunk that is read has gone meanwhile."""
    return zarr.open_group(Committed(path, read_only=True), mode="r", zarr_format=3)


class Committed(LocalStore):
    """The files of a committed group. All were there when it was found: a chunk that is not there now was removed."""

    async def get(self, key: str, *given: Any, **named: Any) -> Any:
        """As zarr asks for one file; for zarr alone, None would mean a chunk full of fill values."""
        found = await super().get(key, *given, **named)
        if found is None and "/c/" in f"/{key}":
            raise StoreError(f"{self.root / key} was removed while it was in use; run again, and it is made anew")
        return found
