"""Work in progress: an artifact that is written part by part, survives a kill, and is found by nobody until committed.

drafts/<stage>-<key>/
    schema.json      what was promised; another promise makes the draft worthless
    group/           the Zarr group as it grows
    parts/<n>.json   marker of a finished part: its files with size and hash; what no marker names does not count
    scratch/<name>   an array that unfinished work goes on from: a line with its hash, then .npy; never in the artifact
    record.json      during the commit only: the record, from before the group moves until the record does
"""

from __future__ import annotations

import io
import json
import logging
import os
import re
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from blake3 import blake3
from pydantic import Field, JsonValue, ValidationError

from store import zarr_io
from store.artifact import Artifact
from store.errors import SchemaError, StoreError
from store.guard import Refused, check_variable, read_json, read_small, reason, shown
from store.hashing import payload_hash
from store.keys import ArtifactKey, canonical, canonical_json
from store.layout import Layout, flush, flush_tree, regular_files, remove_odd_files, write_whole, writing
from store.leases import exclusive
from store.records import FileEntry, Record, changed_files, manifest_digest, now, read_record, software
from store.rules import broken_rule
from store.schemas import Block, Frozen, Schema, Variable
from store.transfer import side_by_side

log = logging.getLogger(__name__)

CHUNK = re.compile(r"(/(0|[1-9][0-9]{0,15}))*")
Count = Annotated[int, Field(ge=0, le=2**63 - 1)]


class Marker(Frozen):
    """A finished part."""

    files: dict[str, FileEntry]
    written: dict[str, Count]  # variable → values written
    grown: dict[str, Count]  # growing variable → its length
    attrs: dict[str, JsonValue]
    seconds: float = Field(ge=0)

    def check(self, schema: Schema) -> None:
        """Raise Refused where the marker claims what no part of `schema` can have written."""
        reach = dict.fromkeys(self.grown, 0)
        for name in self.files:
            variable, _, chunk = name.partition("/c")
            known = schema.variables.get(variable)
            if known is None or chunk.count("/") != len(known.dims) or not CHUNK.fullmatch(chunk):
                raise Refused(f"{shown(name)} is no chunk of {schema.artifact}")
            if variable in reach:
                reach[variable] = max(reach[variable], (int(chunk.split("/")[1]) + 1) * known.chunks[0])
        for variable, length in self.grown.items():
            if length > reach[variable]:
                raise Refused(f"{shown(variable)} has not grown to {length}")


@dataclass
class _Part:
    """A part while it is written."""

    number: int
    span: range
    files: set[str] = field(default_factory=set)
    regions: dict[str, set[tuple[tuple[int, int], ...]]] = field(default_factory=dict)

    def written(self, variable: str) -> int:
        return sum(prod(stop - start for start, stop in region) for region in self.regions.get(variable, ()))


class WriteBehind:
    """Writes are done one after the other by a thread of their own, while the model computes what comes next.

    `do` raises what an earlier write raised, and leaving the block waits for all of them.
    """

    WAITING = 2  # writes that may be waiting: what they hold is in memory

    def __init__(self) -> None:
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="write behind")
        self._waiting: deque[Future[None]] = deque()

    def do(self, write: Callable[[], None]) -> None:
        """Have `write` done."""
        while len(self._waiting) >= self.WAITING:
            self._waiting.popleft().result()
        self._waiting.append(self._writer.submit(write))

    def __enter__(self) -> WriteBehind:
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        self._writer.shutdown(cancel_futures=kind is not None)
        if kind is None:
            for write in self._waiting:
                write.result()


