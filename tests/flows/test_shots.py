"""Promises about shots: a plan knows them before anything runs, and a clip without cuts is what it always was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flows.config import make_config, make_runtime
from flows.evaluate import ClipWork, Evaluator
from flows.measure import edit_row
from flows.plan import Plan
from flows.report_measures import steadiness
from flows.shots import parse_cuts, watch, written_cuts
from flows.suite import Clip, Suite
from flows.videos import KnownVideo
from stages.decode_frames import Spec as DecodeSpec
from stages.measures.frames import warp_errors
from stages.measures.optical_flow import choose, estimated_motion
from store.errors import InputError
from store.store import Store
from tests.flows.runs import SMALL, Executed, edit, make_plan
from tests.stages.clips import write_clip

CUT = 7


@pytest.fixture(scope="module")
def two_shots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven frames of one colour and six of another, each with a square that moves."""
    pictures = []
    for frame in range(13):
        rgb = np.full((32, 32, 3), (200, 40, 40) if frame < CUT else (30, 60, 190), np.uint8)
        rgb[8:16, frame : frame + 8] = 255
        pictures.append(rgb)
    return write_clip(tmp_path_factory.mktemp("shots") / "two.mp4", pictures=pictures, width=32, height=32)


def test_a_clip_without_cuts_has_the_key_it_always_had(clip: Path, tiny_folder: Path, tmp_path: Path) -> None:
    plans = [make_plan(clip, tiny_folder, tmp_path, cuts=cuts) for cuts in ("auto", "none")]
    assert {plan.match.key.hex for plan in plans} == {plans[0].match.key.hex}
    assert set(plans[0].match.key.spec) == {"keyframe_interval", "keyframe_offsets", "blend", "seed"}


def test_cuts_are_found_before_anything_runs_and_are_said(
    two_shots: Path, tiny_folder: Path, tmp_path: Path, executed: Executed
) -> None:
    plan = make_plan(two_shots, tiny_folder, tmp_path)
    assert plan.match.key.spec["cuts"] == [CUT]
    assert "2 shots: new ones begin at 7; if not so, say --cuts none, or at which frames" in plan.notes
    assert plan.match.key == make_plan(two_shots, tiny_folder, tmp_path, cuts="7").match.key
    assert "cuts" not in make_plan(two_shots, tiny_folder, tmp_path, cuts="none").match.key.spec
    assert executed.names == []


def test_what_was_found_is_told_of_on_the_way_and_remembered(
    two_shots: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[tuple[str, int] | int] = []

    @contextmanager
    def watching(what: str, frames: int) -> Iterator[Callable[[int], None]]:
        said.append((what, frames))
        yield said.append

    token = watch.set(watching)
    first = make_plan(two_shots, tiny_folder, tmp_path)
    watch.reset(token)
    assert said == [("looking for cuts", 13), *[1] * 13]
    monkeypatch.setattr("stages.measures.cuts.cuts_of", lambda frames: pytest.fail("looked at twice"))
    assert make_plan(two_shots, tiny_folder, tmp_path).match.key == first.match.key


def test_stored_frames_have_the_cuts_of_their_file(two_shots: Path, tiny_folder: Path, tmp_path: Path) -> None:
    """Where the video is not here any more, and nothing is remembered."""
    store = Store(tmp_path / "store")
    plan = make_plan(two_shots, tiny_folder, store)
    edit(plan, tmp_path)
    known = KnownVideo.of(two_shots, store)
    for note in store.layout.hashes.glob("*.json"):
        if f"cuts 1 {plan.decode.key.hex}" in note.read_text():
            note.unlink()
    config = make_config(video=tmp_path / "gone.mp4", model=str(tiny_folder), **SMALL)
    assert Plan(config, make_runtime(), store, known).match.key == plan.match.key
    with pytest.raises(InputError, match="say --cuts none or --cuts 12,48"):
        Plan(config, make_runtime(), Store(tmp_path / "empty"), known)


def test_no_frame_of_an_edit_follows_another_shot(two_shots: Path, tiny_folder: Path, tmp_path: Path) -> None:
    plan = make_plan(two_shots, tiny_folder, tmp_path)
    edit(plan, tmp_path)
    field = plan.find(plan.match)
    assert field is not None
    for step, neighbour in enumerate(field["neighbour"][:]):
        followed = field["keyframes"][step][neighbour]
        assert ((followed < CUT) == (np.arange(13) < CUT)[:, None]).all()


def test_pairs_across_a_cut_are_in_no_warp_error(two_shots: Path, tiny_folder: Path, tmp_path: Path) -> None:
    clip = Clip(video=two_shots, prompts=("a red ball",))
    suite = Suite(name="shots", options={"model": str(tiny_folder), "steps": 2}, clips=(clip,))
    store, said = Store(tmp_path / "store"), [""]
    known = ClipWork(Evaluator(suite, make_runtime(), store, said.append), clip, suite.settings).known
    apart = [warp_errors(shot, estimated_motion(shot, choose())) for shot in (known.source[:CUT], known.source[CUT:])]
    assert known.cuts == (CUT,)
    measured = edit_row(known, known.source, None)["warp_error"]
    assert measured == pytest.approx(1000 * float(torch.cat(apart).mean()))
    steady = steadiness([{"rgb": known.source}], None, "auto", known.cuts)  # type: ignore[list-item]
    assert np.isnan(steady.errors[0]).nonzero()[0].tolist() == [CUT - 1]


def test_cuts_are_counted_as_frames_of_the_video() -> None:
    spec = DecodeSpec(start=10, stop=50, step=4, width=8, height=8)
    taken = range(spec.start, spec.start + 10 * spec.step, spec.step)
    assert parse_cuts("30, 15,14", taken) == (1, 2, 5), "at a frame that is left out, the next one begins the shot"
    assert parse_cuts(written_cuts((1, 2, 5), taken), taken) == (1, 2, 5)
    assert written_cuts((), taken) == "none"


@pytest.mark.parametrize("cuts", ["now", "12,", "-3", "12;13", ""])
def test_what_is_no_list_of_cuts_is_refused(cuts: str, plan: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match="is neither auto nor none nor a list of frames at which new shots begin"):
        plan(cuts=cuts)


@pytest.mark.parametrize("cuts", ["0", "7", "3,99"])
def test_a_cut_outside_the_clip_is_refused(cuts: str, plan: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match="the clip has the frames 0 to 6; give frames from 1 to 6"):
        plan(cuts=cuts)


def test_adaptive_placement_is_named_by_where_intervals_begin(
    two_shots: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    plan = make_plan(two_shots, tiny_folder, tmp_path, keyframe_placement="adaptive")
    starts = plan.match.key.spec["interval_starts"]
    assert isinstance(starts, list) and CUT in starts
    assert len(plan.match.spec.intervals(13)) == len(
        make_plan(two_shots, tiny_folder, tmp_path).match.spec.intervals(13)
    )
    edit(plan, tmp_path)
    assert plan.to_compute() == []
