"""Parts of an artifact that other machines computed, on their way to the draft that gathers them.

parts/<stage>-<key>/<n>.json       marker of part n, written last and once: the first one counts
parts/<stage>-<key>/<n>/<id>/…     the files that it names

They lie in the store's own place, a folder or a bucket, since that is all that two machines share. What is found there
came from elsewhere: it is held to the schema, and every byte to its hash, before a draft takes it.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Protocol

from store.draft import Draft, Marker
from store.errors import StoreError
from store.guard import parse_json
from store.keys import ArtifactKey, canonical_json
from store.layout import Layout, writing
from store.schemas import Frozen, Schema

log = logging.getLogger(__name__)

MARKER = re.compile(r"parts/(\w{1,100}-[0-9a-f]{64})/(0|[1-9][0-9]{0,8})\.json")
LARGEST_MARKER = 64 << 20


class Place(Protocol):
    """What parts need of a store's place; `store.backends.Backend` has it."""

    def get(self, name: str) -> bytes | None: ...

    def get_to(self, name: str, path: Path, most: int) -> bool: ...

    def put(self, name: str, content: bytes | Path) -> None: ...

    def put_new(self, name: str, content: bytes) -> bool: ...

    def list(self, prefix: str) -> dict[str, int]: ...

    def delete(self, name: str) -> None: ...


class Folder:
    """A place that is a folder which all machines see."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def get(self, name: str) -> bytes | None:
        """The bytes, None where there is no such name."""
        with suppress(FileNotFoundError):
            return (self.root / name).read_bytes()
        return None

    def get_to(self, name: str, path: Path, most: int) -> bool:
        """Copy the file to `path`; False where there is none, or it is larger than `most` bytes."""
        source = self.root / name
        if source.is_symlink() or not source.is_file() or source.stat().st_size > most:
            return False
        shutil.copyfile(source, path)
        return True

    def put(self, name: str, content: bytes | Path) -> None:
        """Keep the bytes, or a copy of a file: whole or not at all."""
        target = self.root / name
        spare = target.with_name(f".{secrets.token_hex(8)}")
        with writing(self.root, name):
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, Path):
                shutil.copyfile(content, spare)
            else:
                spare.write_bytes(content)
            spare.replace(target)

    def put_new(self, name: str, content: bytes) -> bool:
        """Keep the bytes if there is no such name."""
        target = self.root / name
        spare = target.with_name(f".{secrets.token_hex(8)}")
        with writing(self.root, name):
            target.parent.mkdir(parents=True, exist_ok=True)
            spare.write_bytes(content)
            try:
                os.link(spare, target)
                return True
            except FileExistsError:
                return False
            finally:
                spare.unlink()

    def list(self, prefix: str) -> dict[str, int]:
        """Name → size of the files below `prefix`."""
        folder = self.root / prefix
        files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
        return {path.relative_to(self.root).as_posix(): path.stat().st_size for path in files}

    def delete(self, name: str) -> None:
        """Remove a file, and folders that are empty without it."""
        path = self.root / name
        path.unlink(missing_ok=True)
        with suppress(OSError):
            while path.parent != self.root:
                path = path.parent
                path.rmdir()


class Published(Frozen):
    """What a marker says: where the files lie, who computed them, for which promise."""

    at: str
    host: str
    pid: int
    time: int
    schema_hash: str
    marker: Marker


def folder_of(key: ArtifactKey) -> str:
    """Where the parts of an artifact lie."""
    return f"parts/{key.stage}-{key.hex}"


def promise(schema: Schema) -> str:
    return sha256(canonical_json(schema).encode()).hexdigest()


@contextmanager
def loose(layout: Layout, place: Place, key: ArtifactKey, schema: Schema, number: int) -> Iterator[Draft]:
    """A draft of one part alone; it is published on a clean exit, unless somebody was first.

    layout   of the store on this machine: work in progress lies there
    """
    scratch = Layout(layout.drafts / f".loose-{secrets.token_hex(8)}")
    draft = Draft(scratch, key, schema)
    draft.only = schema.divided()[number]
    try:
        with writing(layout.root, str(key)):
            scratch.drafts.mkdir(parents=True)
        draft.open()
        yield draft
        if not draft.missing():
            _publish(place, key, schema, number, draft)
    finally:
        shutil.rmtree(scratch.root, ignore_errors=True)


def _publish(place: Place, key: ArtifactKey, schema: Schema, number: int, draft: Draft) -> None:
    name, marker = f"{folder_of(key)}/{number}", draft.marker(number)
    at = secrets.token_hex(8)
    for file in marker.files:
        place.put(f"{name}/{at}/{file}", draft.file(file))
    said = Published(
        at=at, host=socket.gethostname(), pid=os.getpid(), time=int(time.time()), schema_hash=promise(schema),
        marker=marker,
    )  # fmt: skip
    if not place.put_new(f"{name}.json", said.model_dump_json().encode()):
        for file in marker.files:
            place.delete(f"{name}/{at}/{file}")


def is_published(place: Place, key: ArtifactKey, schema: Schema, number: int) -> bool:
    """Whether a part of this very promise is there."""
    said = _read(place, f"{folder_of(key)}/{number}.json")
    return said is not None and said.schema_hash == promise(schema)


def adopt(place: Place, draft: Draft) -> int:
    """Have a draft take all its parts that were published; returns how many. What cannot be trusted is removed."""
    taken = 0
    for name in place.list(folder_of(draft.key)):
        found = MARKER.fullmatch(name)
        if found is None:
            continue
        number = int(found[2])
        said = _read(place, name)
        if said is None or said.schema_hash != promise(draft.schema):
            place.delete(name)
            continue
        try:
            taken += draft.adopt(number, said.marker, _bringing(place, f"{name.removesuffix('.json')}/{said.at}"))
        except (StoreError, ValueError) as error:  # ValueError: the marker is refused
            log.warning("a part that %s computed is done again: %s", said.host[:80], error)
            place.delete(name)
    return taken


def _bringing(place: Place, prefix: str) -> Callable[[str, Path, int], bool]:
    return lambda file, path, size: place.get_to(f"{prefix}/{file}", path, size)


def _read(place: Place, name: str) -> Published | None:
    """What a marker says; None where there is none or it is no marker."""
    content = place.get(name)
    if content is None or len(content) > LARGEST_MARKER:
        return None
    try:
        return Published.model_validate(parse_json(content))
    except ValueError as error:  # Refused, or a field that is none
        log.warning("%s is no marker of a part (%s)", name, " ".join(str(error).split())[:120])
        return None


def clear(place: Place, key: ArtifactKey) -> None:
    """Remove all parts of an artifact: it is committed."""
    for name in place.list(folder_of(key)):
        place.delete(name)


def abandoned(place: Place, age: float, in_use: Callable[[str], bool]) -> list[tuple[str, int, list[str]]]:
    """Parts that nobody gathers any more: (folder, bytes, names).

    age      seconds after which a part that was published counts so
    in_use   whether the artifact of this key, in hex, is being computed
    """
    names: dict[str, dict[str, int]] = {}
    for name, size in place.list("parts").items():
        names.setdefault("/".join(name.split("/")[:2]), {})[name] = size
    found = []
    for folder, own in names.items():
        said = [marker for name in own if MARKER.fullmatch(name) and (marker := _read(place, name))]
        if not in_use(folder.rpartition("-")[2]) and all(time.time() - marker.time > age for marker in said):
            found.append((folder, sum(own.values()), list(own)))
    return found
