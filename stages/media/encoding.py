"""What a clip can be written as: files by their endings, codecs, pixel formats, and one scale of quality for all.

Nothing here enters a key: an edit is the same whatever file it is written to.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import av
from pydantic import Field

from store.errors import InputError
from store.schemas import Frozen

Codec = Literal["h264", "hevc", "av1", "vp9", "prores", "gif", "webp", "png"]

# Ending of a file → codecs that it may hold, the first of them where none is asked for. No ending: a folder.
HOLDS: dict[str, tuple[Codec, ...]] = {
    ".mp4": ("h264", "hevc", "av1"),
    ".mov": ("h264", "hevc", "prores"),
    ".mkv": ("h264", "hevc", "av1", "vp9", "prores"),
    ".webm": ("vp9", "av1"),
    ".gif": ("gif",),
    ".webp": ("webp",),
    "": ("png",),
}
ENCODERS: dict[Codec, str] = {
    "h264": "libx264", "hevc": "libx265", "av1": "libsvtav1", "vp9": "libvpx-vp9", "prores": "prores_ks",
    "gif": "gif", "webp": "libwebp_anim", "png": "png",
}  # fmt: skip
PIXEL_FORMATS: dict[Codec, tuple[str, ...]] = {  # the first that can hold the size, where none is asked for
    "h264": ("yuv420p", "yuv444p", "yuv422p", "yuv420p10le", "yuv422p10le", "yuv444p10le"),
    "hevc": ("yuv420p", "yuv444p", "yuv422p", "yuv420p10le", "yuv422p10le", "yuv444p10le"),
    "av1": ("yuv420p", "yuv420p10le"),
    "vp9": ("yuv420p", "yuv444p"),
    "prores": ("yuv422p10le", "yuv444p10le"),
    "gif": ("pal8",),
    "webp": ("bgra",),
    "png": ("rgb24",),
}
TRANSPARENT: dict[Codec, tuple[str, ...]] = {  # pixel formats that hold transparency, of codecs that have one
    "prores": ("yuva444p10le",), "vp9": ("yuva420p",), "gif": ("pal8",), "webp": ("bgra",), "png": ("rgba",),
}  # fmt: skip
EVEN_ONLY = frozenset(("h264", "hevc"))  # codecs that cannot halve an odd side
SMALLEST: dict[Codec, int] = {"hevc": 16, "av1": 8}  # pixels a side that their encoders take
QUALITY = 80  # visually lossless: an edit is looked at closely
RATE_FACTORS: dict[Codec, tuple[float, float]] = {  # crf at quality 0 and 100; 80 is 12 for H.264, like it elsewhere
    "h264": (42, 4.5), "hevc": (44, 6.5), "av1": (62, 7), "vp9": (62, 4.5),
}  # fmt: skip
PRORES_PROFILES = (("proxy", 25), ("lt", 50), ("standard", 75), ("hq", 101))  # name, below which quality


class Encoding(Frozen):
    """How clips are written; what is left out follows from the name of the file."""

    codec: Codec | None = Field(None, title="Codec", description="what the ending of the file stands for without it")
    quality: int | None = Field(
        None, title="Quality", description=f"0 to 100, the same scale for every codec; {QUALITY} without it", ge=0,
        le=100,
    )  # fmt: skip
    pixel_format: str | None = Field(
        None, title="Pixel format", description="such as yuv444p or yuv420p10le; what most players show without it"
    )
    keep_alpha: bool = Field(False, title="Keep alpha", description="the source's transparency is that of the clip")
    source_rate: bool = Field(
        False,
        title="Source rate",
        description="frames that were left out are shown again: the one before them, as long",
    )

    @property
    def needs_source(self) -> bool:
        """Whether the source is read again for it."""
        return self.keep_alpha or self.source_rate


@dataclass(frozen=True)
class Format:
    """A choice that this build of FFmpeg can write: the encoder, its pixel format and its options."""

    suffix: str
    codec: Codec
    encoder: str
    pixel_format: str
    quality: int
    alpha: bool = False

    @property
    def alpha_options(self) -> dict[str, str]:
        """Options of the encoder that transparency asks for."""
        if not self.alpha:
            return {}
        return {"prores": {"profile": "4444"}, "vp9": {"auto-alt-ref": "0"}}.get(self.codec, {})

    @property
    def colours(self) -> int:
        """Colours of a GIF's palette."""
        return max(8, min(256, 256 * self.quality // QUALITY))

    def options(self, *, in_order: bool) -> dict[str, str]:
        """Options of the encoder.

        in_order    HEVC's packets leave in the order of presentation, as those of all others do: containers store the
                    time between packets, and only so is it the time each frame is shown
        """
        if self.codec == "prores":
            profile = next(name for name, below in PRORES_PROFILES if self.quality < below)
            return {"profile": "4444" if self.pixel_format.startswith("yuv444") else profile, "vendor": "apl0"}
        if self.codec == "webp":
            lossless = self.quality == 100
            return {"lossless": "1"} if lossless else {"quality": str(self.quality)}
        if self.codec not in RATE_FACTORS:
            return {}
        worst, best = RATE_FACTORS[self.codec]
        options = {"crf": f"{round(worst + (best - worst) * self.quality / 100, 1):g}"}
        if self.codec == "h264":
            return options | {"bf": "0"}  # where it reorders, x264 writes equal frames differently now and then
        if self.codec == "hevc":
            return options | {"x265-params": "log-level=error" + (":bframes=0" if in_order else "")}
        options["crf"] = str(round(float(options["crf"])))
        return options | ({"preset": "8"} if self.codec == "av1" else {"b": "0", "row-mt": "1", "cpu-used": "2"})


def choose_format(path: Path, encoding: Encoding, size: tuple[int, int] | None = None) -> Format:
    """What `path` will hold, for frames of `size` (width, height) where that is known.

    raises    InputError, naming what there is, where ending, codec, pixel format, quality and size do not go together
    """
    suffix = path.suffix.lower()
    if suffix not in HOLDS:
        endings = ", ".join(filter(None, HOLDS))
        raise InputError(
            f"{path} does not say what to write; end its name in {endings}, or in nothing for a folder of PNGs"
        )
    codec = _codec(path, encoding)
    if size is not None and min(size) < SMALLEST.get(codec, 1):
        raise InputError(
            f"--codec {codec} takes no frames below {SMALLEST[codec]} pixels a side, and these are "
            f"{size[0]}×{size[1]}; leave it out, or choose a larger --size"
        )
    formats = _written(codec, encoding.keep_alpha)
    if encoding.pixel_format and encoding.pixel_format not in formats:
        raise InputError(
            f"--pixel-format {encoding.pixel_format} is none that {codec} is written in here"
            f"{' with transparency' if encoding.keep_alpha else ''}; have {', '.join(formats)}"
        )
    if encoding.quality is not None and codec == "png":
        raise InputError("--quality says nothing about PNG, which loses nothing; leave it out")
    fitting = [each for each in formats if size is None or holds_size(codec, each, size)]
    pixel_format = encoding.pixel_format or fitting[0]
    if pixel_format not in fitting:
        assert size is not None
        raise InputError(
            f"--pixel-format {pixel_format} cannot hold the odd size {size[0]}×{size[1]}; take {fitting[0]}, "
            "or an even --size"
        )
    quality = QUALITY if encoding.quality is None else encoding.quality
    return Format(suffix, codec, ENCODERS[codec], pixel_format, quality, encoding.keep_alpha)


def first_codec(suffix: str, keep_alpha: bool = False) -> Codec:
    """What a file of that ending holds where no codec is asked for; with `keep_alpha` the first that is transparent."""
    held = HOLDS[suffix]
    return next((codec for codec in held if keep_alpha and codec in TRANSPARENT), held[0])


def holds_size(codec: Codec, pixel_format: str, size: tuple[int, int]) -> bool:
    """Whether frames of (width, height) can be encoded so, without cropping or padding."""
    if codec not in EVEN_ONLY or "444" in pixel_format:
        return True
    return size[0] % 2 == 0 and ("422" in pixel_format or size[1] % 2 == 0)


def quieten(codec: Codec) -> None:
    """Have an encoder's own library keep to errors on stderr; SVT-AV1 reads it from the environment."""
    if codec == "av1":
        os.environ.setdefault("SVT_LOG", "1")


@contextmanager
def scheduled_as_before() -> Iterator[None]:
    """Give this process's threads back the scheduling that they had when the block began; new ones get the caller's.

    Opened by root, SVT-AV1 makes its threads *and the caller* real-time (SCHED_FIFO, priority 99), and so every process
    that is started later: on a machine of few cores nothing else runs until they end.
    """
    tasks = Path("/proc/self/task")
    if not hasattr(os, "sched_setscheduler") or not tasks.is_dir():
        yield
        return
    before = dict(_scheduling(tasks))
    here = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        for thread, now in _scheduling(tasks):
            policy, param = before.get(thread, here)
            if now[0] != policy:
                with suppress(OSError):
                    os.sched_setscheduler(thread, policy, param)


def _scheduling(tasks: Path) -> Iterator[tuple[int, tuple[int, os.sched_param]]]:
    for task in tasks.iterdir():
        thread = int(task.name)
        with suppress(ProcessLookupError):  # it has ended
            yield thread, (os.sched_getscheduler(thread), os.sched_getparam(thread))


def _codec(path: Path, encoding: Encoding) -> Codec:
    held = HOLDS[path.suffix.lower()]
    codec = encoding.codec or first_codec(path.suffix.lower(), encoding.keep_alpha)
    if encoding.keep_alpha and codec not in TRANSPARENT:
        what = f"--codec {codec}" if encoding.codec else f"a {path.suffix.lower()} file"
        raise InputError(
            f"{what} holds no transparency as it is written here; leave out --keep-alpha, or name a .mov (ProRes), "
            ".webm or .mkv (VP9), .webp, .gif, or a folder of PNGs, without --codec"
        )
    here = [each for each in get_args(Codec) if _has(each)]
    if codec not in here:
        raise InputError(f"this FFmpeg has no encoder {ENCODERS[codec]} for {codec}; have {', '.join(here)}")
    if codec in held:
        return codec
    what = f"a {path.suffix.lower()} file" if path.suffix else f"a folder such as {path}"
    others = [suffix or "no ending" for suffix, codecs in HOLDS.items() if codec in codecs]
    raise InputError(
        f"--codec {codec} does not go into {what}, which holds {', '.join(each for each in held if each in here)}; "
        f"{codec} goes with {', '.join(others)}"
    )


def _has(codec: Codec) -> bool:
    """Whether this build of FFmpeg has the encoder."""
    try:
        av.codec.Codec(ENCODERS[codec], "w")
    except av.codec.codec.UnknownCodecError:
        return False
    return True


def _written(codec: Codec, keep_alpha: bool) -> list[str]:
    """Pixel formats of a codec that this build's encoder takes; with transparency, those that hold it."""
    able = {each.name for each in av.codec.Codec(ENCODERS[codec], "w").video_formats or ()}
    return [each for each in (TRANSPARENT if keep_alpha else PIXEL_FORMATS)[codec] if each in able]
