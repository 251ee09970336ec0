"""Writing videos: RGB frames → H.264, with the source's times and its sound.

A file appears under its name only once it is whole; nothing is cropped, padded or stretched on the way.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from heapq import merge
from itertools import chain
from math import inf, isclose
from pathlib import Path
from typing import Any
from uuid import uuid4

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, VideoReformatter
from av.video.stream import VideoStream

from stages.media.video import EXACT, open_video, survey
from store.errors import InputError
from store.schemas import Frozen

VERSION = 1  # raise it when equal frames should give another file
CRF = 12  # visually lossless: an edit is looked at closely
BT709 = 1  # FFmpeg's number for the matrix

# Sound that a container takes as it is; other codecs are encoded anew, as AAC.
EVERYWHERE = frozenset(("aac", "ac3", "alac", "eac3", "mp3", "mp3float"))
PASSED_THROUGH = {
    ".mp4": EVERYWHERE | {"flac", "libopus", "opus"},
    ".mov": EVERYWHERE | {"pcm_f32le", "pcm_s16be", "pcm_s16le", "pcm_s24le"},
    ".mkv": EVERYWHERE | {"dca", "flac", "libopus", "opus", "pcm_f32le", "pcm_s16le", "pcm_s24le", "vorbis"},
}
CLOCKS = (1000, 90_000, 12_800, 15_360, 16_000, 24_000, 30_000, 48_000, 60_000)


class Written(Frozen):
    """What was written: the file, its frames and rate, and sentences that a user should hear."""

    file: Path
    frames: int
    fps: str
    width: int
    height: int
    seconds: float
    has_audio: bool
    notes: tuple[str, ...]


def check_output(path: Path, source: Path | None = None) -> None:
    """Raise InputError, before anything is computed, if a video cannot be written to `path`."""
    if path.suffix.lower() not in PASSED_THROUGH:
        raise InputError(f"{path} does not say what to write; end its name in {', '.join(PASSED_THROUGH)}")
    if path.is_dir():
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
    blocks: Iterable[np.ndarray[Any, Any]],
    *,
    pts: Sequence[float] | np.ndarray[Any, Any],
    durations: Sequence[float] | np.ndarray[Any, Any],
    fps: str | Fraction,
    variable: bool = False,
    step: int = 1,
    source: Path | None = None,
) -> Written:
    """Write frames as H.264 (crf 12, BT.709 limited), the first at time 0, under `path`, whole or not at all.

    blocks       rgb (frame, height, width, channel) uint8, any number of frames each; consumed lazily
    pts          (frame,) seconds, as in the source; with `durations` they are kept exactly where `variable`
    durations    (frame,) seconds until the next frame
    fps          frames per second of the source; frames are evenly spaced at fps / step unless `variable`
    source       where the sound comes from: its part from the first frame to the end of the last, bit for bit where
                 the container allows; none where `step` is not 1
    raises       InputError if the file cannot be written, or the source's sound cannot be read
    """
    assert len(pts) == len(durations) > 0, "every frame has a time and a duration"
    check_output(path, source)
    rate = Fraction(fps) / step
    clock, ticks, lengths = _timing(np.asarray(pts), np.asarray(durations), rate, variable)
    begin, end = float(pts[0]), float(pts[-1]) + float(durations[-1])
    frames = (rgb for block in blocks for rgb in block)
    first = next(frames)
    height, width = first.shape[:2]
    notes: list[str] = []
    with ExitStack() as stack:
        container = stack.enter_context(_whole_or_not_at_all(path))
        stream = _picture_stream(container, width, height, rate, clock, variable)
        if stream.pix_fmt != "yuv420p":
            notes.append(f"the odd size {width}×{height} is kept in {stream.pix_fmt}, which some players cannot show")
        sound: Iterator[Packet[Any]] | None = None
        if source is not None and step == 1:
            sound = _sound(stack.enter_context(open_video(source))[0], container, path, source, begin, end, notes)
        elif source is not None and survey(source).info.has_audio:
            notes.append(f"the source's sound is left out, since one in {step} frames is shown")
        pictures = _pictures(path, stream, chain((first,), frames), clock, ticks, lengths)
        for packet in merge(pictures, sound or (), key=lambda packet: packet.dts * packet.time_base):
            with _writing(path):
                container.mux(packet)
    return Written(
        file=path,
        frames=len(ticks),
        fps=str(rate),
        width=width,
        height=height,
        seconds=float((ticks[-1] + lengths[-1]) * clock),
        has_audio=sound is not None,
        notes=tuple(notes),
    )


def _timing(
    pts: np.ndarray[Any, Any], durations: np.ndarray[Any, Any], rate: Fraction, variable: bool
) -> tuple[Fraction, list[int], list[int]]:
    """(seconds a tick, tick of each frame from 0 on, ticks each frame lasts)."""
    if not variable:
        return 1 / rate, list(range(len(pts))), [1] * len(pts)
    seconds = np.append(pts, pts[-1] + durations[-1]) - pts[0]
    # The coarsest clock on which every time is a whole tick, to the precision of floats; microseconds if there is none.
    clock = next((c for c in CLOCKS if np.abs(seconds * c - np.rint(seconds * c)).max() < 1e-5), 1_000_000)
    ticks = np.rint(seconds * clock).astype(np.int64)
    ticks = np.maximum.accumulate(ticks - np.arange(len(ticks))) + np.arange(len(ticks))  # strictly rising
    return Fraction(1, clock), ticks[:-1].tolist(), np.diff(ticks).tolist()


def _picture_stream(
    container: OutputContainer, width: int, height: int, rate: Fraction, clock: Fraction, variable: bool
) -> VideoStream:
    # Containers store the time between packets: only without reordering is that the time each frame is shown.
    order = {"bf": "0"} if variable else {}
    stream = container.add_stream("libx264", rate=rate, options={"crf": str(CRF), **order})
    stream.width, stream.height = width, height
    stream.pix_fmt = "yuv444p" if width % 2 or height % 2 else "yuv420p"
    stream.time_base = stream.codec_context.time_base = clock
    context = stream.codec_context
    context.colorspace, context.color_range = BT709, ColorRange.MPEG
    context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
    return stream


def _pictures(
    path: Path,
    stream: VideoStream,
    frames: Iterable[np.ndarray[Any, Any]],
    clock: Fraction,
    ticks: list[int],
    lengths: list[int],
) -> Iterator[Packet[Any]]:
    """Encoded frames, each with its time and its duration."""
    length_at: dict[int | None, int] = dict(zip(ticks, lengths, strict=True))
    reformatter = VideoReformatter()

    def encoded(frame: av.VideoFrame | None) -> list[Packet[Any]]:
        with _writing(path):
            packets = stream.encode(frame)
        for packet in packets:
            packet.duration = length_at[packet.pts]
        return packets

    for rgb, tick in zip(frames, ticks, strict=True):
        frame = reformatter.reformat(
            av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24"),
            format=stream.pix_fmt,
            dst_colorspace=Colorspace.ITU709,
            src_color_range=ColorRange.JPEG,
            dst_color_range=ColorRange.MPEG,
            interpolation=EXACT,
            threads=1,
        )
        frame.pts, frame.time_base = tick, clock
        yield from encoded(frame)
    yield from encoded(None)


def _sound(
    opened: InputContainer,
    container: OutputContainer,
    path: Path,
    source: Path,
    begin: float,
    end: float,
    notes: list[str],
) -> Iterator[Packet[Any]] | None:
    """Packets of the source's sound from `begin` to `end` (seconds), moved so that `begin` is 0; None without sound."""
    audio = next(iter(opened.streams.audio), None)
    if audio is None:
        return None
    if audio.codec_context is None:
        notes.append("the source's sound is left out: this FFmpeg cannot decode it")
        return None
    info = survey(source).info
    if isclose(end, info.start + info.duration, abs_tol=0.5 / Fraction(info.average_fps)):
        end = inf  # the whole video keeps the whole sound, though it may be a little longer
    codec, suffix = audio.codec_context.name, path.suffix.lower()
    if codec in PASSED_THROUGH[suffix]:
        target = container.add_stream_from_template(audio)
        return _copied(opened, audio, target, begin, end, source, before_zero=suffix != ".mkv")
    notes.append(f"the source's sound is encoded anew as AAC, since {suffix} does not hold {codec}")
    layout = audio.codec_context.layout
    named = layout.name if "channels" not in layout.name else "mono" if layout.nb_channels == 1 else "stereo"
    anew = container.add_stream("aac", rate=audio.codec_context.sample_rate, layout=named)
    return _encoded_anew(opened, audio, anew, begin, end, source)


