"""Records: small JSON that says which recipe gave which object, and outlives it.

A record is written last, so it is the commit; what it names is trusted only after it was compared with the disk.
"""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Literal

from blake3 import blake3
from pydantic import Field, JsonValue, ValidationError, field_validator, model_validator

from store.errors import StoreError
from store.hashing import payload_hash
from store.keys import ArtifactKey, canonical_json
from store.layout import Layout, regular_files
from store.schemas import Frozen, Schema

HEX = r"^[0-9a-f]{64}$"


class FileEntry(Frozen):
    """One file of an object: its size in bytes and its blake3."""

    size: int
    blake3: str = Field(pattern=HEX)


class Record(Frozen):
    """What was asked (`recipe`), what came out (`digest`, `files`, `promised` with its actual sizes), and how."""

    format: Literal[1] = 1
    recipe: ArtifactKey
    hex: str = Field(pattern=HEX)
    stage: str
    digest: str = Field(pattern=HEX)
    bytes: int
    files: dict[str, FileEntry]
    promised: Schema = Field(alias="schema", serialization_alias="schema")
    attrs: dict[str, JsonValue]
    seconds: float  # of work, all parts summed, those of interrupted runs included
    created: str  # ISO 8601, UTC
    provenance: dict[str, JsonValue]
    note: JsonValue = None

    @field_validator("files")
    @classmethod
    def _inside(cls, files: dict[str, FileEntry]) -> dict[str, FileEntry]:
        for name in files:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or "\\" in name or path.as_posix() != name:
                raise ValueError(f"it names the file {name!r} outside its object")
        return files

    @model_validator(mode="after")
    def _consistent(self) -> Record:
        if (self.recipe.hex, self.recipe.stage) != (self.hex, self.stage):
            raise ValueError("its recipe does not give its key")
        if manifest_digest(self.files) != self.digest:
            raise ValueError("its list of files does not give its digest")
        return self

    def to_json(self) -> str:
        return self.model_dump_json(by_alias=True, indent=1)


def read_record(path: Path) -> Record | None:
    """The record at `path`, None where there is none; StoreError when it cannot be trusted, saying why."""
    try:
        record = Record.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise StoreError(
            f"the record {path} is damaged ({reason}); delete it, and the next run makes it again"
        ) from error
    except OSError as error:
        raise StoreError(f"cannot read the record {path}: {error.strerror or error}") from error
    if path.stem != record.hex:
        raise StoreError(f"the record {path} is that of another key, {record.hex}; delete it")
    return record


def fault(layout: Layout, record: Record) -> str | None:
    """Why the object of `record` cannot be used: collected, or damaged and how; None when every file has its size."""
    folder = layout.object(record.digest)
    if not folder.exists() and not folder.is_symlink():
        return "collected"
    if folder.is_symlink() or not folder.is_dir():
        return f"damaged: {folder} is not a folder"
    try:
        present = regular_files(folder)
    except FileNotFoundError:  # it is being removed at this moment
        return "collected"
    except OSError as error:
        return f"damaged: {folder} cannot be read ({error.strerror or error})"
    for name, entry in record.files.items():
        if name not in present:
            return f"damaged: file {name} is missing"
        if present[name] != entry.size:
            return f"damaged: file {name} has {present[name]} bytes instead of {entry.size}"
    return None


def changed_files(folder: Path, files: Mapping[str, FileEntry]) -> list[str]:
    """Names of `files` below `folder` that are missing or whose bytes have another hash."""
    present = regular_files(folder) if folder.is_dir() else {}
    return [
        name
        for name, entry in files.items()
        if present.get(name) != entry.size or payload_hash(folder / name) != entry.blake3
    ]


def manifest_digest(files: Mapping[str, FileEntry]) -> str:
    """Digest of an object: blake3 of the canonical JSON of path → size and hash of all its files."""
    return blake3(canonical_json({name: entry.model_dump() for name, entry in files.items()}).encode()).hexdigest()


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@cache
def software() -> Mapping[str, JsonValue]:
    """Versions of what computes here: our own and its commit, torch, diffusers, zarr, Python, the platform."""
    names = ("tokenflow", "torch", "diffusers", "zarr")
    return {
        **{name: _version(name) for name in names},
        "commit": _commit(Path(__file__).resolve().parents[1]),
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit(root: Path) -> str | None:
    """Commit of the checkout at `root`; None when it is no checkout, or only lies inside another project's."""
    try:
        answer = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "--show-toplevel", "HEAD"],
            capture_output=True, text=True, check=True, timeout=10,
        ).stdout.split("\n")  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return answer[1] if Path(answer[0]) == root else None


class Explanation(Frozen):
    """Why an artifact is not there: one line, and the record that comes nearest to it, if any."""

    reason: str
    differences: tuple[str, ...] = ()
    nearest: str | None = None  # key, in hex

    def __str__(self) -> str:
        return self.reason
