"""Small clips for the tests of decoding and export, made with PyAV: every frame carries its own number as a pattern."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

MARK = 8  # pixels a bit of the frame's number is wide


def numbered(index: int, width: int, height: int) -> np.ndarray[Any, Any]:
    """rgb (height, width, channel) uint8: red upper left, the bits of the number along the bottom, grey elsewhere."""
    rgb = np.full((height, width, 3), 90, np.uint8)
    rgb[: height // 2, : width // 2] = (220, 40, 40)
    for bit in range(6):
        rgb[-MARK:, bit * MARK : (bit + 1) * MARK] = 255 if index >> bit & 1 else 0
    return rgb


def number_of(rgb: np.ndarray[Any, Any]) -> int:
    """The number that `numbered` drew."""
    middle = rgb[-MARK // 2, MARK // 2 : 6 * MARK : MARK, 1]
    return sum(int(level > 127) << bit for bit, level in enumerate(middle))


def write_clip(
    path: Path,
    *,
    frames: int = 12,
    width: int = 96,
    height: int = 64,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    rate: Fraction | int = 24,
    ticks: Sequence[int] | None = None,
    time_base: Fraction | None = None,
    pictures: Sequence[np.ndarray[Any, Any]] | None = None,
    options: dict[str, str] | None = None,
    rotation: float | None = None,
    flipped: bool = False,
    aspect: Fraction | None = None,
    audio: str | None = None,
    seconds_of_audio: float = 1.0,
) -> Path:
    """Write a clip of `numbered` frames (or `pictures`, RGB or RGBA), at `ticks` × `time_base` or at `rate`."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        if time_base is not None:
            stream.time_base = stream.codec_context.time_base = time_base
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if rotation is not None or flipped:
            stream.set_display_rotation(rotation or 0, vflip=flipped)
        sound = None
        if audio is not None:
            sound = container.add_stream(audio, rate=48_000, layout="stereo")
        for index in range(len(pictures) if pictures is not None else frames):
            rgb = pictures[index] if pictures is not None else numbered(index, width, height)
            frame = av.VideoFrame.from_ndarray(rgb, format="rgba" if rgb.shape[-1] == 4 else "rgb24")
            frame.pts = ticks[index] if ticks is not None else index
            frame.time_base = time_base if ticks is not None and time_base is not None else 1 / Fraction(rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound is not None:
            time = np.arange(int(48_000 * seconds_of_audio)) / 48_000
            wave = (8000 * np.sin(2 * np.pi * (300 + 200 * time) * time)).astype(np.int16)
            for start in range(0, len(wave), 1024):
                piece = av.AudioFrame.from_ndarray(
                    np.repeat(wave[start : start + 1024], 2)[None], format="s16", layout="stereo"
                )
                piece.sample_rate, piece.pts, piece.time_base = 48_000, start, Fraction(1, 48_000)
                container.mux(sound.encode(piece))
            container.mux(sound.encode(None))
    return path


def audio_packets(path: Path) -> list[bytes]:
    """The payloads of the first sound track, in order."""
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(audio=0) if packet.size]