class Draft:
    """An artifact being written; comes from `Store.draft`, which commits it on a clean exit.

    attrs, note   found while computing: set them inside the `with`; attrs become the group's (JSON only)
    provenance    what computes it, beside the versions that are recorded anyway: `draft.provenance.update(device=…)`
    needed        bytes that the whole takes, told where the disk is full; set it where a variable grows
    found         the artifact, where another process (or an earlier run) had committed it: nothing is missing then
    artifact      the artifact, after the `with`
    check_held    raises when this draft is no longer ours to write; asked before anything counts
    elsewhere     whether all that was wanted of it is published already: then nothing is missing (`store.parts`)

    number   of the one part that is wanted, where others are computed elsewhere: a loose draft, never committed
    """

    def __init__(self, layout: Layout, key: ArtifactKey, schema: Schema, number: int | None = None) -> None:
        self.key = key
        self.schema = schema
        self.attrs: dict[str, JsonValue] = {}
        self.note: JsonValue = None
        self.provenance: dict[str, JsonValue] = {}
        self.found: Artifact | None = None
        self.check_held: Callable[[], None] = lambda: None
        self._committed: Artifact | None = None
        self._layout = layout
        self._folder = layout.draft(key.stage, key.hex, number)
        self._group = self._folder / "group"
        self._parts = schema.divided()
        self.needed = schema.nbytes()
        self.gathers = False  # parts come from elsewhere while it is open
        self.cut: dict[str, str] = {}  # prompt → its end that the model does not read, as those parts say
        self.elsewhere = False
        self._only = number
        self._done: dict[int, Marker] = {}
        self._owner: dict[str, int] = {}  # chunk file → the part that wrote it
        self._arrays: dict[str, Any] = {}
        self._mutex = threading.Lock()
        self._is_full = False
        check_layout(schema, str(key))

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self._folder

    @property
    def artifact(self) -> Artifact:
        """The committed artifact: the one that was found, or the one that was just written."""
        artifact = self.found or self._committed
        assert artifact is not None, f"{self.key} is not committed yet"
        return artifact

    def replace(self, artifact: Artifact) -> None:
        """Another artifact of the same key counts: another machine had committed it first."""
        self._committed = artifact

    @property
    def seconds(self) -> float:
        """Seconds of work in the finished parts, those of interrupted runs included."""
        return sum(marker.seconds for marker in self._done.values())

    def missing(self) -> list[range]:
        """The parts that are still to be written, in order."""
        if self.found or self.elsewhere:
            return []
        wanted = enumerate(self._parts) if self._only is None else [(self._only, self._parts[self._only])]
        return [part for number, part in wanted if number not in self._done]

    def read(self, variable: str) -> Any:
        """Read-only array of `variable` as it is so far; what no finished part has written reads as fill value."""
        if self.found:
            return self.found[variable]
        return zarr_io.open_array(self._group / variable)

    def write(self, part: range, blocks: Iterable[Block], seconds: Callable[[], float] | None = None) -> None:
        """Write all blocks of one part; only a part that is written to its end counts.

        Different parts may be written by different threads. `blocks` is consumed here, so its work is timed here. What
        a block holds must not be changed afterwards: it may be written while the next one is computed.

        seconds   asked at the end: what the part took, where that is not simply the time that has gone by
        raises    SchemaError, naming artifact, variable, rule and place, when a block breaks the schema or values are
                  left out; StorePlaceError when the disk is full (the draft is removed then)
        """
        with self.writing(part, seconds) as put:
            for block in blocks:
                put(block)

    @contextmanager
    def writing(self, part: range, seconds: Callable[[], float] | None = None) -> Iterator[Callable[[Block], None]]:
        """Write one part block by block, as `write` does, where its blocks come from the outside."""
        work = _Part(self._parts.index(part), part)
        assert work.number not in self._done, f"{self.key}: {part} is already written"
        began = time.perf_counter()
        try:
            with WriteBehind() as behind:
                yield lambda block: self._write_block(work, block, behind)
            self._finish(work, seconds or (lambda: time.perf_counter() - began))
        except BaseException:
            self._forget(work)
            raise

    def keep(self, name: str, values: np.ndarray[Any, Any]) -> None:
        """Keep an array of work that is not finished, to be recalled by the next run where this one is stopped.

        It is there whole or not at all, takes the place of what was kept under `name`, and is gone with the draft: it
        is no part of the artifact. Keeping nothing where the artifact was found.

        name     small letters, digits, dots and underscores
        raises   StorePlaceError when the disk is full (the draft is removed then)
        """
        if self.found:
            return
        data = io.BytesIO()
        np.save(data, values, allow_pickle=False)
        with self._writing():
            write_whole(self._scratch(name), self._header(name, data.getvalue()) + data.getvalue())

    def recall(self, name: str) -> np.ndarray[Any, Any] | None:
        """The array that was kept under `name`, by this run or one before it; None where there is none to be trusted.

        Not trusted: what is damaged, was kept for another draft or under another name, or was computed on something
        else than `provenance` says now (another device, another precision).
        """
        if self.found:
            return None
        try:
            header, _, data = self._scratch(name).read_bytes().partition(b"\n")
            if header + b"\n" != self._header(name, data):
                return None
            values: np.ndarray[Any, Any] = np.load(io.BytesIO(data), allow_pickle=False)
            return values
        except (OSError, ValueError):
            return None

    def forget(self, name: str) -> None:
        """Keep nothing under `name` any more."""
        if not self.found:
            with self._writing():
                self._scratch(name).unlink(missing_ok=True)

    def marker(self, number: int) -> Marker:
        """What a finished part is."""
        return self._done[number]

    def file(self, name: str) -> Path:
        """Where a chunk lies."""
        return self._group / name

    def adopt(self, number: int, marker: Marker, bring: Callable[[str, Path, int], bool]) -> bool:
        """Take a part that was computed elsewhere, as if it had been written here; False where it is there already.

        bring    (name of a file, where it goes, its size) → whether it came
        raises   Refused where the marker is none of this part, or a file does not come with the bytes it names
        """
        if number in self._done or number >= len(self._parts):
            return False
        self.check_held()
        self._check_foreign(number, marker)

        def take(name: str) -> bool:
            path = self._group / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            return bring(name, path, marker.files[name].size) and self._entry(name) == marker.files[name]

        with self._writing():
            came = dict(zip(marker.files, side_by_side(take, marker.files), strict=True))
            lost = [name for name, whole in came.items() if not whole]
            if lost:
                for name in marker.files:
                    (self._group / name).unlink(missing_ok=True)
                raise Refused(f"its file {lost[0]} is gone or changed")
            write_whole(self._folder / "parts" / f"{number}.json", marker.model_dump_json())
        with self._mutex:
            self._done[number] = marker
            self._owner.update(dict.fromkeys(marker.files, number))
            self.attrs.update(marker.attrs)
        return True

    def open(self) -> None:
        """Take up the draft that an earlier run left, keeping parts whose files are what their markers say."""
        schema_file = self._folder / "schema.json"
        promised = canonical_json(self.schema)
        with self._writing():
            for place in (self._folder, self._group, self._folder / "parts"):
                if place.is_symlink():
                    place.unlink()  # what is written here, or cleared away, is not to be somewhere else
            if not self._promises(schema_file, promised):
                self.drop()
                if self._folder.exists():  # what is left would be taken for parts of this promise
                    raise OSError(f"what an earlier run left in {self._folder} cannot be removed")
                write_whole(schema_file, promised)
            self._group.mkdir(exist_ok=True)
            remove_odd_files(self._group)
            for number in range(len(self._parts)):
                self._take_up(number)
            for name in regular_files(self._group):
                if name not in self._owner and not name.endswith("zarr.json"):  # which is written anew
                    (self._group / name).unlink()
            for half_written in (self._folder / "scratch").glob(".*"):
                half_written.unlink()
            self._arrays = zarr_io.create_arrays(self._group, self.schema, self._grown())

    def finish_interrupted_commit(self) -> Artifact | None:
        """The artifact, where a commit was stopped between moving the group and moving the record."""
        pending = self._folder / "record.json"
        if not pending.is_file() or self._group.exists():
            return None
        try:
            record = read_record(pending, self.key.hex)
        except StoreError as error:  # nothing but the work behind it is lost
            log.warning("%s", error)
            return None
        if record is None or changed_files(self._layout.object(record.digest), record.files):
            return None
        with self._writing():
            return self._publish(record)

    def commit(self) -> None:
        """Check the whole, name it by its bytes, move it to the objects, and write the record last.

        raises    SchemaError when a part was never written (the finished ones stay), or when the whole breaks the
                  schema (the draft is removed then: its parts cannot be told good from bad)
        """
        self.check_held()
        missing = self.missing()
        if missing:
            raise SchemaError(
                f"{self._name} is incomplete: {len(missing)} of {len(self._parts)} parts were never written, "
                f"the first is {self._span(missing[0])}"
            )
        shutil.rmtree(self._folder / "scratch", ignore_errors=True)  # every part is finished: nothing goes on from it
        with self._writing():
            attrs = _plain_json({**self.schema.attrs, **self.attrs}, f"{self._name}: attribute")
            zarr_io.write_group(self._group, self.schema, attrs)
            try:
                actual = self._check_whole()
            except SchemaError:
                self.drop()
                raise
            record = self._record(actual, attrs)
            flush_tree(self._group)  # before the record: after a power cut it must not speak of bytes that are gone
            self.check_held()
            write_whole(self._folder / "record.json", record.to_json(), durable=True)
            with exclusive(self._layout):  # an equal object that is there is not collected before it has a record
                self._move(record)
                self._committed = self._publish(record)

    def close(self) -> None:
        """Where the disk was full, remove what writes that were under way have put there since the draft went."""
        if self._is_full:
            self.drop()

    def drop(self) -> None:
        """Remove everything that was written; all parts are missing again."""
        self._done.clear()
        self._owner.clear()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def _name(self) -> str:
        return f"{self.schema.artifact} {self.key}"

    def _scratch(self, name: str) -> Path:
        assert re.fullmatch(r"[a-z0-9_][a-z0-9_.]*", name), f"{name!r} cannot name what is kept"
        return self._folder / "scratch" / name

    def _header(self, name: str, data: bytes) -> bytes:
        """The line before what is kept: what it is the `name` of, in which draft, made on what, and its hash."""
        of = {"key": self.key.hex, "name": name, "by": self.provenance, "blake3": blake3(data).hexdigest()}
        return canonical_json(of).encode() + b"\n"

    def _writing(self) -> Any:
        return writing(self._layout.root, self._name, self.needed, self._give_back)

    def _give_back(self) -> None:
        self._is_full = True
        self.drop()

    def _error(self, variable: str, rule: str) -> SchemaError:
        return SchemaError(f"{self._name}: {variable} {rule}")

    def _span(self, part: range) -> str:
        dim = self.schema.parts[0] if self.schema.parts else "part"
        return f"{dim} {part.start}…{part.stop - 1}"

    def _grown(self) -> dict[str, int]:
        grown: dict[str, int] = {}
        for marker in self._done.values():
            for name, length in marker.grown.items():
                grown[name] = max(length, grown.get(name, 0))
        return grown

    def _promises(self, file: Path, promised: str) -> bool:
        """Whether an earlier run left this very promise."""
        try:
            return read_small(file).decode() == promised
        except (OSError, ValueError):
            return False

    # one part

    def _write_block(self, work: _Part, block: Block, behind: WriteBehind) -> None:
        variable = self.schema.variables.get(block.variable)
        if variable is None:
            raise self._error(block.variable, f"is not promised; the variables are {', '.join(self.schema.variables)}")
        if block.values.dtype != np.dtype(variable.dtype):
            raise self._error(block.variable, f"must be {variable.dtype}, but a block is {block.values.dtype}")
        region = self._region(work, block, variable)
        self.check_held()
        broken = broken_rule(variable, block.values, block.start)
        if broken:
            raise self._error(block.variable, broken)
        array = self._arrays[block.variable]
        with self._mutex:
            for name in zarr_io.chunk_files(block.variable, variable, region):
                if self._owner.setdefault(name, work.number) != work.number:
                    raise self._error(block.variable, f"chunk {name} is written by two parts; let one part write it")
                work.files.add(name)
            if variable.shape[:1] == (None,) and region[0].stop > array.shape[0]:
                with self._writing():
                    array.resize((region[0].stop, *array.shape[1:]))
        behind.do(lambda: self._put(array, region, block.values))
        work.regions.setdefault(block.variable, set()).add(tuple((s.start, s.stop) for s in region))

    def _put(self, array: Any, region: zarr_io.Region, values: np.ndarray[Any, Any]) -> None:
        with self._writing():
            array[region] = values

    def _region(self, work: _Part, block: Block, variable: Variable) -> zarr_io.Region:
        """Where the block goes; SchemaError when that is outside the variable or outside its part."""
        counts = (len(variable.dims), len(block.start), block.values.ndim)
        if len(set(counts)) > 1:
            raise self._error(
                block.variable, f"has {counts[0]} dimensions, but a block has {counts[1]} offsets and {counts[2]} axes"
            )
        bounds = dict(zip(variable.dims, ((0, size) for size in variable.shape), strict=True))
        if self.schema.parts and self.schema.parts[0] in bounds:
            bounds[self.schema.parts[0]] = (work.span.start, work.span.stop)
        region = []
        for dim, start, length in zip(variable.dims, block.start, block.values.shape, strict=True):
            low, high = bounds[dim]
            if start < low or (high is not None and start + length > high):
                until = "" if high is None else f"…{high - 1}"
                raise self._error(
                    block.variable,
                    f"may be written at {dim} {low}{until} here, but a block spans {dim} {start}…{start + length - 1}",
                )
            region.append(slice(start, start + length))
        return tuple(region)

    def _check_foreign(self, number: int, marker: Marker) -> None:
        """Refused unless a marker from elsewhere is that of a finished part `number`, and of no other."""
        marker.check(self.schema)
        span = self._parts[number]
        if marker.grown:
            raise Refused("it has grown, and parts that are computed elsewhere have sizes that are known")
        for name in marker.files:
            variable, _, chunk = name.partition("/c/")
            known = self.schema.variables[variable]
            if self.schema.parts and self.schema.parts[0] in known.dims:
                axis = known.dims.index(self.schema.parts[0])
                if int(chunk.split("/")[axis]) * known.chunks[axis] not in span:
                    raise Refused(f"{shown(name)} is no chunk of {self._span(span)}")
            if self._owner.get(name, number) != number:
                raise Refused(f"{shown(name)} is another part's")
        try:
            self._expect_part(span, lambda name: marker.written.get(name, 0))
        except SchemaError as error:
            raise Refused(str(error)) from None

    def _expect_part(self, span: range, written: Callable[[str], int]) -> None:
        """SchemaError unless as many values of every variable are written as the part has."""
        for name, variable in self.schema.variables.items():
            if self.schema.parts and self.schema.parts[0] in variable.dims and None not in variable.shape:
                dim = variable.dims.index(self.schema.parts[0])
                sizes = [size or 0 for size in variable.shape]
                expected = prod([*sizes[:dim], len(span), *sizes[dim + 1 :]])
                self._expect(name, written(name), expected, f" in {self._span(span)}")

    def _finish(self, work: _Part, seconds: Callable[[], float]) -> None:
        self.check_held()
        self._expect_part(work.span, work.written)
        with self._writing():
            files = {name: self._entry(name) for name in sorted(work.files)}
            marker = Marker(
                files=files,
                written={name: work.written(name) for name in work.regions},
                grown={
                    name: self._arrays[name].shape[0]
                    for name, variable in self.schema.variables.items()
                    if variable.shape[:1] == (None,)
                },
                attrs=dict(self.attrs),
                seconds=seconds(),
            )
            write_whole(self._folder / "parts" / f"{work.number}.json", marker.model_dump_json())
        with self._mutex:
            self._done[work.number] = marker

    def _expect(self, variable: str, written: int, expected: int, where: str = "") -> None:
        if written != expected:
            fault = "are missing" if written < expected else "were written twice"
            raise self._error(
                variable, f"holds {expected} values{where}, but {abs(expected - written)} of them {fault}"
            )

    def _entry(self, name: str) -> FileEntry:
        path = self._group / name
        return FileEntry(size=path.stat().st_size, blake3=payload_hash(path))

    def _forget(self, work: _Part) -> None:
        """Undo a part that did not come to its end, unless what lies there may be another's by now."""
        try:
            self.check_held()
        except StoreError:
            return
        with self._mutex:
            for name in work.files:
                self._owner.pop(name, None)
                (self._group / name).unlink(missing_ok=True)
            grown = self._grown()
            for name, variable in self.schema.variables.items():
                if variable.shape[:1] == (None,) and self._group.exists():
                    self._arrays[name].resize((grown.get(name, 0), *variable.shape[1:]))

    def _take_up(self, number: int) -> None:
        """Trust the marker of a part when its files are what it says, else remove it."""
        path = self._folder / "parts" / f"{number}.json"
        if not os.path.lexists(path):
            return
        try:
            marker = Marker.model_validate(read_json(path, "the draft's marker"), strict=True)
            marker.check(self.schema)
            if changed_files(self._group, marker.files):
                raise Refused("its files are gone or changed")
        except (StoreError, ValueError) as error:
            why = reason(error) if isinstance(error, ValidationError) else error
            log.warning("part %d of the draft of %s is done again: %s", number, self._name, why)
            path.unlink()
            return
        self._done[number] = marker
        self._owner.update(dict.fromkeys(marker.files, number))
        self.attrs.update(marker.attrs)

    # the whole

    def _check_whole(self) -> Schema:
        """The schema with its actual sizes, after everything that was promised is there."""
        shapes = {name: tuple(array.shape) for name, array in self._arrays.items()}
        for name, shape in shapes.items():
            written = sum(marker.written.get(name, 0) for marker in self._done.values())
            self._expect(name, written, prod(shape))
            absent = zarr_io.absent_chunks(zarr_io.open_array(self._group / name))
            if absent:
                raise self._error(name, f"lacks {absent} of its chunks")
        lengths: dict[str, tuple[str, int]] = {dim: (dim, len(at)) for dim, at in self.schema.coordinates.items()}
        for name, shape in shapes.items():
            for dim, length in zip(self.schema.variables[name].dims, shape, strict=True):
                other, known = lengths.setdefault(dim, (name, length))
                if known != length:
                    raise self._error(name, f"has {length} along {dim}, but {other} has {known}")
        variables = {
            name: variable.model_copy(update={"shape": shapes[name]})
            for name, variable in self.schema.variables.items()
        }
        actual = self.schema.model_copy(update={"variables": variables})
        import xarray

        from store.pandera_schemas import check_dataset

        with xarray.open_zarr(self._group, chunks=None, consolidated=True) as dataset:
            check_dataset(dataset, actual, str(self.key))
        return actual

    def _record(self, actual: Schema, attrs: dict[str, JsonValue]) -> Record:
        known = {name: entry for marker in self._done.values() for name, entry in marker.files.items()}
        files = {name: known.get(name) or self._entry(name) for name in regular_files(self._group)}
        return Record(
            recipe=self.key,
            hex=self.key.hex,
            stage=self.key.stage,
            digest=manifest_digest(files),
            bytes=sum(entry.size for entry in files.values()),
            files=files,
            schema=actual,
            attrs=attrs,
            seconds=round(self.seconds, 3),
            created=now(),
            provenance={**software(), **self.provenance},
            note=self.note,
        ).sealed()

    def _move(self, record: Record) -> None:
        """Move the group to its object, unless an equal one lies there already; a damaged one is replaced."""
        target = self._layout.object(record.digest)
        target.parent.mkdir(exist_ok=True)
        if target.is_symlink() or target.is_file():
            target.unlink()
        elif target.exists() and changed_files(target, record.files):
            shutil.rmtree(target)
        try:
            self._group.rename(target)
        except OSError:
            if not target.is_dir():
                raise
            shutil.rmtree(self._group)  # equal bytes, committed under another key
        flush(target.parent)

    def _publish(self, record: Record) -> Artifact:
        path = self._layout.record(record.stage, record.hex)
        path.parent.mkdir(parents=True, exist_ok=True)
        pending = self._folder / "record.json"
        for kept in self._folder.iterdir():  # first: no later run looks here once the record is there
            if kept.is_dir():
                shutil.rmtree(kept, ignore_errors=True)
            elif kept != pending:
                kept.unlink()
        pending.replace(path)
        flush(path.parent)
        flush(path.parent.parent)
        shutil.rmtree(self._folder, ignore_errors=True)
        return Artifact(self._layout.object(record.digest), record)


