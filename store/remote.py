"""One store for many machines: a shared place behind a local folder, which is a cache with a size limit.

What lies in the place is a store like any other, without drafts and notes (`store.layout`): plain Zarr groups, and
records that are the commit. Drafts are local, so computing waits for no network. A commit is made here first; then the
files of the object are sent, then the record, if there is none: the first one counts. What is found there is fetched
when it is read, and held against its record before anybody sees it.

    locks/<stage>-<key>.json   which machine computes a key
    leases/<lease>.json        which keys a run needs
    pins/<key>                 what is never collected

Beside a store's own folders the cache holds owed/ (commits that are still to be sent) and uses/ (what processes read).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import JsonValue

from store.artifact import Artifact
from store.backends import Patience, open_backend
from store.errors import StoreError, StorePlaceError
from store.guard import LARGEST_JSON
from store.keys import ArtifactKey
from store.layout import FORMAT, regular_files, write_whole, writing
from store.records import Explanation, Record, fault, parse_record
from store.schemas import Schema
from store.store import RUN_ID, Store
from store.transfer import DamagedError, Files, bring_object, side_by_side, sound
from store.turns import InUse, Sign, living, turn

if TYPE_CHECKING:
    from store.backends import Backend
    from store.draft import Draft
    from store.parts import Place

log = logging.getLogger(__name__)

CACHE_SIZE = 20 * 10**9
RECORD_NAME = re.compile(r"keys/(\w{1,100})/([0-9a-f]{64})\.json")


def is_url(place: str) -> bool:
    """Whether a place is named by a URL, rather than a folder."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", place) is not None


def open_store(
    place: str, cache_size: int = CACHE_SIZE, cache: Path | None = None, patience: Patience | None = None
) -> Store:
    """The store in a folder, or the shared one at a URL behind its cache on this machine.

    cache_size   bytes of objects that the cache may hold
    cache        the folder that holds caches; the platform's own without it
    """
    if not is_url(place):
        return Store(place)
    place = place.rstrip("/")
    if cache is None:
        import platformdirs

        cache = Path(platformdirs.user_cache_dir("tokenflow")) / "shared"
    return RemoteStore(place, cache / hashlib.sha256(place.encode()).hexdigest()[:32], cache_size, patience)


class RemoteArtifact(Artifact):
    """An artifact of a shared store: fetched, and kept from being dropped, when it is first read."""

    def __init__(self, store: RemoteStore, record: Record) -> None:
        super().__init__(store.layout.object(record.digest), record)
        self._store = store

    def _check(self) -> None:
        self._store.bring(self.record)
        super()._check()


