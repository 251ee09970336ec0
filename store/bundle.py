"""A bundle: runs and all they need in one zip file, for a colleague who cannot reach the store.

    format                     "tokenflow bundle 1"
    runs/<run>.json, keys/<stage>/<key>.json, objects/<digest>/…      as in a store

A bundle comes from anybody. It is refused, by the entry's name, where it holds anything but that: entries that are
links, packed (so none can swell), twice there, outside, or not listed in a sound record with their size.
"""

from __future__ import annotations

import json
import re
import shutil
import stat
import uuid
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from store.errors import InputError, StoreError
from store.guard import Refused, parse_json
from store.layout import writing
from store.moving import Source, needed
from store.records import Record, parse_record
from store.store import RUN_ID
from store.transfer import DamagedError, sound

FORMAT = b"tokenflow bundle 1\n"
MOST_OF_A_TEXT = 256 << 20  # bytes of a record or run
NAME = re.compile(rf"format|runs/{RUN_ID}\.json|keys/\w{{1,100}}/[0-9a-f]{{64}}\.json|objects/[0-9a-f]{{64}}/[^\0]+")


def write_bundle(runs: Sequence[dict[str, Any]], source: Source, file: Path) -> dict[str, Any]:
    """Write runs and all they need to `file`, whole or not at all; says what went in.

    raises    InputError where the file cannot be written; DamagedError, naming the file, for other bytes than recorded
    """
    if file.suffix.lower() != ".zip":
        raise InputError(f"{file} does not say what to write; end its name in .zip")
    if not file.parent.is_dir() or file.is_dir():
        raise InputError(f"{file} cannot be written; name a file in a folder that is there")
    part = file.with_name(f".{uuid.uuid4().hex}.part")
    spare = part.with_suffix(".file")
    counted: dict[str, Any] = {"file": str(file), "runs": [], "artifacts": 0, "files": 0, "bytes": 0, "lost": []}
    try:
        with writing(file.parent, file.name), zipfile.ZipFile(part, "x", zipfile.ZIP_STORED, allowZip64=True) as bundle:
            bundle.writestr("format", FORMAT)
            _write_artifacts(bundle, runs, source, spare, counted)
            for run in runs:
                bundle.writestr(f"runs/{run['id']}.json", json.dumps(run, indent=1, ensure_ascii=False))
                counted["runs"].append(run["id"])
        with writing(file.parent, file.name):
            part.replace(file)
    finally:
        part.unlink(missing_ok=True)
        spare.unlink(missing_ok=True)
    return counted


def _write_artifacts(
    bundle: zipfile.ZipFile, runs: Sequence[dict[str, Any]], source: Source, spare: Path, counted: dict[str, Any]
) -> None:
    keys: set[str] = set()
    objects: set[str] = set()
    for digits, known in (each for run in runs for each in needed(source, run)):
        if digits in keys or known is None:
            continue
        keys.add(digits)
        record, content = known
        if not source.holds(record):
            counted["lost"].append(digits)
            continue
        if record.digest not in objects:
            objects.add(record.digest)
            for name, entry in record.files.items():
                path = source.file_of(record, name, spare)
                if path is None or not sound(path, entry):
                    raise DamagedError([name], f"{source.place}, {record.stage}/{record.hex[:12]}")
                bundle.write(path, f"objects/{record.digest}/{name}")
            counted["files"] += len(record.files)
            counted["bytes"] += record.bytes
        bundle.writestr(f"keys/{record.stage}/{record.hex}.json", content)
        counted["artifacts"] += 1


