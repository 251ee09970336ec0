"""Reading video files: what a file holds, which frames and what size to take of it, and its pictures one by one.

Only local files are opened, by FFmpeg through PyAV, and only by demuxers that read no other file. Pictures come out as
they are meant to be seen: rotated and mirrored as the display matrix says, RGB, full range, over one colour where they
are transparent.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from math import ceil
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.filter import Graph
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from av.video.stream import VideoStream

from store.errors import InputError
from store.schemas import Frozen

from .declared import check_declared
from .picture_folders import pictures_in

LARGEST_SIDE = 16_384
LARGEST_AREA = 2**26  # pixels, twice 8K: one RGB picture of it is 200 MB, and nothing of it is needed for an edit
LARGE_AREA = (
    2**23
)  # pixels; beyond it decoding by a thread per core, each with pictures of its own, would take gigabytes

# Demuxers of plain containers, streams and pictures. FFmpeg has 300 more; among them are those that open further files
# or addresses (hls, dash, concat, sdp, mlv, vobsub), expand patterns in the name (image2) or draw text (tty).
CONTAINERS = (
    *("mov", "matroska", "avi", "mpegts", "mpeg", "flv", "asf", "ogg", "mxf", "nut", "ivf", "obu", "gif", "apng", "dv"),
    *("h264", "hevc", "av1", "m4v", "mpegvideo", "mjpeg", "yuv4mpegpipe"),
    *("png_pipe", "jpeg_pipe", "webp_pipe", "bmp_pipe", "tiff_pipe"),
)
SEEK_BEYOND = 2  # seconds: what lies nearer is decoded up to, not searched for
CLOCK = Fraction(1, 2000)  # seconds
UNTIMED_FORMATS = ("avi",)  # keeps an order only: the times that FFmpeg gives to reordered frames are wrong
PLAYLIST_HEADS = (b"#EXTM3U", b"ffconcat", b"<MPD", b"[playlist]", b"v=0\r\n", b"v=0\n")

MATRICES = {1: "bt709", 4: "fcc", 5: "bt601", 6: "bt601", 7: "smpte240m", 9: "bt2020", 10: "bt2020"}
UNTAGGED_MATRICES = (0, 2, 3)
SWSCALE_MATRICES = {
    "bt601": Colorspace.ITU601,
    "bt709": Colorspace.ITU709,
    "bt2020": Colorspace.BT2020,
    "fcc": Colorspace.FCC,
    "smpte240m": Colorspace.SMPTE240M,
}
VPX = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # decoders that read transparency
HDR_TRANSFERS = {16: "PQ", 18: "HLG"}
OVER_BLACK = "transparent parts, if any, are laid over black"
TONE_MAP = "intent=perceptual:out_primaries=bt709:out_transfer=bt709:out_range=pc"
EXACT = (
    Interpolation.BICUBIC
    | Interpolation.ACCURATE_RND
    | Interpolation.BITEXACT
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.FULL_CHR_H_INP
)


Colour = tuple[int, int, int]
"""Red, green and blue of 255."""


class VideoInfo(Frozen):
    """What a video file holds, as it is meant to be seen."""

    width: int  # pixels shown: rotated, and square whatever the file's pixels are
    height: int
    coded_width: int  # pixels stored
    coded_height: int
    frames: int  # found in the file, without decoding them
    declared_frames: int  # what the container promises; more than `frames` where the file is cut off
    start: float  # seconds, of the first frame
    duration: float  # seconds, from the first frame to the end of the last
    average_fps: str  # a fraction: "24000/1001"
    variable: bool  # the frames are not evenly spaced
    rotation: int  # degrees counter-clockwise that bring the stored picture upright: 0, 90, 180 or 270
    mirrored: bool  # the stored picture is upside down before that rotation
    sample_aspect_ratio: str  # width of a stored pixel over its height
    container: str
    codec: str
    pixel_format: str
    has_alpha: bool
    colour_matrix: str  # used for the conversion to RGB; "rgb" where there is nothing to convert
    colour_range: str  # limited or full
    has_audio: bool
    audio_codec: str | None
    hdr: str | None = None  # PQ or HLG, where the file says that its range is high
    notes: tuple[str, ...]  # sentences that a user should hear


class SizeChoice(Frozen):
    """The size of what the model sees, and the sentence to say where it is not the source's.

    padding   pixels of it at right and bottom that are not of the picture
    """

    width: int
    height: int
    padding: tuple[int, int]
    sentence: str | None


@dataclass(frozen=True)
class Clip:
    """A surveyed file: its description, and the exact times of its frames in ticks of `time_base`, sorted."""

    path: Path
    info: VideoInfo
    ticks: list[int]
    time_base: Fraction
    tail: Fraction  # seconds the last frame is shown
    timed: bool  # frames have times of their own; else their order gives the times

    def nth(self, index: int) -> int:
        """Tick of frame `index` by its order alone; beyond the last, the frames go on as long as the last is shown."""
        beyond = index - len(self.ticks) + 1
        return self.ticks[index] if beyond <= 0 else self.ticks[-1] + beyond * max(1, round(self.tail / self.time_base))

    @property
    def times(self) -> list[Fraction]:
        """Exact seconds of every frame, and of the end of the last."""
        return [tick * self.time_base for tick in self.ticks] + [self.ticks[-1] * self.time_base + self.tail]

    def shown_for(self, tick: int) -> float:
        """Seconds for which the frame at `tick` is on screen in the file."""
        after = bisect_right(self.ticks, tick)
        return float((self.ticks[after] - tick) * self.time_base if after < len(self.ticks) else self.tail)


@dataclass(frozen=True)
class Picture:
    """One decoded frame: its position in the file, its times in seconds, and rgb (height, width, channel) uint8.

    alpha    (height, width) uint8 of a file that has transparency, 255 where nothing shines through
    """

    index: int
    pts: float
    duration: float
    rgb: np.ndarray[Any, Any]
    alpha: np.ndarray[Any, Any] | None = None


def probe(path: Path) -> VideoInfo:
    """Describe a video file by reading its packets, decoding one frame only; raise InputError if it is none."""
    return survey(path).info


def survey(path: Path) -> Clip:
    """Describe a video file and note the exact time of every frame; raise InputError in one sentence if it is none."""
    with open_video(path) as (container, stream):
        width, height = stream.codec_context.width, stream.codec_context.height
        _check_size(path, width, height)
        ticks: list[int] = []
        discarded = last_duration = 0
        timed = container.format.name not in UNTIMED_FORMATS
        first: VideoFrame | None = None
        decoder = _decoder(stream)
        for packet in container.demux(stream):
            if first is None:
                first = next(iter(decoder.decode(packet)), None)
            if packet.is_discard or _is_hidden(packet, stream):
                discarded += 1
            elif packet.size:
                tick = packet.pts if timed and packet.pts is not None else packet.dts
                ticks.append(tick if tick is not None else len(ticks) * max(last_duration, 1))
                last_duration = packet.duration or last_duration
        if first is None or not ticks:
            raise InputError(f"{path} holds no frame that can be decoded; check it in a player, or export it again")
        ticks.sort()
        assert stream.time_base is not None
        rate, variable = _frame_rate(ticks, stream, last_duration)
        tail = last_duration * stream.time_base or (
            (ticks[-1] - ticks[-2]) * stream.time_base if len(ticks) > 1 else 1 / rate
        )
        mirrored, quarter_turns = _orientation(path, first)
        ratio = stream.sample_aspect_ratio or Fraction(1)
        shown = (round(width * ratio), height) if ratio >= 1 else (width, round(height / ratio))
        _check_size(path, *shown)
        matrix, full_range = _colour(path, first)
        audio = next(iter(container.streams.audio), None)
        info = VideoInfo(
            width=shown[quarter_turns % 2],
            height=shown[1 - quarter_turns % 2],
            coded_width=width,
            coded_height=height,
            frames=len(ticks),
            declared_frames=max(len(ticks), _declared_frames(stream, ticks, rate, discarded, timed)),
            start=float(ticks[0] * stream.time_base),
            duration=float((ticks[-1] - ticks[0]) * stream.time_base + tail),
            average_fps=str(rate),
            variable=variable,
            rotation=90 * quarter_turns,
            mirrored=mirrored,
            sample_aspect_ratio=str(ratio),
            container=container.format.name,
            codec=stream.codec_context.name,
            pixel_format=first.format.name,
            has_alpha=_has_alpha(first),
            colour_matrix=matrix,
            colour_range="full" if full_range else "limited",
            has_audio=audio is not None,
            audio_codec=audio.codec_context.name if audio is not None and audio.codec_context is not None else None,
            hdr=HDR_TRANSFERS.get(first.color_trc),
            notes=_notes(container, first, ratio, shown),
        )
        return Clip(path, info, ticks, stream.time_base, tail, timed)


def read_pictures(
    clip: Clip, stop: int | None = None, tone_map: bool = True, background: Colour = (0, 0, 0)
) -> Iterator[Picture]:
    """Decode frames 0, 1, … (before `stop`) in order of presentation, one at a time.

    background  RGB of 255, under what is transparent
    tone_map  whether a high dynamic range is brought into that of BT.709, or its code values are taken as they are
    raises    InputError, naming the frame, where the data is damaged, ends early, or changes size on the way: what is
              given out is never shorter than what was asked
    """
    info, index = clip.info, 0
    reformatter = VideoReformatter()
    mapped = ToneMapper() if tone_map and info.hdr else None
    wanted = info.declared_frames if stop is None else stop
    for frame in islice(_decoded(clip), stop):
        if (frame.width, frame.height) != (info.coded_width, info.coded_height):
            raise InputError(
                f"frame {index} of {clip.path} is {frame.width}×{frame.height} where those before are "
                f"{info.coded_width}×{info.coded_height}; take the frames before it with --frames 0:{index}"
            )
        tick = frame.pts if clip.timed and frame.pts is not None else clip.nth(index)
        rgb, alpha = (mapped(frame), None) if mapped else _to_rgb(frame, info, reformatter, background)
        seen = None if alpha is None else _upright(alpha, info)
        yield Picture(index, float(tick * clip.time_base), clip.shown_for(tick), _upright(rgb, info), seen)
        index += 1
    if index < wanted:
        raise InputError(
            f"only {index} of the {wanted} frames {'declared by' if stop is None else 'asked of'} {clip.path} can be "
            f"read{_way_out(index)}"
        )


def pictures_at(clip: Clip, indices: Sequence[int]) -> Iterator[Picture]:
    """Decode only the frames of these positions, ascending, going to the nearest entry point before each.

    Where a file cannot be searched, or its frames have no times, it is read from the beginning.
    """
    wanted = [clip.ticks[int(index)] for index in indices]
    reformatter, info = VideoReformatter(), clip.info
    if not clip.timed or not wanted:
        seen = set(indices)
        yield from (each for each in read_pictures(clip, int(max(indices, default=0)) + 1) if each.index in seen)
        return
    with open_video(clip.path) as (container, stream):
        at = -1
        frames: Iterator[VideoFrame] = iter(())
        for tick in wanted:
            if at < 0 or tick - at > SEEK_BEYOND / clip.time_base:
                container.seek(tick, stream=stream, backward=True)
                frames = _frames_of(container, stream)
            for frame in frames:
                at = frame.pts if frame.pts is not None else tick
                if at >= tick:
                    rgb = _upright(_to_rgb(frame, info, reformatter)[0], info)
                    yield Picture(bisect_right(clip.ticks, at) - 1, float(at * clip.time_base), 0.0, rgb)
                    break


def frames_at(fps: Fraction, info: VideoInfo, times: Sequence[Fraction] | None, start: int, stop: int) -> list[int]:
    """Positions of the frames of start … stop that are on screen at 0, 1, 2, … / `fps` seconds after frame `start`.

    times     (frame,) exact seconds of every frame of the file, and of the end of the last; needed only where they are
              uneven
    returns   positions, ascending, each once: a frame that is on screen for longer is taken once
    raises    InputError where `fps` is above the clip's own rate, so that nothing would be left out
    """
    rate = Fraction(info.average_fps)
    if times is None:
        assert not info.variable, "frames that are not evenly spaced have times"
        times = [n / rate for n in range(stop + 1)]
    shown = list(times[start : stop + 1])
    taken: list[int] = []
    for k in range(ceil((shown[-1] - shown[0]) * fps)):
        # A container's clock may be coarse (a millisecond): a frame half a millisecond late is still meant.
        place = start + bisect_right(shown, shown[0] + k / fps + CLOCK) - 1
        if place < stop and (not taken or place > taken[-1]):
            taken.append(place)
    if len(taken) == stop - start and stop - start > 1:
        raise InputError(
            f"--fps {float(fps):g} is above the clip's {float(rate):.5g}, and frames are not invented; leave it out"
        )
    return taken


def choose_size(info: VideoInfo, multiple: int, requested: str | None = None) -> SizeChoice:
    """Choose the size that frames are brought to: never cropped, and never silently distorted.

    multiple     both sides of what the model sees must be multiples of it: the picture is padded to them
    requested    "WIDTHxHEIGHT", of such multiples or the source's own, which it is without it
    raises       InputError where it is no such size, naming the nearest
    """
    source = (info.width, info.height)
    width, height = source if requested is None else _parse_size(requested)
    if (width, height) != source and (width % multiple or height % multiple):
        below = "x".join(str(max(1, side // multiple) * multiple) for side in (width, height))
        above = "x".join(str(-(-side // multiple) * multiple) for side in (width, height))
        raise InputError(
            f"--size {requested} does not suit the model, whose sizes are multiples of {multiple}; take {below} or "
            f"{above}, or leave it out for the source's own {info.width}×{info.height}"
        )
    right, bottom = -width % multiple, -height % multiple
    said = []
    if (width, height) != source:
        error = abs(width * source[1] / (height * source[0]) - 1)
        aspect = "same aspect ratio" if error < 5e-4 else f"aspect ratio off by {100 * error:.1f} %"
        said.append(f"frames {info.width}×{info.height} are resized to {width}×{height} (as asked; {aspect})")
    if right or bottom:
        said.append(
            f"for the model {width}×{height} is padded to {width + right}×{height + bottom} (multiples of {multiple}), "
            f"and the clip is {width}×{height} again"
        )
    return SizeChoice(
        width=width + right, height=height + bottom, padding=(right, bottom), sentence="; ".join(said) or None
    )


def parse_frames(text: str, count: int) -> tuple[int, int, int]:
    """Read "START:STOP" or "START:STOP:STEP", STOP exclusive, of a clip of `count` frames; InputError otherwise."""
    match = re.fullmatch(r"(\d{1,9}):(\d{1,9})(?::(\d{1,9}))?", text.strip(), re.ASCII)
    if match is None:
        raise InputError(f"--frames {text!r} is not START:STOP or START:STOP:STEP (for example 0:{count})")
    start, stop, step = int(match[1]), int(match[2]), int(match[3] or 1)
    if step == 0:
        raise InputError(f"--frames {text!r} has a step of 0; the smallest is 1")
    if start >= stop:
        raise InputError(f"--frames {text!r} holds no frame: START must be below STOP (for example 0:{count})")
    if stop > count:
        frames = "1 frame" if count == 1 else f"{count} frames"
        raise InputError(f"--frames {text!r} goes beyond the end: the clip has {frames} (0:{count} takes them all)")
    return start, stop, step


def step_for(fps: float, info: VideoInfo) -> int | None:
    """Every how many frames one is taken, to have `fps` per second (to half a percent) of an evenly spaced clip.

    None      where no step gives it, or the frames are not evenly spaced: see `frames_at`
    raises    InputError where it is above the clip's own rate
    """
    if info.variable:
        return None
    rate = float(Fraction(info.average_fps))
    step = max(1, round(rate / fps))
    if abs(rate / step / fps - 1) <= 0.005:
        return step
    if fps > rate:
        raise InputError(f"--fps {fps:g} is above the clip's {rate:.5g}, and frames are not invented; leave it out")
    return None


@contextmanager
def open_video(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a local video file and its first real picture stream; FFmpeg's errors come out as InputError."""
    head = _checked_file(path)
    check_declared(path)
    options = {
        "protocol_whitelist": "file", "format_whitelist": ",".join(CONTAINERS), "max_pixels": str(LARGEST_AREA)
    }  # fmt: skip
    try:
        with av.open(f"file:{path.resolve()}", "r", options=options, metadata_errors="replace") as container:
            yield container, _picture_stream(path, container)
    except av.error.FFmpegError as error:
        raise InputError(f"{path} {_diagnosis(head)}") from error


