"""The sound of a source beside the pictures of its edit: as it is where the file can hold it, else encoded anew."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import chain
from math import inf
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.packet import Packet

from stages.media.video import survey
from store.errors import InputError

EVERYWHERE = frozenset(("aac", "ac3", "alac", "eac3", "mp3", "mp3float"))
PASSED_THROUGH = {  # by the ending of the file: sound that it takes as it is
    ".mp4": EVERYWHERE | {"flac", "libopus", "opus"},
    ".mov": EVERYWHERE | {"pcm_f32le", "pcm_s16be", "pcm_s16le", "pcm_s24le"},
    ".mkv": EVERYWHERE | {"dca", "flac", "libopus", "opus", "pcm_f32le", "pcm_s16le", "pcm_s24le", "vorbis"},
    ".webm": frozenset(("libopus", "opus", "vorbis")),
}
ANEW = {".webm": ("libopus", "Opus")}  # codec, and its name, for the others; AAC elsewhere
OPUS_RATE = 48_000  # the one rate of Opus that every source can be brought to


def sound_packets(
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
    if end >= info.start + info.duration - 0.5 / Fraction(info.average_fps):
        end = inf  # a video to its end keeps the sound to its end, though that may be a little longer
    codec, suffix = audio.codec_context.name, path.suffix.lower()
    if codec in PASSED_THROUGH[suffix]:
        target = container.add_stream_from_template(audio)
        return _copied(opened, audio, target, begin, end, source, before_zero=suffix not in (".mkv", ".webm"))
    anew_as, name = ANEW.get(suffix, ("aac", "AAC"))
    notes.append(f"the source's sound is encoded anew as {name}, since {suffix} does not hold {codec}")
    layout = audio.codec_context.layout
    named = layout.name if "channels" not in layout.name else "mono" if layout.nb_channels == 1 else "stereo"
    rate = OPUS_RATE if anew_as == "libopus" else audio.codec_context.sample_rate
    anew: Any = container.add_stream(anew_as, rate=rate, layout=named)
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
    """Samples from `begin` to `end`, exactly, in the target's codec."""
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


@contextmanager
def _reading(source: Path) -> Iterator[None]:
    try:
        yield
    except av.error.FFmpegError as error:
        raise InputError(
            f"the sound of {source} is damaged ({error.strerror}); export the video again first"
        ) from error
