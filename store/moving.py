"""Runs on their way: from one store to another, or as one file for a colleague without access.

A run takes along every artifact that its own stand on, as far as it exists. Every file is held against its record
before it is sent and before it is seen; what is there is skipped, so an interrupted move is gone on with.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from store.errors import InputError
from store.layout import human_bytes
from store.records import Record
from store.store import RUN_ID, Store


class Source(Protocol):
    """Where runs come from: a store, or a bundle."""

    place: str

    def runs(self) -> list[dict[str, Any]]:
        """All runs, the newest first."""

    def record(self, digits: str) -> tuple[Record, bytes] | None:
        """The record of a whole key and its own bytes."""

    def holds(self, record: Record) -> bool:
        """Whether the object is there, by its sizes."""

    def file_of(self, record: Record, name: str, spare: Path) -> Path | None:
        """See `store.transfer.Files`."""


class StoreSource:
    """A store as a source."""

    def __init__(self, store: Store) -> None:
        self.store, self.place = store, store.place

    def runs(self) -> list[dict[str, Any]]:
        """All runs, the newest first."""
        return self.store.runs()

    def record(self, digits: str) -> tuple[Record, bytes] | None:
        """The record of a whole key and its own bytes."""
        try:
            record = self.store.resolve(digits)
        except InputError:
            return None
        return record, self.store.layout.record(record.stage, record.hex).read_bytes()

    def holds(self, record: Record) -> bool:
        """Whether the object is there."""
        found = self.store.find(record.recipe)
        return found is not None and found.digest == record.digest

    def file_of(self, record: Record, name: str, spare: Path) -> Path | None:
        """A file of an object."""
        return self.store.file_of(record, name, spare)


@dataclass
class Moved:
    """What a move did; `lost` are keys that the runs used and whose objects the source has no longer, or not whole."""

    source: str
    target: str
    runs: list[str] = field(default_factory=list)
    artifacts: int = 0
    files: int = 0
    bytes: int = 0
    already_there: int = 0
    lost: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The one JSON object of `tf push --json` and `tf pull --json`."""
        return {
            "from": self.source, "to": self.target, "runs": self.runs, "artifacts": self.artifacts,
            "files": self.files, "bytes": self.bytes, "already_there": self.already_there, "lost": self.lost,
        }  # fmt: skip

    def __str__(self) -> str:
        runs = f"{len(self.runs)} run{'' if len(self.runs) == 1 else 's'}"
        there = f", {self.already_there} were there" if self.already_there else ""
        lost = f"; collected or damaged in {self.source}, can be made again: {len(self.lost)}" if self.lost else ""
        return (
            f"{runs}: {self.artifacts} artifacts, {self.files} files, {human_bytes(self.bytes)} "
            f"went to {self.target}{there}{lost}"
        )


def chosen_runs(source: Source, name: str | None) -> list[dict[str, Any]]:
    """The run with the id `name`, the newest for `latest`, all without a name; InputError where there is none."""
    known = [run for run in source.runs() if re.fullmatch(RUN_ID, str(run.get("id")))]
    if not known:
        raise InputError(f"there is no run in {source.place}; tf run VIDEO --prompt TEXT makes one")
    if name is None:
        return known
    chosen = known[:1] if name == "latest" else [run for run in known if run["id"] == name]
    if not chosen:
        newest = ", ".join(str(run["id"]) for run in known[:5])
        raise InputError(f"no run {name!r} in {source.place}; the newest are {newest}; or say latest")
    return chosen


def needed(source: Source, run: dict[str, Any]) -> Iterator[tuple[str, tuple[Record, bytes] | None]]:
    """Each key that a run used or stands on, inputs first, with its record where the source knows one."""
    stages = run.get("stages")
    rows = stages if isinstance(stages, list) else []
    pending = [str(row["key"]) for row in reversed(rows) if isinstance(row, dict) and "key" in row]
    records: dict[str, tuple[Record, bytes] | None] = {}
    while pending:
        digits = pending[-1]
        if digits not in records:
            known = source.record(digits) if re.fullmatch(r"[0-9a-f]{64}", digits) else None
            records[digits] = known
            above = sorted(known[0].recipe.inputs.values()) if known else []
            pending += [key for key in above if re.fullmatch(r"[0-9a-f]{64}", key) and key not in records]
            continue
        pending.pop()
        if digits in records:
            yield digits, records[digits]


def move(
    runs: Sequence[dict[str, Any]], source: Source, target: Store, say: Callable[[str], None] = lambda sentence: None
) -> Moved:
    """Have the target hold runs and all they need; the runs last, so that one that is listed is there.

    say       is told of each artifact under way
    raises    DamagedError, naming the file, where the source has other bytes than its record says
    """
    moved = Moved(source.place, target.place)
    seen: set[str] = set()
    for run in runs:
        for digits, known in needed(source, run):
            if digits in seen:
                continue
            seen.add(digits)
            if known is None:
                continue
            _move_artifact(*known, source, target, moved, say)
        target.accept_run(run)
        moved.runs.append(str(run["id"]))
    return moved


def _move_artifact(
    record: Record, content: bytes, source: Source, target: Store, moved: Moved, say: Callable[[str], None]
) -> None:
    if target.find(record.recipe):
        moved.already_there += 1
        return
    if not source.holds(record):
        moved.lost.append(record.hex)
        return
    say(f"{record.stage}/{record.hex[:12]}: {len(record.files)} files, {human_bytes(record.bytes)}")
    moved.bytes += target.accept(record, content, source, source.place)
    moved.artifacts += 1
    moved.files += len(record.files)
