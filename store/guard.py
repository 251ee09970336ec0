"""What comes from a store, a bundle or a bucket was written by others: names and JSON, held to what we write ourselves.

Nothing here follows a link, waits for a pipe, or takes more memory than a small multiple of `LARGEST_JSON`. Everything
raises StoreError in one sentence, which names the file and the field; `Refused` is that sentence's middle.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections import Counter
from collections.abc import Collection, Iterable
from itertools import product
from math import ceil, prod
from pathlib import Path
from typing import Any

import numpy as np

from store.errors import StoreError
from store.schemas import Schema, Variable

LARGEST_JSON = 64 << 20  # bytes; a record of 400 000 files is about as large, and its object 2 TB
MOST_CONTAINERS = 1 << 20  # objects and lists in one JSON file: 64 MiB of "[]" would be gigabytes in memory
MOST_VALUES = 1 << 22
LONGEST_NAME = 1024  # characters
DEEPEST_NAME = 32
COMPONENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+=-]{0,199}")
DTYPES = frozenset(
    ("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16", "float32", "float64")
)
MOST_DIMENSIONS = 16
LARGEST_SIZE = 1 << 48
LARGEST_CHUNK = 1 << 30  # bytes of one chunk: what reading a single value may take
CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)  # devices, on Windows


class Refused(ValueError):
    """Why something untrusted is not taken, without the name of the file it stands in."""


def check_name(name: str) -> None:
    """Raise Refused unless `name` is a relative path that stays below the folder it is put in, on any system.

    Plain ASCII components joined by "/": no "..", drive, backslash, NUL, hidden file, device name or trailing dot.
    """
    parts = name.split("/")
    if len(name) > LONGEST_NAME or len(parts) > DEEPEST_NAME:
        raise Refused(f"it names the file {shown(name)}, and that name is too long")
    for part in parts:
        if not COMPONENT.fullmatch(part) or part.endswith(".") or RESERVED.fullmatch(part):
            raise Refused(f"it names the file {shown(name)} outside its object, or in a way that not every system has")


def check_names(names: Iterable[str]) -> None:
    """Raise Refused unless all `names` are sound, differ in more than case, and none is a folder of another."""
    names = list(names)
    for name in names:
        check_name(name)
    folded = {name.casefold() for name in names}
    if len(folded) < len(names):
        raise Refused("two of its file names differ in case only")
    for name in folded:
        above = name
        while "/" in above:
            above = above.rpartition("/")[0]
            if above in folded:
                raise Refused(f"it names {shown(above)} both as a file and as a folder")


def check_schema(schema: Schema, files: Collection[str]) -> None:
    """Raise Refused unless `schema` declares plain arrays whose chunk files are exactly those of `files`.

    So nothing can be declared that is not there, and reading a value takes one chunk of memory at most.
    """
    names = [*schema.variables, *schema.coordinates]
    expected = {"zarr.json", *(f"{name}/zarr.json" for name in names)}
    for name, variable in schema.variables.items():
        check_variable(name, variable)
        expected.update(_chunk_names(name, variable, len(files)))
    for dim, labels in schema.coordinates.items():
        if labels and not -(2**63) <= min(labels) <= max(labels) < 2**63:
            raise Refused(f"{dim} has a label beyond 64 bits")
        expected.update([f"{dim}/c/0"] if labels else [])
    if len(names) != len(set(names)) or expected != set(files):
        odd = min(expected.symmetric_difference(files), default="")
        raise Refused(f"its list of files is not what its schema declares: {shown(odd)}")


def check_variable(name: str, variable: Variable) -> None:
    """Raise Refused unless a variable is a plain array of numbers of a sane layout; its size may be huge, or None."""
    if not COMPONENT.fullmatch(name):
        raise Refused(f"{shown(name)} is no name for a variable")
    counts = {len(variable.dims), len(variable.shape), len(variable.chunks)}
    if len(counts) > 1 or max(counts) > MOST_DIMENSIONS or len(set(variable.dims)) < len(variable.dims):
        raise Refused(f"{name} has unequal counts of dimensions, more than {MOST_DIMENSIONS}, or one twice")
    if variable.dtype not in DTYPES:
        raise Refused(f"{name} has the dtype {shown(variable.dtype)}, and only plain numbers are stored")
    if not all(COMPONENT.fullmatch(dim) for dim in variable.dims):
        raise Refused(f"{name} has a dimension that is no name")
    if not all(size is None or 0 <= size <= LARGEST_SIZE for size in variable.shape):
        raise Refused(f"{name} has a size below 0 or above {LARGEST_SIZE}")
    if min(variable.chunks, default=1) < 1 or prod(variable.chunks) * np.dtype(variable.dtype).itemsize > LARGEST_CHUNK:
        raise Refused(f"{name} has chunks of nothing, or of more than {LARGEST_CHUNK} bytes")


def _chunk_names(name: str, variable: Variable, files: int) -> Iterable[str]:
    """The files of a declared array's chunks; Refused where there must be more than `files` of them."""
    if None in variable.shape:
        raise Refused(f"{name} has a size that is not known")
    counts = [ceil((size or 0) / length) for size, length in zip(variable.shape, variable.chunks, strict=True)]
    if prod(counts) > files:
        raise Refused(f"{name} declares {prod(counts)} chunks, and there are {files} files in all")
    return ("/".join([name, "c", *map(str, at)]) for at in product(*map(range, counts)))


