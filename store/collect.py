"""Collecting: objects leave the least recently used first, their records stay, and nothing in use is touched.

When an object was last used is read from the runs and the leases that named it: reading an artifact writes nothing. Of
those that were last used by the same run the cheapest to compute again per byte go first. A collected artifact that is
needed again is a miss like any other, and comes back by itself.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from pydantic_core import from_json

from store.errors import StoreError
from store.layout import regular_files, remove_tree, writing
from store.leases import exclusive, let_go, stale_leases
from store.parts import abandoned, remove
from store.schemas import Frozen
from store.store import RUN_ID, Store
from store.summaries import EDITS, Summary, read_summary

DRAFT_SECONDS = 7 * 86400.0  # a draft that nobody has gone on with for so long is abandoned


class Limits(Frozen):
    """What a collection is to reach; without any it only removes what nobody can use.

    max_bytes    of objects, in all; the least recently used leave until it holds
    older_than   seconds; whatever was last used longer ago leaves
    keep_edits   edits (keyframes and clips) stay, whatever their age
    """

    max_bytes: int | None = None
    older_than: float | None = None
    keep_edits: bool = False


class Removed(Frozen):
    """An object that left, or would leave.

    stages, keys   of the artifacts it was; none for an orphan, which no record names
    used           when it was last used: ISO 8601, UTC; empty for an orphan
    """

    digest: str
    bytes: int
    stages: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    used: str = ""


class Leftover(Frozen):
    """What an interrupted or killed process left, by its name in the store."""

    name: str
    bytes: int


class Collection(Frozen):
    """What a collection did, or would do.

    left         bytes of the objects that stay; pinned, leased, spared: of those that had to, by why
    over         bytes beyond max_bytes that had to stay
    unreadable   records that cannot be read; while there are any, orphans stay: they may be theirs
    """

    removed: tuple[Removed, ...]
    orphans: tuple[Removed, ...]
    leftovers: tuple[Leftover, ...]
    freed: int
    left: int
    pinned: int
    leased: int
    spared: int
    over: int
    unreadable: tuple[str, ...]
    dry_run: bool


@dataclass(frozen=True)
class _Known:
    """What the records say, read once."""

    owners: Mapping[str, list[Summary]]  # digest → the artifacts it is
    unreadable: tuple[str, ...]
    kept: dict[str, str] = field(default_factory=dict)  # digest → why it must stay


def collect(store: Store, limits: Limits, dry_run: bool = False) -> Collection:
    """Remove what `limits` ask for, orphans, abandoned drafts, stale leases and what a killed collection left.

    Two collections wait for each other, and a lease or a commit for the moment in which one decides and removes.

    raises   StorePlaceError when the store cannot be written
    """
    leftovers = [] if dry_run else _emptied_trash(store)
    with writing(store.root, "a collection"), nullcontext() if dry_run else exclusive(store.layout):
        committing = _being_committed(store)  # before the records: a commit ends in one
        known = _known(store, committing, limits)
        sizes = store.objects()
        used = last_uses(store)
        orphans = _orphans(known, sizes)
        chosen = _chosen(known, sizes, used, limits, sum(orphan.bytes for orphan in orphans))
        if not dry_run:
            for each in (*orphans, *chosen):
                store.remove_object(each.digest)
    leftovers += _abandoned(store, limits, dry_run)
    gone = {each.digest for each in (*orphans, *chosen)}
    left = sum(size for digest, size in sizes.items() if digest not in gone)
    by_why = {
        why: sum(size for digest, size in sizes.items() if known.kept.get(digest) == why)
        for why in ("pinned", "leased", "spared")
    }
    return Collection(
        removed=tuple(chosen), orphans=tuple(orphans), leftovers=tuple(leftovers),
        freed=sum(each.bytes for each in (*chosen, *orphans)) + sum(each.bytes for each in leftovers),
        left=left, **by_why,
        over=max(0, left - limits.max_bytes) if limits.max_bytes is not None else 0,
        unreadable=known.unreadable, dry_run=dry_run,
    )  # fmt: skip


def last_uses(store: Store) -> dict[str, float]:
    """Key (hex) → when a run or a lease last named it, in seconds since 1970."""
    used = store.uses()
    for run in store.runs():
        with suppress(ValueError, KeyError, TypeError):  # a run that cannot be read was no use
            at = run_time(str(run["id"]))
            for stage in run["stages"]:
                used[stage["key"]] = max(at, used.get(stage["key"], at))
    return used


def is_run(name: str) -> bool:
    """Whether a name is a run's id, or stands for the newest run."""
    return name == "latest" or re.fullmatch(RUN_ID, name) is not None


