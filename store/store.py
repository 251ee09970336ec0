"""The store: finds what was made, holds work in progress, commits it whole or not at all, and explains a miss.

Cheap to import and to open: Zarr, xarray, pandera and filelock are loaded when an artifact is written or read.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import JsonValue

from store import hashing, leases
from store.artifact import Artifact
from store.errors import FullPlaceError, InputError, StoreError, StorePlaceError
from store.guard import Refused, read_small
from store.index import Index
from store.keys import ArtifactKey
from store.layout import (
    FORMAT,
    READABLE,
    Layout,
    free_bytes,
    human_bytes,
    regular_files,
    remove_tree,
    write_whole,
    writing,
)
from store.records import Explanation, Record, changed_files, fault, read_record
from store.runs import read_run
from store.schemas import Schema
from store.summaries import Summary, is_key

if TYPE_CHECKING:
    from store.draft import Draft
    from store.parts import Place
    from store.transfer import Files

log = logging.getLogger(__name__)

RECORDS_COMPARED = 200  # of a stage, when a miss is explained
RUN_ID = r"[0-9]{8}-[0-9]{6}-[0-9a-f]{6}"


class Store:
    """Artifacts by key, under one folder.

    objects_are_here   whether the objects of all records lie under `root`; not where they are fetched from elsewhere

    root      made when it is not there; an existing store is only read until something is drafted
    raises    StorePlaceError when it can be neither made nor read, or holds other things; StoreError when it is
              another layout's store
    """

    objects_are_here = True

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root).expanduser().absolute()
        self.layout = Layout(self.root)
        self._indices: dict[str, Index] = {}
        self._open()

    def __repr__(self) -> str:
        return f"Store({str(self.root)!r})"

    @property
    def place(self) -> str:
        """How the store is named: what opens it again, and what people are told."""
        return str(self.root)

    # artifacts

    def find(self, key: ArtifactKey | str) -> Artifact | None:
        """The committed artifact of `key` (or its 64 hexadecimal digits), if every one of its files has its size."""
        try:
            record = self._record(key)
        except StoreError as error:
            log.warning("%s", error)
            return None
        if record is None or fault(self.layout, record):
            return None
        return Artifact(self.layout.object(record.digest), record)

    def fetch(self, artifact: Artifact) -> Artifact | None:
        """The artifact, where it can be read at once: it always can, where nothing has to be fetched."""
        return artifact

    @contextmanager
    def draft(self, key: ArtifactKey, schema: Schema) -> Iterator[Draft]:
        """Write the artifact of `key`, alone: a second process waits, then gets it as `draft.found`, nothing missing.

            with store.draft(key, schema) as draft:
                for part in draft.missing():
                    draft.write(part, blocks_of(part))
            artifact = draft.artifact

        A clean exit commits. After an exception nothing is found, and the next draft of `key` with the same schema
        keeps the finished parts. The lock is the kernel's: a killed holder frees it.

        raises    StorePlaceError when the store cannot be written or the disk is full; SchemaError as `Draft` says
        """
        from store.draft import Draft
        from store.parts import adopt, clear, lying

        draft = Draft(self.layout, key, schema)
        draft.found = self.find(key)
        if draft.found:
            yield draft
            return
        with self._alone(key) as draft.check_held:
            with writing(self.root, str(key)):
                self.layout.raise_format()
            draft.found = self.find(key) or draft.finish_interrupted_commit()
            if draft.found:
                yield draft
                return
            try:
                draft.open()
                left = lying(self.parts_place(), key)
                adopt(self.parts_place(), draft, left)
                yield draft
                draft.commit()
                if left or draft.gathers:
                    clear(self.parts_place(), key)
            finally:
                draft.close()

    def parts_place(self) -> Place:
        """Where machines that share this store leave parts for each other (`store.parts`)."""
        from store.parts import Folder

        return Folder(self.root)

    def verify(self, record: Record) -> list[str]:
        """Names of the files of an artifact that are missing or whose bytes have changed; reads all of it."""
        return changed_files(self.layout.object(record.digest), record.files)

    # records

    def records(self, stage: str | None = None) -> Iterator[Record]:
        """All committed records, of one stage or of all, in no order; damaged ones are skipped with a warning."""
        for path in self.record_files(stage):
            try:
                record = read_record(path)
            except StoreError as error:
                log.warning("%s", error)
                continue
            if record:
                yield record

    def summaries(self, stage: str | None = None) -> Iterator[Summary]:
        """Like `records`, without their lists of files: for thousands of them, and never a reason to open an object."""
        unreadable: list[StoreError] = []
        for name, paths in groupby(self.record_files(stage), lambda path: path.parent.name):
            yield from self._index(name).summaries(paths, unreadable)
        for error in unreadable:
            log.warning("%s", error)

    def record_files(self, stage: str | None = None) -> list[Path]:
        """Where the records lie, damaged ones too."""
        return sorted((self.root / "keys").glob(f"{stage or '*'}/[0-9a-f]*.json"))

    def resolve(self, prefix: str) -> Record:
        """The one record whose key begins with `prefix`, written abcd… or stage/abcd…; InputError for none or many."""
        stage, _, digits = prefix.rpartition("/")
        if not re.fullmatch(r"[0-9a-f]{1,64}", digits) or not re.fullmatch(r"\w*", stage):
            raise InputError(f"{prefix!r} is not a key: give the first hexadecimal digits, as tf list shows them")
        found = sorted((self.root / "keys").glob(f"{stage or '*'}/{digits}*.json"))
        if not found:
            raise InputError(f"no artifact's key begins with {prefix!r} in {self.place}; tf list shows them")
        if len(found) > 1:
            names = ", ".join(f"{path.parent.name}/{path.stem[:12]}" for path in found[:8])
            more = f" and {len(found) - 8} more" if len(found) > 8 else ""
            raise InputError(f"{len(found)} keys begin with {prefix!r} ({names}{more}); give more digits")
        record = read_record(found[0])
        if record is None:
            raise InputError(f"the record {found[0]} was just deleted; tf list shows what is there")
        return record

    def knows(self, key: ArtifactKey) -> bool:
        """Whether there is a record of `key`, be its object there or not."""
        return self.layout.record(key.stage, key.hex).is_file()

    def explain(self, key: ArtifactKey, upstream: Mapping[str, ArtifactKey] | None = None) -> Explanation | None:
        """Why `key` is a miss: its record's fault, or what differs from the nearest of its stage; None for a hit.

        upstream   key in hex → key of what was planned above, so that a differing input can be followed to its cause
        """
        try:
            own = self._record(key)
        except StoreError as error:
            return Explanation(reason=f"damaged: {error}")
        if own:
            reason = fault(self.layout, own)
            return Explanation(reason=reason, nearest=own.hex) if reason else None
        kept = self._kept_parts(key)
        near = self._nearest(key, upstream or {})
        differences = self._differences(near.recipe, key, upstream or {}) if near else ()
        reasons = [f"interrupted, {kept} finished parts are kept"] if kept else []
        if not kept and self._keeps_scratch(key):
            reasons = ["interrupted inside, goes on where it was"]
        reasons += differences or ([] if reasons else ["nothing like it yet"])
        return Explanation(reason=", ".join(reasons), differences=differences, nearest=near.hex if near else None)

    # objects: what takes the room, and what may be removed (`store.collect` decides)

    def objects(self) -> dict[str, int]:
        """Digest → bytes on disk of every object that is here, orphans included."""
        return {digest: sum(regular_files(self.layout.object(digest)).values()) for digest in sorted(self.held())}

    def held(self) -> set[str]:
        """Digests of the objects that are here."""
        with suppress(FileNotFoundError), os.scandir(self.root / "objects") as entries:
            return {entry.name for entry in entries if is_key(entry.name)}
        return set()

    def remove_object(self, digest: str) -> None:
        """Remove an object: renamed away first, so that nobody sees half of one; its records stay."""
        with writing(self.root, f"the trash of object {digest[:12]}"):
            self.layout.trash.mkdir(exist_ok=True)
            away = self.layout.trash / f"{digest}-{secrets.token_hex(8)}"
            with suppress(FileNotFoundError):
                self.layout.object(digest).rename(away)
            remove_tree(away)

    def pins(self) -> set[str]:
        """Keys (hex) of the artifacts that are never collected."""
        with suppress(FileNotFoundError), os.scandir(self.layout.pins) as entries:
            return {entry.name for entry in entries if is_key(entry.name)}
        return set()

    def pin(self, digits: str) -> None:
        """Never collect the artifact of this key (64 hexadecimal digits)."""
        assert is_key(digits), f"{digits!r} is not a whole key"
        with writing(self.root, "a pin"):
            self.layout.pins.mkdir(exist_ok=True)
            (self.layout.pins / digits).touch()

    def unpin(self, digits: str) -> None:
        """Let the artifact of this key be collected again."""
        assert is_key(digits), f"{digits!r} is not a whole key"
        with writing(self.root, "a pin"):
            (self.layout.pins / digits).unlink(missing_ok=True)

    @contextmanager
    def lease(self, keys: Iterable[str]) -> Iterator[None]:
        """While the block runs the artifacts of `keys` (hex) are not collected: those that are there, or will be.

        What was found before may have been collected meanwhile: find again inside. To lease them is to use them.
        """
        named = set(keys)
        with leases.leased(self.layout, named):
            try:
                yield
            finally:
                self.note_use(named)

    def note_use(self, keys: Iterable[str]) -> None:
        """Remember that artifacts (hex) are used now, all at one moment; a store that can only be read forgets it."""
        with suppress(OSError):
            self.layout.used.mkdir(exist_ok=True)
            moment = time.time_ns()
            for key in keys:
                (self.layout.used / key).touch()
                os.utime(self.layout.used / key, ns=(moment, moment))

    def uses(self) -> dict[str, float]:
        """Key (hex) → when it was last leased on this machine, in seconds since 1970."""
        with suppress(FileNotFoundError), os.scandir(self.layout.used) as entries:
            return {entry.name: entry.stat().st_mtime for entry in entries if is_key(entry.name)}
        return {}

    def leases(self) -> set[str]:
        """Keys (hex) that some process is using."""
        return {key for lease in leases.live_leases(self.layout) for key in lease.keys}

    # runs

    def save_run(self, run: Mapping[str, JsonValue]) -> str:
        """Keep what one run of the command line did; returns its id, which sorts by time."""
        now = datetime.now(UTC)
        name = f"{now:%Y%m%d-%H%M%S}-{now.microsecond:05x}{secrets.randbelow(16):x}"
        text = json.dumps({**run, "id": name}, indent=1, ensure_ascii=False)
        with writing(self.root, f"run {name}"):
            self.layout.raise_format()
            write_whole(self.layout.runs / f"{name}.json", text, durable=True)
        return name

    def runs(self) -> list[dict[str, Any]]:
        """All runs, the newest first; damaged ones are skipped with a warning."""
        found = []
        for path in sorted(self.layout.runs.glob("[0-9]*.json"), reverse=True):
            try:
                found.append(read_run(path))
            except FileNotFoundError:
                continue
            except StoreError as error:
                log.warning("%s", error)
        return found

    def load_run(self, name: str) -> dict[str, Any]:
        """The run with the id `name`; InputError when there is none, StoreError when its file is damaged."""
        path = self.layout.runs / f"{name}.json"
        if not re.fullmatch(RUN_ID, name) or not path.is_file():
            raise InputError(f"no run {name!r} in {self.place}")
        return read_run(path)

    # moving, see store.moving

    def file_of(self, record: Record, name: str, spare: Path) -> Path | None:
        """A local file with the bytes of one file of an artifact: its own, or `spare`, written now; None when lost."""
        path = self.layout.object(record.digest) / name
        return None if path.is_symlink() or not path.is_file() else path

    def accept(self, record: Record, content: bytes, source: Files, where: str) -> int:
        """Have an artifact that `source` has, verified; returns the bytes that came, 0 where it was here.

        content   the record as it is written there, kept as it is
        raises    DamagedError, naming what `where` cannot give; StorePlaceError when the disk is full
        """
        if self.find(record.recipe):
            return 0
        from store.transfer import bring_object

        self.check_space(record.bytes)
        came = bring_object(self.layout, record, source, where)
        with writing(self.root, f"record {record.stage}/{record.hex[:12]}"):
            write_whole(self.layout.record(record.stage, record.hex), content.decode("utf-8"), durable=True)
        return came

    def accept_run(self, run: Mapping[str, JsonValue]) -> bool:
        """Keep a run of another store under its own id; whether it is new here."""
        path = self.layout.runs / f"{run['id']}.json"
        assert re.fullmatch(RUN_ID, str(run["id"])), f"{run['id']!r} is no id of a run"
        if path.exists():
            return False
        with writing(self.root, f"run {run['id']}"):
            write_whole(path, json.dumps(run, indent=1, ensure_ascii=False))
        return True

    # input files, room

    def file_hash(self, path: Path | str) -> str:
        """blake3 of a file, remembered while its path, size and times stay the same."""
        return hashing.file_hash(path, self.layout.hashes)

    def folder_hash(self, folder: Path | str, files: Iterable[str | Path]) -> str:
        """blake3 of the named files of a folder and of their names: the identity of a model."""
        return hashing.folder_hash(folder, files, self.layout.hashes)

    def sequence_hash(self, files: Iterable[Path]) -> str:
        """blake3 of files in their order, their names left out: the identity of pictures that follow each other."""
        return hashing.sequence_hash(files, self.layout.hashes)

    def remembered(self, what: str, make: Callable[[], JsonValue]) -> JsonValue:
        """A small JSON value that is a pure function of `what` (which names its version too), made once and kept."""
        value = self.recall(what)
        if value is None:
            value = make()
            self.remember(what, value)
        return value

    def recall(self, what: str) -> JsonValue:
        """What `remember` was last told of `what`; None when nothing is known."""
        with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):  # never told, or a damaged note
            kept = json.loads(read_small(self._note(what)))
            if kept["of"] == what:
                return kept["value"]
        return None

    def remember(self, what: str, value: JsonValue) -> None:
        """Keep a small JSON value under `what`; a store that can only be read forgets it."""
        with suppress(OSError):
            write_whole(self._note(what), json.dumps({"of": what, "value": value}))

    def drafted_bytes(self, key: ArtifactKey) -> int:
        """Bytes that the unfinished draft of `key` holds already; 0 where there is none."""
        with suppress(OSError):
            return sum(regular_files(self.layout.draft(key.stage, key.hex) / "group").values())
        return 0

    def free_bytes(self) -> int:
        """Bytes that may still be written."""
        return free_bytes(self.root)

    def check_space(self, needed: int) -> None:
        """Raise StorePlaceError when `needed` bytes do not fit on the store's disk."""
        free = self.free_bytes()
        if needed > free:
            raise FullPlaceError(
                f"{human_bytes(needed)} are needed in {self.root}, where {human_bytes(free)} is free; "
                "free some space or choose another place with --store"
            )

    def check_answers(self) -> str:
        """What a shared store has to say of itself; StorePlaceError when it does not answer. A folder says nothing."""
        return ""

    def check_writable(self) -> None:
        """Raise StorePlaceError when nothing can be written here: to be told before a model is loaded."""
        with writing(self.root, "a draft"):
            probe = self.layout.drafts / f".probe-{secrets.token_hex(4)}"
            write_whole(probe, "a full disk takes a file, but nothing in it\n")
            probe.unlink()
        objects = self.root / "objects"
        if objects.exists() and objects.stat().st_dev != self.layout.drafts.stat().st_dev:
            raise StorePlaceError(
                f"{objects} is on another disk than {self.layout.drafts}, and nothing can be moved between them; "
                "keep the whole store on one disk, or name another place with --store"
            )

    # inside

    def _index(self, stage: str) -> Index:
        return self._indices.setdefault(stage, Index(self.layout.hashes / f"summaries-{stage}.jsonl"))

    def _note(self, what: str) -> Path:
        return self.layout.hashes / f"{hashlib.sha256(what.encode()).hexdigest()}.json"

    def _open(self) -> None:
        if not self.layout.format.is_file():
            self._create()
        try:
            number = read_small(self.layout.format, 100).decode(errors="replace").strip()
        except OSError as error:
            raise StorePlaceError(f"cannot read the store {self.root}: {error.strerror or error}") from error
        except Refused as error:
            raise StoreError(f"cannot read {self.layout.format}: {error}; choose another place with --store") from None
        if number not in map(str, READABLE):
            known = " and ".join(map(str, READABLE))
            raise StoreError(
                f"the store {self.root} has layout {number[:20]!r}, and this version reads layouts {known}; "
                "choose another place with --store, or use the version that wrote it"
            )

    def _create(self) -> None:
        with writing(self.root, "a store"):
            self.root.mkdir(parents=True, exist_ok=True)
            strangers = [path.name for path in self.root.iterdir() if not path.name.startswith((".", "lost+found"))]
            if strangers and not self.layout.format.is_file():  # another process may have made it meanwhile
                raise StorePlaceError(
                    f"{self.root} is no store and not empty (it holds {strangers[0]!r}); "
                    "name an empty or new folder with --store"
                )
            write_whole(self.layout.format, f"{FORMAT}\n", durable=True)

    def _record(self, key: ArtifactKey | str) -> Record | None:
        if isinstance(key, ArtifactKey):
            return read_record(self.layout.record(key.stage, key.hex))
        assert re.fullmatch(r"[0-9a-f]{64}", key), f"{key!r} is not a whole key"
        paths = list((self.root / "keys").glob(f"*/{key}.json"))
        return read_record(paths[0]) if paths else None

    @contextmanager
    def _alone(self, key: ArtifactKey) -> Iterator[Callable[[], None]]:
        """Hold the lock of `key`."""
        with self.alone_in(self.layout.draft(key.stage, key.hex), key) as check_held:
            yield check_held

    @contextmanager
    def alone_in(self, folder: Path, key: ArtifactKey) -> Iterator[Callable[[], None]]:
        """Hold the lock of a draft's folder; its file stays, since removing it would let two holders in.

        Gives a check, to be called before what is written counts: StorePlaceError once the lock's file is not in its
        place, since the folder was moved or removed and nothing keeps another process from writing there.
        """
        from filelock import FileLock, Timeout

        with writing(self.root, str(key)):
            folder.parent.mkdir(parents=True, exist_ok=True)
        place = folder.with_name(f"{folder.name}.lock")
        lock = FileLock(place, thread_local=False)
        with writing(self.root, str(key)):
            try:
                lock.acquire(timeout=0)
            except Timeout:
                log.warning("waiting for %s, which computes %s", leases.holder(folder) or "another process", key)
                lock.acquire(poll_interval=0.1)
            leases.hold(folder)
        try:
            held = place.stat()

            def check_held() -> None:
                with suppress(OSError):
                    if os.path.samestat(held, place.stat()):
                        return
                self._clear_away(folder)
                raise StorePlaceError(
                    f"{folder.parent} was moved or removed while {key} was written there; "
                    "put the store in its place or name it with --store, and run again"
                )

            yield check_held
        finally:
            leases.let_go(folder)
            lock.release()

    def _clear_away(self, draft: Path) -> None:
        """Where no store is any more, remove the folders that writing into it has made anew."""
        if self.layout.format.exists():
            return
        shutil.rmtree(draft, ignore_errors=True)
        for empty in (draft.parent, self.root):
            with suppress(OSError):
                empty.rmdir()

    def _kept_parts(self, key: ArtifactKey) -> int:
        parts = self.layout.draft(key.stage, key.hex) / "parts"
        return len(list(parts.glob("[0-9]*.json")))

    def _keeps_scratch(self, key: ArtifactKey) -> bool:
        scratch = self.layout.draft(key.stage, key.hex) / "scratch"
        return scratch.is_dir() and any(scratch.iterdir())

    def _nearest(self, key: ArtifactKey, upstream: Mapping[str, ArtifactKey]) -> Record | None:
        """The record of the same stage with the fewest differences; of equals that whose inputs have, then the newest.

        Looked for among the newest; a damaged record is near to nothing.
        """
        paths = sorted(self.layout.records(key.stage).glob("[0-9a-f]*.json"), key=_changed, reverse=True)
        found = [*self._index(key.stage).summaries(paths[:RECORDS_COMPARED], [])]
        own = {each.hex: len(_unlike(each.recipe, key)) for each in found}
        least = min(own.values(), default=0)
        ranked = [
            (-own[each.hex], -self._distance(each.recipe, key, upstream, set()) if own[each.hex] == least else 0,
             each.created, each.hex)
            for each in found
        ]  # fmt: skip
        for *_, digits in sorted(ranked, reverse=True):
            with suppress(StoreError):
                return self._record(digits)
        return None

    def _distance(
        self, old: ArtifactKey, new: ArtifactKey, upstream: Mapping[str, ArtifactKey], seen: set[tuple[str, str]]
    ) -> int:
        """How many differences there are in two recipes and all they are made from, each pair of inputs once."""
        count = 0
        for where, before, after in _unlike(old, new):
            above, planned = None, upstream.get(str(after)) if where.startswith("input ") else None
            if planned and is_key(str(before)):
                record = self.layout.record(planned.stage, before)
                above = next(self._index(planned.stage).summaries([record], []), None)
            if planned is None or above is None:
                count += 1
            elif (before, after) not in seen:
                seen.add((before, after))
                count += self._distance(above.recipe, planned, upstream, seen)
        return count

    def _differences(
        self,
        old: ArtifactKey,
        new: ArtifactKey,
        upstream: Mapping[str, ArtifactKey],
        told: set[tuple[str, str]] | None = None,
    ) -> tuple[str, ...]:
        """What makes `new` another key than `old`, inputs followed to their own differences, each pair of them once."""
        said = []
        told = set() if told is None else told
        for where, before, after in _unlike(old, new):
            if where.startswith("input "):
                said.append(self._input_difference(where.removeprefix("input "), before, after, upstream, told))
            else:
                said.append(f"{where} {_shown(before)} → {_shown(after)}")
        return tuple(said)

    def _input_difference(
        self, role: str, before: Any, after: Any, upstream: Mapping[str, ArtifactKey], told: set[tuple[str, str]]
    ) -> str:
        if before is None or after is None:
            return f"{role} is {'new' if before is None else 'gone'}"
        old, new = self._recipe(before, upstream), self._recipe(after, upstream)
        if old is None and new is None:
            return f"another {role}"
        if old is None or new is None or old.stage != new.stage:
            return f"{role} from another {(new or old).stage}"  # type: ignore[union-attr]
        if (before, after) in told:
            return f"{role} from {new.stage}"
        told.add((before, after))
        return f"{role} from {new.stage} ({', '.join(self._differences(old, new, upstream, told))})"

    def _recipe(self, key: str, upstream: Mapping[str, ArtifactKey]) -> ArtifactKey | None:
        if key in upstream:
            return upstream[key]
        try:
            record = self._record(key) if re.fullmatch(r"[0-9a-f]{64}", key) else None
        except StoreError:
            return None
        return record.recipe if record else None


