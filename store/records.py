"""Records: small JSON that says which recipe gave which object, and outlives it.

A record is written last, so it is the commit; what it names is trusted only after it was compared with the disk. It may
have come from anywhere: what it says is held to what we write ourselves before anything is done with it.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from stat import S_ISREG
from typing import Any, Literal

from blake3 import blake3
from pydantic import Field, JsonValue, ValidationError, field_validator, model_validator

from store.errors import StoreError
from store.guard import Refused, check_names, check_schema, check_text, parse_json, read_small, reason, shown_path
from store.hashing import payload_hash
from store.keys import ArtifactKey, UnnameableError, canonical_json
from store.layout import Layout, regular_files
from store.schemas import Frozen, Schema

MOST_VALUES = 200_000  # of a record beside its files: labels of every frame are the most
HEX = r"^[0-9a-f]{64}$"


class FileEntry(Frozen):
    """One file of an object: its size in bytes and its blake3."""

    size: int = Field(ge=0, le=2**63 - 1)
    blake3: str = Field(pattern=HEX)


class Record(Frozen):
    """What was asked (`recipe`), what came out (`digest`, `files`, `promised` with its actual sizes), and how.

    `sealed()` before it is written: a record whose seal does not fit was edited. Format 1 had no seal.
    """

    format: Literal[1, 2] = 2
    recipe: ArtifactKey
    hex: str = Field(pattern=HEX)
    stage: str = Field(pattern=r"^[A-Za-z0-9_]{1,64}$")
    digest: str = Field(pattern=HEX)
    bytes: int
    files: dict[str, FileEntry]
    promised: Schema = Field(alias="schema", serialization_alias="schema")
    attrs: dict[str, JsonValue]
    seconds: float = Field(ge=0)  # of work, all parts summed, those of interrupted runs included
    created: str  # ISO 8601, UTC
    provenance: dict[str, JsonValue]
    note: JsonValue = None
    seal: str | None = Field(None, pattern=HEX)

    @field_validator("files")
    @classmethod
    def _inside(cls, files: dict[str, FileEntry]) -> dict[str, FileEntry]:
        check_names(files)
        return files

    @field_validator("created")
    @classmethod
    def _dated(cls, created: str) -> str:
        datetime.fromisoformat(created)
        return created

    @model_validator(mode="after")
    def _consistent(self) -> Record:
        if (self.recipe.hex, self.recipe.stage) != (self.hex, self.stage):
            raise ValueError("its recipe does not give its key")
        if manifest_digest(self.files) != self.digest:
            raise ValueError("its list of files does not give its digest")
        if sum(entry.size for entry in self.files.values()) != self.bytes:
            raise ValueError("its number of bytes is not that of its files")
        check_schema(self.promised, self.files)
        return self

    def sealed(self) -> Record:
        """This record with its seal."""
        return self.model_copy(update={"seal": seal_of(json.loads(self.to_json()))})

    def to_json(self) -> str:
        return self.model_dump_json(by_alias=True, indent=1)


def read_record(path: Path, key: str | None = None) -> Record | None:
    """The record at `path`, None where there is none; StoreError when it cannot be trusted, saying why.

    key   that it must be the record of, in hex; without it the one that the file is named by
    """
    try:
        data = read_small(path)
    except FileNotFoundError:
        return None
    except Refused as error:
        raise StoreError(_damaged(shown_path(path), error)) from None
    except OSError as error:
        raise StoreError(f"cannot read the record {shown_path(path)}: {error.strerror or error}") from error
    record = parse_record(data, shown_path(path))
    if record.hex != (key or path.stem):
        raise StoreError(f"the record {shown_path(path)} is that of another key, {record.hex}; delete it")
    return record


def parse_record(data: bytes, where: str) -> Record:
    """The record in `data`, which may come from anywhere; StoreError, naming `where`, when it cannot be trusted.

    The seal is taken over the JSON as it was written, so a field that a later version adds does not break it.
    """
    try:
        written = parse_json(data)
        _check_size(written)
        record = Record.model_validate_json(data, strict=True)
        if record.format > 1 and record.seal != seal_of(written):
            raise Refused("its seal does not fit: it was edited")
        if record.format == 1 and "seal" in written:
            raise Refused("it has a seal, which its format does not have")
    except ValidationError as error:
        raise StoreError(_damaged(where, reason(error))) from None
    except (Refused, UnnameableError) as error:
        raise StoreError(_damaged(where, error)) from None
    return record


def _check_size(written: Mapping[str, Any]) -> None:
    """Raise Refused for what would have pydantic complain a million times, each complaint kept in memory."""
    files = written.get("files")
    if isinstance(files, dict) and any(not isinstance(file, dict) or len(file) != 2 for file in files.values()):
        raise Refused("files: not each of them is said to have size and blake3")
    values = check_text({name: value for name, value in written.items() if name != "files"})
    if values > MOST_VALUES:
        raise Refused(f"it holds {values} values beside its files")


def seal_of(written: Mapping[str, Any]) -> str:
    """blake3 of the canonical JSON of a record's fields; its list of files is in it by its digest."""
    sealed = {name: value for name, value in written.items() if name not in ("seal", "files")}
    return blake3(canonical_json(sealed).encode()).hexdigest()


def _damaged(where: str, why: object) -> str:
    return f"the record {where} is damaged ({why}); delete it, and the next run makes it again"


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
            there = os.path.lexists(folder / name)
            return f"damaged: {name} is no regular file of it" if there else f"damaged: file {name} is missing"
        if present[name] != entry.size:
            return f"damaged: file {name} has {present[name]} bytes instead of {entry.size}"
    return None


def changed_files(folder: Path, files: Mapping[str, FileEntry]) -> list[str]:
    """Names of `files` below `folder` that are missing or whose bytes have another hash."""
    if folder.is_symlink():
        return [*files]
    return [name for name, entry in files.items() if _is_changed(folder / name, entry)]


def _is_changed(path: Path, entry: FileEntry) -> bool:
    try:
        stat = path.lstat()
        return not S_ISREG(stat.st_mode) or stat.st_size != entry.size or payload_hash(path) != entry.blake3
    except OSError:  # gone, or cannot be read any more
        return True


def manifest_digest(files: Mapping[str, FileEntry]) -> str:
    """Digest of an object: blake3 of the canonical JSON of path → size and hash of all its files."""
    listed = {name: {"size": entry.size, "blake3": entry.blake3} for name, entry in files.items()}  # canonical already
    text = json.dumps(listed, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return blake3(text.encode()).hexdigest()


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
