"""Which store a command or a flow works in, and runs on their way between stores."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from store.errors import InputError
from store.store import Store

CACHE_SIZE = "TOKENFLOW_CACHE_SIZE"
STORE = "TOKENFLOW_STORE"


def store_at(place: str | None, named: str = "--store") -> Store:
    """The store in a folder or at a URL; without one TOKENFLOW_STORE's, or that in the platform's user cache folder.

    A shared store's cache holds what TOKENFLOW_CACHE_SIZE says, and is brought to that size when the process ends.
    """
    place = place if place is not None else os.environ.get(STORE)
    if place is not None and not place.strip():
        raise InputError(f"{named} is empty; name a folder or a URL, or leave it out")
    if place is None:
        import platformdirs

        place = platformdirs.user_cache_dir("tokenflow")
    if "://" not in place:
        return Store(place)
    from store.remote import CACHE_SIZE as DEFAULT
    from store.remote import RemoteStore, open_store

    store = open_store(place, cache_size(os.environ.get(CACHE_SIZE)) or DEFAULT)
    if isinstance(store, RemoteStore):
        atexit.register(store.close)
    return store


def cache_size(text: str | None) -> int | None:
    """Bytes of a size such as 20GB; InputError, naming the option, where it is none."""
    if not text:
        return None
    from flows.config import parse_bytes

    try:
        return parse_bytes(text)
    except InputError:
        raise InputError(f"--cache-size {text!r} is not a size; write for example 20GB or 500MB") from None


def push(run: str, store: Store, to: str, say: Callable[[str], None]) -> Any:
    """Send a run and all it needs to another store."""
    from store.moving import StoreSource, chosen_runs, move

    source, target = StoreSource(store), _other(to, store, "--to")
    return move(chosen_runs(source, run), source, target, say)


def pull(run: str | None, store: Store, source: str, say: Callable[[str], None]) -> Any:
    """Fetch a run, or all, and all it needs from another store or a bundle."""
    from store.bundle import Bundle
    from store.moving import StoreSource, chosen_runs, move

    if source.lower().endswith(".zip") and "://" not in source:
        with Bundle(Path(source), store.layout.drafts) as bundle:
            return move(chosen_runs(bundle, run), bundle, store, say)
    other = StoreSource(_other(source, store, "--from"))
    return move(chosen_runs(other, run), other, store, say)


def bundle(run: str, store: Store, file: Path) -> dict[str, Any]:
    """Write a run and all it needs as one zip file; says what went in."""
    from store.bundle import write_bundle
    from store.moving import StoreSource, chosen_runs

    source = StoreSource(store)
    return write_bundle(chosen_runs(source, run), source, file)


def _other(place: str, store: Store, named: str) -> Store:
    other = store_at(place, named)
    if other.place == store.place:
        raise InputError(f"{named} {place} is the store itself; name another one")
    return other