def _checked_file(path: Path) -> bytes:
    """First bytes of `path`, once it is known to be a local, regular, non-empty file."""
    if re.match(r"[a-z][a-z0-9+.-]+:/", str(path)):
        address = str(path).replace(":/", "://", 1)  # a path holds one slash of two
        raise InputError(f"{address} is an address, and only local files are read; download it first")
    try:
        if path.is_dir():
            raise InputError(f"{path} is a folder; {_of_folder(path)}")
        if not path.exists():
            raise InputError(f"{path} does not exist; check the path of the video")
        if not path.is_file():
            raise InputError(f"{path} is not a regular file; copy the video to one first")
        with path.open("rb") as file:
            head = file.read(512)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path} cannot be read ({reason}); check its name and permissions") from error
    if not head:
        raise InputError(f"{path} is empty; copy or download it again")
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(PLAYLIST_HEADS) or b"<MPD" in head:
        raise InputError(f"{path} is a playlist that names other files; give the video file itself")
    return head


def _of_folder(folder: Path) -> str:
    """What to do with a folder that was given as a video."""
    pictures = pictures_in(folder)
    if not pictures:
        return "name a video file"
    return (
        f"a clip is one file, so make one of its {len(pictures)} pictures first, there: ffmpeg -framerate 24 "
        f"-pattern_type glob -i '*{pictures[0].suffix}' -c:v ffv1 clip.mkv"
    )