class RemoteStore(Store):
    """Artifacts by key at a URL, read through the folder `cache`.

    raises    InputError when the URL cannot be one. Whatever talks to the place raises StorePlaceError when it does not
              answer, or says no, or holds other things
    """

    objects_are_here = False  # for those who look at files: they may be in the place alone

    def __init__(self, url: str, cache: Path, cache_size: int = CACHE_SIZE, patience: Patience | None = None) -> None:
        self.url = url.rstrip("/")
        self.cache_size = cache_size
        self.patience = patience or Patience()
        self._backend = open_backend(self.url, self.patience)
        self._state = ""  # of the place: "" not asked yet, "empty", "store"
        super().__init__(cache)
        self._in_use = InUse(self.root / "uses")

    def __repr__(self) -> str:
        return f"RemoteStore({self.url!r})"

    @property
    def place(self) -> str:
        return self.url

    # artifacts

    def find(self, key: ArtifactKey | str) -> Artifact | None:
        """The committed artifact of `key`, if every one of its files has its size, here or there; fetched when read."""
        local = super().find(key)
        if local:
            with suppress(DamagedError):  # said already; it is dropped, so the place is asked
                return self._settled(local.record)
        try:
            record = self._known(key)
        except StorePlaceError:
            raise
        except StoreError as error:
            log.warning("%s", error)
            return None
        return RemoteArtifact(self, record) if record and not self._fault(record) else None

    def fetch(self, artifact: Artifact) -> Artifact | None:
        """The artifact, on this machine; None, with a warning, where what is to be fetched turns out to be damaged."""
        try:
            self.bring(artifact.record)
        except StorePlaceError:
            raise
        except StoreError as error:
            log.warning("%s", error)
            return None
        return artifact

    def bring(self, record: Record) -> None:
        """Have an object here, verified, and keep it as long as this process lives.

        raises    StoreError, naming the file, where the place holds other bytes: from then on it is a miss
        """
        from filelock import FileLock

        with writing(self.root, "its cache"):
            with self._in_use.deciding():
                self._in_use.add(record.digest)
                folder = self.layout.object(record.digest)
                if not fault(self.layout, record):
                    with suppress(OSError):
                        os.utime(folder)
                    return
            self.layout.drafts.mkdir(exist_ok=True)
        with FileLock(self.layout.drafts / f"fetch-{record.digest}.lock", thread_local=False):
            if not fault(self.layout, record):
                return
            self.trim(room=record.bytes)
            self.check_space(record.bytes)
            try:
                bring_object(self.layout, record, _FilesOf(self._reading()), self.url)
            except DamagedError as error:
                self._note_damage(record, error.names)
                raise StoreError(
                    f"{record.promised.artifact} {record.stage}/{record.hex[:12]}: {error}; it counts as a miss now, "
                    "run again and it is made anew"
                ) from None

    @contextmanager
    def draft(self, key: ArtifactKey, schema: Schema) -> Iterator[Draft]:
        """As `Store.draft`; the commit is sent, and where another machine was first, its artifact is the one."""
        with super().draft(key, schema) as draft:
            if draft.found:
                draft.found = self._settled(draft.found.record)
                yield draft
                return
            yield draft
            self._owe(key)
        counts = self._record(key)
        assert counts is not None, f"{key} was just committed"
        draft.replace(RemoteArtifact(self, counts))
        with suppress(StorePlaceError):  # it is committed and sent; room can be made later
            self.trim()

    def parts_place(self) -> Place:
        """As `Store.parts_place`: the place itself."""
        return self._writing()

    def verify(self, record: Record) -> list[str]:
        """Names of the files of an artifact that are missing or have changed in the place; reads all of it.

        A damaged copy in the cache is dropped: it is fetched again.
        """
        if not fault(self.layout, record) and super().verify(record):
            log.warning("the copy of %s/%s in the cache was damaged and is dropped", record.stage, record.hex[:12])
            if self._owed(record.stage, record.hex).exists():
                return super().verify(record)
            self._drop(record.digest, in_use=True)
        return self._changed_there(record, record.files)

    def _changed_there(self, record: Record, names: Iterable[str]) -> list[str]:
        """Those of the files that are lost in the place, or have other bytes; fetches them."""
        files, looked_at = _FilesOf(self._reading()), list(names)

        def changed(name: str) -> bool:
            spare = self.layout.drafts / f".verify-{secrets.token_hex(8)}"
            try:
                path = files.file_of(record, name, spare)
                return path is None or not sound(path, record.files[name])
            finally:
                spare.unlink(missing_ok=True)

        with writing(self.root, "what is verified", max((entry.size for entry in record.files.values()), default=0)):
            self.layout.drafts.mkdir(exist_ok=True)
            answers = side_by_side(changed, looked_at)
        return [name for name, bad in zip(looked_at, answers, strict=True) if bad]

    # records

    def record_files(self, stage: str | None = None) -> list[Path]:
        """Where the records lie here: those of the place, and those still to be sent."""
        there = self._synchronize(stage)
        return [
            path
            for path in sorted((self.root / "keys").glob(f"{stage or '*'}/[0-9a-f]*.json"))
            if _record_name(path.parent.name, path.stem) in there or self._owed(path.parent.name, path.stem).exists()
        ]

    def resolve(self, prefix: str) -> Record:
        """As `Store.resolve`, over the records of the place."""
        digits = prefix.rpartition("/")[2]
        if re.fullmatch(r"[0-9a-f]{1,64}", digits):
            self._synchronize(digits=digits)
        return super().resolve(prefix)

    def knows(self, key: ArtifactKey) -> bool:
        """Whether there is a record of `key`, be its object there or not."""
        return super().knows(key) or self._reading().get(_record_name(key.stage, key.hex)) is not None

    def explain(self, key: ArtifactKey, upstream: Mapping[str, ArtifactKey] | None = None) -> Explanation | None:
        """As `Store.explain`, over the records of the place."""
        if self.find(key):
            return None
        self._synchronize()
        try:
            own = self._record(key)
        except StoreError as error:
            return Explanation(reason=f"damaged: {error}")
        if own:
            return Explanation(reason=self._fault(own) or "collected", nearest=own.hex)
        return super().explain(key, upstream)

    # runs

    def save_run(self, run: Mapping[str, JsonValue]) -> str:
        """Keep what one run of the command line did, here and there; returns its id."""
        name = super().save_run(run)
        self._writing().put(f"runs/{name}.json", (self.layout.runs / f"{name}.json").read_bytes())
        return name

    def runs(self) -> list[dict[str, Any]]:
        """All runs of all machines, the newest first."""
        names = [name.removeprefix("runs/").removesuffix(".json") for name in self._reading().list("runs")]
        side_by_side(self._bring_run, [name for name in names if re.fullmatch(RUN_ID, name)])
        return super().runs()

    def load_run(self, name: str) -> dict[str, Any]:
        """The run with the id `name`; InputError when there is none."""
        if re.fullmatch(RUN_ID, name):
            self._bring_run(name)
        return super().load_run(name)

    def accept_run(self, run: Mapping[str, JsonValue]) -> bool:
        """As `Store.accept_run`, there."""
        name = f"runs/{run['id']}.json"
        if self._reading().get(name) is not None:
            return False
        super().accept_run(run)
        return self._writing().put_new(name, json.dumps(run, indent=1, ensure_ascii=False).encode())

    def _bring_run(self, name: str) -> None:
        path = self.layout.runs / f"{name}.json"
        if path.is_file():
            return
        content = self._reading().get(f"runs/{name}.json")
        try:
            if content is not None and isinstance(json.loads(content), dict):
                with writing(self.root, f"run {name}"):
                    write_whole(path, content.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            log.warning("the run %s/runs/%s.json is damaged (%s); delete it", self.url, name, str(error)[:80])

    # moving

    def file_of(self, record: Record, name: str, spare: Path) -> Path | None:
        """As `Store.file_of`: of the cache, or fetched."""
        if not fault(self.layout, record):
            return super().file_of(record, name, spare)
        return _FilesOf(self._reading()).file_of(record, name, spare)

    def accept(self, record: Record, content: bytes, source: Files, where: str) -> int:
        """As `Store.accept`, into the place itself."""
        if self.find(record.recipe):
            return 0
        came = self._send_object(record, source, where)
        self._send_record(record, content)
        return came

    # collecting

    def objects(self) -> dict[str, int]:
        """Digest → bytes of the objects in the place, without those being sent: they have no record yet."""
        sending = self._named_by_signs("digests")
        sizes: dict[str, int] = {}
        for name, size in self._reading().list("objects").items():
            digest = name.split("/")[1]
            if re.fullmatch(r"[0-9a-f]{64}", digest) and digest not in sending:
                sizes[digest] = sizes.get(digest, 0) + size
        return sizes

    def held(self) -> set[str]:
        """Digests of the same."""
        return set(self.objects())

    def remove_object(self, digest: str) -> None:
        """Remove an object from the place, and from the cache of this machine unless a process here reads it."""
        backend = self._writing()
        names = sorted(backend.list(f"objects/{digest}"), key=lambda name: name.endswith("/zarr.json"))
        # The metadata first: what is half removed opens nowhere, rather than reading as fill values.
        side_by_side(backend.delete, [name for name in names if name.endswith("/zarr.json")])
        side_by_side(backend.delete, [name for name in names if not name.endswith("/zarr.json")])
        self._drop(digest)

    def pins(self) -> set[str]:
        """Keys that are never collected."""
        names = (name.removeprefix("pins/") for name in self._reading().list("pins"))
        return {name for name in names if re.fullmatch(r"[0-9a-f]{64}", name)}

    def pin(self, digits: str) -> None:
        """Never collect the artifact of a key."""
        self._writing().put(f"pins/{digits}", b"pinned\n")

    def unpin(self, digits: str) -> None:
        """Let it be collected again."""
        self._writing().delete(f"pins/{digits}")

    @contextmanager
    def lease(self, keys: Iterable[ArtifactKey | str]) -> Iterator[None]:
        """Keep what a run needs from being collected by any machine, and in this cache, while the block runs."""
        named = sorted({key if isinstance(key, str) else key.hex for key in keys})
        name = f"leases/{secrets.token_hex(16)}.json"
        with writing(self.root, "its cache"), self._in_use.deciding():
            self._in_use.add(*named)
        with ExitStack() as shown:
            try:
                sign = Sign(self._writing(), name, self.patience, keys=named)
                sign.take()
                shown.enter_context(sign.beating())
            except StorePlaceError as error:  # what is here can be used all the same
                log.warning("other machines cannot be told what this run needs: %s", error)
            try:
                yield
            finally:
                self.note_use(named)

    def leases(self) -> set[str]:
        """Keys, in hex, that runs on any machine need now."""
        return self._named_by_signs("keys")

    def _named_by_signs(self, what: str) -> set[str]:
        named = (said.get(what) for said in living(self._reading(), "leases"))
        return {str(each) for listed in named if isinstance(listed, list) for each in listed}

    # the place

    def check_writable(self) -> None:
        """Raise StorePlaceError when nothing can be written here or there: to be told before a model is loaded."""
        super().check_writable()
        backend, probe = self._writing(), f"locks/probe-{secrets.token_hex(8)}"
        backend.put(probe, b"")
        backend.delete(probe)

    def check_answers(self) -> str:
        """What is there, in a few words; StorePlaceError when the place does not answer."""
        self._reading()
        return "a store" if self._state == "store" else "empty, a first run makes a store there"

    def trim(self, room: int = 0) -> None:
        """Drop least recently used objects from the cache until it and `room` bytes fit its limit.

        Only what the place holds too is dropped, and nothing that a process or a lease on this machine names.
        """
        sizes = {path: sum(regular_files(path).values()) for path in (self.root / "objects").glob("*")}
        excess = sum(sizes.values()) + room - self.cache_size
        if excess <= 0:
            return
        for path in sorted(sizes, key=lambda path: path.stat().st_mtime_ns if path.exists() else 0):
            if excess <= 0:
                return
            there = self._reading().list(f"objects/{path.name}")
            here = {f"objects/{path.name}/{name}": size for name, size in regular_files(path).items()}
            if here.items() <= there.items() and self._drop(path.name):
                excess -= sizes[path]

    def close(self) -> None:
        """The end of a run: nothing here is read any more, and the cache is brought to its limit."""
        self._in_use.end()
        with suppress(StoreError, OSError):  # what cannot be dropped today is dropped another day
            self.trim()

    def _create(self) -> None:
        super()._create()
        with suppress(OSError):  # for whoever wonders what this folder is
            write_whole(self.root / "address", f"{self.url}\n")

    def _reading(self) -> Backend:
        """The place, after it was seen to be a store or empty."""
        if not self._state:
            number = self._backend.get("format")
            self._state = "store" if number is not None else "empty"
            if number is not None and number.strip() not in {str(n).encode() for n in range(1, FORMAT + 1)}:
                self._state = ""
                raise StoreError(
                    f"the store {self.url} has layout {number[:20]!r}, and this version reads layout {FORMAT}; "
                    "choose another place with --store, or use the version that wrote it"
                )
            stranger = self._backend.first("") if number is None else None
            if stranger is not None and self._backend.get("format") is None:  # another may have made it meanwhile
                self._state = ""
                raise StorePlaceError(
                    f"{self.url} is no store and not empty (it holds {stranger!r}); name an empty or new place"
                )
        return self._backend

    def _writing(self) -> Backend:
        """The place, which is a store from now on."""
        backend = self._reading()
        if self._state == "empty":
            backend.put_new("format", f"{FORMAT}\n".encode())
            self._state = "store"
        return backend

    @contextmanager
    def _alone(self, key: ArtifactKey) -> Iterator[Callable[[], None]]:
        """Hold the lock of `key` on this machine, and then among machines."""
        with super()._alone(key) as check_held:
            name = f"locks/{key.stage}-{key.hex}.json"
            with turn(self._writing(), name, self._cache_name(), self.patience, _waiting(key)):
                yield check_held
                self._send_owed(key)  # before the turn ends: whoever waits for it must find what was made

    def _cache_name(self) -> str:
        """A name of this cache folder that no other has."""
        path = self.root / "name"
        if not path.is_file():
            with writing(self.root, "its name"):
                write_whole(path, secrets.token_hex(16))
        return path.read_text("utf-8")

    # inside: records

    def _known(self, key: ArtifactKey | str) -> Record | None:
        """The record of a key as the place has it now."""
        if isinstance(key, ArtifactKey):
            return self._take(key.stage, key.hex)
        self._synchronize(digits=key)
        return self._record(key)

    def _take(self, stage: str, digits: str, keep: bool = True) -> Record | None:
        """Read a record of the place, and keep it here; StoreError where it cannot be trusted."""
        name = _record_name(stage, digits)
        content = self._reading().get(name)
        if content is None:
            return None
        record = parse_record(content, f"{self.url}/{name}")
        if (record.stage, record.hex) != (stage, digits):
            raise StoreError(
                f"the record {self.url}/{name} is that of another key, {record.stage}/{record.hex}; delete it"
            )
        if keep and not self._owed(stage, digits).exists():
            with writing(self.root, f"record {stage}/{digits[:12]}"):
                write_whole(self.layout.record(stage, digits), content)
        return record

    def _synchronize(self, stage: str | None = None, digits: str = "") -> set[str]:
        """Bring the records of a stage, or of keys that begin so, that are not here yet; returns the names of all."""
        there = self._reading().list(f"keys/{stage}" if stage else "keys")
        matches = [match for name in there if (match := RECORD_NAME.fullmatch(name))]
        found = {match[0]: match for match in matches if match[2].startswith(digits)}

        def bring(name: str) -> None:
            here = self.layout.record(*found[name].groups())
            if there[name] > LARGEST_JSON:
                log.warning("the record %s/%s is too large to be one; delete it", self.url, name)
            elif not here.is_file() or here.stat().st_size != there[name]:
                try:
                    self._take(found[name][1], found[name][2])
                except StorePlaceError:
                    raise
                except StoreError as error:
                    log.warning("%s", error)

        side_by_side(bring, found)
        return set(found)

    # inside: what is there

    def _fault(self, record: Record) -> str | None:
        """Why the object of `record` in the place cannot be used: collected, or damaged and how."""
        there = self._reading().list(f"objects/{record.digest}")
        if not there:
            return "collected"
        noted = self._noted_damage(record.digest)
        if noted and (damaged := self._changed_there(record, noted)):
            return f"damaged: file {damaged[0]} has other bytes in {self.url}"
        if noted:
            self._note_damage(record, [])  # another machine made it anew
        for name, entry in record.files.items():
            size = there.get(f"objects/{record.digest}/{name}")
            if size is None:
                return f"damaged: file {name} is missing in {self.url}"
            if size != entry.size:
                return f"damaged: file {name} has {size} bytes instead of {entry.size} in {self.url}"
        return None

    def _noted_damage(self, digest: str) -> list[str]:
        noted = self.recall(f"damaged {self.url} {digest}")
        return [str(name) for name in noted] if isinstance(noted, list) else []

    def _note_damage(self, record: Record, names: list[str]) -> None:
        self.remember(f"damaged {self.url} {record.digest}", list(names))

    # inside: sending

    def _owed(self, stage: str, digits: str) -> Path:
        return self.root / "owed" / f"{stage}-{digits}"

    def _owe(self, key: ArtifactKey) -> None:
        """Note, before a commit is made here, that it is still to be sent."""
        with writing(self.root, str(key)):
            write_whole(self._owed(key.stage, key.hex), "", durable=True)

    def _settled(self, record: Record) -> Artifact:
        """The artifact of a record that is here, after it was sent if that was still owed."""
        return RemoteArtifact(self, self._send_owed(record.recipe) or record)

    def _send_owed(self, key: ArtifactKey) -> Record | None:
        """Send the commit of a key that is still owed; returns the record that counts, None where nothing was owed."""
        owed = self._owed(key.stage, key.hex)
        record = self._record(key) if owed.exists() else None
        if record is None:
            return None
        with writing(self.root, "its cache"), self._in_use.deciding():
            self._in_use.add(record.digest)
        try:
            counts = self._send(record)
        except DamagedError as error:
            log.warning("%s was never sent, and is dropped: %s", key, error)
            self._drop(record.digest, in_use=True)
            owed.unlink(missing_ok=True)
            raise
        owed.unlink(missing_ok=True)
        return counts

    def _send(self, record: Record) -> Record:
        """Send a commit; returns the record that counts: another machine's, where that was first."""
        content = self.layout.record(record.stage, record.hex).read_bytes()
        theirs = self._sound_other(record)
        if theirs is None:
            self._send_object(record, _FilesHere(self), str(self.root))
            theirs = self._send_record(record, content)
        if theirs is None:
            return record
        log.warning(
            "another machine committed %s/%s first: its result is kept, and this one is dropped",
            record.stage, record.hex[:12],
        )  # fmt: skip
        with writing(self.root, f"record {theirs.stage}/{theirs.hex[:12]}"):
            self._owed(record.stage, record.hex).unlink(missing_ok=True)
            self._take(theirs.stage, theirs.hex)
        return theirs

    def _send_object(self, record: Record, source: Files, where: str) -> int:
        """Send the files that are not there with their size; each is held against the record first."""
        backend = self._writing()
        there = backend.list(f"objects/{record.digest}")
        noted = self._noted_damage(record.digest)
        names = [f"objects/{record.digest}/{name}" for name in record.files]
        missing = [
            name.split("/", 2)[2]
            for name, entry in zip(names, record.files.values(), strict=True)
            if there.get(name) != entry.size or name.split("/", 2)[2] in noted
        ]

        def send(name: str) -> str | None:
            spare = self.layout.drafts / f".send-{secrets.token_hex(8)}"
            try:
                path = source.file_of(record, name, spare)
                if path is None or not sound(path, record.files[name]):
                    return name
                backend.put(f"objects/{record.digest}/{name}", path)
                return None
            finally:
                spare.unlink(missing_ok=True)

        # Until there is a record nothing else says that these files are no orphans. The sign lingers, so that a
        # collection that read the records before this commit does not take its object for one.
        sign = Sign(backend, f"leases/{secrets.token_hex(16)}.json", self.patience, digests=[record.digest])
        sign.take()
        with sign.beating(lingers=True), writing(self.root, f"{record.stage}/{record.hex[:12]}"):
            self.layout.drafts.mkdir(exist_ok=True)
            damaged = [name for name in side_by_side(send, missing) if name is not None]
        if damaged:
            raise DamagedError(damaged, where)
        if noted:
            self._note_damage(record, [])
        return sum(record.files[name].size for name in missing)

    def _send_record(self, record: Record, content: bytes) -> Record | None:
        """Put the record, which commits; another's, where one with a sound object is there. None when ours counts."""
        backend, name = self._writing(), _record_name(record.stage, record.hex)
        if backend.put_new(name, content):
            return None
        theirs = self._sound_other(record)
        if theirs is None:
            backend.put(name, content)
            theirs = self._sound_other(record)  # the last of two machines that replaced a record at the same moment
        return theirs

    def _sound_other(self, record: Record) -> Record | None:
        """The place's record of the same key, where that names another object, which is whole."""
        try:
            theirs = self._take(record.stage, record.hex, keep=False)
        except StorePlaceError:
            raise
        except StoreError as error:
            log.warning("%s", error)
            return None
        return theirs if theirs and theirs.digest != record.digest and not self._fault(theirs) else None

    def _drop(self, digest: str, in_use: bool = False) -> bool:
        """Drop an object from the cache, unless it is in use; whether it is gone."""
        path = self.layout.object(digest)
        gone = self.layout.drafts / f".dropped-{secrets.token_hex(8)}"
        with writing(self.root, "its cache"):
            with self._in_use.deciding():
                used = set() if in_use else self._in_use.names()
                if digest in used or (used and self._needed(digest, used)):
                    return False
                self.layout.drafts.mkdir(exist_ok=True)
                with suppress(FileNotFoundError):
                    path.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)
        return True

    def _needed(self, digest: str, used: set[str]) -> bool:
        """Whether a key among what is in use has the object."""
        for name in used:
            with suppress(StoreError):
                record = self._record(name)
                if record and record.digest == digest:
                    return True
        return False


class _FilesHere:
    """Files of objects as the cache has them."""

    def __init__(self, store: RemoteStore) -> None:
        self.store = store

    def file_of(self, record: Record, name: str, spare: Path) -> Path | None:
        """The cache's own file."""
        return Store.file_of(self.store, record, name, spare)


class _FilesOf:
    """Files of objects as the place has them."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    def file_of(self, record: Record, name: str, spare: Path) -> Path | None:
        """`spare`, into which the file was fetched; None where it is not there, or is larger than it may be."""
        from store.backends import OversizeError

        try:
            there = self.backend.get_to(f"objects/{record.digest}/{name}", spare, record.files[name].size)
        except OversizeError:
            return None
        return spare if there else None


def _record_name(stage: str, digits: str) -> str:
    return f"keys/{stage}/{digits}.json"


def _waiting(key: ArtifactKey) -> Callable[[str], None]:
    return lambda host: log.warning("waiting for %s, which computes %s", host, key)