def check_text(value: Any) -> int:
    """How many values a JSON value holds; Refused where text in it holds what a terminal would act on (escapes)."""
    values, pending = 0, [value]
    while pending:
        value = pending.pop()
        values += 1
        if isinstance(value, str):
            if CONTROLS.search(value):
                raise Refused(f"it holds control characters: {shown(value)}")
        elif isinstance(value, dict):
            pending += [*value, *value.values()]
        elif isinstance(value, list):
            pending += value
    return values


def read_small(path: Path, limit: int = LARGEST_JSON) -> bytes:
    """The bytes of a small regular file.

    raises    FileNotFoundError; OSError where it cannot be read; Refused for a link, a pipe, a device or a folder, and
              for more than `limit` bytes
    """
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    if not stat.S_ISREG(path.lstat().st_mode):  # before opening too: that alone makes some devices act
        raise Refused("it is a link" if path.is_symlink() else "it is no regular file")
    with os.fdopen(os.open(path, flags), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise Refused("it is no regular file")
        data = file.read(limit + 1)
    if len(data) > limit:
        raise Refused(f"it has more than {limit} bytes")
    return data


def check_bulk(data: bytes) -> None:
    """Raise Refused for JSON that would take many times its size in memory."""
    if data.count(b"{") + data.count(b"[") > MOST_CONTAINERS or data.count(b",") > MOST_VALUES:
        raise Refused("it holds more values than any file of a store")


def parse_json(data: bytes) -> dict[str, Any]:
    """A JSON object as Python values; Refused for anything else: doubled names, NaN, numbers beyond a double, depth."""
    check_bulk(data)
    try:
        value = json.loads(data.decode(), object_pairs_hook=_once, parse_constant=_constant, parse_float=_finite)
    except RecursionError:
        raise Refused("it is nested too deeply") from None
    except UnicodeDecodeError:
        raise Refused("it is not valid UTF-8") from None
    except json.JSONDecodeError as error:
        raise Refused(f"it is not valid JSON: {error.msg} at character {error.pos}") from None
    except Refused:
        raise
    except ValueError:  # an integer of thousands of digits
        raise Refused("it holds a number that is too long") from None
    if not isinstance(value, dict):
        raise Refused("it is no JSON object")
    return value


def read_json(path: Path, what: str) -> dict[str, Any]:
    """The JSON object in a small file; StoreError, saying `what` it is and where, when it cannot be trusted or read.

    raises    FileNotFoundError where there is none
    """
    try:
        return parse_json(read_small(path))
    except FileNotFoundError:
        raise
    except Refused as error:
        raise StoreError(f"{what} {shown_path(path)} is damaged ({error}); delete that file") from None
    except OSError as error:
        raise StoreError(f"cannot read {what} {shown_path(path)}: {error.strerror or error}") from error


def shown(text: object, longest: int = 60) -> str:
    """Untrusted text in a sentence: quoted, without control characters, no longer than a glance."""
    quoted = ascii(text)
    return quoted if len(quoted) <= longest else f"{quoted[: longest - 1]}…"


def shown_path(path: Path) -> str:
    """A path in a sentence: as it is, unless it holds what a terminal would act on."""
    text = str(path)
    return text if text.isprintable() else ascii(text)


def reason(error: Any) -> str:
    """The first thing that a pydantic ValidationError says, with the field it says it of."""
    first = error.errors(include_url=False, include_input=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    said = str(first["msg"]).removeprefix("Value error, ")[:400]
    return f"{shown(field)[1:-1]}: {said}" if field and first["type"] != "value_error" else said


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    known = dict(pairs)
    if len(known) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise Refused(f"it says {shown(twice)} twice")
    return known


def _constant(text: str) -> float:
    raise Refused(f"it holds {text}, which is no number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise Refused(f"it holds {shown(text)}, which is beyond any number")
    return number
