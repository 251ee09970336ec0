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
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pydantic import Field, ValidationError

from store.backends import OversizeError
from store.draft import Draft, Marker
from store.guard import LARGEST_JSON, Refused, check_text, parse_json, read_small, reason, shown
from store.keys import ArtifactKey, canonical_json
from store.layout import regular_files, writing
from store.schemas import Frozen, Schema
from store.transfer import side_by_side

if TYPE_CHECKING:
    from store.store import Store

log = logging.getLogger(__name__)

MARKER = re.compile(r"parts/(\w{1,100}-[0-9a-f]{64})/(0|[1-9][0-9]{0,8})\.json")


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
        """The bytes, None where there is no such regular file."""
        try:
            return read_small(self.root / name)
        except (FileNotFoundError, NotADirectoryError, Refused):
            return None

    def get_to(self, name: str, path: Path, most: int) -> bool:
        """Have the file at `path` too; False where there is none, or it is larger than `most` bytes."""
        source = self.root / name
        if source.is_symlink() or not source.is_file() or source.stat().st_size > most:
            return False
        _copy(source, path)
        return True

    def put(self, name: str, content: bytes | Path) -> None:
        """Keep the bytes, or those of a file that nobody changes: whole or not at all."""
        with writing(self.root, name), self._spare(name, content) as spare:
            spare.replace(self.root / name)

    def put_new(self, name: str, content: bytes) -> bool:
        """Keep the bytes if there is no such name; where the disk has no links, of two at one moment both may win."""
        target = self.root / name
        with writing(self.root, name), self._spare(name, content) as spare:
            try:
                os.link(spare, target)
            except FileExistsError:
                return False
            except OSError:
                if target.exists():
                    return False
                spare.replace(target)
        return True

    def list(self, prefix: str) -> dict[str, int]:
        """Name → size of the files below `prefix`."""
        with suppress(FileNotFoundError, NotADirectoryError):
            return {f"{prefix}/{name}": size for name, size in regular_files(self.root / prefix).items()}
        return {}

    def delete(self, name: str) -> None:
        """Remove a file, and folders that are empty without it."""
        path = self.root / name
        with suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()
        with suppress(OSError):
            for folder in path.relative_to(self.root).parents[:-2]:
                (self.root / folder).rmdir()

    @contextmanager
    def _spare(self, name: str, content: bytes | Path) -> Iterator[Path]:
        """A file beside the name with what it is to hold, gone afterwards."""
        target = self.root / name
        spare = target.with_name(f".{secrets.token_hex(8)}")
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            if isinstance(content, Path):
                _copy(content, spare)
            else:
                spare.write_bytes(content)
            yield spare
        finally:
            spare.unlink(missing_ok=True)


def _copy(source: Path, target: Path) -> None:
    """The same bytes under another name: what lies in a store is never changed, so a second name is enough."""
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:  # another disk, or one without links
        shutil.copyfile(source, target)


class Published(Frozen):
    """What a marker says: where the files lie, who computed them and when, for which promise, and `cut`.

    cut   prompt → its end that the model does not read, of those that the part was computed with
    """

    at: str = Field(pattern=r"^[0-9a-f]{16}$")
    host: str = Field(max_length=253)
    pid: int
    time: int
    promise: str
    cut: Mapping[str, str] = Field({})
    marker: Marker


def folder_of(key: ArtifactKey) -> str:
    """Where the parts of an artifact lie."""
    return f"parts/{key.stage}-{key.hex}"


def promise(schema: Schema) -> str:
    """A name for what a schema promises."""
    return sha256(canonical_json(schema).encode()).hexdigest()