def _plain_json(attrs: dict[str, JsonValue], where: str) -> dict[str, JsonValue]:
    """A copy of `attrs` as JSON reads it back, floats kept floats; UnnameableError for anything that is not JSON."""
    canonical(attrs, where)
    plain: dict[str, JsonValue] = json.loads(json.dumps(attrs, allow_nan=False))
    return plain


def check_layout(schema: Schema, name: str) -> None:
    """Raise SchemaError when a schema contradicts itself, or when its parts would share chunk files."""
    for variable_name, variable in schema.variables.items():
        where = f"{schema.artifact} {name}: {variable_name}"
        try:
            check_variable(variable_name, variable)
        except Refused as error:
            raise SchemaError(f"{schema.artifact} {name}: {error}") from None
        if None in variable.shape[1:]:
            raise SchemaError(f"{where} may grow along its first dimension only, but its shape is {variable.shape}")
        if variable.sums_to_one is not None and variable.sums_to_one not in variable.dims:
            raise SchemaError(f"{where} cannot sum to one over {variable.sums_to_one}, which it does not have")
        if schema.parts and schema.parts[0] in variable.dims and len(schema.divided()) > 1:
            chunk = variable.chunks[variable.dims.index(schema.parts[0])]
            if schema.parts[1] % chunk:
                raise SchemaError(
                    f"{where} has chunks of {chunk} that straddle parts of {schema.parts[1]} {schema.parts[0]}s"
                )
