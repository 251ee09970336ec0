"""Promises of reading: every frame, upright, in its colours, at its exact time; a bad file is one sentence."""

from __future__ import annotations

import os
import struct
import tracemalloc
from fractions import Fraction
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from typing import Any
from zlib import crc32

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from stages import decode_frames
from stages.decode_frames import Spec
from stages.media.video import VideoInfo, choose_size, parse_frames, probe, read_pictures, step_for, survey
from store.errors import InputError
from tests.stages.clips import number_of, numbered, write_clip

LOSSLESS = {"codec": "ffv1", "pixel_format": "bgr0"}


def decode(path: Path, **spec: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Blocks of the stage put together, each where it says it goes."""
    info = probe(path)
    chosen = Spec(**({"width": info.width, "height": info.height} | spec))
    schema = decode_frames.outputs(chosen, video=info)
    blocks: dict[str, list[np.ndarray[Any, Any]]] = {name: [] for name in schema.variables}
    for block in decode_frames.run(chosen, range(1), video=path):
        assert block.start[0] == sum(map(len, blocks[block.variable])), "blocks follow one another"
        variable = schema.variables[block.variable]
        assert block.values.dtype == variable.dtype
        assert block.values.shape[1:] == variable.shape[1:]
        blocks[block.variable].append(block.values)
    arrays = {name: np.concatenate(values) for name, values in blocks.items()}
    assert len({len(array) for array in arrays.values()}) == 1
    return arrays


def numbers(arrays: dict[str, np.ndarray[Any, Any]]) -> list[int]:
    return [number_of(rgb) for rgb in arrays["rgb"]]


# What is in the file comes out


@pytest.mark.parametrize("size", [(96, 64), (101, 67)])
def test_lossless_frames_are_identical(tmp_path: Path, size: tuple[int, int]) -> None:
    path = write_clip(tmp_path / "clip.mkv", frames=37, width=size[0], height=size[1], **LOSSLESS)
    arrays = decode(path)
    assert np.array_equal(arrays["rgb"], np.stack([numbered(i, *size) for i in range(37)]))


@pytest.mark.parametrize(
    ("name", "codec", "pixel_format"),
    [
        ("clip.mp4", "libx264", "yuv420p"),
        ("clip.mp4", "libx264", "yuv444p"),
        ("clip.mov", "prores_ks", "yuv422p10le"),
        ("clip.mkv", "ffv1", "yuv420p10le"),
        ("clip.mkv", "ffv1", "gray"),
        ("clip.mkv", "ffv1", "gray16le"),
        ("clip.avi", "mpeg4", "yuv420p"),
        ("clip.avi", "mjpeg", "yuvj420p"),
        ("clip.webm", "libvpx-vp9", "yuv420p"),
        ("clip.webm", "libvpx", "yuv420p"),
        ("clip.ts", "libx264", "yuv420p"),
        ("clip.gif", "gif", "rgb8"),
    ],
)
def test_any_codec_gives_every_frame_in_order(tmp_path: Path, name: str, codec: str, pixel_format: str) -> None:
    path = write_clip(tmp_path / name, frames=20, codec=codec, pixel_format=pixel_format, rate=25)
    arrays = decode(path)
    assert numbers(arrays) == list(range(20))
    assert np.diff(arrays["pts"]) == pytest.approx(0.04, abs=1e-9)
    assert probe(path).average_fps == "25"
    assert not probe(path).variable


def test_10_bit_hevc(tmp_path: Path) -> None:
    quiet = {"x265-params": "log-level=none"}
    path = write_clip(tmp_path / "clip.mp4", codec="libx265", pixel_format="yuv420p10le", options=quiet)
    assert numbers(decode(path)) == list(range(12))


def test_b_frames_come_out_in_order_of_presentation(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", frames=30, options={"bf": "3", "b-adapt": "0"})
    with av.open(str(path)) as container:
        stored = [packet.pts for packet in container.demux(video=0) if packet.size]
    assert stored != sorted(stored), "this clip has reordered frames"
    arrays = decode(path)
    assert numbers(arrays) == list(range(30))
    assert np.all(np.diff(arrays["pts"]) > 0)


def test_b_frames_in_avi_which_keeps_no_times(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.avi", frames=20, rate=25, options={"bf": "3", "b-adapt": "0"})
    arrays = decode(path)
    assert numbers(arrays) == list(range(20))
    assert arrays["pts"] == pytest.approx(np.arange(20) / 25)
    assert arrays["duration"] == pytest.approx(0.04)


@pytest.mark.parametrize(
    ("rotation", "corner"), [(0, (0, 0)), (90, (1, 0)), (180, (1, 1)), (270, (0, 1)), (None, (0, 0))]
)
def test_rotation_moves_the_marked_corner(tmp_path: Path, rotation: int | None, corner: tuple[int, int]) -> None:
    path = write_clip(tmp_path / "clip.mov", width=96, height=64, rotation=rotation)
    info = probe(path)
    assert (info.width, info.height) == ((64, 96) if rotation in (90, 270) else (96, 64))
    assert info.rotation == (rotation or 0)
    rgb = decode(path)["rgb"][0].astype(int)
    assert rgb.shape == (info.height, info.width, 3)
    redness = rgb[..., 0] - rgb[..., 1]
    halves = [
        [redness[: info.height // 2, : info.width // 2].mean(), redness[: info.height // 2, info.width // 2 :].mean()],
        [redness[info.height // 2 :, : info.width // 2].mean(), redness[info.height // 2 :, info.width // 2 :].mean()],
    ]
    assert np.unravel_index(np.argmax(halves), (2, 2)) == corner


@pytest.mark.parametrize("rotation", [0, 90])
def test_mirrored_display_matrix_agrees_with_its_definition(tmp_path: Path, rotation: int) -> None:
    path = write_clip(tmp_path / "clip.mov", rotation=rotation, flipped=True)
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        a, b, _, c, d = (int(x) // 65536 for x in np.frombuffer(bytes(frame.side_data["DISPLAYMATRIX"]), np.int32)[:5])
    corners = {(x, y): (a * x + c * y, b * x + d * y) for x in (-1, 1) for y in (-1, 1)}
    shown_x, shown_y = corners[-1, -1]  # where the marked upper left corner is shown
    info, rgb = probe(path), decode(path)["rgb"][0].astype(int)
    assert info.mirrored
    y = 4 if shown_y < 0 else info.height - 5
    x = 4 if shown_x < 0 else info.width - 5
    assert rgb[y, x, 0] - rgb[y, x, 1] > 100


def test_variable_frame_rate_keeps_exact_times(tmp_path: Path) -> None:
    ticks = [0, 40, 90, 100, 333, 334, 1000, 1017]
    path = write_clip(tmp_path / "clip.mkv", frames=8, ticks=ticks, time_base=Fraction(1, 1000), **LOSSLESS)
    arrays, info = decode(path), probe(path)
    assert arrays["pts"].tolist() == [tick / 1000 for tick in ticks]
    assert arrays["duration"][:-1].tolist() == pytest.approx(np.diff(ticks) / 1000, abs=1e-12)
    assert info.variable
    assert numbers(arrays) == list(range(8))


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv"])
def test_ntsc_rate_is_the_exact_fraction(tmp_path: Path, name: str) -> None:
    path = write_clip(tmp_path / name, frames=30, rate=Fraction(24000, 1001))
    info = probe(path)
    assert (info.average_fps, info.variable) == ("24000/1001", False)
    tick = {"clip.mp4": 0, "clip.mkv": 0.0005}[name]  # Matroska rounds to milliseconds
    assert decode(path)["pts"] == pytest.approx(np.arange(30) * 1001 / 24000, abs=tick + 1e-12)


def test_gaps_in_avi_are_times_not_losses(tmp_path: Path) -> None:
    ticks = [0, 1, 4, 5, 6, 9]
    path = write_clip(tmp_path / "clip.avi", frames=6, ticks=ticks, time_base=Fraction(1, 24), codec="mpeg4")
    arrays = decode(path)
    assert numbers(arrays) == list(range(6))
    assert arrays["pts"] == pytest.approx(np.array(ticks) / 24)
    cut = tmp_path / "cut.avi"
    data = path.read_bytes()
    cut.write_bytes(data[: data.index(b"idx1") - 60])
    with pytest.raises(InputError, match=r"--frames 0:\d"):
        decode(cut)


def test_first_time_is_kept_as_in_the_file(tmp_path: Path) -> None:
    ticks = list(range(5000, 5400, 40))
    path = write_clip(tmp_path / "clip.mkv", frames=10, ticks=ticks, time_base=Fraction(1, 1000), rate=25, **LOSSLESS)
    assert decode(path)["pts"].tolist() == [tick / 1000 for tick in ticks]
    assert probe(path).start == 5.0


# Colour


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(
    ("tag", "kr", "kb", "name"),
    [
        (1, 0.2126, 0.0722, "bt709"),
        (6, 0.299, 0.114, "bt601"),
        (9, 0.2627, 0.0593, "bt2020"),
        (2, 0.299, 0.114, "bt601"),
    ],
)
def test_matrix_and_range_follow_the_tags(
    tmp_path: Path, tag: int, kr: float, kb: float, name: str, full: bool
) -> None:
    y, u, v = 100, 150, 90
    path = tmp_path / "clip.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv444p"
        stream.codec_context.colorspace, stream.codec_context.color_range = tag, 2 if full else 1
        frame = av.VideoFrame(64, 48, "yuv444p")
        for plane, level in zip(frame.planes, (y, u, v), strict=True):
            plane.update(bytes([level]) * plane.buffer_size)
        frame.colorspace, frame.color_range = tag, 2 if full else 1
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    luma, blue, red = (
        (y, u - 128, v - 128) if full else ((y - 16) * 255 / 219, (u - 128) * 255 / 224, (v - 128) * 255 / 224)
    )
    r, b = luma + 2 * (1 - kr) * red, luma + 2 * (1 - kb) * blue
    expected = (r, (luma - kr * r - kb * b) / (1 - kr - kb), b)
    info = probe(path)
    assert (info.colour_matrix, info.colour_range) == (name, "full" if full else "limited")
    assert decode(path)["rgb"][0, 20, 20] == pytest.approx(expected, abs=1.01)


def test_untagged_high_definition_is_bt709(tmp_path: Path) -> None:
    assert probe(write_clip(tmp_path / "hd.mkv", frames=1, width=1280, height=720)).colour_matrix == "bt709"
    assert probe(write_clip(tmp_path / "sd.mkv", frames=1, width=640, height=480)).colour_matrix == "bt601"


@pytest.mark.parametrize(("color_range", "shown"), [(1, 98), (2, 100)])
def test_grey_follows_its_range(tmp_path: Path, color_range: int, shown: int) -> None:
    path = tmp_path / "grey.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "gray"
        stream.codec_context.color_range = color_range
        frame = av.VideoFrame.from_ndarray(np.full((48, 64), 100, np.uint8), format="gray")
        frame.color_range = color_range
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert np.all(decode(path)["rgb"] == shown)  # limited: (100 − 16) · 255 / 219 = 97.8


@pytest.mark.parametrize(("name", "codec"), [("clip.mov", "qtrle"), ("clip.mov", "png"), ("clip.mkv", "ffv1")])
def test_transparency_lies_over_black_and_is_said(tmp_path: Path, name: str, codec: str) -> None:
    rgba = np.zeros((64, 96, 4), np.uint8)
    rgba[:, :32] = (200, 100, 50, 255)
    rgba[:, 32:64] = (200, 100, 50, 128)
    rgba[:, 64:] = (200, 100, 50, 0)
    pixel_format = {"qtrle": "argb", "png": "rgba", "ffv1": "bgra"}[codec]
    path = write_clip(tmp_path / name, codec=codec, pixel_format=pixel_format, pictures=[rgba] * 3)
    rgb = decode(path)["rgb"]
    assert rgb[1, 10, 10].tolist() == [200, 100, 50]
    assert rgb[1, 10, 40] == pytest.approx([100, 50, 25], abs=1)
    assert rgb[1, 10, 80].tolist() == [0, 0, 0]
    assert any("black" in note for note in probe(path).notes)


# Sizes


def test_resizing_is_antialiased(tmp_path: Path) -> None:
    board = np.tile(np.indices((64, 96)).sum(0)[..., None] % 2 * 255, 3).astype(np.uint8)
    path = write_clip(tmp_path / "clip.mkv", pictures=[board], **LOSSLESS)
    small = decode(path, width=48, height=32)["rgb"][0, 4:-4, 4:-4]
    assert np.abs(small.astype(int) - 127).max() < 12, "a one-pixel chequerboard becomes even grey"


def test_pixels_that_are_not_square_are_said_and_made_square(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", width=72, height=64, aspect=Fraction(4, 3))
    info = probe(path)
    assert (info.width, info.height) == (96, 64)
    assert "not square" in info.notes[0]
    assert decode(path)["rgb"].shape[1:] == (64, 96, 3)


def test_absurd_pixel_shapes_are_refused(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", frames=1, aspect=Fraction(4, 3))
    shape = struct.pack(">4s2I", b"pasp", 4, 3)
    assert shape in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(shape, struct.pack(">4s2I", b"pasp", 3, 3000)))
    with pytest.raises(InputError, match="frames of 96×64000, above the largest taken"):
        probe(path)


def video(width: int, height: int) -> VideoInfo:
    """The description of a clip of that size, with nothing special about it."""
    return VideoInfo(
        **{"width": width, "height": height, "coded_width": width, "coded_height": height, "frames": 8},
        **{"declared_frames": 8, "start": 0, "duration": 1, "average_fps": "8", "variable": False, "rotation": 0},
        **{"mirrored": False, "sample_aspect_ratio": "1", "container": "mp4", "codec": "h264", "has_alpha": False},
        **{"pixel_format": "yuv420p", "colour_matrix": "bt601", "colour_range": "limited", "has_audio": False},
        audio_codec=None,
        notes=(),
    )


def test_the_size_is_the_sources_own_padded_for_the_model_which_is_said() -> None:
    choice = choose_size(video(101, 67), 8)
    assert (choice.width, choice.height, choice.padding) == (104, 72, (3, 5))
    assert choice.sentence == (
        "for the model 101×67 is padded to 104×72 (multiples of 8), and the clip is 101×67 again"
    )
    assert choose_size(video(128, 64), 8).sentence is None
    assert "as asked; same aspect ratio" in str(choose_size(video(128, 64), 8, "64x32").sentence)
    assert "as asked; aspect ratio off by 12.5 %" in str(choose_size(video(128, 64), 8, "72x32").sentence)
    assert choose_size(video(101, 67), 8, "101x67") == choice, "of other sizes the source's own alone is padded"


@given(st.integers(1, 700), st.integers(1, 700), st.sampled_from([4, 8, 16, 64]))
def test_the_picture_is_never_smaller_than_the_source(width: int, height: int, multiple: int) -> None:
    choice = choose_size(video(width, height), multiple)
    assert choice.width % multiple == choice.height % multiple == 0
    assert (choice.width - choice.padding[0], choice.height - choice.padding[1]) == (width, height)
    assert all(0 <= pixels < multiple for pixels in choice.padding)
    assert (choice.sentence is None) == (choice.padding == (0, 0))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("100x70", "take 96x64 or 104x72, or leave it out for the source's own 96×64"),
        ("0x64", "leaves no pixel"),
        ("64", "is not WIDTHxHEIGHT"),
        ("-64x64", "is not WIDTHxHEIGHT"),
        ("axb", "is not WIDTHxHEIGHT"),
        ("80000x80000", "above"),
    ],
)
def test_a_size_that_cannot_be_taken_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        choose_size(video(96, 64), 8, text)


# Which frames


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0:12", (0, 12, 1)), ("3:9:2", (3, 9, 2)), (" 11:12 ", (11, 12, 1)), ("0:12:50", (0, 12, 50))],
)
def test_frames_option(text: str, expected: tuple[int, int, int]) -> None:
    assert parse_frames(text, 12) == expected


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("0:13", "the clip has 12 frames"),
        ("12:13", "the clip has 12 frames"),
        ("5:5", "holds no frame"),
        ("9:3", "holds no frame"),
        ("0:12:0", "step of 0"),
        *((text, "is not START:STOP") for text in ("", "a:b", "-3:5", "1:2:3:4", "0:12:-1", "1.5:3", ":", "٣:٥", "4")),
    ],
)
def test_frames_option_that_makes_no_sense(text: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        parse_frames(text, 12)


@pytest.mark.parametrize("codec", ["libx264", "ffv1"])
def test_start_stop_step(tmp_path: Path, codec: str) -> None:
    path = write_clip(tmp_path / "clip.mkv", frames=40, codec=codec)
    arrays = decode(path, start=5, stop=31, step=3)
    assert numbers(arrays) == list(range(5, 31, 3))
    whole = decode(path)
    assert np.array_equal(arrays["rgb"], whole["rgb"][5:31:3])
    assert np.array_equal(arrays["pts"], whole["pts"][5:31:3])
    assert arrays["duration"][-1] == pytest.approx(3 * whole["duration"][29])


def test_beyond_what_decodes_is_an_error(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", frames=12)
    with pytest.raises(InputError, match=r"only 12 of the 20 frames asked of .*--frames 0:12"):
        decode(path, stop=20)
    with pytest.raises(InputError, match=r"no frame of .* is at or after 12"):
        decode(path, start=12)


def test_one_frame_clip_and_still_pictures(tmp_path: Path) -> None:
    assert numbers(decode(write_clip(tmp_path / "one.mp4", frames=1))) == [0]
    Image.fromarray(numbered(5, 96, 64)).save(tmp_path / "still.png")
    arrays = decode(tmp_path / "still.png")
    assert numbers(arrays) == [5]
    assert arrays["duration"][0] > 0


# Streaming


def test_memory_does_not_grow_with_the_clip(tmp_path: Path) -> None:
    black = np.zeros((360, 640, 3), np.uint8)
    path = write_clip(tmp_path / "clip.mp4", width=640, height=360, pictures=[black] * 120)
    spec = Spec(width=640, height=360)
    one_block = decode_frames.frames_per_block(spec) * black.nbytes
    tracemalloc.start()
    for block in decode_frames.run(spec, range(1), video=path):
        assert len(block.values) <= 16 or block.variable != "rgb"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * one_block + 8 * 2**20 < 120 * black.nbytes / 2


def test_blocks_fill_whole_chunks() -> None:
    schema = decode_frames.outputs(Spec(width=512, height=512), video=video(512, 512))
    chunk = schema.variables["rgb"].chunks
    assert 2**21 <= np.prod(chunk) <= 2**23
    assert chunk[0] == decode_frames.frames_per_block(Spec(width=512, height=512))
    assert schema.attrs["average_fps"] == "8"


def test_frames_come_lazily(tmp_path: Path) -> None:
    clip = survey(write_clip(tmp_path / "clip.mp4", frames=30))
    data = bytearray(clip.path.read_bytes())
    damage(data, clip.path, 25)
    clip.path.write_bytes(data)
    pictures = read_pictures(clip)
    assert [next(pictures).index for _ in range(4)] == [0, 1, 2, 3], "the damage further on is not yet met"


# Bad files: one sentence each


def damage(data: bytearray, path: Path, number: int) -> None:
    """Overwrite most of one picture packet."""
    with av.open(str(path)) as container:
        packet = [p for p in container.demux(video=0) if p.size][number]
        assert packet.pos is not None
        data[packet.pos + 8 : packet.pos + packet.size] = bytes(packet.size - 8)


def noisy_clip(path: Path, **options: Any) -> Path:
    noise = np.random.default_rng(0)
    pictures = [noise.integers(0, 255, (64, 96, 3), dtype=np.uint8) for _ in range(30)]
    return write_clip(path, pictures=pictures, **options)


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_damage_in_the_middle_names_the_frame_and_the_way_out(tmp_path: Path, codec: str) -> None:
    path = noisy_clip(tmp_path / "clip.mp4", codec=codec, options={"bf": "0"})
    data = bytearray(path.read_bytes())
    damage(data, path, 20)
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"frame (\d+) of .* --frames 0:\1$") as caught:
        decode(path)
    stop = int(str(caught.value).rsplit(":", 1)[1])
    assert 10 <= stop <= 20
    assert len(decode(path, stop=stop)["rgb"]) == stop, "the way out works"


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.mov"])
def test_a_file_cut_off_says_how_much_is_there(tmp_path: Path, name: str) -> None:
    faststart = tmp_path / name
    noisy_clip(faststart)
    if name != "clip.mkv":  # the index first, as on the web, so that a cut leaves it whole
        moved = tmp_path / f"index_first_{name}"
        with (
            av.open(str(faststart)) as given,
            av.open(str(moved), "w", container_options={"movflags": "+faststart"}) as taken,
        ):
            target = taken.add_stream_from_template(given.streams.video[0])
            for packet in given.demux(video=0):
                if packet.size:
                    packet.stream = target
                    taken.mux(packet)
        faststart = moved
    cut = tmp_path / f"cut_{name}"
    cut.write_bytes(faststart.read_bytes()[: int(faststart.stat().st_size * 0.6)])
    assert probe(cut).declared_frames == 30
    with pytest.raises(InputError, match=r"--frames 0:\d+$") as caught:
        decode(cut)
    stop = int(str(caught.value).rsplit(":", 1)[1])
    assert 8 <= stop < 25
    assert len(decode(cut, stop=stop)["rgb"]) == stop, "the way out works"
    assert parse_frames(f"0:{stop}", probe(cut).frames)


def write_audio_only(path: Path) -> None:
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=48_000, layout="mono")
        piece = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.int16), format="s16", layout="mono")
        piece.sample_rate, piece.pts, piece.time_base = 48_000, 0, Fraction(1, 48_000)
        container.mux([*sound.encode(piece), *sound.encode(None)])


def test_bad_files_are_one_sentence(tmp_path: Path) -> None:
    good = write_clip(tmp_path / "good.mp4")
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("this is not a video\n" * 40)
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    (tmp_path / "cut.mp4").write_bytes(good.read_bytes()[:1500])
    write_audio_only(tmp_path / "sound.mp4")
    unknown = good.read_bytes().replace(b"avc1", b"zzz1")
    (tmp_path / "unknown.mp4").write_bytes(unknown)
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\ngood.mp4\n#EXT-X-ENDLIST\n")
    (tmp_path / "concat.txt").write_text("ffconcat version 1.0\nfile good.mp4\n")
    (tmp_path / "late.m3u8").write_text("\n" * 600 + "#EXTM3U\ngood.mp4\n")
    Image.fromarray(numbered(0, 96, 64)).save(tmp_path / "pattern%03d.png")
    (tmp_path / "pictures").mkdir()
    for number in range(2):
        Image.new("L", (8, 8)).save(tmp_path / "pictures" / f"{number}.png")
    Image.new("L", (8, 8)).save(tmp_path / "moving.webp", save_all=True, append_images=[Image.new("L", (8, 8), 9)])
    os.mkfifo(tmp_path / "pipe.mp4")
    expected = {
        "missing.mp4": "does not exist",
        "folder.mp4": "is a folder; name a video file",
        "pictures": r"make one of its 2 pictures first, there: ffmpeg .* '\*\.png'",
        "moving.webp": "is an animated WebP, which this FFmpeg does not read; convert it",
        "empty.mp4": "is empty",
        "text.mp4": "is a text file",
        "noise.mp4": "is not a video",
        "cut.mp4": "cut off before its index",
        "sound.mp4": r"no moving pictures \(only audio",
        "unknown.mp4": "cannot decode",
        "list.m3u8": "playlist",
        "concat.txt": "playlist",
        "late.m3u8": "text file",
        "pipe.mp4": "not a regular file",
        "a\0b.mp4": "cannot be read|does not exist",
        "x" * 300: "cannot be read",
    }
    for name, sentence in expected.items():
        with pytest.raises(InputError, match=sentence) as caught:
            probe(tmp_path / name)
        assert "\n" not in str(caught.value), name
    with pytest.raises(InputError, match=r"https://example\.org/clip\.mp4 is an address"):
        probe(Path("https://example.org/clip.mp4"))


def test_no_file_but_the_one_named_is_opened(tmp_path: Path) -> None:
    """A picture whose name is a pattern is no sequence, and a name that is a protocol is a name."""
    Image.fromarray(numbered(0, 96, 64)).save(tmp_path / "pattern001.png")
    with pytest.raises(InputError, match="does not exist"):
        probe(tmp_path / "pattern%03d.png")
    strange = write_clip(tmp_path / "good.mp4").rename(tmp_path / "concat:good.mp4|good.mp4")
    assert probe(strange).frames == 12


def test_absurd_sizes_are_refused_before_any_picture_is_made(tmp_path: Path) -> None:
    Image.fromarray(numbered(0, 96, 64)).save(tmp_path / "clip.png")
    data = bytearray((tmp_path / "clip.png").read_bytes())
    for width, height, sentence in (
        (16_000, 16_000, "64 megapixels"),
        (100_000, 100_000, "64 megapixels"),
        (20_000, 64, "frames of 20000×64, above the largest taken"),
    ):
        path = tmp_path / f"{width}x{height}.png"
        data[16:24] = struct.pack(">II", width, height)
        data[29:33] = struct.pack(">I", crc32(data[12:29]))
        path.write_bytes(data)
        before = getrusage(RUSAGE_SELF).ru_maxrss
        with pytest.raises(InputError, match=sentence):
            probe(path)
        assert getrusage(RUSAGE_SELF).ru_maxrss - before < 100_000, "kilobytes"


# Fewer frames per second


@pytest.mark.parametrize(
    ("rate", "fps", "step"),
    [
        (24, 24, 1),
        (24, 12, 2),
        (25, 5, 5),
        (Fraction(30_000, 1001), 15, 2),
        (Fraction(24_000, 1001), 12, 2),
        (50, 25, 2),
    ],
)
def test_a_rate_that_divides_the_clips_is_a_step(tmp_path: Path, rate: Fraction | int, fps: float, step: int) -> None:
    assert step_for(fps, probe(write_clip(tmp_path / "clip.mp4", rate=rate))) == step


def test_a_rate_above_the_clips_own_is_refused(tmp_path: Path) -> None:
    info = probe(write_clip(tmp_path / "clip.mp4", rate=30))
    with pytest.raises(InputError, match="is above the clip's 30, and frames are not"):
        step_for(60, info)
    assert step_for(12, info) is None, "no step gives it: frames are chosen by their times"