def run_time(run: str) -> float:
    """When a run ended, from its id: seconds since 1970."""
    whole = datetime.strptime(run[:15], "%Y%m%d-%H%M%S").replace(tzinfo=UTC)
    return whole.timestamp() + int(run[16:21], 16) / 1e6


def used_at(summary: Summary, used: Mapping[str, float]) -> float:
    """When an artifact was last used, or else when it was made."""
    made = datetime.fromisoformat(summary.created)
    return used.get(summary.hex) or (made if made.tzinfo else made.replace(tzinfo=UTC)).timestamp()


# deciding


def _known(store: Store, committing: set[str], limits: Limits) -> _Known:
    owners: dict[str, list[Summary]] = defaultdict(list)
    unreadable = []
    for path in store.record_files():
        try:
            summary = read_summary(path)
        except StoreError:
            unreadable.append(f"{path.parent.name}/{path.stem[:12]}")
            continue
        if summary:
            owners[summary.digest].append(summary)
    known = _Known(owners, tuple(unreadable), dict.fromkeys(committing, "leased"))
    pins, leases = store.pins(), store.leases()
    for digest, artifacts in owners.items():
        if any(artifact.hex in pins for artifact in artifacts):
            known.kept[digest] = "pinned"
        elif any(artifact.hex in leases for artifact in artifacts):
            known.kept[digest] = "leased"
        elif limits.keep_edits and any(artifact.stage in EDITS for artifact in artifacts):
            known.kept.setdefault(digest, "spared")
    return known


def _orphans(known: _Known, sizes: Mapping[str, int]) -> list[Removed]:
    if known.unreadable:
        return []
    return [
        Removed(digest=digest, bytes=size)
        for digest, size in sizes.items()
        if digest not in known.owners and digest not in known.kept
    ]


def _chosen(
    known: _Known, sizes: Mapping[str, int], used: Mapping[str, float], limits: Limits, orphaned: int
) -> list[Removed]:
    """What leaves, in the order in which it does."""
    ranked = []
    for digest, artifacts in known.owners.items():
        if digest in sizes and digest not in known.kept:
            at = max(used_at(artifact, used) for artifact in artifacts)
            cost = sum(artifact.seconds for artifact in artifacts) / max(1, sizes[digest])
            ranked.append((at, cost, digest))
    oldest = time.time() - limits.older_than if limits.older_than is not None else None
    total = sum(sizes.values()) - orphaned
    chosen = []
    for at, _, digest in sorted(ranked):
        too_old = oldest is not None and at < oldest
        too_much = limits.max_bytes is not None and total > limits.max_bytes
        if too_old or too_much:
            chosen.append(_removed(digest, sizes[digest], known.owners[digest], at))
            total -= sizes[digest]
    return chosen


def _removed(digest: str, size: int, artifacts: list[Summary], at: float) -> Removed:
    return Removed(
        digest=digest,
        bytes=size,
        stages=tuple(artifact.stage for artifact in artifacts),
        keys=tuple(artifact.hex for artifact in artifacts),
        used=datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds"),
    )


def _being_committed(store: Store) -> set[str]:
    """Digests of objects that a draft has moved or is about to, before the record says so."""
    digests = set()
    for path in store.layout.drafts.glob("*/record.json"):
        with suppress(OSError, ValueError, KeyError, TypeError):
            digests.add(str(from_json(path.read_bytes())["digest"]))
    return digests


# what interrupted and killed processes left


@dataclass(frozen=True)
class DraftFolder:
    """Unfinished work: its key, how much of it there is, when it was last worked on, and whether it is now."""

    path: Path
    key: str
    bytes: int
    parts: int
    changed: float  # seconds since 1970
    busy: bool


def drafts(store: Store) -> list[DraftFolder]:
    """All unfinished work of the store."""
    folders = [path for path in store.layout.drafts.glob("[!.]*-*") if path.is_dir() and not path.is_symlink()]
    return [draft for path in sorted(folders) if (draft := _draft(path))]


def _draft(path: Path) -> DraftFolder | None:
    with suppress(OSError), _claimed(path) as free:
        files = [path, *(path / name for name in regular_files(path))]
        return DraftFolder(
            path=path,
            key=path.name.rpartition("-")[2].partition(".")[0],
            bytes=sum(file.lstat().st_size for file in files[1:]),
            parts=len(list((path / "parts").glob("[0-9]*.json"))),
            changed=max(file.lstat().st_mtime for file in files),
            busy=not free,
        )
    return None  # committed or dropped meanwhile


@contextmanager
def _claimed(draft: Path) -> Iterator[bool]:
    """Hold the lock of a draft, unless somebody works on it: then False; where it cannot be told, nobody does."""
    from filelock import FileLock, Timeout

    lock = FileLock(draft.with_name(f"{draft.name}.lock"), thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    except OSError:
        yield True
        return
    try:
        yield True
    finally:
        lock.release()


def _abandoned(store: Store, limits: Limits, dry_run: bool) -> list[Leftover]:
    """Remove drafts that were abandoned, leases whose holders died, and probes that were never taken away."""
    age = limits.older_than if limits.older_than is not None else DRAFT_SECONDS
    in_use = store.leases()
    gone = []
    for draft in drafts(store):
        if draft.busy or draft.key in in_use or time.time() - draft.changed < age:
            continue
        with _claimed(draft.path) as free:
            if free and draft.path.exists():
                gone.append(Leftover(name=f"drafts/{draft.path.name}", bytes=draft.bytes))
                if not dry_run:
                    _thrown_away(store, draft.path)
                    let_go(draft.path)
    probes = [path for path in store.layout.drafts.glob(".probe-*") if time.time() - _mtime(path) > DRAFT_SECONDS]
    for path in (*stale_leases(store.layout), *probes):
        gone.append(Leftover(name=str(path.relative_to(store.root)), bytes=0))
        if not dry_run:
            with writing(store.root, path.name):
                path.unlink(missing_ok=True)
    place = store.parts_place()
    for folder, size, names in abandoned(place, age, in_use.__contains__):
        gone.append(Leftover(name=folder, bytes=size))
        if not dry_run:
            with writing(store.root, folder):
                remove(place, names)
    return gone


def _mtime(path: Path) -> float:
    with suppress(OSError):
        return path.lstat().st_mtime
    return time.time()


def _thrown_away(store: Store, path: Path) -> None:
    store.layout.trash.mkdir(exist_ok=True)
    away = store.layout.trash / f"{path.name}-{time.time_ns()}"
    with writing(store.root, path.name):
        path.rename(away)
    remove_tree(away)


def _emptied_trash(store: Store) -> list[Leftover]:
    """Finish what a killed collection began."""
    gone = []
    for path in sorted(store.layout.trash.glob("*")) if store.layout.trash.is_dir() else []:
        with suppress(OSError):
            size = sum(regular_files(path).values()) if path.is_dir() and not path.is_symlink() else 0
            remove_tree(path)
            gone.append(Leftover(name=f"trash/{path.name}", bytes=size))
    return gone
