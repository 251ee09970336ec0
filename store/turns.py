"""Whose turn it is among machines, and what each is reading: small files that show a sign of life while they hold.

Losing one costs double work, never a wrong result: which record counts is decided when it is put.
"""

from __future__ import annotations

import json
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from store.backends import Backend, Patience
from store.errors import StorePlaceError

FORGOTTEN = 600  # seconds without a sign of life after which a lease counts no longer, clocks that differ included


class Sign:
    """A name in a backend that holds who is at work; `beat` shows that he is alive."""

    def __init__(self, backend: Backend, name: str, patience: Patience, **said: Any) -> None:
        self.backend, self.name, self.patience = backend, name, patience
        self.said = {"host": socket.gethostname(), "token": secrets.token_hex(8), **said}
        self.beats = 0

    @property
    def content(self) -> bytes:
        return json.dumps({**self.said, "beats": self.beats, "time": int(time.time())}).encode()

    def take(self) -> bool:
        """Put the name where there is none; whether it is held now."""
        return self.backend.put_new(self.name, self.content) or self.holds()

    def take_over(self) -> bool:
        """Put the name in place of another's; whether it is held now."""
        self.backend.put(self.name, self.content)
        return self.holds()

    def holds(self) -> bool:
        """Whether the name is still this one's."""
        return said_by(self.backend.get(self.name)).get("token") == self.said["token"]

    def beat(self) -> bool:
        """Show a sign of life; False when another has taken the name over."""
        if not self.holds():
            return False
        self.beats += 1
        self.backend.put(self.name, self.content)
        return True

    @contextmanager
    def beating(self, lingers: bool = False) -> Iterator[None]:
        """Show signs of life while the block runs, and remove the name after it, or let it be forgotten by itself."""
        ended = threading.Event()

        def go_on() -> None:
            while not ended.wait(self.patience.beat):
                with suppress(StorePlaceError):  # a place that is away for a while ends no work
                    if not self.beat():
                        return

        thread = threading.Thread(target=go_on, name=f"sign of life {self.name}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            with suppress(StorePlaceError):
                if not lingers and self.holds():
                    self.backend.delete(self.name)


def said_by(content: bytes | None) -> dict[str, Any]:
    """What a sign says; nothing where it is gone or cannot be read."""
    with suppress(ValueError, RecursionError):
        said = json.loads(content or b"{}")
        return said if isinstance(said, dict) else {}
    return {}


@contextmanager
def turn(backend: Backend, name: str, own: str, patience: Patience, waiting: Callable[[str], None]) -> Iterator[None]:
    """Hold `name` while the block runs; wait as long as another machine that holds it is alive.

    own       names the cache folder of this machine: a sign that says the same was left by a killed process, since
              whoever asks holds the kernel's lock there
    waiting   told once, with the name of the machine that is at work
    """
    sign = Sign(backend, name, patience, cache=own)
    seen: bytes | None = None
    since, told = time.monotonic(), False
    while not sign.take():
        there = backend.get(name)
        if there != seen:
            seen, since = there, time.monotonic()
        holder = said_by(there)
        dead = holder.get("cache") == own or time.monotonic() - since > patience.stale
        if there is not None and dead and sign.take_over():
            break
        if not told:
            waiting(str(holder.get("host", "another machine"))[:80])
            told = True
        time.sleep(patience.beat / 5)
    with sign.beating():
        yield


def living(backend: Backend, prefix: str) -> Iterator[dict[str, Any]]:
    """What the signs below `prefix` say that showed life of late; those that did not are removed."""
    for name in backend.list(prefix):
        said = said_by(backend.get(name))
        seen = said.get("time")
        if isinstance(seen, int | float) and time.time() - seen < FORGOTTEN:
            yield said
        else:
            backend.delete(name)


class InUse:
    """What processes here read of a cache folder; the kernel's lock on each list says that its process lives."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._own: set[str] = set()
        self._lock: Any = None
        self._list = folder / f"{secrets.token_hex(8)}.list"

    @contextmanager
    def deciding(self) -> Iterator[None]:
        """Alone among the processes: what is in use does not change meanwhile."""
        from filelock import FileLock

        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / "deciding.lock", thread_local=False):
            yield

    def add(self, *names: str) -> None:
        """From now on until the process ends, these are in use."""
        from filelock import FileLock

        new = set(names) - self._own
        if not new:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._lock is None:
            self._lock = FileLock(self._list.with_suffix(".lock"), thread_local=False)
            self._lock.acquire()
        with self._list.open("a", encoding="utf-8") as file:
            file.writelines(f"{name}\n" for name in sorted(new))
        self._own |= new

    def names(self) -> set[str]:
        """All that is in use, by this process and others; lists of dead processes are removed."""
        from filelock import FileLock, Timeout

        used = set(self._own)
        for path in self.folder.glob("*.list"):
            if path == self._list:
                continue
            lock = FileLock(path.with_suffix(".lock"), thread_local=False)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                with suppress(OSError):
                    used |= set(path.read_text("utf-8").split())
                continue
            path.unlink(missing_ok=True)
            lock.release()
            path.with_suffix(".lock").unlink(missing_ok=True)
        return used

    def end(self) -> None:
        """Nothing is in use by this process any more."""
        self._own.clear()
        if self._lock is not None:
            self._list.unlink(missing_ok=True)
            self._lock.release()
            self._list.with_suffix(".lock").unlink(missing_ok=True)
            self._lock = None
            self._list = self.folder / f"{secrets.token_hex(8)}.list"
