"""Summaries of one stage's records in one file, so that thousands of records need not be opened for each list.

A cache: it says of each record which file it was read from, and where that file is another now, the record is read
again. It may be deleted, and a line that cannot be read counts for nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from pydantic import TypeAdapter
from pydantic_core import from_json

from store.errors import StoreError
from store.guard import Refused, check_bulk, read_small
from store.layout import write_whole
from store.summaries import Summary, read_summary

Stamp = tuple[int, ...]
SUMMARY = TypeAdapter(Summary)
MOST_LINES = 2  # times as many as there are records, beyond which the file is written anew


class Index:
    """The summaries of a stage: those it knows, and those it has to read."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._lines: dict[str, bytes] | None = None  # key in hex → its line, read when it is asked for
        self._count = 0  # of lines in the file
        self._read: dict[str, tuple[Stamp, Summary]] = {}

    def summaries(self, paths: Iterable[Path], unreadable: list[StoreError]) -> Iterator[Summary]:
        """The summaries of the records at `paths`; the errors of those that cannot be read are left in `unreadable`.

        What was read is kept for the next time, where the store can be written.
        """
        new: list[str] = []
        try:
            for path in paths:
                stamp = _stamp(path)
                kept = self._known(path.stem)
                if kept and kept[0] == stamp:
                    yield kept[1]
                    continue
                try:
                    summary = read_summary(path)
                except StoreError as error:
                    unreadable.append(error)
                    continue
                if summary:
                    self._read[summary.hex] = stamp, summary
                    new.append(summary.hex)
                    yield summary
        finally:
            self._keep(new)

    def _known(self, key: str) -> tuple[Stamp, Summary] | None:
        """What the record of `key` was read from, and its summary; None where nothing sound is kept of it."""
        line = self._loaded().get(key)
        if key not in self._read and line is not None:
            with suppress(ValueError, KeyError, TypeError, AttributeError, Refused):
                stamp, summary = _parsed(line)
                if summary.hex == key:
                    self._read[key] = stamp, summary
        return self._read.get(key)

    def _loaded(self) -> dict[str, bytes]:
        """Key in hex → its line; of several the last counts."""
        if self._lines is None:
            self._lines = {}
            with suppress(OSError, Refused):
                lines = read_small(self.file).splitlines()
                self._count = len(lines)
                self._lines = {line[:64].decode("ascii", "replace"): line[65:] for line in lines}
        return self._lines

    def _keep(self, new: list[str]) -> None:
        """Append what is new; where most lines are of records that were replaced, write the others anew."""
        lines = self._loaded()
        lines |= {key: _line(*self._read[key]) for key in new}
        with suppress(OSError):
            if self._count + len(new) > MOST_LINES * len(lines) + 100:
                write_whole(self.file, b"".join(key.encode() + b" " + line + b"\n" for key, line in lines.items()))
                self._count = len(lines)
            elif new:
                self.file.parent.mkdir(parents=True, exist_ok=True)
                text = b"".join(key.encode() + b" " + lines[key] + b"\n" for key in new)
                with self.file.open("ab", buffering=0) as file:
                    file.write(b"\n" + text)  # on a line of its own, whatever a killed writer left
                self._count += len(new) + 1


def _line(stamp: Stamp, summary: Summary) -> bytes:
    written = asdict(summary) | {"recipe": summary.recipe.model_dump(mode="json"), "sizes": dict(summary.sizes)}
    return json.dumps({"stamp": stamp, "summary": written}).encode()


def _parsed(line: bytes) -> tuple[Stamp, Summary]:
    check_bulk(line)
    written = from_json(line)
    return tuple(written["stamp"]), SUMMARY.validate_python(written["summary"])


def _stamp(path: Path) -> Stamp:
    """What changes when a record does: a record is put in its place whole, so it is another file then."""
    try:
        stat = path.stat()
    except OSError:
        return ()
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino
