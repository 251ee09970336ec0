"""Verifying: every byte of every object against its record, what is damaged by name, and what depends on it."""

from __future__ import annotations

import os
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from store.collect import drafts
from store.errors import InputError, StoreError
from store.hashing import payload_hash
from store.layout import regular_files, writing
from store.leases import exclusive
from store.records import FileEntry, Record, read_record
from store.schemas import Frozen
from store.store import Store
from store.summaries import Summary, below, summary_of

T = TypeVar("T")
U = TypeVar("U")


class Named(Frozen):
    """An artifact as people know it."""

    stage: str
    key: str
    prompt: str | None = None

    @classmethod
    def of(cls, summary: Summary) -> Named:
        return cls(stage=summary.stage, key=summary.hex, prompt=summary.prompt)

    def __str__(self) -> str:
        return f"{self.stage}/{self.key[:12]}" + (f" ({self.prompt!r})" if self.prompt else "")


class Damage(Frozen):
    """One damaged object.

    artifacts    that it is: more than one where equal bytes came out under several keys
    files        name → what is wrong with it; "." is the object itself
    dependents   artifacts that were made from it, directly or by way of others
    strangers    whether all that is wrong is files that no record names: what was written is whole
    readable     whether it could be read at all: what cannot, for lack of permission, is not taken for damaged bytes
    """

    artifacts: tuple[Named, ...]
    digest: str
    path: Path
    files: dict[str, str]
    dependents: tuple[Named, ...] = ()
    strangers: bool = False
    readable: bool = True


class DamagedRecord(Frozen):
    """A record that cannot be trusted."""

    path: Path
    reason: str
    dependents: tuple[Named, ...] = ()
    readable: bool = True


