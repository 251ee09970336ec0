"""Objects on their way between stores: files are fetched side by side, held against the record, then visible."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeVar

from store.errors import StoreError
from store.hashing import payload_hash
from store.layout import Layout, regular_files, writing
from store.records import FileEntry, Record, changed_files

T = TypeVar("T")
R = TypeVar("R")

AT_ONCE = 4  # files under way at the same time; more, and each has too little of a slow line to come in time


class Files(Protocol):
    """Where files of objects come from."""

    def file_of(self, record: Record, name: str, spare: Path) -> Path | None:
        """A local file with the bytes of the file `name` of an object: its own, or `spare`, written now; None: lost."""


class DamagedError(StoreError):
    """Files of an object are lost or have other bytes than its record says."""

    def __init__(self, names: list[str], where: str) -> None:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        super().__init__(f"file {names[0]}{more} is lost or damaged in {where}")
        self.names = names


def side_by_side(work: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """`work` on each item, a few at the same time; the first error ends it, and what has not begun is left."""
    pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="transfer")
    try:
        return list(pool.map(work, items))
    finally:
        pool.shutdown(cancel_futures=True)


def sound(path: Path, entry: FileEntry) -> bool:
    """Whether a regular file has the size and the hash that a record says."""
    if path.is_symlink() or not path.is_file() or path.stat().st_size != entry.size:
        return False
    return payload_hash(path) == entry.blake3


def bring_object(layout: Layout, record: Record, source: Files, where: str) -> int:
    """Have the object of `record` in the store at `layout`; returns the bytes that came now.

    What an interrupted call brought is used by the next. Nothing is visible before all of it is right.

    where     what the source is called
    raises    DamagedError, naming what the source cannot give; StorePlaceError when the disk is full
    """
    folder = layout.drafts / f"fetch-{record.digest}"

    def fetch(name: str) -> int:
        entry, target = record.files[name], folder / name
        if sound(target, entry):
            return 0
        target.parent.mkdir(parents=True, exist_ok=True)
        spare = target.with_name(f".{uuid.uuid4().hex}.part")
        try:
            path = source.file_of(record, name, spare)
            if path is not None and path != spare:
                shutil.copyfile(path, spare, follow_symlinks=False)
            if path is None or not sound(spare, entry):
                return -1
            spare.replace(target)
        finally:
            spare.unlink(missing_ok=True)
        return entry.size

    def give_back() -> None:
        shutil.rmtree(folder, ignore_errors=True)

    with writing(layout.root, f"{record.stage}/{record.hex[:12]}", record.bytes, give_back):
        folder.mkdir(parents=True, exist_ok=True)
        came = dict(zip(record.files, side_by_side(fetch, record.files), strict=True))
        damaged = [name for name, size in came.items() if size < 0]
        if damaged:
            raise DamagedError(damaged, where)
        for name in regular_files(folder):
            if name not in record.files:
                (folder / name).unlink()
        place_object(layout, record, folder)
    return sum(came.values())


def place_object(layout: Layout, record: Record, folder: Path) -> None:
    """Move a folder that holds the object of `record` to its place, unless a sound one lies there already."""
    target = layout.object(record.digest)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_symlink():
        target.unlink()
    elif target.exists() and changed_files(target, record.files):
        shutil.rmtree(target)
    try:
        folder.rename(target)
    except OSError:
        if not target.is_dir():
            raise
        shutil.rmtree(folder)