def _copied(
    opened: InputContainer,
    audio: AudioStream,
    target: AudioStream,
    begin: float,
    end: float,
    source: Path,
    before_zero: bool,
) -> Iterator[Packet[Any]]:
    """Packets as they are, moved.

    Those that reach over `begin`, and the one before, which primes the decoder, get times below zero, which mp4 hides
    by an edit list; Matroska would move the pictures instead, and goes without.
    """
    assert audio.time_base is not None
    shift = round(begin / audio.time_base)
    with _reading(source):
        for packet in opened.demux(audio):
            if packet.pts is None or not packet.size:
                continue
            time, length = packet.pts - shift, packet.duration or 0
            if time * audio.time_base >= end - begin:
                return
            if time < 0 and (not before_zero or time + 2 * length <= 0):
                continue
            packet.pts = time
            packet.dts = time if packet.dts is None else packet.dts - shift
            packet.stream = target
            yield packet


def _encoded_anew(
    opened: InputContainer, audio: AudioStream, target: AudioStream, begin: float, end: float, source: Path
) -> Iterator[Packet[Any]]:
    """Samples from `begin` to `end`, exactly, as AAC."""
    rate = target.codec_context.sample_rate
    layout = target.codec_context.layout.name
    resampler = AudioResampler(format="fltp", layout=layout, rate=rate)
    last = inf if end == inf else round((end - begin) * rate)
    position: int | None = None
    with _reading(source):
        for decoded in chain(opened.decode(audio), (None,)):
            for frame in resampler.resample(decoded):
                assert frame.time is not None, "FFmpeg gives every piece of sound a time"
                told = round((frame.time - begin) * rate)
                # Sound is continuous; a container's clock may be coarse (1 ms), so only a real gap moves it.
                if position is None or abs(told - position) > rate // 50:
                    position = told
                samples = frame.to_ndarray().astype(np.float32, copy=False)
                cut = samples[:, max(0, -position) : int(min(samples.shape[1], max(0, last - position)))]
                if cut.size:
                    piece = AudioFrame.from_ndarray(np.ascontiguousarray(cut), format="fltp", layout=layout)
                    piece.sample_rate, piece.time_base, piece.pts = rate, Fraction(1, rate), max(0, position)
                    yield from target.encode(piece)
                position += samples.shape[1]
        yield from target.encode(None)


def _beside(path: Path) -> Path:
    """A name for work in progress, in the folder of `path` so that a rename can publish it."""
    return path.with_name(f".{uuid4().hex}.part{path.suffix.lower()}")


@contextmanager
def _whole_or_not_at_all(path: Path) -> Iterator[OutputContainer]:
    """A container written beside `path`, which takes that name on a clean exit and is gone after any other."""
    part = _beside(path)
    try:
        with _writing(path):
            container = av.open(f"file:{part.absolute()}", "w", container_options={"movflags": "+faststart"})
        try:
            yield container
        finally:
            with _writing(path):
                container.close()
        with _writing(path):
            with part.open("r+b") as file:
                os.fsync(file.fileno())  # else a power cut may leave an empty clip under that name
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except (av.error.FFmpegError, OSError) as error:
        reason = error.strerror or "FFmpeg refuses it"
        raise InputError(f"{path} cannot be written ({reason}); free some space or choose another folder") from error


@contextmanager
def _reading(source: Path) -> Iterator[None]:
    try:
        yield
    except av.error.FFmpegError as error:
        raise InputError(
            f"the sound of {source} is damaged ({error.strerror}); export the video again first"
        ) from error