class Verdict(Frozen):
    """What `verify` found.

    artifacts   committed ones whose objects were read; collected: those whose objects are not there, which is no damage
    orphans     digests of objects that no record names, with their bytes; drafts: unfinished work. Told, no damage
    dropped     what was removed so that the next run computes it again
    """

    artifacts: int
    bytes: int
    collected: int
    damaged: tuple[Damage, ...]
    records: tuple[DamagedRecord, ...]
    orphans: dict[str, int]
    drafts: tuple[str, ...]
    dropped: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing damaged is left."""
        found: tuple[Damage | DamagedRecord, ...] = (*self.damaged, *self.records)
        return not found or (bool(self.dropped) and all(each.readable for each in found))


class Reader:
    """Reads the objects of a store, several files at once, and tells `advance` how many bytes it has read."""

    def __init__(self, store: Store, begin: Callable[[int], None], advance: Callable[[int], None]) -> None:
        self.store, self.begin, self.advance = store, begin, advance

    def damaged(self, records: Iterable[Record]) -> Iterator[tuple[Record, dict[str, str]]]:
        """Each object that is not what its record says, with what is wrong in it."""
        found: dict[str, dict[str, str]] = defaultdict(dict)
        objects = {record.digest: record for record in records}
        self.begin(sum(record.bytes for record in objects.values()))
        work = []
        for digest, record in objects.items():
            folder = self.store.layout.object(digest)
            found[digest], whole = _listed(folder, record)
            self.advance(record.bytes - sum(entry.size for _, _, entry in whole))
            work += whole
        for (folder, name, _), wrong in in_parallel(self._file, work):
            if wrong:
                found[folder.name][name] = wrong
        for digest, files in found.items():
            if files and self.store.layout.object(digest).exists():  # else it was collected while it was read
                yield objects[digest], dict(sorted(files.items()))

    def _file(self, item: tuple[Path, str, FileEntry]) -> str | None:
        folder, name, entry = item
        try:
            wrong = None if payload_hash(folder / name) == entry.blake3 else "has other bytes than were written"
        except FileNotFoundError:
            wrong = "is missing"
        except OSError as error:
            wrong = f"cannot be read ({error.strerror or error})"
        self.advance(entry.size)
        return wrong


def verify(
    store: Store, keys: Iterable[str] = (), begin: Callable[[int], None] = lambda total: None,
    advance: Callable[[int], None] = lambda read: None,
) -> Verdict:  # fmt: skip
    """Compare every file of the artifacts of `keys` (first digits), or of all, with the hash in its record.

    begin, advance   are told the bytes to be read, and those that were
    raises           InputError for a key that names none or several
    """
    wanted = [record_file(store, key) for key in keys]
    records, untrusted = _read(wanted or store.record_files())
    held = store.held()
    there = [record for record in records if record.digest in held]
    found = list(Reader(store, begin, advance).damaged(there) if store.objects_are_here else _elsewhere(store, there))
    summaries = list(store.summaries()) if found or untrusted else []
    named = {record.digest for record in records}
    return Verdict(
        artifacts=len(there),
        bytes=sum({record.digest: record.bytes for record in there}.values()),
        collected=len(records) - len(there),
        damaged=tuple(_damage(store, record, files, records, summaries) for record, files in found),
        records=tuple(
            damaged.model_copy(update={"dependents": _named(below([damaged.path.stem], summaries))})
            for damaged in untrusted
        ),
        orphans={} if wanted else {digest: size for digest, size in store.objects().items() if digest not in named},
        drafts=() if wanted else tuple(draft.path.name for draft in drafts(store)),
    )


def repair(store: Store, verdict: Verdict) -> Verdict:
    """Remove what is damaged, so that the next run computes it again; what could not be read for lack of rights stays.

    Of an object with nothing but files too many only these go.

    raises   StorePlaceError when the store cannot be written
    """
    dropped = []
    with writing(store.root, "a repair"), exclusive(store.layout):
        for damage in verdict.damaged:
            if damage.strangers:
                for name in damage.files:
                    (damage.path / name).unlink(missing_ok=True)
                    dropped.append(f"{damage.path / name}")
            elif damage.readable:
                _remove(store, damage)
                dropped.append(", ".join(map(str, damage.artifacts)))
        for record in verdict.records:
            if record.readable:
                record.path.unlink(missing_ok=True)
                dropped.append(f"{record.path}")
    return verdict.model_copy(update={"dropped": tuple(dropped)})


def record_file(store: Store, prefix: str) -> Path:
    """Where the one record lies whose key begins with `prefix`, be it damaged; InputError for none or several."""
    try:
        record = store.resolve(prefix)
    except InputError:
        raise
    except StoreError:
        stage, _, digits = prefix.rpartition("/")
        return next(path for path in store.record_files(stage or None) if path.stem.startswith(digits))
    return store.layout.record(record.stage, record.hex)


def in_parallel(do: Callable[[T], U], items: Iterable[T]) -> Iterator[tuple[T, U]]:
    """Each item with what `do` gives for it, in order, a few at a time: reading and hashing let other threads run.

    Whoever stops early waits for no thread: it may be the garbage collector, within locks that joining would take.
    """
    workers = min(8, (os.cpu_count() or 1) + 2)
    pending: deque[tuple[T, Future[U]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="verify")
    try:
        for item in items:
            pending.append((item, pool.submit(do, item)))
            if len(pending) > 4 * workers:
                done, answer = pending.popleft()
                yield done, answer.result()
        for done, answer in pending:
            yield done, answer.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _elsewhere(store: Store, records: list[Record]) -> Iterator[tuple[Record, dict[str, str]]]:
    """The same for objects that have to be fetched: the store itself knows how."""
    for record in {record.digest: record for record in records}.values():
        if names := store.verify(record):
            yield record, dict.fromkeys(names, "is missing, or has other bytes than were written")


def _read(paths: Iterable[Path]) -> tuple[list[Record], list[DamagedRecord]]:
    records, untrusted = [], []
    for path in paths:
        try:
            record = read_record(path)
        except StoreError as error:
            readable = not isinstance(error.__cause__, OSError)
            untrusted.append(DamagedRecord(path=path, reason=" ".join(str(error).split()), readable=readable))
            continue
        if record:
            records.append(record)
    return records, untrusted


def _listed(folder: Path, record: Record) -> tuple[dict[str, str], list[tuple[Path, str, FileEntry]]]:
    """What is wrong with an object by its list of files alone, and the files whose bytes are still to be read."""
    if folder.is_symlink() or not folder.is_dir():
        return {".": "is no folder"}, []
    try:
        present, others = regular_files(folder), _no_files(folder)
    except FileNotFoundError:
        return {}, []  # collected just now
    except OSError as error:
        return {".": f"cannot be read ({error.strerror or error})"}, []
    wrong = {name: f"is {what}" for name, what in others.items()}
    wrong |= {name: "is named by no record" for name in present if name not in record.files}
    whole = []
    for name, entry in record.files.items():
        if name in present and present[name] == entry.size:
            whole.append((folder, name, entry))
        elif name in present:
            wrong[name] = f"has {present[name]} bytes instead of {entry.size}"
        else:
            wrong.setdefault(name, "is missing")
    return wrong, whole


def _no_files(folder: Path) -> dict[str, str]:
    """Name → kind of what is neither a file nor a folder below `folder`."""
    found = {}
    for here, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(here, name)
            if path.is_symlink():
                found[path.relative_to(folder).as_posix()] = "a link"
            elif not path.is_file() and not path.is_dir():
                found[path.relative_to(folder).as_posix()] = "neither a file nor a folder"
    return found


def _damage(
    store: Store, record: Record, files: dict[str, str], records: list[Record], summaries: list[Summary]
) -> Damage:
    same = [summary_of(other) for other in records if other.digest == record.digest]
    own = {summary.hex: summary for summary in (*same, *(s for s in summaries if s.digest == record.digest))}
    return Damage(
        artifacts=_named(own.values()),
        digest=record.digest,
        path=store.layout.object(record.digest),
        files=files,
        dependents=_named(below(own, summaries)),
        strangers=not any(name in record.files or name == "." for name in files),
        readable=not any("Permission denied" in wrong for wrong in files.values()),
    )


def _named(summaries: Iterable[Summary]) -> tuple[Named, ...]:
    return tuple(Named.of(summary) for summary in summaries)


def _remove(store: Store, damage: Damage) -> None:
    """An object as a whole; a link in its place is removed, never what it leads to."""
    if damage.path.is_symlink() or not damage.path.is_dir():
        damage.path.unlink(missing_ok=True)
    else:
        with suppress(FileNotFoundError):
            store.remove_object(damage.digest)
