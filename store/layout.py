"""Where things lie in a store, and how a file is put there so that it is either whole or absent.

objects/<digest>/            immutable Zarr v3 group, named by the hash of its bytes
keys/<stage>/<key>.json      record: recipe, digest, files, provenance; written last = committed
drafts/<stage>-<key>/        work in progress, resumed by the next run; safe to throw away
drafts/<stage>-<key>.<n>/    the same for one part, on a worker
parts/<stage>-<key>/         parts that workers finished, until the run that asked for them commits
runs/<run>.json              one run of the command line
hashes/<path>.json           remembered hashes of input files
pins/<key>                   an artifact that is never collected
used/<key>                   empty; its time is when a process last leased the artifact
leases/<uuid>.json           keys that a process is using
trash/                       objects on their way out; removals.lock is held while it is decided which
format                       the number of this layout
"""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from store.errors import FullPlaceError, SilentPlaceError, StorePlaceError

FORMAT = 2  # of what is written; 1 had records without a seal
READABLE = (1, 2)
FLUSHES = 8  # at once: a journal takes those that wait together in one go


@dataclass(frozen=True)
class Layout:
    """Paths of a store at `root`."""

    root: Path

    @property
    def format(self) -> Path:
        return self.root / "format"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def hashes(self) -> Path:
        return self.root / "hashes"

    @property
    def drafts(self) -> Path:
        return self.root / "drafts"

    @property
    def used(self) -> Path:
        return self.root / "used"

    @property
    def pins(self) -> Path:
        return self.root / "pins"

    @property
    def leases(self) -> Path:
        return self.root / "leases"

    @property
    def trash(self) -> Path:
        return self.root / "trash"

    @property
    def removals(self) -> Path:
        return self.root / "removals.lock"

    def records(self, stage: str) -> Path:
        return self.root / "keys" / stage

    def record(self, stage: str, key: str) -> Path:
        return self.records(stage) / f"{key}.json"

    def object(self, digest: str) -> Path:
        return self.root / "objects" / digest

    def draft(self, stage: str, key: str, number: int | None = None) -> Path:
        """Of an artifact; or of its part `number` alone, where others are computed elsewhere."""
        return self.drafts / (f"{stage}-{key}" if number is None else f"{stage}-{key}.{number}")

    def raise_format(self) -> None:
        """Have an older layout's store say that it now holds what only this layout's readers know."""
        if self.format.read_text("utf-8").strip() != str(FORMAT):
            write_whole(self.format, f"{FORMAT}\n")


def human_bytes(count: int) -> str:
    """A number of bytes as people read it: 1.2 GB."""
    size = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} bytes" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def free_bytes(root: Path) -> int:
    """Bytes that may still be written on the disk of `root`, which need not exist yet."""
    while not root.exists() and root != root.parent:
        root = root.parent
    return shutil.disk_usage(root).free


PASSING = {  # errors of a disk or a network that the next try may not meet
    errno.EIO, errno.EAGAIN, errno.EINTR, errno.EBUSY, errno.EPIPE, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNABORTED,
    errno.ECONNREFUSED, errno.ECONNRESET, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTUNREACH,
}  # fmt: skip


@contextmanager
def writing(root: Path, what: str, needed: int = 0, on_full: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Turn an OSError of a write into one sentence: StorePlaceError says what was written, where, and the way out.

    It is a SilentPlaceError where the disk or the network failed in a way that may pass, a FullPlaceError where there
    is no room.

    needed    bytes that `what` takes in all, told when the disk is full
    on_full   called when the disk is full, before raising: give back what can be given back
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            reason = error.strerror or str(error)
            kind = SilentPlaceError if error.errno in PASSING else StorePlaceError
            raise kind(
                f"cannot write {what} in {root} ({reason}); choose another place with --store or TOKENFLOW_STORE"
            ) from error
        on_full()
        need = f"needs {human_bytes(needed)}" if needed else "does not fit"
        raise FullPlaceError(
            f"the disk is full: {what} {need} in {root}, where {human_bytes(free_bytes(root))} is free; "
            "free some space or choose another place with --store"
        ) from error


def write_whole(path: Path, text: str | bytes, durable: bool = False) -> None:
    """Write `text` to `path` so that a reader finds all of it or nothing; `durable` survives a power cut as well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with draft.open("xb") as file:  # never through a link that someone put there
            file.write(text.encode() if isinstance(text, str) else text)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        draft.replace(path)
        if durable:
            flush(path.parent)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def flush(path: Path) -> None:
    """Have a file's bytes, or a folder's names, on the disk itself: from then on they survive a power cut."""
    is_folder = path.is_dir()
    if is_folder and os.name == "nt":
        return  # cannot be asked for; NTFS keeps the order of names by itself
    file = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
    try:
        os.fsync(file)
    except OSError as error:
        if not is_folder or error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network folders cannot be asked
            raise
    finally:
        os.close(file)


def flush_tree(folder: Path) -> None:
    """`flush` everything below `folder`, and itself."""
    files = [folder / name for name in regular_files(folder)]
    folders = {above for file in files for above in file.parents if above == folder or folder in above.parents}
    with ThreadPoolExecutor(FLUSHES, thread_name_prefix="flush") as threads:
        for _ in threads.map(flush, [*files, *folders]):
            pass


def remove_tree(path: Path) -> None:
    """Remove a folder with all that is in it, or a file or link; what others remove at the same time is no error."""
    if path.is_symlink() or path.is_file():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)


def regular_files(folder: Path) -> dict[str, int]:
    """Relative posix path → size of every regular file below `folder`; links are neither followed nor listed."""
    found: dict[str, int] = {}
    pending = [(folder, "")]
    while pending:
        here, prefix = pending.pop()
        with os.scandir(here) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append((Path(entry.path), f"{prefix}{entry.name}/"))
                elif entry.is_file(follow_symlinks=False):
                    found[f"{prefix}{entry.name}"] = entry.stat(follow_symlinks=False).st_size
    return dict(sorted(found.items()))


def remove_odd_files(folder: Path) -> None:
    """Remove every link, pipe, socket and device below `folder`: none is ever written there."""
    pending = [folder]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(Path(entry.path))
                elif not entry.is_file(follow_symlinks=False):
                    Path(entry.path).unlink()
