"""Promises of the truth beside a clip: it comes back as it was, and never for other bytes."""

from __future__ import annotations

import shutil
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from pocket.clips import write_video
from pocket.truth import ForeignTruthError, read_truth, truth_file
from pocket.world import Scene, sample_clip


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Scene]:
    video = tmp_path_factory.mktemp("clips") / "clip.mp4"
    scenes = sample_clip(5, torch.Generator().manual_seed(8))
    write_video(video, scenes, size=32)
    return video, scenes


def test_the_scenes_come_back(rendered: tuple[Path, Scene]) -> None:
    video, scenes = rendered
    known = read_truth(video)
    assert known is not None
    for field in fields(Scene):
        assert torch.equal(getattr(known, field.name), getattr(scenes, field.name)), field.name


def test_nothing_is_known_of_a_clip_without_a_note(rendered: tuple[Path, Scene], tmp_path: Path) -> None:
    shutil.copy(rendered[0], tmp_path / "clip.mp4")
    assert read_truth(tmp_path / "clip.mp4") is None


@pytest.mark.parametrize("damage", ["other video", "cut off", "no scenes", "not text"])
def test_a_note_that_does_not_fit_is_no_truth(damage: str, rendered: tuple[Path, Scene], tmp_path: Path) -> None:
    video = Path(shutil.copy(rendered[0], tmp_path / "clip.mp4"))
    note = Path(shutil.copy(truth_file(rendered[0]), truth_file(video)))
    if damage == "other video":
        video.write_bytes(video.read_bytes() + b"\0")
    elif damage == "cut off":
        note.write_bytes(note.read_bytes()[:200])
    elif damage == "no scenes":
        note.write_text('{"format": 1, "video": "x"}')
    else:
        note.write_bytes(b"\xff\xfe")
    with pytest.raises(ForeignTruthError, match=r"truth\.json"):
        read_truth(video)


def test_the_example_clips_have_theirs() -> None:
    for video in sorted((Path(__file__).parents[2] / "examples").glob("*.mp4")):
        known = read_truth(video)
        assert known is not None
        assert len(known) == 24
