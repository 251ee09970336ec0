"""What the header of an mp4 or mov declares, read before FFmpeg is asked: it takes memory for all of it at once.

FFmpeg keeps about 36 bytes for each sample that a table declares, once per edit, be the sample in the file or not: a
header of one kilobyte that declares a billion frames of equal size takes 36 GB. Every other container that is opened
has an index as long as the file makes it.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from store.errors import InputError

FREE_SAMPLES = 1_000_000  # of any file: a clip of nine hours that was cut off at its beginning
BYTES_PER_SAMPLE = 4  # at least: its own, and its size in the table
LARGEST_HEADER = 1 << 28
MOST_BOXES = 1 << 20

Span = tuple[int, int]


def check_declared(path: Path) -> None:
    """Raise InputError where an mp4's tables declare more samples than a file of its length can hold.

    A file of another kind declares nothing here.
    """
    size = path.stat().st_size
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        headers = _headers(data, size)
        if sum(stop - start for start, stop in headers) > LARGEST_HEADER:
            raise InputError(f"{path} has a header of more than {LARGEST_HEADER >> 20} MiB; convert it first")
        if any(True for span in headers for _ in _places(data, b"cmvd", span)):
            raise InputError(f"{path} has a compressed header, which is not opened; convert it first")
        declared = sum(_samples(data, track) for span in headers for track in _tracks(data, span))
    if declared > FREE_SAMPLES + size // BYTES_PER_SAMPLE:
        raise InputError(
            f"{path} declares {declared} frames or more, which its {size} bytes cannot hold; copy or download it again"
        )


def _headers(data: mmap.mmap, size: int) -> list[Span]:
    """The boxes of the uppermost level that FFmpeg looks into; none where the file is not made of boxes."""
    found, names, at = [], set(), 0
    for _ in range(MOST_BOXES):
        if at + 8 > size:
            break
        length, name, head = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8], 8
        if length == 1:
            length, head = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        stop = min(at + length, size) if length else size
        if stop < at + head:
            break
        is_padding = name == b"free" and data[at + head + 4 : at + head + 8] not in (b"mvhd", b"cmov")
        if name != b"mdat" and not is_padding:
            found.append((at, stop))
            names.add(name)
        at = stop
    return found if names & {b"moov", b"moof", b"free", b"hoov", b"trak"} else []


def _tracks(data: mmap.mmap, span: Span) -> Iterator[Span]:
    """A header cut before each track and each fragment of one."""
    cuts = sorted({*_places(data, b"trak", span), *_places(data, b"traf", span)})
    yield from pairwise([span[0], *cuts, span[1]])


def _samples(data: mmap.mmap, track: Span) -> int:
    """Index entries that FFmpeg makes for a track, about; of plain PCM, one for a chunk and not for a sample."""
    handlers = {data[place + 12 : place + 16] for place in _places(data, b"hdlr", track)}
    times = {data[place + 8 : place + 12] + data[place + 16 : place + 20] for place in _places(data, b"stts", track)}
    if b"soun" in handlers and b"vide" not in handlers and times == {bytes((0, 0, 0, 1, 0, 0, 0, 1))}:
        return 0
    sizes = [place + 12 for name in (b"stsz", b"stz2") for place in _places(data, name, track)]
    runs = [place + 8 for place in _places(data, b"trun", track)]
    edits = max([1, *(_number(data, place + 8) for place in _places(data, b"elst", track))])
    return sum(_number(data, place) for place in sizes) * edits + sum(_number(data, place) for place in runs)


def _places(data: mmap.mmap, name: bytes, span: Span) -> Iterator[int]:
    at = data.find(name, *span)
    while at >= 0:
        yield at
        at = data.find(name, at + 4, span[1])


def _number(data: mmap.mmap, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "big")
