"""Leases: keys that somebody is using, said by a file whose time is renewed while it is so.

leases/<uuid>.json   keys, and who holds them; older than a minute without being renewed, its holder is dead

A collection decides and removes under `exclusive`, which a lease takes to begin and a draft to commit: so nothing slips
in between looking and removing.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import ValidationError

from store.layout import Layout, write_whole
from store.records import now
from store.schemas import Frozen

SECONDS_BETWEEN_BEATS = 10.0
SECONDS_TO_LIVE = 60.0


class Holder(Frozen):
    """A process that holds something: where it runs, and since when (ISO 8601, UTC)."""

    host: str
    pid: int
    started: str

    @classmethod
    def here(cls) -> Holder:
        return cls(host=socket.gethostname(), pid=os.getpid(), started=now())

    def __str__(self) -> str:
        return f"process {self.pid}" + ("" if self.host == socket.gethostname() else f" on {self.host}")


def hold(draft: Path) -> None:
    """Say beside a draft who works on it: only for those who wait, the lock itself is the kernel's."""
    with suppress(OSError):
        write_whole(_holder_file(draft), Holder.here().model_dump_json())


def let_go(draft: Path) -> None:
    """Nobody works on the draft any more."""
    with suppress(OSError):
        _holder_file(draft).unlink(missing_ok=True)


def holder(draft: Path) -> Holder | None:
    """Who said to work on a draft; None where nobody did."""
    with suppress(OSError, ValidationError):
        return Holder.model_validate_json(_holder_file(draft).read_bytes())
    return None


def _holder_file(draft: Path) -> Path:
    return draft.with_name(f"{draft.name}.holder")


class Lease(Holder):
    """Keys in use by a process."""

    keys: tuple[str, ...]


@contextmanager
def exclusive(layout: Layout) -> Iterator[None]:
    """While this block runs no other process removes an object, begins a lease or commits.

    raises   OSError where the lock cannot be written
    """
    from filelock import FileLock

    layout.trash.mkdir(exist_ok=True)  # not only when something is removed: a full disk has no room for a folder
    with FileLock(layout.removals, thread_local=False, poll_interval=0.01):
        yield


@contextmanager
def leased(layout: Layout, keys: Iterable[str]) -> Iterator[None]:
    """Hold a lease on `keys` while the block runs; in a store that cannot be written there is none to hold.

    Nobody who shares such a store in this way can remove anything from it either.
    """
    here = Holder.here()
    text = Lease(host=here.host, pid=here.pid, started=here.started, keys=tuple(sorted(set(keys)))).model_dump_json()
    path = layout.leases / f"{uuid.uuid4().hex}.json"
    over = threading.Event()
    beating = threading.Thread(target=_beat, args=(path, text, over), name="lease", daemon=True)
    with suppress(OSError):
        layout.leases.mkdir(exist_ok=True)
        with exclusive(layout):
            write_whole(path, text)
        beating.start()
    try:
        yield
    finally:
        over.set()
        if beating.ident:
            beating.join()
        with suppress(OSError):
            path.unlink(missing_ok=True)


def live_leases(layout: Layout) -> list[Lease]:
    """Leases whose holder renewed them within the last minute."""
    found = []
    for path in layout.leases.glob("[0-9a-f]*.json"):
        with suppress(OSError, ValidationError):
            if not _is_stale(path):
                found.append(Lease.model_validate_json(path.read_bytes()))
    return found


def stale_leases(layout: Layout) -> list[Path]:
    """Files of leases that nobody renews any more, and what a killed process left half written."""
    found = []
    for path in layout.leases.glob("*") if layout.leases.is_dir() else ():
        with suppress(OSError):
            if _is_stale(path):
                found.append(path)
    return sorted(found)


def _is_stale(path: Path) -> bool:
    return time.time() - path.stat().st_mtime > SECONDS_TO_LIVE


def _beat(path: Path, text: str, over: threading.Event) -> None:
    """Renew a lease until it is over; one that was taken for dead, as after a sleep of the machine, is written anew."""
    while not over.wait(SECONDS_BETWEEN_BEATS):
        with suppress(OSError):
            try:
                os.utime(path)
            except FileNotFoundError:
                write_whole(path, text)
