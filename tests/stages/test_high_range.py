"""Promises of reading a high dynamic range: it is told, brought into BT.709 once asked, and left alone otherwise."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.video.frame import VideoFrame

from stages import decode_frames
from stages.media.video import probe, read_pictures, survey
from store.keys import ArtifactKey

NITS = (0.0, 1, 10, 50, 100, 203, 600, 1000, 4000)
PQ, HLG = 16, 18


def pq(nits: float) -> float:
    """Signal of a luminance in cd/m² (ITU-R BT.2100, table 4: the inverse EOTF)."""
    power = (nits / 10_000) ** (2610 / 16_384)
    return float(((3424 / 4096 + 2413 / 128 * power) / (1 + 2392 / 128 * power)) ** (2523 / 32))


def high_range_clip(path: Path, transfer: int, frames: int = 2) -> Path:
    """Grey bars of `NITS` in 10 bits, BT.2020; for HLG the same signal."""
    levels = np.repeat([round(64 + 876 * pq(nits)) for nits in NITS], 16).astype(np.uint16)
    with av.open(str(path), "w") as container:
        settings = {"x265-params": "log-level=error:lossless=1:bframes=0"}
        stream: Any = container.add_stream("libx265", rate=24, options=settings)
        stream.width, stream.height, stream.pix_fmt = len(levels), 64, "yuv420p10le"
        context = stream.codec_context
        context.colorspace, context.color_range, context.color_primaries, context.color_trc = 9, 1, 9, transfer
        for index in range(frames):
            frame = VideoFrame(len(levels), 64, "yuv420p10le")
            for plane, values in zip(frame.planes, (levels, levels[::2] * 0 + 512, levels[::2] * 0 + 512), strict=True):
                row = np.zeros(plane.line_size // 2, np.uint16)
                row[: len(values)] = values
                plane.update(np.tile(row, plane.height).tobytes())
            frame.colorspace, frame.color_range, frame.color_primaries, frame.color_trc = 9, 1, 9, transfer
            frame.pts, frame.time_base = index, Fraction(1, 24)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def bars(rgb: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return rgb[32, 8::16].astype(int)


@pytest.mark.parametrize(("transfer", "name"), [(PQ, "PQ"), (HLG, "HLG")])
def test_a_high_range_is_told_and_mapped(tmp_path: Path, transfer: int, name: str) -> None:
    path = high_range_clip(tmp_path / "clip.mkv", transfer)
    info = probe(path)
    assert (info.hdr, info.colour_matrix, info.pixel_format) == (name, "bt2020", "yuv420p10le")
    assert f"high dynamic range ({name}) is tone-mapped to BT.709" in info.notes
    mapped, plain = (bars(next(read_pictures(survey(path), tone_map=each)).rgb) for each in (True, False))
    assert (np.abs(mapped - mapped[:, :1]) <= 2).all(), "grey stays grey"
    luma = mapped[:, 1]
    assert (np.diff(luma) > 0).all(), "nothing is clipped: every step of light is still one"
    assert luma[0] <= 2 and luma[-1] > 200
    assert np.abs(luma - plain[:, 1]).max() > 10, "the code values themselves are another picture"


def test_reference_white_of_pq_is_bright_and_shadows_are_those_of_bt709(tmp_path: Path) -> None:
    """Diffuse white (203 cd/m², ITU-R BT.2408) lies in the upper half; dark parts are nearly as BT.1886 shows them."""
    luma = bars(next(read_pictures(survey(high_range_clip(tmp_path / "clip.mkv", PQ)))).rgb)[:, 1]
    assert 140 < luma[NITS.index(203)] < 240
    assert luma[NITS.index(1)] == pytest.approx(21, abs=8)


def test_the_stage_maps_where_its_spec_says_so_and_keys_of_others_stay(tmp_path: Path) -> None:
    path = high_range_clip(tmp_path / "clip.mkv", PQ)
    info = probe(path)
    size = {"width": info.width, "height": info.height}
    taken = []
    for tone_map in (True, False):
        blocks = decode_frames.run(decode_frames.Spec(**size, tone_map=tone_map), range(1), video=path)
        taken.append(next(block.values for block in blocks if block.variable == "rgb"))
    assert not np.array_equal(*taken)
    plain = ArtifactKey.of("decode_frames", 1, decode_frames.Spec(**size), {})
    assert "tone_map" not in plain.spec