def _diagnosis(head: bytes) -> str:
    """Why FFmpeg could not make sense of a file that begins with `head`, and what to do."""
    if head[4:8] == b"ftyp":
        return "is an mp4 that cannot be read: cut off before its index (moov), or damaged; copy or download it again"
    if not any(byte < 9 or 13 < byte < 27 for byte in head):
        return "is a text file, not a video; give a video file"
    return "is not a video that FFmpeg can read; check it in a player, or convert it to mp4"


def _picture_stream(path: Path, container: InputContainer) -> VideoStream:
    streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not streams:
        kinds = sorted({stream.type for stream in container.streams if stream.type != "video"})
        held = f"only {' and '.join(kinds)}" if kinds else "nothing"
        raise InputError(f"{path} has no moving pictures ({held} in it); give a video file")
    stream = next((s for s in streams if s.disposition & av.stream.Disposition.default), streams[0])
    if stream.codec_context is None:
        raise InputError(f"{path} has pictures in a codec that this FFmpeg cannot decode; convert it to H.264 first")
    # A damaged frame raises instead of being patched up from its neighbours and passed on as if it were the source.
    stream.codec_context.options = {"err_detect": "explode", "max_pixels": str(LARGEST_AREA)}
    stream.thread_type = "AUTO"
    if stream.codec_context.width * stream.codec_context.height > LARGE_AREA:
        stream.codec_context.thread_count = 2
    return stream


