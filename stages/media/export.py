"""Writing clips: RGB frames → a video, an animated picture or a folder of PNGs, with the source's times and its sound.

A clip appears under its name only once it is whole; nothing is cropped, padded or stretched on the way.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from heapq import merge
from itertools import chain
from pathlib import Path
from typing import Any
from uuid import uuid4

import av
import numpy as np
from av.container import OutputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, VideoReformatter
from av.video.stream import VideoStream
from PIL import Image

from stages.media.encoding import PIXEL_FORMATS, Encoding, Format, choose_format, quieten, scheduled_as_before
from stages.media.palette import with_palette
from stages.media.sound import PASSED_THROUGH, sound_packets
from stages.media.video import EXACT, open_video, survey
from store.errors import InputError
from store.schemas import Frozen

VERSION = 2  # raise it when equal frames should give another file
BT709 = 1  # FFmpeg's number for the matrix
DEFAULT = Encoding()

CLOCKS = (1000, 90_000, 12_800, 15_360, 16_000, 24_000, 30_000, 48_000, 60_000)
OWN_CLOCKS = {"gif": Fraction(1, 100), "webp": Fraction(1, 1000)}
GIF_SHORTEST = 2  # ticks; viewers show what is shorter for a tenth of a second
CONTAINER_OPTIONS = {
    ".mp4": {"movflags": "+faststart"}, ".mov": {"movflags": "+faststart"}, ".gif": {"loop": "0"},
    ".webp": {"loop": "0"}, ".mkv": {"fflags": "+bitexact"}, ".webm": {"fflags": "+bitexact"},  # no random numbers
}  # fmt: skip
PICTURE = "{:05d}.png"
TOO_FEW_TO_REORDER = 8  # x265 looks four frames ahead; of clips that end before, it now and then gives no times

Blocks = Iterable[np.ndarray[Any, Any]]


class Written(Frozen):
    """What was written: the file or folder, its frames, rate and form, and sentences that a user should hear."""

    file: Path
    frames: int
    fps: str
    width: int
    height: int
    seconds: float
    has_audio: bool
    codec: str
    pixel_format: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Times:
    """When frames are shown: `kept` are their positions, with the tick of each from 0 on, and how many it lasts.

    clock    seconds a tick
    frames   how many there are, kept or not
    """

    clock: Fraction
    frames: int
    kept: list[int]
    ticks: list[int]
    lengths: list[int]

    @property
    def seconds(self) -> float:
        """Until the end of the last."""
        return float((self.ticks[-1] + self.lengths[-1]) * self.clock)


def check_output(path: Path, source: Path | None = None, encoding: Encoding = DEFAULT) -> None:
    """Raise InputError, before anything is computed, if a clip cannot be written to `path`."""
    folder = choose_format(path, encoding).codec == "png"
    if folder:
        _check_folder(path)
    elif path.is_dir():
        raise InputError(f"{path} is a folder; name a file in it")
    if source is not None and path.exists() and path.samefile(source):
        raise InputError(f"{path} is the source itself; give the result another name")
    if not path.parent.is_dir():
        raise InputError(f"{path} cannot be written: there is no folder {path.parent}; make it first")
    trial = _beside(path)
    try:
        trial.touch(exist_ok=False)
        trial.unlink()
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}); choose another folder") from error


def write_video(
    path: Path,
    blocks: Blocks,
    *,
    pts: Sequence[float] | np.ndarray[Any, Any],
    durations: Sequence[float] | np.ndarray[Any, Any],
    fps: str | Fraction,
    variable: bool = False,
    step: int = 1,
    source: Path | None = None,
    encoding: Encoding = DEFAULT,
) -> Written:
    """Write frames in BT.709, the first at time 0, under `path`, whole or not at all.

    blocks       rgb (frame, height, width, channel) uint8, any number of frames each; consumed lazily, twice for a GIF;
                 where `encoding` keeps alpha rgba, the colours not multiplied by it
    pts          (frame,) seconds, as in the source; with `durations` they are kept exactly where `variable`
    durations    (frame,) seconds until the next frame
    fps          frames per second of the source; frames are evenly spaced at fps / step unless `variable`
    source       where the sound comes from: its part from the first frame to the end of the last, bit for bit where
                 the container allows
    encoding     codec, quality and pixel format; what they leave out follows from the name
    raises       InputError if the file cannot be written, or the source's sound cannot be read
    """
    assert len(pts) == len(durations) > 0, "every frame has a time and a duration"
    check_output(path, source, encoding)
    first, blocks = _first(blocks)
    size = (first.shape[1], first.shape[0])
    form = choose_format(path, encoding, size)
    assert first.shape[-1] == (4 if form.alpha else 3), "alpha is what the encoding says"
    rate = Fraction(fps) / step
    times = _times(np.asarray(pts), np.asarray(durations), rate, variable, form)
    notes = _form_notes(form, encoding, size, len(pts), len(times.kept))
    if form.codec == "png":
        _write_folder(path, _each(blocks))
        has_audio = False
    else:
        has_audio = _write_file(
            path, blocks, form, times, size, rate, source, (float(pts[0]), float(pts[-1]) + float(durations[-1])),
            in_order=variable or (form.codec == "hevc" and len(times.kept) < TOO_FEW_TO_REORDER), notes=notes,
        )  # fmt: skip
    if form.suffix not in PASSED_THROUGH and source is not None and survey(source).info.has_audio:
        notes.append(f"the source's sound is left out: {_kind(form)} holds none")
    return Written(
        file=path,
        frames=len(times.kept),
        fps=str(rate),
        width=size[0],
        height=size[1],
        seconds=times.seconds,
        has_audio=has_audio,
        codec=form.codec,
        pixel_format=form.pixel_format,
        notes=tuple(notes),
    )


def _first(blocks: Blocks) -> tuple[np.ndarray[Any, Any], Blocks]:
    """The first frame, and all blocks as if none had been looked at."""
    walk = iter(blocks)
    block = next(walk)
    return block[0], chain((block,), walk) if walk is blocks else blocks


def _each(blocks: Blocks) -> Iterator[np.ndarray[Any, Any]]:
    return (rgb for block in blocks for rgb in block)


def _form_notes(form: Format, encoding: Encoding, size: tuple[int, int], frames: int, kept: int) -> list[str]:
    notes = []
    if encoding.pixel_format is None and form.pixel_format != PIXEL_FORMATS[form.codec][0] and not form.alpha:
        notes.append(f"the odd size {size[0]}×{size[1]} is kept in {form.pixel_format}, which some players cannot show")
    if kept < frames:
        notes.append(f"{frames - kept} of {frames} frames are left out: a GIF shows at most 50 per second")
    return notes


def _kind(form: Format) -> str:
    return f"a {form.suffix} file" if form.suffix else "a folder of pictures"


def _times(
    pts: np.ndarray[Any, Any], durations: np.ndarray[Any, Any], rate: Fraction, variable: bool, form: Format
) -> Times:
    """When each frame is shown; those too short for a GIF are dropped."""
    everyone = list(range(len(pts)))
    clock = OWN_CLOCKS.get(form.codec)
    if not variable and clock is None:
        return Times(1 / rate, len(pts), everyone, everyone, [1] * len(pts))
    even = np.arange(len(pts) + 1) / float(rate)
    seconds = np.append(pts, pts[-1] + durations[-1]) - pts[0] if variable else even
    if clock is None:
        # The coarsest clock on which every time is a whole tick, to the precision of floats; else microseconds.
        per_second = next((c for c in CLOCKS if np.abs(seconds * c - np.rint(seconds * c)).max() < 1e-5), 1_000_000)
        clock = Fraction(1, per_second)
    ticks = np.rint(seconds / float(clock)).astype(np.int64)
    shortest = GIF_SHORTEST if form.codec == "gif" else 1
    kept = _far_enough(ticks[:-1], shortest) if shortest > 1 else everyone
    chosen = np.append(ticks[kept], ticks[-1])
    spaced = shortest * np.arange(len(chosen))
    chosen = np.maximum.accumulate(chosen - spaced) + spaced  # strictly rising
    return Times(clock, len(pts), kept, chosen[:-1].tolist(), np.diff(chosen).tolist())


def _far_enough(ticks: np.ndarray[Any, Any], apart: int) -> list[int]:
    """Positions of ticks of which each is at least `apart` after the one before."""
    kept = [0]
    for position, tick in enumerate(ticks):
        if tick - ticks[kept[-1]] >= apart:
            kept.append(position)
    return kept


def _write_file(
    path: Path,
    blocks: Blocks,
    form: Format,
    times: Times,
    size: tuple[int, int],
    rate: Fraction,
    source: Path | None,
    span: tuple[float, float],
    *,
    in_order: bool,
    notes: list[str],
) -> bool:
    """Write pictures and sound into one file; whether there is sound.

    span    seconds of the source from the first frame to the end of the last
    """
    with ExitStack() as stack:
        container = stack.enter_context(_whole_or_not_at_all(path, form))
        stream = _picture_stream(container, form, size, rate, times.clock, in_order)
        sound: Iterator[Packet[Any]] | None = None
        if source is not None and form.suffix in PASSED_THROUGH:
            opened = stack.enter_context(open_video(source))[0]
            sound = sound_packets(opened, container, path, source, *span, notes)
        pictures = _pictures(path, stream, _frames(blocks, form, times, size), times)
        for packet in merge(pictures, sound or (), key=lambda packet: packet.dts * packet.time_base):
            with _writing(path):
                container.mux(packet)
    return sound is not None


def _picture_stream(
    container: OutputContainer, form: Format, size: tuple[int, int], rate: Fraction, clock: Fraction, in_order: bool
) -> VideoStream:
    quieten(form.codec)
    stream = container.add_stream(form.encoder, rate=rate, options=form.options(in_order=in_order) | form.alpha_options)
    assert isinstance(stream, VideoStream)
    stream.width, stream.height = size
    stream.pix_fmt = form.pixel_format
    stream.time_base = stream.codec_context.time_base = clock
    context = stream.codec_context
    if form.codec == "hevc" and form.suffix in (".mp4", ".mov"):
        context.codec_tag = "hvc1"  # the one of the two marks of HEVC that Apple's players know
    if form.pixel_format.startswith("yuv"):
        context.colorspace, context.color_range = BT709, ColorRange.MPEG
        context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
    if form.codec == "av1":
        with scheduled_as_before():
            context.open()
    return stream


def _frames(blocks: Blocks, form: Format, times: Times, size: tuple[int, int]) -> Iterator[VideoFrame]:
    """The frames that are kept, in the pixel format of the encoder."""
    if form.codec == "gif":
        assert iter(blocks) is not blocks, "a GIF's frames are read twice: for the palette, and to be drawn"
        return with_palette(lambda: _plain(blocks, times, form), size, form.colours, form.alpha)
    return _converted(_plain(blocks, times, form), form.pixel_format)


def _plain(blocks: Blocks, times: Times, form: Format) -> Iterator[VideoFrame]:
    """The frames that are kept, in rgb24 or rgba."""
    pixel_format = "rgba" if form.alpha else "rgb24"
    kept = set(times.kept)
    for position, rgb in enumerate(_each(blocks)):
        if position in kept or position >= times.frames:  # one too many is not dropped, but seen by who counts
            yield VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format=pixel_format)


def _converted(frames: Iterable[VideoFrame], pixel_format: str) -> Iterator[VideoFrame]:
    reformatter = VideoReformatter()
    for frame in frames:
        if not pixel_format.startswith("yuv"):
            yield reformatter.reformat(frame, format=pixel_format, interpolation=EXACT, threads=1)
            continue
        yield reformatter.reformat(
            frame,
            format=pixel_format,
            dst_colorspace=Colorspace.ITU709,
            src_color_range=ColorRange.JPEG,
            dst_color_range=ColorRange.MPEG,
            interpolation=EXACT,
            threads=1,
        )


def _pictures(path: Path, stream: VideoStream, frames: Iterable[VideoFrame], times: Times) -> Iterator[Packet[Any]]:
    """Encoded frames, each with its time and its duration."""
    length_at: dict[int | None, int] = dict(zip(times.ticks, times.lengths, strict=True))

    def encoded(frame: VideoFrame | None) -> list[Packet[Any]]:
        with _writing(path):
            packets = stream.encode(frame)
        for packet in packets:
            packet.duration = length_at.get(packet.pts, packet.duration)
        return packets

    for frame, tick in zip(frames, times.ticks, strict=True):
        frame.pts, frame.time_base = tick, times.clock
        yield from encoded(frame)
    yield from encoded(None)


def _beside(path: Path) -> Path:
    """A name for work in progress, in the folder of `path` so that a rename can publish it."""
    return path.with_name(f".{uuid4().hex}.part{path.suffix.lower()}")


@contextmanager
def _whole_or_not_at_all(path: Path, form: Format) -> Iterator[OutputContainer]:
    """A container written beside `path`, which takes that name on a clean exit and is gone after any other."""
    part = _beside(path)
    options = CONTAINER_OPTIONS.get(form.suffix, {})
    try:
        with _writing(path):
            container = av.open(f"file:{part.absolute()}", "w", container_options=options)
        try:
            yield container
        finally:
            with _writing(path):
                container.close()
        with _writing(path):
            _flush(part)
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _check_folder(path: Path) -> None:
    """InputError where a folder of pictures would replace anything but an empty one or another folder of pictures."""
    if not path.exists():
        return
    if not path.is_dir():
        raise InputError(f"{path} is a file, and a name without an ending is a folder of PNGs; name a new folder")
    if any(not re.fullmatch(r"\d{5,}\.png", each.name) for each in path.iterdir()):
        raise InputError(f"{path} holds other things than pictures that tf wrote; name a new folder")


def _write_folder(path: Path, frames: Iterable[np.ndarray[Any, Any]]) -> None:
    """00000.png, 00001.png, … in a folder, which takes its name once it is whole."""
    part, old = _beside(path), _beside(path)
    try:
        with _writing(path):
            part.mkdir()
        for index, rgb in enumerate(frames):
            with _writing(path):
                picture = part / PICTURE.format(index)
                Image.fromarray(rgb).save(picture, compress_level=3)
                _flush(picture)
        with _writing(path):
            if path.exists():
                path.rename(old)
            part.rename(path)
    finally:
        for left in (part, old):
            shutil.rmtree(left, ignore_errors=True)


def _flush(file: Path) -> None:
    """Have a file on the disk before it gets its name: else a power cut may leave an empty one under it."""
    with file.open("r+b") as written:
        os.fsync(written.fileno())


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except (av.error.FFmpegError, OSError) as error:
        reason = error.strerror or "FFmpeg refuses it"
        raise InputError(f"{path} cannot be written ({reason}); free some space or choose another folder") from error
