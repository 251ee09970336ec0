"""Whole edits of clips as people have them, on a tiny model: odd shapes, few frames, black bars, thinned masks."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flows.config import make_config, make_runtime
from flows.export import Unpadded, export_key
from flows.listing import videos
from flows.one_part import given
from flows.plan import Plan
from flows.reproduce import plan_again
from flows.run import Result, run_edit
from flows.sidecar import read_sidecar
from flows.videos import KnownVideo
from stages import read_masks
from stages.media.encoding import Encoding
from stages.media.letterbox import with_bars
from stages.media.video import probe, read_pictures, survey
from store.errors import InputError
from tests.flows.runs import Executed, edit
from tests.stages.clips import numbered, write_clip

Plans = Callable[..., Plan]
LOSSLESS: dict[str, Any] = {"codec": "ffv1", "pixel_format": "bgr0"}
BARS = (9, 0, 9, 0)


def artifact(result: Result, stage: str) -> Any:
    return next(use.artifact for use in result.uses if use.node.stage == stage)


@pytest.mark.parametrize(
    ("made", "size"),
    [
        ({"width": 35, "height": 33, "pixel_format": "yuv444p"}, (35, 33)),
        ({"width": 64, "height": 32, "rotation": 90}, (32, 64)),
        ({"width": 48, "height": 64, "aspect": Fraction(4, 3)}, (64, 64)),
        ({"width": 36, "height": 64}, (36, 64)),
        ({"width": 40, "height": 24}, (40, 24)),
        ({"width": 32, "height": 32, "frames": 1}, (32, 32)),
        ({"width": 32, "height": 32, "frames": 2}, (32, 32)),
    ],
    ids=["odd", "rotated", "not square", "portrait", "small", "one frame", "two frames"],
)
def test_a_clip_of_any_shape_and_length_is_edited(
    plan: Plans, tmp_path: Path, executed: Executed, made: dict[str, Any], size: tuple[int, int]
) -> None:
    source = write_clip(tmp_path / "source.mp4", **({"frames": 3} | made))
    edit(plan(source), tmp_path)
    then, now = probe(source), probe(tmp_path / "edit.mp4")
    assert (now.width, now.height, now.rotation, now.frames) == (*size, 0, then.frames)
    assert now.duration == pytest.approx(then.duration, abs=1e-3)


@pytest.fixture
def barred(tmp_path: Path) -> Path:
    """Seven frames of 32 × 32 between black bars, without loss."""
    pictures = [*with_bars(np.stack([numbered(n, 32, 32) for n in range(7)]), BARS)]
    return write_clip(tmp_path / "bars.mkv", pictures=pictures, width=32, height=50, **LOSSLESS)


def test_what_is_between_bars_is_edited_as_if_there_were_none(
    plan: Plans, barred: Path, tmp_path: Path, executed: Executed
) -> None:
    bare = write_clip(tmp_path / "bare.mkv", frames=7, width=32, height=32, **LOSSLESS)
    (tmp_path / "bare").mkdir()
    alone, first = edit(plan(bare), tmp_path / "bare"), plan(barred)
    between = edit(first, tmp_path)
    rgb = artifact(between, "propagate_tokens")["rgb"][:]
    assert np.array_equal(rgb, artifact(alone, "propagate_tokens")["rgb"][:])
    shown = np.stack([picture.rgb for picture in read_pictures(survey(tmp_path / "edit.mp4"))])
    assert shown.shape[1:3] == (50, 32)
    assert shown[:, :6].max() <= 20 and shown[:, -6:].max() <= 20, "bars are black in what is written"
    assert np.abs(shown[:, 9:-9].astype(int) - rgb).mean() < 8, "and the edit is where the picture was"

    sidecar = tmp_path / "edit.mp4.json"
    again, _ = plan_again(sidecar, first.store, first.runtime)
    assert [node.key for node in again.nodes] == [node.key for node in first.nodes]
    assert read_sidecar(sidecar).config.letterbox == "auto"


def test_a_size_that_does_not_suit_the_model_comes_back_to_the_pixel(
    plan: Plans, tmp_path: Path, executed: Executed
) -> None:
    bars = (11, 0, 12, 0)
    pictures = [*with_bars(np.stack([numbered(n, 35, 33) for n in range(7)]), bars)]
    source = write_clip(tmp_path / "odd.mkv", pictures=pictures, width=35, height=56, **LOSSLESS)
    asked = plan(source)
    assert asked.clip_size == (35, 56) and asked.decode.spec.shown == (35, 33)
    result = edit(asked, tmp_path)
    shown = np.stack([picture.rgb for picture in read_pictures(survey(tmp_path / "edit.mp4"))])
    rgb = artifact(result, "propagate_tokens")["rgb"][:]
    assert shown.shape[1:3] == (56, 35) and rgb.shape[1:3] == (asked.size[1], asked.size[0]) != (33, 35)
    assert shown[:, :8].max() <= 20 and shown[:, -9:].max() <= 20
    assert np.abs(shown[:, 11:-12].astype(int) - rgb[:, :33, :35]).mean() < 8

    frames = artifact(result, "decode_frames")
    looked_at = Unpadded(artifact(result, "propagate_tokens"), frames)["rgb"]
    assert looked_at.shape == (7, 33, 35, 3) and np.array_equal(looked_at[2:4], rgb[2:4, :33, :35])
    assert list(frames.attrs["padding"]) == [asked.size[0] - 35, asked.size[1] - 33]
    assert (35, 33) in [(video.width, video.height) for video in videos(asked.store)], "as tf list has it"


def test_masks_and_points_are_of_the_picture_and_not_of_its_padding(plan: Plans, tmp_path: Path) -> None:
    source = write_clip(tmp_path / "odd.mkv", frames=7, width=35, height=33, **LOSSLESS)
    drawn = np.zeros((33, 35), np.uint8)
    drawn[:, 20:] = 255
    Image.fromarray(drawn).save(tmp_path / "mask.png")
    asked = plan(source, mask=tmp_path / "mask.png", mask_feather=0)
    assert asked.mask is not None
    [block] = read_masks.run(asked.mask.spec, range(1), frames=1, mask=tmp_path / "mask.png", aspect=35 / 33)
    width, height = asked.size
    assert block.values.shape == (1, height, width)
    assert np.array_equal(block.values[0, :33, :35], drawn) and block.values[0, :, 35:].min() == 255


def test_a_worker_without_the_video_knows_the_bars(plan: Plans, barred: Path) -> None:
    here = plan(barred)
    said = given(here)
    barred.unlink()
    there = Plan(
        make_config(**said["config"]), make_runtime(**said["runtime"]), here.store,
        KnownVideo.model_validate(said["video"]),
    )  # fmt: skip
    assert here.decode.spec.bars is not None
    assert [node.key for node in there.nodes] == [node.key for node in here.nodes]


def test_a_folder_of_control_images_does_not_go_with_bars(
    plan: Plans, barred: Path, control_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "edges").mkdir()
    for n in range(7):
        Image.new("RGB", (32, 50)).save(tmp_path / "edges" / f"{n}.png")
    asked = {"kind": "given", "model": str(control_folder), "video": tmp_path / "edges"}
    options: dict[str, Any] = {"editor": "controlnet", "controls": (asked,)}
    with pytest.raises(InputError, match="black bars are cut off; give a control video, or say --letterbox keep"):
        plan(barred, **options)


def test_a_mask_is_drawn_on_the_picture_with_its_bars(
    plan: Plans, barred: Path, tmp_path: Path, executed: Executed
) -> None:
    drawn = np.zeros((50, 32), np.uint8)
    drawn[9:25] = 255  # the upper half of what is between
    Image.fromarray(drawn).save(tmp_path / "mask.png")
    result = edit(plan(barred, mask=tmp_path / "mask.png", mask_feather=0), tmp_path)
    assert np.array_equal(artifact(result, "read_masks")["mask"][:], np.broadcast_to(drawn[9:41], (7, 32, 32)))


def test_masks_are_those_of_the_frames_that_are_taken(plan: Plans, tmp_path: Path, executed: Executed) -> None:
    folder = tmp_path / "masks"
    folder.mkdir()
    for n in range(7):
        mask = np.zeros((32, 32), np.uint8)
        mask[:, : 4 * (n + 1)] = 255
        Image.fromarray(mask).save(folder / f"{n}.png")
    result = edit(plan(mask=folder, mask_feather=0, fps=16), tmp_path)
    widths = (artifact(result, "read_masks")["mask"][:, 0] > 0).sum(axis=-1)
    assert widths.tolist() == [4 * (n + 1) for n in (0, 1, 3, 4, 6)]


@pytest.fixture
def see_through(tmp_path: Path) -> Path:
    """Three frames, transparent at the left and half so at the right of the middle."""
    rgba = np.dstack([numbered(0, 35, 33), np.full((33, 35), 255, np.uint8)])
    rgba[:, :9, 3], rgba[:, 20:, 3] = 0, 128
    return write_clip(tmp_path / "logo.mov", codec="png", pixel_format="rgba", pictures=[rgba] * 3, width=35, height=33)


def test_transparency_comes_back_and_keys_do_not_know_of_it(
    plan: Plans, see_through: Path, tmp_path: Path, executed: Executed
) -> None:
    asked = plan(see_through, keep_alpha=True)
    assert asked.decode.key == plan(see_through).decode.key
    run_edit(asked, tmp_path / "edit")
    alpha = np.stack([np.asarray(Image.open(file))[..., 3] for file in sorted((tmp_path / "edit").iterdir())])
    [source] = {picture.alpha.tobytes() for picture in read_pictures(survey(see_through)) if picture.alpha is not None}
    assert alpha.shape == (3, 33, 35) and {each.tobytes() for each in alpha} == {source}

    again, sidecar = plan_again(tmp_path / "edit.json", asked.store, asked.runtime, output=tmp_path / "again.webm")
    assert sidecar.encoding.keep_alpha and again.encoding.keep_alpha and again.encoding.codec == "vp9"
    written = export_key(asked.store, asked.edits[0][1].key.hex, tmp_path / "edit.webp", Encoding(keep_alpha=True))
    with Image.open(written.file) as picture:
        assert np.array_equal(np.asarray(picture.convert("RGBA"))[..., 3], alpha[0])


def test_transparency_that_cannot_be_kept_is_refused_and_none_is_said(
    plan: Plans, see_through: Path, tmp_path: Path, executed: Executed
) -> None:
    with pytest.raises(InputError, match=r"a \.mp4 file holds no transparency"):
        run_edit(plan(see_through, keep_alpha=True), tmp_path / "edit.mp4")
    opaque = plan(write_clip(tmp_path / "opaque.mkv", frames=3, width=32, height=32, **LOSSLESS), keep_alpha=True)
    assert any("has no transparency" in note for note in opaque.notes) and not opaque.encoding.keep_alpha
    run_edit(opaque, tmp_path / "edit.mp4")
    with pytest.raises(InputError, match="has no transparency; leave it out"):
        export_key(opaque.store, opaque.edits[0][1].key.hex, tmp_path / "edit.webp", Encoding(keep_alpha=True))
    asked = plan(see_through, keep_alpha=True)
    run_edit(asked, tmp_path / "edit.mov")
    see_through.unlink()
    with pytest.raises(InputError, match="which is not where any run of this store"):
        export_key(asked.store, asked.edits[0][1].key.hex, tmp_path / "edit.webp", Encoding(keep_alpha=True))


def test_transparent_margins_are_no_black_bars_over_another_colour(plan: Plans, tmp_path: Path) -> None:
    rgba = np.zeros((64, 64, 4), np.uint8)
    rgba[16:48] = (200, 160, 120, 255)
    logo = write_clip(tmp_path / "logo.mov", codec="png", pixel_format="rgba", pictures=[rgba] * 3, width=64)
    assert plan(logo).decode.spec.bars is not None
    assert plan(logo, background_colour="white").decode.spec.bars is None


@pytest.mark.parametrize(
    ("ticks", "asked", "shown"),
    [
        (None, {"fps": 12}, [0, 0, 2, 2, 4, 4, 6]),
        (None, {"fps": 16}, [0, 1, 1, 3, 4, 4, 6]),
        (None, {"frames": "1:6:2"}, [1, 1, 3, 3, 5]),
        ([0, 30, 100, 130, 160, 300, 333], {"fps": 10}, [0, 0, 2, 2, 4, 5, 5]),
    ],
    ids=["a step", "ticks", "frames", "uneven"],
)
def test_frames_that_were_left_out_are_shown_again(
    plan: Plans, tmp_path: Path, executed: Executed, ticks: list[int] | None, asked: dict[str, Any], shown: list[int]
) -> None:
    timing = {"ticks": ticks, "time_base": Fraction(1, 1000)} if ticks else {}
    source = write_clip(tmp_path / "source.mkv", frames=7, width=32, height=32, **timing, **LOSSLESS)
    asked_for = plan(source, source_rate=True, quality=100, pixel_format="yuv444p", **asked)  # edits differ by little
    edited = artifact(edit(asked_for, tmp_path), "propagate_tokens")["rgb"][:]
    row = {frame: number for number, frame in enumerate(asked_for.taken)}
    before, after = survey(source), survey(tmp_path / "edit.mp4")
    start = shown[0]
    lasting = np.diff([float(each) for each in before.times[start : start + len(shown) + 1]])
    assert np.diff([float(each) for each in after.times]) == pytest.approx(lasting, abs=2e-3)
    assert list(asked_for.taken) == sorted({*shown})
    for picture, frame in zip(read_pictures(after), shown, strict=True):
        off = [np.abs(picture.rgb.astype(int) - each).mean() for each in edited]
        assert off[row[frame]] == min(off)
    written = export_key(
        asked_for.store, asked_for.edits[0][1].key.hex, tmp_path / "again.mp4", Encoding(source_rate=True)
    )
    assert written.frames == len(shown)


@pytest.mark.parametrize(("side", "said"), [(12, True), (16, False)])
def test_frames_far_below_the_models_own_are_said(plan: Plans, tmp_path: Path, side: int, said: bool) -> None:
    asked = plan(write_clip(tmp_path / "small.mkv", frames=3, width=side, height=side, **LOSSLESS))
    assert any(f"{side}×{side} is less than a quarter" in note for note in asked.notes) == said
