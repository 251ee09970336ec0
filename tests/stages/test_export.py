"""Promises of writing: the source's times and sound, true colours, whole files only."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from stages.media import export
from stages.media.export import check_output, write_video
from stages.media.sheets import contact_sheet, save_png
from stages.media.video import Clip, read_pictures, survey
from store.errors import InputError
from tests.stages.clips import audio_packets, number_of, numbered, write_clip


def even(count: int, rate: Fraction | int = 24, first: int = 0) -> dict[str, Any]:
    """Times of `count` evenly spaced frames, from frame `first` on."""
    return {
        "pts": [float((first + i) / Fraction(rate)) for i in range(count)],
        "durations": [float(1 / Fraction(rate))] * count,
        "fps": str(rate),
    }


def frames(count: int, width: int = 96, height: int = 64, first: int = 0) -> np.ndarray[Any, Any]:
    return np.stack([numbered(first + i, width, height) for i in range(count)])


def read(path: Path) -> tuple[Clip, list[int], list[float]]:
    clip = survey(path)
    pictures = list(read_pictures(clip))
    return clip, [number_of(picture.rgb) for picture in pictures], [picture.pts for picture in pictures]


def heard(path: Path) -> tuple[np.ndarray[Any, Any], int]:
    """(left channel, rate) as a player that heeds edit lists hears it: from presentation time 0 on."""
    with av.open(str(path)) as container:
        stream, pieces = container.streams.audio[0], []
        for frame in container.decode(stream):
            assert frame.time is not None
            samples = frame.to_ndarray()
            left = samples[0] if frame.format.is_planar else samples[0, :: frame.layout.nb_channels]
            pieces.append(left[max(0, round(-frame.time * stream.rate)) :].astype(float))
        return np.concatenate(pieces), stream.rate


# Pictures and times


@pytest.mark.parametrize("rate", [24, Fraction(24000, 1001), Fraction(25, 2)])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_constant_rate_and_length_are_kept(tmp_path: Path, rate: Fraction | int, suffix: str) -> None:
    path = tmp_path / f"edit{suffix}"
    written = write_video(path, iter([frames(16), frames(5, first=16)]), **even(21, rate))
    clip, shown, times = read(path)
    assert shown == list(range(21))
    assert (clip.info.average_fps, clip.info.variable, clip.info.frames) == (str(rate), False, 21)
    rounding = 0.001 if suffix == ".mkv" else 1e-9
    assert times == pytest.approx([float(i / Fraction(rate)) for i in range(21)], abs=rounding)
    assert clip.info.duration == pytest.approx(float(21 / Fraction(rate)), abs=2 * rounding)
    assert (written.frames, written.fps, written.width, written.height, written.notes) == (21, str(rate), 96, 64, ())
    assert written.seconds == pytest.approx(clip.info.duration, abs=2 * rounding)


@pytest.mark.parametrize("time_base", [Fraction(1, 1000), Fraction(1, 90_000), Fraction(1, 12_800)])
def test_variable_times_are_kept_exactly(tmp_path: Path, time_base: Fraction) -> None:
    ticks = [500, 540, 590, 600, 833, 834, 1500, 1517]
    pts = [float(tick * time_base) for tick in ticks]
    durations = [*np.diff(pts), float(33 * time_base)]
    path = tmp_path / "edit.mp4"
    write_video(path, [frames(8)], pts=pts, durations=durations, fps="24", variable=True)
    clip, shown, times = read(path)
    assert shown == list(range(8))
    assert times == pytest.approx([float((tick - 500) * time_base) for tick in ticks], abs=1e-9)
    assert clip.info.duration == pytest.approx(float((1517 - 500 + 33) * time_base), abs=1e-9)
    assert clip.info.variable


def test_equal_times_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "edit.mp4"
    write_video(path, [frames(3)], pts=[0, 0.1, 0.1], durations=[0.1, 0, 0.1], fps="10", variable=True)
    _, shown, times = read(path)
    assert shown == [0, 1, 2]
    assert times == sorted(set(times))


def test_colours_survive_and_are_tagged(tmp_path: Path) -> None:
    swatches = [(220, 40, 40), (40, 200, 60), (30, 60, 210), (128, 128, 128), (250, 250, 250), (5, 5, 5)]
    rgb = np.repeat(np.array([[c] * 32 for c in swatches], np.uint8).reshape(1, 1, -1, 3), 64, axis=1)
    path = tmp_path / "edit.mp4"
    write_video(path, [rgb], **even(1))
    clip = survey(path)
    assert (clip.info.colour_matrix, clip.info.colour_range, clip.info.pixel_format) == ("bt709", "limited", "yuv420p")
    shown = next(read_pictures(clip)).rgb.astype(int)
    for place, colour in enumerate(swatches):
        assert shown[32, 32 * place + 16] == pytest.approx(colour, abs=4)
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        assert (context.color_primaries, context.color_trc) == (1, 1)


def test_odd_sizes_are_kept_and_said(tmp_path: Path) -> None:
    path = tmp_path / "edit.mp4"
    written = write_video(path, [frames(4, 101, 67)], **even(4))
    clip, shown, _ = read(path)
    assert (clip.info.width, clip.info.height) == (101, 67)
    assert shown == [0, 1, 2, 3]
    assert "odd size 101×67" in written.notes[0]


def test_frames_are_taken_one_block_at_a_time(tmp_path: Path) -> None:
    held: list[int] = []

    def blocks() -> Iterator[np.ndarray[Any, Any]]:
        for start in range(0, 200, 10):
            held.append(sum(part.stat().st_size for part in tmp_path.iterdir()))
            yield noise[start % 50 : start % 50 + 10]

    noise = np.random.default_rng(0).integers(0, 255, (60, 64, 96, 3), dtype=np.uint8)
    first = noise[:1]
    write_video(tmp_path / "edit.mkv", (b for s in ((first,), blocks()) for b in s), **even(201))
    assert held[-1] > 50_000, "most of the file is written before the last block is asked for"


# Sound


@pytest.mark.parametrize(
    ("source", "codec"),
    [("source.mp4", "aac"), ("source.mkv", "aac"), ("source.mp4", "libmp3lame"), ("source.mkv", "flac")],
)
def test_sound_passes_through_bit_for_bit(tmp_path: Path, source: str, codec: str) -> None:
    video = write_clip(tmp_path / source, frames=24, audio=codec)
    path = tmp_path / "edit.mp4"
    written = write_video(path, [frames(24)], **even(24), source=video)
    assert written.has_audio
    assert written.notes == ()
    assert audio_packets(path) == audio_packets(video)
    clip, shown, times = read(path)
    assert shown == list(range(24))
    assert times[0] == 0
    assert clip.info.frames == 24


def test_sound_is_cut_to_the_frames_and_in_step_with_them(tmp_path: Path) -> None:
    video = write_clip(tmp_path / "source.mp4", frames=48, audio="aac", seconds_of_audio=2)
    path = tmp_path / "edit.mp4"
    write_video(path, [frames(24, first=12)], **even(24, first=12), source=video)
    packets, every = audio_packets(path), audio_packets(video)
    first = every.index(packets[0])
    assert packets == every[first : first + len(packets)]
    assert len(packets) == pytest.approx(48_000 / 1024, abs=3)
    whole, rate = heard(video)
    part, _ = heard(path)
    assert len(part) == pytest.approx(rate, abs=1100)
    begin = rate // 2
    middle = slice(4800, 24_000)
    assert np.abs(part[middle] - whole[begin:][middle]).max() < 1e-3, "0.5 s into the source, to the sample"


@pytest.mark.parametrize("first", [0, 12])
def test_sound_that_mp4_does_not_hold_becomes_aac_and_is_said(tmp_path: Path, first: int) -> None:
    video = write_clip(tmp_path / "source.mkv", frames=48, audio="pcm_s16le", seconds_of_audio=2)
    path = tmp_path / "edit.mp4"
    written = write_video(path, [frames(24, first=first)], **even(24, first=first), source=video)
    assert "encoded anew as AAC" in written.notes[0]
    assert survey(path).info.audio_codec == "aac"
    whole, rate = heard(video)
    part, _ = heard(path)
    begin, middle = first * rate // 24, slice(4800, 24_000)
    expected = whole[begin:][middle] / 32768
    assert np.corrcoef(part[middle], expected)[0, 1] > 0.99, "in step with the pictures"
    assert len(part) == pytest.approx(rate, abs=2100)


def test_a_step_keeps_the_length_and_the_sound(tmp_path: Path) -> None:
    video = write_clip(tmp_path / "source.mp4", frames=24, audio="aac")
    path = tmp_path / "edit.mp4"
    times = {"pts": [i / 12 for i in range(12)], "durations": [1 / 12] * 12, "fps": "24"}
    written = write_video(path, [frames(24)[::2]], **times, step=2, source=video)
    assert (written.fps, written.has_audio, written.seconds) == ("12", True, 1.0)
    clip, shown, _ = read(path)
    assert (shown, clip.info.average_fps, clip.info.has_audio) == (list(range(0, 24, 2)), "12", True)
    assert audio_packets(path) == audio_packets(video)


def test_a_silent_source_gives_a_silent_film(tmp_path: Path) -> None:
    video = write_clip(tmp_path / "source.mp4", frames=4)
    written = write_video(tmp_path / "edit.mp4", [frames(4)], **even(4), source=video)
    assert (written.has_audio, written.notes) == (False, ())


def test_sound_in_matroska_does_not_move_the_pictures(tmp_path: Path) -> None:
    video = write_clip(tmp_path / "source.mp4", frames=48, audio="aac", seconds_of_audio=2)
    path = tmp_path / "edit.mkv"
    assert write_video(path, [frames(24, first=12)], **even(24, first=12), source=video).has_audio
    assert read(path)[2][0] == 0


# Whole or not at all


def test_nothing_is_left_of_a_film_that_fails(tmp_path: Path) -> None:
    def blocks() -> Iterator[np.ndarray[Any, Any]]:
        yield frames(8)
        raise RuntimeError("the model went away")

    path = tmp_path / "edit.mp4"
    path.write_bytes(b"an older film")
    with pytest.raises(RuntimeError, match="went away"):
        write_video(path, blocks(), **even(16))
    assert [file.name for file in tmp_path.iterdir()] == ["edit.mp4"]
    assert path.read_bytes() == b"an older film"


def test_a_wrong_number_of_frames_is_our_own_mistake(tmp_path: Path) -> None:
    for given in (7, 9):
        with pytest.raises(ValueError, match="zip"):
            write_video(tmp_path / "edit.mp4", [frames(given)], **even(8))
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no device that is always full")
    monkeypatch.setattr(export, "_beside", lambda path: tmp_path / f"part{path.suffix}")
    monkeypatch.setattr(export, "check_output", lambda path, source, encoding: None)
    (tmp_path / "part.mkv").symlink_to(full)
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 96, 3), dtype=np.uint8)
    with pytest.raises(InputError, match=r"edit\.mkv cannot be written \(No space left"):
        write_video(tmp_path / "edit.mkv", [noise], **even(48))
    assert not (tmp_path / "edit.mkv").exists()


def test_outputs_that_cannot_be_written_are_known_beforehand(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "source.mp4", frames=2)
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "file").touch()
    for path, sentence in (
        (tmp_path / "edit.avi", r"end its name in \.mp4"),
        (tmp_path / "file", "is a file, and a name without an ending is a folder of PNGs"),
        (tmp_path, "holds other things than pictures that tf wrote"),
        (tmp_path / "folder.mp4", "is a folder"),
        (tmp_path / "nowhere" / "edit.mp4", "make it first"),
        (tmp_path / "file" / "edit.mp4", "there is no folder"),
        (Path("/proc/edit.mp4"), "cannot be written"),
        (source, "is the source itself"),
    ):
        with pytest.raises(InputError, match=sentence) as caught:
            check_output(path, source)
        assert "\n" not in str(caught.value)
    check_output(tmp_path / "edit.MP4", source)
    assert {file.name for file in tmp_path.iterdir()} == {"source.mp4", "folder.mp4", "file"}


# Contact sheets


def test_a_sheet_shows_first_and_last_frames_and_labels(tmp_path: Path) -> None:
    sheet = contact_sheet([("source", frames(9)), ("a very long prompt " * 30, frames(3))], columns=4, scale=1)
    pixels = np.asarray(sheet)
    top = next(y for y in range(len(pixels)) if tuple(pixels[y, 20]) == (220, 40, 40))
    places = [16 + i * (96 + 6) for i in range(4)]
    assert [number_of(pixels[top : top + 64, x : x + 96]) for x in places] == [0, 3, 5, 8]
    assert (pixels[:top] < 100).any(), "the label is drawn"
    assert sheet.width == 2 * 16 + 4 * 96 + 3 * 6, "a long label widens nothing"
    save_png(sheet, tmp_path / "sheet.png")
    assert [file.name for file in tmp_path.iterdir()] == ["sheet.png"]
    with pytest.raises(InputError, match="cannot be written"):
        save_png(sheet, tmp_path / "nowhere" / "sheet.png")
