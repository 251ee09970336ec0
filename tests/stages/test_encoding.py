"""Promises of what clips are written as: each codec plays and keeps its times; the rest is refused in a sentence."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from stages.media.encoding import QUALITY, Encoding, choose_format
from stages.media.export import check_output, write_video
from stages.media.transparency import with_alpha
from stages.media.video import pictures_at, read_pictures, survey
from store.errors import InputError
from tests.stages.clips import number_of, numbered, write_clip
from tests.stages.test_export import even, frames

H264_10_BIT = Encoding(pixel_format="yuv420p10le")  # takes no odd size
FILMS = [
    (".mp4", Encoding(), "h264", "yuv420p"),
    (".mp4", H264_10_BIT, "h264", "yuv420p10le"),
    (".mp4", Encoding(codec="hevc"), "hevc", "yuv420p"),
    (".mp4", Encoding(codec="av1", pixel_format="yuv420p10le"), "av1", "yuv420p10le"),
    (".mov", Encoding(codec="prores"), "prores", "yuv422p10le"),
    (".mov", Encoding(codec="prores", pixel_format="yuv444p10le"), "prores", "yuv444p12le"),
    (".mkv", Encoding(codec="vp9", pixel_format="yuv444p"), "vp9", "yuv444p"),
    (".webm", Encoding(), "vp9", "yuv420p"),
    (".webm", Encoding(codec="av1"), "av1", "yuv420p"),
]
UNEVEN = {"pts": [0.5, 0.54, 0.6, 1.0, 1.07, 1.2], "durations": [0.04, 0.06, 0.4, 0.07, 0.13, 0.1], "fps": "24"}


def patterns(count: int, width: int = 96, height: int = 64) -> np.ndarray[Any, Any]:
    """Numbered frames with fine grain, of which little is left where quality is low."""
    grain = np.random.default_rng(0).integers(0, 80, (count, height, width, 3), dtype=np.uint8)
    grain[:, -8:] = 0
    return np.stack([numbered(i, width, height) for i in range(count)]) // 3 * 2 + grain


def played(file: Path) -> list[tuple[int, int]]:
    """(number, milliseconds) of each picture of an animated file."""
    shown = []
    with Image.open(file) as picture:
        assert picture.info["loop"] == 0, "it goes on for ever"
        for index in range(getattr(picture, "n_frames", 1)):
            picture.seek(index)
            picture.load()
            shown.append((number_of(np.asarray(picture.convert("RGB"))), int(picture.info["duration"])))
    return shown


@pytest.mark.parametrize(
    ("suffix", "encoding", "codec", "stored", "size"),
    [(*film, (96, 64)) for film in FILMS] + [(*film, (101, 67)) for film in FILMS if film[1] != H264_10_BIT],
)
def test_every_codec_plays_whole_and_in_true_colours(
    tmp_path: Path, suffix: str, encoding: Encoding, codec: str, stored: str, size: tuple[int, int]
) -> None:
    path = tmp_path / f"edit{suffix}"
    written = write_video(path, [frames(5, *size)], **even(5), encoding=encoding)
    clip = survey(path)
    pictures = list(read_pictures(clip))
    assert [number_of(picture.rgb) for picture in pictures] == list(range(5))
    assert (clip.info.width, clip.info.height, clip.info.average_fps) == (*size, "24")
    assert (clip.info.codec.removeprefix("libdav1d") or "av1", written.codec) == (codec, codec)
    if not size[0] % 2:
        assert clip.info.pixel_format == stored
    assert clip.info.colour_matrix == "bt709"
    assert pictures[0].rgb[16, 16].astype(int) == pytest.approx([220, 40, 40], abs=6)


@pytest.mark.parametrize(("suffix", "encoding", "codec", "stored"), FILMS)
def test_every_codec_keeps_uneven_times(
    tmp_path: Path, suffix: str, encoding: Encoding, codec: str, stored: str
) -> None:
    path = tmp_path / f"edit{suffix}"
    write_video(path, [frames(6)], **UNEVEN, variable=True, encoding=encoding)
    clip = survey(path)
    times = [picture.pts for picture in read_pictures(clip)]
    assert times == pytest.approx([pts - 0.5 for pts in UNEVEN["pts"]], abs=1e-3)
    if suffix in (".mp4", ".mov"):
        assert clip.info.duration == pytest.approx(0.8, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "encoding"),
    [("a.mp4", Encoding()), ("a.mp4", Encoding(codec="hevc")), ("a.mp4", Encoding(codec="av1")), ("a.webm", Encoding()),
     ("a.mov", Encoding(codec="prores")), ("a.webp", Encoding()), ("a.gif", Encoding())],
)  # fmt: skip
def test_one_scale_of_quality_orders_sizes_of_every_codec(tmp_path: Path, name: str, encoding: Encoding) -> None:
    noisy, sizes = patterns(4), []
    for quality in (0, 40, 100):
        file = tmp_path / f"{quality}{name}"
        write_video(file, [noisy], **even(4), encoding=encoding.model_copy(update={"quality": quality}))
        sizes.append(file.stat().st_size)
    assert sizes == sorted(set(sizes))


def test_the_default_quality_is_the_one_that_is_named(tmp_path: Path) -> None:
    for name, encoding in (("said", Encoding(quality=QUALITY)), ("not", Encoding())):
        write_video(tmp_path / f"{name}.mp4", [frames(4)], **even(4), encoding=encoding)
    assert (tmp_path / "said.mp4").read_bytes() == (tmp_path / "not.mp4").read_bytes()
    assert choose_format(tmp_path / "a.mp4", Encoding()).options(in_order=False)["crf"] == "12"


@pytest.mark.parametrize(
    ("name", "encoding"),
    [("a.mp4", Encoding()), ("a.mkv", Encoding()), ("a.mp4", Encoding(codec="av1")), ("a.webm", Encoding()),
     ("a.mov", Encoding(codec="prores")), ("a.webp", Encoding()), ("a.gif", Encoding())],
)  # fmt: skip
def test_equal_frames_give_equal_bytes(tmp_path: Path, name: str, encoding: Encoding) -> None:
    """Of HEVC they do not: see docs/clips.md."""
    sound = write_clip(tmp_path / "source.mp4", frames=9, audio="aac")
    for folder in "ab":
        (tmp_path / folder).mkdir()
        write_video(tmp_path / folder / name, [patterns(9)], **even(9), source=sound, encoding=encoding)
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_h264_is_never_reordered(tmp_path: Path) -> None:
    """Where it is, x264 may write a clip differently a second time: see docs/decisions.md."""
    write_video(tmp_path / "a.mp4", [patterns(30)], **even(30))
    with av.open(tmp_path / "a.mp4") as container:
        times = [(packet.pts, packet.dts) for packet in container.demux(video=0) if packet.size]
    assert len(times) == 30 and all(pts == dts for pts, dts in times)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_hevc_of_few_frames_is_decoded_as_it_is_shown(tmp_path: Path, count: int) -> None:
    """Where it reorders so few, x265 leaves now and then no times that can be written."""
    write_video(tmp_path / "a.mp4", [frames(count)], **even(count), encoding=Encoding(codec="hevc"))
    with av.open(tmp_path / "a.mp4") as container:
        times = [(packet.pts, packet.dts) for packet in container.demux(video=0) if packet.size]
    assert len(times) == count and all(pts == dts for pts, dts in times)


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="a process is scheduled otherwise here")
def test_no_codec_makes_the_process_real_time(tmp_path: Path) -> None:
    """SVT-AV1 does, for root: everything else on the machine then waits for this process."""

    def policies() -> set[int]:
        return {os.sched_getscheduler(int(task.name)) for task in Path("/proc/self/task").iterdir()}

    before, during = policies(), set()

    def blocks() -> Iterator[np.ndarray[Any, Any]]:
        for block in (frames(4), frames(4)):
            yield block
            during.update(policies())

    write_video(tmp_path / "a.mp4", blocks(), **even(8), encoding=Encoding(codec="av1"))
    assert before == during == policies()


# For sharing: GIF and WebP


def test_a_gif_plays_in_step_with_its_colours(tmp_path: Path) -> None:
    path = tmp_path / "edit.gif"
    written = write_video(path, [patterns(5)[:2], patterns(5)[2:]], **even(5, 25))
    assert played(path) == [(i, 40) for i in range(5)]
    assert (written.codec, written.has_audio, written.frames) == ("gif", False, 5)
    with Image.open(path) as picture:
        shown = np.asarray(picture.convert("RGB")).astype(int)
    assert np.abs(shown - patterns(1)[0]).mean() < 12


def test_a_gif_rounds_times_without_drifting(tmp_path: Path) -> None:
    path = tmp_path / "edit.gif"
    write_video(path, [frames(30)], **even(30, 30))
    milliseconds = [each[1] for each in played(path)]
    assert set(milliseconds) == {30, 40}
    assert sum(milliseconds) == 1000


def test_a_gif_drops_what_viewers_would_slow_down_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "edit.gif"
    written = write_video(path, [frames(60)], **even(60, 100))
    assert played(path) == [(2 * i, 20) for i in range(30)]
    assert written.notes == ("30 of 60 frames are left out: a GIF shows at most 50 per second",)


def test_a_gif_of_a_store_is_read_twice_and_never_held_whole(tmp_path: Path) -> None:
    class Blocks:
        """Counts what is read of it."""

        read = 0

        def __iter__(self) -> Iterator[np.ndarray[Any, Any]]:
            for number in range(6):
                self.read += 1
                yield frames(1, first=number)

    blocks = Blocks()
    write_video(tmp_path / "edit.gif", blocks, **even(6, 25))
    assert blocks.read == 1 + 6 + 6, "for the size, the palette, and the pictures"


def test_a_webp_keeps_uneven_times(tmp_path: Path) -> None:
    path = tmp_path / "edit.webp"
    write_video(path, [patterns(6)], **UNEVEN, variable=True)
    shown = played(path)
    assert [number for number, _ in shown] == list(range(6))
    assert [milliseconds for _, milliseconds in shown][:5] == [40, 60, 400, 70, 130]


def test_a_webp_of_quality_100_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "edit.webp"
    write_video(path, [patterns(2)], **even(2), encoding=Encoding(quality=100))
    with Image.open(path) as picture:
        assert np.array_equal(np.asarray(picture.convert("RGB")), patterns(2)[0])


# For editors: PNG folders


def test_a_name_without_an_ending_is_a_folder_of_pngs(tmp_path: Path) -> None:
    path = tmp_path / "out"
    for count in (12, 3):  # the second replaces the first
        written = write_video(path, [patterns(count)], **even(count))
        names = sorted(each.name for each in path.iterdir())
        assert names == [f"{i:05d}.png" for i in range(count)]
        assert np.array_equal(np.asarray(Image.open(path / "00002.png")), patterns(count)[2])
        assert (written.codec, written.frames) == ("png", count)
    assert [each.name for each in tmp_path.iterdir()] == ["out"]


def test_a_folder_with_anything_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").touch()
    with pytest.raises(InputError, match="holds other things than pictures that tf wrote; name a new folder"):
        write_video(tmp_path / "out", [frames(2)], **even(2))
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_a_folder_that_fails_leaves_the_one_before(tmp_path: Path) -> None:
    write_video(tmp_path / "out", [frames(2)], **even(2))
    with pytest.raises(RuntimeError, match="went away"):
        write_video(tmp_path / "out", failing(), **even(9))
    assert [each.name for each in tmp_path.iterdir()] == ["out"]
    assert len(list((tmp_path / "out").iterdir())) == 2


def failing() -> Iterator[np.ndarray[Any, Any]]:
    yield frames(1)
    raise RuntimeError("the model went away")


# Sound


@pytest.mark.parametrize("name", ["edit.gif", "edit.webp", "edit"])
def test_sound_is_left_out_aloud(tmp_path: Path, name: str) -> None:
    video = write_clip(tmp_path / "source.mp4", frames=6, audio="aac", seconds_of_audio=0.25)
    written = write_video(tmp_path / name, [frames(6)], **even(6), source=video)
    assert "the source's sound is left out: a " in written.notes[0]
    assert not written.has_audio


def test_webm_has_its_sound_as_opus(tmp_path: Path) -> None:
    video = write_clip(tmp_path / "source.mp4", frames=24, audio="aac")
    written = write_video(tmp_path / "edit.webm", [frames(24)], **even(24), source=video)
    assert written.notes == ("the source's sound is encoded anew as Opus, since .webm does not hold aac",)
    with av.open(str(tmp_path / "edit.webm")) as container:
        heard = sum(frame.samples for frame in container.decode(audio=0)) / 48_000
    assert heard == pytest.approx(1, abs=0.05)


# What cannot be written is one sentence, beforehand

REFUSED: list[tuple[str, Encoding, str]] = [
    ("a.mp4", Encoding(codec="prores"), r"prores does not go into a \.mp4 file, which holds h264, hevc, av1; .*\.mov"),
    ("a.gif", Encoding(codec="h264"), r"h264 does not go into a \.gif file, which holds gif"),
    ("a", Encoding(codec="hevc"), "does not go into a folder such as .*, which holds png"),
    ("a.mp4", Encoding(pixel_format="bgr0"), "bgr0 is none that h264 is written in here; have yuv420p, yuv444p"),
    ("a.webm", Encoding(codec="av1", pixel_format="yuv444p"), "have yuv420p, yuv420p10le"),
    ("a", Encoding(quality=50), "--quality says nothing about PNG"),
    ("a.avi", Encoding(), r"end its name in \.mp4, .*, or in nothing for a folder of PNGs"),
]


@pytest.mark.parametrize(("name", "encoding", "sentence"), REFUSED)
def test_what_does_not_go_together_is_one_sentence(
    tmp_path: Path, name: str, encoding: Encoding, sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence) as caught:
        check_output(tmp_path / name, encoding=encoding)
    assert "\n" not in str(caught.value)


def test_an_odd_size_is_refused_where_it_was_asked_for(tmp_path: Path) -> None:
    asked = Encoding(pixel_format="yuv420p10le")
    with pytest.raises(InputError, match="cannot hold the odd size 101×67; take yuv444p, or an even --size"):
        choose_format(tmp_path / "a.mp4", asked, (101, 67))
    assert choose_format(tmp_path / "a.mp4", Encoding(), (101, 67)).pixel_format == "yuv444p"


# Transparency

SEEN = np.zeros((64, 96), np.uint8)
SEEN[:, :32], SEEN[:, 32:64] = 255, 128


def transparent(file: Path) -> np.ndarray[Any, Any]:
    """rgba (frame, height, width, 4) of what was written, by decoders that are none of ours."""
    if file.is_dir():
        return np.stack([np.asarray(Image.open(each)) for each in sorted(file.iterdir())])
    if file.suffix in (".gif", ".webp"):
        with Image.open(file) as picture:
            return np.stack(
                [np.asarray(picture.convert("RGBA")) for n in range(picture.n_frames) for _ in [picture.seek(n)]]
            )
    with av.open(file) as container:
        stream = container.streams.video[0]
        decoder = stream.codec_context
        if stream.codec_context.name == "vp9":
            assert stream.metadata.get("alpha_mode") == "1", "players look for alpha where this says so"
            decoder = av.CodecContext.create("libvpx-vp9", "r")
        shown = [frame for packet in container.demux(stream) if packet.size for frame in decoder.decode(packet)]
        shown += decoder.decode(None)
        return np.stack([frame.to_ndarray(format="rgba") for frame in shown])


@pytest.mark.parametrize(
    ("name", "stored"),
    [("a.mov", "yuva444p10le"), ("a.mkv", "yuva420p"), ("a.webm", "yuva420p"), ("a.webp", "bgra"), ("a.gif", "pal8"),
     ("a", "rgba")],
)  # fmt: skip
def test_transparency_is_kept_by_what_can_hold_it(tmp_path: Path, name: str, stored: str) -> None:
    rgba = np.concatenate([frames(5), np.broadcast_to(SEEN[None, ..., None], (5, 64, 96, 1))], axis=-1)
    written = write_video(tmp_path / name, [rgba[:2], rgba[2:]], **even(5, 25), encoding=Encoding(keep_alpha=True))
    shown = transparent(tmp_path / name)
    assert written.pixel_format == stored and not written.notes and shown.shape == (5, 64, 96, 4)
    alpha = np.where(SEEN >= 128, 255, 0) if name == "a.gif" else SEEN
    assert np.abs(shown[..., 3].astype(int) - alpha)[:, 2:-2].mean() < 1
    assert np.abs(shown[:, :48, 4:28, :3].astype(int) - rgba[:, :48, 4:28, :3]).mean() < 8, "in true colours"
    if not name.endswith((".webp", "a")):
        clip = survey(tmp_path / name)
        read = [picture.alpha for picture in read_pictures(clip) if picture.alpha is not None]
        assert clip.info.has_alpha and np.abs(np.stack(read).astype(int) - shown[..., 3]).mean() < 1, "and we read it"
        sought = next(pictures_at(clip, [3])).rgb
        assert np.array_equal(sought, [*read_pictures(clip)][3].rgb)


@pytest.mark.parametrize(
    ("name", "encoding", "fault"),
    [
        ("a.mp4", Encoding(keep_alpha=True), "a .mp4 file holds no transparency"),
        ("a.mov", Encoding(keep_alpha=True, codec="hevc"), "--codec hevc holds no transparency"),
        ("a.mov", Encoding(keep_alpha=True, pixel_format="yuv444p10le"), "with transparency; have yuva444p10le"),
    ],
)
def test_what_holds_no_transparency_is_refused_it(tmp_path: Path, name: str, encoding: Encoding, fault: str) -> None:
    with pytest.raises(InputError, match=fault):
        check_output(tmp_path / name, encoding=encoding)


def test_colours_come_back_over_the_background_they_were_edited_over() -> None:
    """Without a rim of it: what is half seen is not half black."""
    edited = np.array([[[100, 60, 20], [50, 130, 140], [20, 160, 240]]], np.uint8)
    alpha, background = np.array([[255, 128, 0]], np.uint8), (20, 160, 240)
    rgba = with_alpha(edited, alpha, background)
    assert rgba[0, 0].tolist() == [100, 60, 20, 255] and rgba[0, 2].tolist() == [20, 160, 240, 0]
    assert rgba[0, 1, :3] == pytest.approx([80, 100, 41], abs=1)
    share = rgba[..., 3:] / 255
    assert rgba[..., :3] * share + np.array(background) * (1 - share) == pytest.approx(edited, abs=1)