def _decoder(stream: VideoStream) -> VideoCodecContext:
    """What decodes a stream; FFmpeg's own decoders of VP8 and VP9 pass over the transparency beside their packets."""
    own = stream.codec_context
    if own.name not in VPX or stream.metadata.get("alpha_mode") != "1":
        return own
    try:
        with_alpha = VideoCodecContext.create(VPX[own.name], "r")
    except av.codec.codec.UnknownCodecError as error:
        raise InputError(
            f"this FFmpeg cannot read the transparency of {own.name}; convert it to ProRes 4444"
        ) from error
    assert isinstance(with_alpha, VideoCodecContext)
    return with_alpha


def _frames_of(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    """All frames from where the container is."""
    decoder = _decoder(stream)
    return (frame for packet in container.demux(stream) for frame in decoder.decode(packet))


def _check_size(path: Path, width: int, height: int) -> None:
    megapixels = LARGEST_AREA // 2**20
    if width < 1 or height < 1:
        with path.open("rb") as file:
            head = file.read(21)
        if head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and head[20] & 2:
            raise InputError(
                f"{path} is an animated WebP, which this FFmpeg does not read; convert it to a GIF or a video"
            )
        raise InputError(f"{path} declares no picture size, or more than {megapixels} megapixels; scale it down first")
    if max(width, height) > LARGEST_SIDE or width * height > LARGEST_AREA:
        raise InputError(
            f"{path} declares frames of {width}×{height}, above the largest taken ({LARGEST_SIDE} a side, "
            f"{megapixels} megapixels); scale it down first"
        )


def _is_hidden(packet: Packet[VideoStream], stream: VideoStream) -> bool:
    """VP8 keeps reference frames that are never shown in packets of their own: bit 4 of the first byte says so."""
    return stream.codec_context.name == "vp8" and packet.size > 0 and not bytes(packet)[0] >> 4 & 1


def _declared_frames(stream: VideoStream, ticks: list[int], rate: Fraction, discarded: int, timed: bool) -> int:
    """Frames that the container's header promises to show; 0 where it says nothing."""
    if stream.frames and not timed:
        return len(ticks) + stream.frames - 1 - ticks[-1]  # AVI counts ticks, those at which nothing new is shown too
    if stream.frames:
        return stream.frames - discarded
    length = re.fullmatch(r"(\d+):(\d\d):(\d\d\.\d+)", stream.metadata.get("DURATION", ""))  # Matroska, per stream
    if length is None or stream.time_base is None:
        return 0
    end = 3600 * int(length[1]) + 60 * int(length[2]) + float(length[3])
    missing = end - float(ticks[-1] * stream.time_base) - 1 / rate
    return len(ticks) + round(missing * rate) if missing * rate > 1.5 else 0


def _frame_rate(ticks: list[int], stream: VideoStream, last_duration: int) -> tuple[Fraction, bool]:
    """Average frames per second, and whether the frames are *not* evenly spaced (to the clock's rounding)."""
    assert stream.time_base is not None
    known = [rate for rate in (stream.average_rate, stream.guessed_rate, stream.base_rate) if rate]
    span = (ticks[-1] - ticks[0]) * stream.time_base
    if not span:
        return (known[0] if known else 1 / (last_duration * stream.time_base or Fraction(1, 25))), False
    mean = (len(ticks) - 1) / span
    seconds = (np.array(ticks) - ticks[0]) * float(stream.time_base)
    for rate in filter(None, (*known, mean.limit_denominator(1001))):
        tolerance = 1.001 * min(float(stream.time_base), 0.25 / rate)
        if np.abs(seconds - np.arange(len(ticks)) / float(rate)).max() <= tolerance:
            return rate, False
    return mean.limit_denominator(100_000) or mean, True


def _orientation(path: Path, frame: VideoFrame) -> tuple[bool, int]:
    """(upside down first, quarter turns counter-clockwise) that bring a stored frame upright."""
    side_data: Any = frame.side_data.get("DISPLAYMATRIX")
    if side_data is None:
        return False, 0
    a, b, _, c, d = (int(x) for x in np.frombuffer(bytes(side_data), np.int32)[:5])
    if not a * d - b * c:
        return False, 0  # no way to show a picture: FFmpeg ignores such a matrix too
    # Where the stored picture's rightward axis points when shown.
    turns = {(1, 0): 0, (0, -1): 1, (-1, 0): 2, (0, 1): 3}.get((int(np.sign(a)), int(np.sign(b))))
    if turns is None:
        raise InputError(f"{path} is to be shown turned by {frame.rotation}°; turn it by quarters only")
    return a * d - b * c < 0, turns


def _colour(path: Path, frame: VideoFrame) -> tuple[str, bool]:
    """(matrix, full range) with which a frame becomes RGB; untagged: bt601 up to 576 lines, bt709 above, limited."""
    full = frame.color_range == ColorRange.JPEG or frame.format.name.startswith("yuvj")
    if frame.format.is_rgb or frame.format.has_palette:
        return "rgb", True
    if _is_grey(frame):
        return "grey", frame.color_range != ColorRange.MPEG
    if frame.colorspace in UNTAGGED_MATRICES:
        return ("bt709" if frame.height > 576 or frame.width > 1024 else "bt601"), full
    if frame.colorspace not in MATRICES:
        raise InputError(f"{path} has colours in an unknown matrix ({frame.colorspace}); convert it first")
    return MATRICES[frame.colorspace], full


def _is_grey(frame: VideoFrame) -> bool:
    return frame.format.name.startswith(("gray", "ya", "mono"))


def _has_alpha(frame: VideoFrame) -> bool:
    return frame.format.has_palette or any(component.is_alpha for component in frame.format.components)


def _notes(container: InputContainer, frame: VideoFrame, ratio: Fraction, shown: tuple[int, int]) -> tuple[str, ...]:
    notes = []
    if ratio != 1:
        stored = f"{frame.width}×{frame.height}"
        notes.append(f"pixels are not square ({ratio}): {stored} stored are shown as {shown[0]}×{shown[1]}")
    if any(component.is_alpha for component in frame.format.components):
        notes.append(OVER_BLACK)
    if frame.color_trc in HDR_TRANSFERS:
        notes.append(f"high dynamic range ({HDR_TRANSFERS[frame.color_trc]}) is tone-mapped to BT.709")
    if frame.interlaced_frame:
        notes.append("frames are interlaced, and are taken as they are")
    if len(container.streams.video) > 1:
        notes.append("there is more than one picture stream: the default one is taken")
    return tuple(notes)


def _decoded(clip: Clip) -> Iterator[VideoFrame]:
    """All frames in order of presentation; InputError at the first that is damaged."""
    with open_video(clip.path) as (container, stream):
        count = 0
        try:
            for frame in _frames_of(container, stream):
                if frame.is_corrupt:
                    raise InputError(f"frame {count} of {clip.path} is damaged{_way_out(count)}")
                yield frame
                count += 1
        except av.error.FFmpegError as error:
            raise InputError(f"frame {count} of {clip.path} cannot be decoded{_way_out(count)}") from error


def _way_out(count: int) -> str:
    return f"; take those before it with --frames 0:{count}" if count else "; copy or download the video again"


def _to_rgb(
    frame: VideoFrame, info: VideoInfo, reformatter: VideoReformatter, background: Colour = (0, 0, 0)
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any] | None]:
    """(height, width, channel) uint8 of a frame as stored: matrix and range as in `info`, over `background`; its alpha.

    alpha    (height, width) uint8; None where the file has none
    """
    converted = reformatter.reformat(
        frame,
        format="rgba" if info.has_alpha else "rgb24",
        src_colorspace=SWSCALE_MATRICES.get(info.colour_matrix),
        src_color_range=ColorRange.JPEG if info.colour_range == "full" else ColorRange.MPEG,
        dst_color_range=ColorRange.JPEG,
        interpolation=EXACT,
        threads=1,
    )
    rgb, opacity = converted.to_ndarray(), None
    if info.has_alpha:
        opacity = rgb[..., 3]
        alpha = rgb[..., 3:].astype(np.uint16)
        under = (255 - alpha) * np.array(background, np.uint16)
        rgb = ((rgb[..., :3] * alpha + under + 127) // 255).astype(np.uint8)
    if info.colour_matrix == "grey" and info.colour_range == "limited":  # swscale takes every grey as full range
        rgb = np.clip(np.rint((rgb.astype(np.float32) - 16) * (255 / 219)), 0, 255).astype(np.uint8)
    return rgb, opacity


class ToneMapper:
    """Frames of PQ or HLG in BT.2020 → BT.709, by libswscale's perceptual mapping, from what each frame says of itself.

    Its graph builds a table of colours at the first frame, which takes seconds, and keeps it.
    """

    def __init__(self) -> None:
        self._graph: Graph | None = None

    def __call__(self, frame: VideoFrame) -> np.ndarray[Any, Any]:
        """rgb (height, width, channel) uint8 of a frame as stored; raises InputError where FFmpeg is too old for it."""
        if self._graph is None:
            self._graph = _tone_mapping(frame)
        self._graph.push(frame)
        mapped = self._graph.pull()
        assert isinstance(mapped, VideoFrame)
        return mapped.to_ndarray()


def _tone_mapping(frame: VideoFrame) -> Graph:
    graph = Graph()
    try:
        source = graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or Fraction(1, 1000)
        )
        filters = [graph.add("scale", TONE_MAP), graph.add("format", "rgb24"), graph.add("buffersink")]
        for each, following in zip([source, *filters], filters, strict=False):
            each.link_to(following)
        graph.configure()
    except (ValueError, av.error.FFmpegError) as error:
        raise InputError("this FFmpeg cannot tone-map; install a PyAV of version 17 or later") from error
    return graph


def _upright(rgb: np.ndarray[Any, Any], info: VideoInfo) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(np.rot90(rgb[::-1] if info.mirrored else rgb, info.rotation // 90))


def _parse_size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,9})[xX×](\d{1,9})", text.strip(), re.ASCII)
    if match is None:
        raise InputError(f"--size {text!r} is not WIDTHxHEIGHT (for example 512x512)")
    width, height = int(match[1]), int(match[2])
    if max(width, height) > LARGEST_SIDE:
        raise InputError(f"--size {text} is above {LARGEST_SIDE} a side; ask for a smaller one")
    if width < 1 or height < 1:
        raise InputError(f"--size {text} leaves no pixel; ask for 1x1 at least")
    return width, height