@contextmanager
def loose(store: Store, key: ArtifactKey, schema: Schema, number: int) -> Iterator[Draft]:
    """A draft of one part alone; it is published on a clean exit, unless somebody was first.

    Worked on by one process at a time, as far as a lock reaches: a second one waits, and finds it published. What a
    killed one left is gone on with.

    raises   as `Store.draft`
    """
    draft = Draft(store.layout, key, schema, number)
    place = store.parts_place()
    with store.alone_in(draft.folder, key) as draft.check_held:
        if published(place, key, schema, number):
            draft.elsewhere = True
            yield draft
            return
        draft.open()
        yield draft
        if not draft.missing():
            _publish(place, draft, number)
            draft.drop()


def _publish(place: Place, draft: Draft, number: int) -> None:
    """The files, then the marker; where another was first, its part counts."""
    name, marker = f"{folder_of(draft.key)}/{number}", draft.marker(number)
    at = secrets.token_hex(8)
    side_by_side(lambda file: place.put(f"{name}/{at}/{file}", draft.file(file)), marker.files)
    cut = draft.note.get("cut") if isinstance(draft.note, dict) else None
    said = Published(
        at=at, host=socket.gethostname(), pid=os.getpid(), time=int(time.time()), promise=promise(draft.schema),
        cut={str(text): str(end) for text, end in cut.items()} if isinstance(cut, dict) else {}, marker=marker,
    )  # fmt: skip
    content = said.model_dump_json().encode()
    if place.put_new(f"{name}.json", content):
        return
    if published(place, draft.key, draft.schema, number):
        side_by_side(lambda file: place.delete(f"{name}/{at}/{file}"), marker.files)
    else:  # what is there is a part of another promise, or no part at all
        place.put(f"{name}.json", content)


def published(place: Place, key: ArtifactKey, schema: Schema, number: int) -> Published | None:
    """What the marker of a part says, where there is one of this very promise."""
    said = _read(place, f"{folder_of(key)}/{number}.json")
    return said if said and said.promise == promise(schema) else None


def lying(place: Place, key: ArtifactKey) -> list[str]:
    """All files that lie there for an artifact, those of a worker which was killed before its marker included."""
    return list(place.list(folder_of(key)))


def adopt(place: Place, draft: Draft, names: Iterable[str]) -> None:
    """Have a draft take all its parts whose markers are among the names."""
    for name in names:
        if match := MARKER.fullmatch(name):
            adopt_part(place, draft, int(match[2]))


def adopt_part(place: Place, draft: Draft, number: int) -> Published | None:
    """Have a draft take one part, if it was published; returns what its marker says. What is not sound is removed."""
    name = f"{folder_of(draft.key)}/{number}"
    said = published(place, draft.key, draft.schema, number)
    if said is None:
        return None
    try:
        draft.adopt(number, said.marker, lambda file, path, size: place.get_to(f"{name}/{said.at}/{file}", path, size))
    except (Refused, OversizeError) as error:
        log.warning("part %d of %s, which %s computed, is done again: %s", number, draft.key, shown(said.host), error)
        place.delete(f"{name}.json")
        return None
    draft.cut.update(said.cut)
    return said


def _read(place: Place, name: str) -> Published | None:
    """What a marker says; None where there is none, or none to be trusted."""
    content = place.get(name)
    if content is None or len(content) > LARGEST_JSON:
        return None
    try:
        written = parse_json(content)
        check_text({"host": written.get("host"), "cut": written.get("cut")})
        return Published.model_validate(written, strict=True)
    except Refused as error:
        why: object = error
    except ValidationError as error:
        why = reason(error)
    log.warning("%s is no marker of a part (%s)", name, why)
    return None


def clear(place: Place, key: ArtifactKey) -> None:
    """Remove all parts of an artifact: it is committed."""
    remove(place, lying(place, key))


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


def remove(place: Place, names: Iterable[str]) -> None:
    """Remove files of parts, their markers first: what is half removed counts for nothing."""
    names = list(names)
    side_by_side(place.delete, [name for name in names if MARKER.fullmatch(name)])
    side_by_side(place.delete, [name for name in names if not MARKER.fullmatch(name)])