def own_differences(old: ArtifactKey, new: ArtifactKey) -> list[str]:
    """What makes one key another than the other of its stage, in the stage itself: fields, version, what is no key."""
    return [
        f"another {where.removeprefix('input ')}" if where.startswith("input ") else _difference(where, before, after)
        for where, before, after in _unlike(old, new)
        if not (is_key(str(before)) or is_key(str(after)))
    ]


def _difference(where: str, before: Any, after: Any) -> str:
    return f"{where} {_shown(before)} → {_shown(after)}"


def _changed(path: Path) -> int:
    """When a file was last written; 0 where it is gone."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _unlike(old: ArtifactKey, new: ArtifactKey) -> list[tuple[str, Any, Any]]:
    """(where, old value, new value) for each Spec field, version and input that differ; None where one has none."""
    unlike: list[tuple[str, Any, Any]] = []
    if old.version != new.version:
        unlike.append(("version", old.version, new.version))
    before, after = _flat(old.spec), _flat(new.spec)
    unlike += [
        (name, before.get(name), after.get(name))
        for name in dict.fromkeys([*after, *before])
        if before.get(name) != after.get(name) or (name in before) != (name in after)
    ]
    return unlike + [
        (f"input {role}", old.inputs.get(role), new.inputs.get(role))
        for role in dict.fromkeys([*new.inputs, *old.inputs])
        if old.inputs.get(role) != new.inputs.get(role)
    ]


def _flat(spec: Mapping[str, JsonValue], prefix: str = "") -> dict[str, JsonValue]:
    """A nested Spec with dotted names, so that a difference is as small as it is."""
    flat: dict[str, JsonValue] = {}
    for name, value in spec.items():
        if isinstance(value, dict) and value:
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _shown(value: Any) -> str:
    """A value as one short word of a sentence."""
    text = "none" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:37]}…"