class Bundle:
    """A bundle as a source of runs; a context manager. Everything in it is checked when it is opened, but the bytes.

    scratch   a folder on this machine that may be written
    raises    InputError, naming the entry, where it holds what a bundle does not
    """

    def __init__(self, file: Path, scratch: Path) -> None:
        self.file, self.place = file, str(file)
        self._scratch = scratch / f".bundle-{uuid.uuid4().hex}"
        try:
            self._zip = zipfile.ZipFile(file)
        except OSError as error:
            raise InputError(f"cannot read {file} ({error.strerror or error}); name a bundle of tf export") from None
        except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            raise InputError(f"{file} is no bundle ({error}); name a file of tf export --bundle") from None
        try:
            with writing(scratch, "a bundle's records"):
                self._scratch.mkdir(parents=True)
            self._entries = self._checked_entries()
            self._records = self._read_records()
            self._check_objects()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Bundle:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._zip.close()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def runs(self) -> list[dict[str, Any]]:
        """All runs, the newest first."""
        names = sorted((name for name in self._entries if name.startswith("runs/")), reverse=True)
        return [self._run(name) for name in names]

    def record(self, digits: str) -> tuple[Record, bytes] | None:
        """The record of a whole key and its own bytes."""
        return self._records.get(digits)

    def holds(self, record: Record) -> bool:
        """Whether all of its files are in it."""
        return all(f"objects/{record.digest}/{name}" in self._entries for name in record.files)

    def file_of(self, record: Record, name: str, spare: Path) -> Path | None:
        """`spare`, into which the file was written; None where it is not there."""
        entry = self._entries.get(f"objects/{record.digest}/{name}")
        if entry is None:
            return None
        try:
            with self._zip.open(entry) as source, spare.open("wb") as target:
                shutil.copyfileobj(source, target, 4 << 20)
        except (zipfile.BadZipFile, EOFError, NotImplementedError):
            return None  # its checksum or its header: damaged
        return spare

    def _refuse(self, name: str, reason: str) -> InputError:
        return InputError(f"the bundle {self.file} is refused: {name[:200]!r} {reason}")

    def _checked_entries(self) -> dict[str, zipfile.ZipInfo]:
        entries: dict[str, zipfile.ZipInfo] = {}
        for entry in self._zip.infolist():
            name = entry.orig_filename  # as it is written: `filename` is what Python made of it
            kind = stat.S_IFMT(entry.external_attr >> 16)
            parts = name.split("/")
            if name != entry.filename or "\\" in name or {"", ".", ".."} & set(parts) or not NAME.fullmatch(name):
                raise self._refuse(name, "is no name of a bundle's file")
            if kind not in (0, stat.S_IFREG):
                raise self._refuse(name, "is a link, folder or device")
            if name in entries:
                raise self._refuse(name, "is there twice")
            packed = entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size
            if packed or entry.flag_bits & 1:
                raise self._refuse(name, "is packed or encrypted; a bundle's files lie plain in it")
            if not name.startswith("objects/") and entry.file_size > MOST_OF_A_TEXT:
                raise self._refuse(name, f"has {entry.file_size} bytes, too many for what it is")
            entries[name] = entry
        if sum(entry.file_size for entry in entries.values()) > self.file.stat().st_size:
            raise InputError(f"the bundle {self.file} is refused: its entries are larger than it, so they overlap")
        if "format" not in entries or self._bytes("format", entries) != FORMAT:
            raise InputError(f"{self.file} is no bundle of this version; have it written again by tf export --bundle")
        return entries

    def _bytes(self, name: str, entries: dict[str, zipfile.ZipInfo]) -> bytes:
        try:
            return self._zip.read(entries[name])
        except (zipfile.BadZipFile, EOFError, NotImplementedError, OSError) as error:
            raise self._refuse(name, f"is damaged ({error})") from None

    def _read_records(self) -> dict[str, tuple[Record, bytes]]:
        records = {}
        for name in self._entries:
            if not name.startswith("keys/"):
                continue
            _, stage, file = name.split("/")
            content = self._bytes(name, self._entries)
            try:
                record = parse_record(content, file)
            except StoreError as error:
                raise self._refuse(name, f"cannot be taken: {str(error).split(';')[0]}") from None
            if (record.stage, f"{record.hex}.json") != (stage, file):
                raise self._refuse(name, "is the record of another stage or key")
            records[record.hex] = (record, content)
        return records

    def _check_objects(self) -> None:
        """Nothing but what a record lists, with its size."""
        listed = {
            f"objects/{record.digest}/{name}": entry.size
            for record, _ in self._records.values()
            for name, entry in record.files.items()
        }
        for name, entry in self._entries.items():
            if name.startswith("objects/") and name not in listed:
                raise self._refuse(name, "is listed in no record")
            if name.startswith("objects/") and entry.file_size != listed[name]:
                raise self._refuse(name, f"has {entry.file_size} bytes, but its record says {listed[name]}")

    def _run(self, name: str) -> dict[str, Any]:
        try:
            run = parse_json(self._bytes(name, self._entries))
        except Refused as error:
            raise self._refuse(name, f"is damaged ({str(error)[:80]})") from None
        if f"runs/{run.get('id')}.json" != name:
            raise self._refuse(name, "is the run of another id")
        return run
