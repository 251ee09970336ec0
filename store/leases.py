"""Leases: keys that somebody is using, said by a file whose time is renewed while it is so.

leases/<uuid>.json   keys, and who holds them: who has the file locked, or has renewed it within the last minute

The lock is the kernel's, and goes with the process: one whose machine slept, or whose clock was set, holds its lease
all the same, whatever its host is called. The time is for other hosts, and for where files have no locks.

A collection decides and removes under `exclusive`, which a lease takes to begin and a draft to commit: so nothing slips
in between looking and removing.
"""

from __future__ import annotations

import os
import socket
import sys
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
    over, lock = threading.Event(), _Lock(path)
    beating = threading.Thread(target=_beat, args=(path, text, over, lock), name="lease", daemon=True)
    with suppress(OSError):
        layout.leases.mkdir(exist_ok=True)
        with exclusive(layout):
            write_whole(path, text)
            lock.take()
        beating.start()
    try:
        yield
    finally:
        over.set()
        if beating.ident:
            beating.join()
        with suppress(OSError):
            path.unlink(missing_ok=True)
        lock.free()


def live_leases(layout: Layout) -> list[Lease]:
    """Leases whose holder lives, on this machine, or renewed them within the last minute."""
    found = []
    for path in layout.leases.glob("[0-9a-f]*.json"):
        with suppress(OSError, ValidationError):
            if not _is_stale(path):
                found.append(Lease.model_validate_json(path.read_bytes()))
    return found


def stale_leases(layout: Layout) -> list[Path]:
    """Files of leases whose holders are dead, and what a killed process left half written."""
    found = []
    for path in layout.leases.glob("*") if layout.leases.is_dir() else ():
        with suppress(OSError):
            if _is_stale(path):
                found.append(path)
    return sorted(found)


def _is_stale(path: Path) -> bool:
    return time.time() - path.stat().st_mtime > SECONDS_TO_LIVE and not _is_locked(path)


class _Lock:
    """A file locked by this process until it ends, by the kernel; where that cannot be, nothing is."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file: int | None = None

    def take(self) -> None:
        """Lock the file that has the path now."""
        self.free()
        with suppress(OSError):
            self.file = os.open(self.path, os.O_RDWR)
            _flock(self.file, wait=True)

    def free(self) -> None:
        """Lock nothing any more."""
        if self.file is not None:
            os.close(self.file)
            self.file = None


def _is_locked(path: Path) -> bool:
    """Whether a process of this machine has the file locked; False where that cannot be known."""
    with suppress(OSError):  # not ours to open, or on a file system without locks
        file = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
        try:
            _flock(file, wait=False)
        except BlockingIOError:
            return True
        finally:
            os.close(file)
    return False


def _flock(file: int, wait: bool) -> None:
    """Lock an open file for as long as it is open; nothing on Windows, where the time alone tells.

    raises   BlockingIOError where another has it and `wait` is False
    """
    if sys.platform != "win32":
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def _beat(path: Path, text: str, over: threading.Event, lock: _Lock) -> None:
    """Renew a lease until it is over; one that was removed is written anew."""
    while not over.wait(SECONDS_BETWEEN_BEATS):
        with suppress(OSError):
            try:
                os.utime(path)
            except FileNotFoundError:
                write_whole(path, text)
                lock.take()
