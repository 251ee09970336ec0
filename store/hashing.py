"""Identity of files by their bytes: blake3, remembered by path, size and times so that it is paid once."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path

from blake3 import blake3

from store.errors import InputError
from store.guard import read_small
from store.layout import write_whole

SETTLED_NS = 2_000_000_000  # a file changed this recently may change again within one tick of its clock

READ_BYTES = 8 << 20  # at once


def file_hash(path: Path | str, remembered: Path | None = None) -> str:
    """64 hexadecimal digits: blake3 of the file's bytes.

    remembered   folder of earlier answers, used while path, size and times are the same; None: always read the file
    raises       InputError, when the file cannot be read or changes meanwhile
    """
    path = Path(path).resolve()
    try:
        before = _fingerprint(path)
        note = remembered / f"{hashlib.sha256(str(path).encode()).hexdigest()}.json" if remembered else None
        known = _recall(note, before) if note else None
        if known:
            return known
        digest = payload_hash(path)
        after = _fingerprint(path)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    if before != after:
        raise InputError(f"{path} was changed while it was read; try again when it is complete")
    if note and time.time_ns() - max(after["mtime_ns"], after["ctime_ns"]) > SETTLED_NS:
        _remember(note, {"path": str(path), **after, "blake3": digest})
    return digest


def folder_hash(folder: Path | str, files: Iterable[str | Path], remembered: Path | None = None) -> str:
    """blake3 over the sorted (relative posix path, file hash) pairs of `files`, given relative to `folder`."""
    names = sorted({Path(name).as_posix() for name in files})
    pairs = [[name, file_hash(Path(folder) / name, remembered)] for name in names]
    return blake3(json.dumps(pairs, ensure_ascii=False, separators=(",", ":")).encode()).hexdigest()


def sequence_hash(files: Iterable[Path], remembered: Path | None = None) -> str:
    """blake3 over the hashes of `files` in their order, whatever they are called; of a single one its own hash."""
    hashes = [file_hash(file, remembered) for file in files]
    return hashes[0] if len(hashes) == 1 else blake3("\n".join(hashes).encode()).hexdigest()


def payload_hash(path: Path) -> str:
    """blake3 of a file, hashed by several threads where it is large.

    It is read, not mapped: a mapped file that is cut meanwhile, or that a disk cannot read, kills the process.
    """
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        hasher = blake3(max_threads=blake3.AUTO if size > 1 << 20 else 1)
        buffer = memoryview(bytearray(min(max(size, 1), READ_BYTES)))
        while count := file.readinto(buffer):
            hasher.update(buffer[:count])
    return hasher.hexdigest()


def _fingerprint(path: Path) -> dict[str, int]:
    """What changes when a file does: its size, and its times of change (ctime too: mtime can be set at will)."""
    stat = path.stat()
    return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "ctime_ns": stat.st_ctime_ns}


def _recall(note: Path, fingerprint: dict[str, int]) -> str | None:
    try:
        known = json.loads(read_small(note))
        return str(known["blake3"]) if all(known[name] == value for name, value in fingerprint.items()) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None  # never hashed, or a damaged note: the file itself answers


def _remember(note: Path, answer: dict[str, object]) -> None:
    try:
        write_whole(note, json.dumps(answer))
    except OSError:
        return  # a store that is only read: the next run hashes again
