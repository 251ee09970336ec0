"""An edit has the same bytes whether it is made at once, continued from its keyframes, or window by window."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from pocket import model_folder
from stages import propagate_tokens
from stages.backbones.decoders import GROUP
from stages.backbones.stable_diffusion import Runtime, StableDiffusion, load
from stages.diffusion.keyframes import drawn_keyframes, intervals, neighbours, support
from stages.editing import passes
from stages.editing.passes import apart, stretches
from tests.stages.test_resume import Memory, Stopped, Watched, equal
from tests.tiny.method import (
    Held,
    Prepared,
    edit_at_once,
    edit_of_keyframes,
    edit_spec,
    frames_schema,
    moving_clip,
    prepare,
    propagate,
    rematched,
)

ROOT = Path(__file__).parents[2]
FRAMES, WINDOW = 37, 16
WINDOWS = [range(0, 16), range(16, 32), range(32, 37)]  # the last one is ragged


@pytest.fixture(scope="module")
def long(backbone: StableDiffusion, tiny_folder: Path) -> Prepared:
    """37 frames, nine keyframes and one more in the short last interval, in passes of 5 that cut windows unevenly."""
    return prepare(backbone, tiny_folder, moving_clip(FRAMES), steps=3).in_passes_of(5)


@pytest.fixture(autouse=True)
def short_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "WINDOW_FRAMES", WINDOW)


SETTINGS: dict[str, dict[str, Any]] = {
    "pnp": {"settings": {"attention": 0.4, "feature": 0.7}},
    "sdedit": {"editor": "sdedit", "settings": {"strength": 0.7}, "attended_keyframes": 4},
    "few attended keyframes, second order, guided in between": {
        "attended_keyframes": 3,
        "solver": "dpmpp_2m",
        "guidance_start": 0.3,
        "guidance_stop": 0.7,
    },
    "features reused, and a branch comes in": {"feature_reuse": 2, "attended_keyframes": 3, "guidance_start": 0.6},
    "features reused twice, second order": {"feature_reuse": 3, "attended_keyframes": 3, "solver": "dpmpp_2m"},
}


@pytest.mark.parametrize("settings", SETTINGS)
def test_an_edit_has_the_same_bytes_however_it_is_divided(settings: str, long: Prepared) -> None:
    spec = edit_spec(**SETTINGS[settings])
    keyframes, at_once = edit_at_once(long, spec)
    alone = edit_of_keyframes(long, spec)
    assert equal(alone, keyframes)
    assert equal(propagate(long, spec, alone), at_once)
    assert equal(propagate(long, spec, alone, parts=WINDOWS[::-1]), at_once)


@pytest.mark.parametrize("offsets", [1, 5])  # fixed keyframes; every frame may be one, and is known from the beginning
def test_so_it_has_for_other_schedules(offsets: int, long: Prepared) -> None:
    known, spec = rematched(long, keyframe_offsets=offsets, keyframe_interval=5), edit_spec(guidance_scale=1)
    keyframes, at_once = edit_at_once(known, spec)
    assert equal(propagate(known, spec, keyframes, parts=[range(16, 37), range(16)]), at_once)


def test_bytes_would_differ_if_windows_were_cut_elsewhere(long: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tests above can see: passes of other frames give other last bits."""
    spec = edit_spec(guidance_scale=1)
    _, at_once = edit_at_once(long, spec)
    monkeypatch.setattr(passes, "WINDOW_FRAMES", 1 << 20)
    _, other = edit_at_once(long, spec)
    assert not equal(other, at_once)
    np.testing.assert_allclose(other["latents"], at_once["latents"], atol=2e-4)


def test_the_stage_is_divided_into_windows_of_whole_blocks(long: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    def parts() -> list[range]:
        schema = propagate_tokens.outputs(propagate_tokens.Spec(), frames=frames_schema(long.rgb), layout=long.layout)
        return schema.divided()

    assert parts() == WINDOWS
    monkeypatch.undo()
    assert passes.WINDOW_FRAMES % 16 == 0
    assert parts() == [range(FRAMES)], "a clip that is shorter than a window"


# A window runs what it needs


def passed(known: Prepared, *given: Any, **options: Any) -> list[tuple[int, int]]:
    """The passes of `propagate`: the timestep and the rows of each."""
    model, watched = Watched.of(known)
    propagate(watched, *given, **options)
    return model.passes


def test_a_window_runs_the_joint_passes_that_its_frames_follow_and_no_other(long: Prepared) -> None:
    """Keyframes in the middle of intervals of four: windows end between two, so each follows one beyond its border.

    Three of ten attended: the one anchor is the sixth keyframe, the others form blocks of two, joined four to a pass:
    all but the last in the first one.
    """
    known = rematched(long, keyframe_offsets=1).in_passes_of(64)
    assert known.field["keyframes"][0].tolist() == [2, 6, 10, 14, 18, 22, 26, 30, 34, 36]
    spec = edit_spec(guidance_scale=1, attended_keyframes=3)
    keyframe_edit, steps = edit_of_keyframes(known, spec), known.timesteps
    each = {window.start: passed(known, spec, keyframe_edit, parts=[window]) for window in WINDOWS}
    assert each[0] == [(t, rows) for t in steps for rows in (1, 8, 12)], "the anchor, its block of blocks, the window"
    assert each[16] == [(t, rows) for t in steps for rows in (1, 8, 12)]
    assert each[32] == [(t, rows) for t in steps for rows in (1, 8, 2, 1, 1)], "the last frame follows both"
    together = passed(known, spec, keyframe_edit)
    assert Counter(together) < Counter(run for runs in each.values() for run in runs)
    assert together == [(t, rows) for t in steps for rows in (1, 8, 12, 12, 2, 1, 1)], "no joint pass twice"


def test_progress_is_told_of_every_frame_that_passes(long: Prepared) -> None:
    spec = edit_spec(guidance_scale=1, attended_keyframes=3)
    keyframe_edit = edit_of_keyframes(long, spec)
    keyframes, known = long.field["keyframes"], long.field["support"].tolist()
    for part in (WINDOWS[2], range(16, FRAMES)):
        told = propagate_tokens.frames_passed(part, FRAMES, keyframes, known, 3)
        runs = passed(long, spec, keyframe_edit, parts=[part])
        assert [sum(rows for at, rows in runs if at == timestep) for timestep in long.timesteps] == told


def test_a_window_of_a_long_clip_repeats_a_bounded_share() -> None:
    """512 frames at the settings of a run: what eight windows cost over one piece."""
    drawn = drawn_keyframes(intervals(512, 8), 2, 50, 0)
    known = support(intervals(512, 8), 2).tolist()

    def rows(parts: list[range], border: int = 0) -> int:
        return sum(sum(propagate_tokens.frames_passed(part, 512, drawn, known, 8, (), border)) for part in parts)

    each = [range(at, at + 64) for at in range(0, 512, 64)]
    windows, whole = rows(each), rows([range(512)])
    assert whole == 50 * (512 - 128 + 64)
    assert 1 < windows / whole < 1.3
    assert rows([range(512)], GROUP) == whole
    assert 1 < rows(each, GROUP) / windows < 1.2, "what a temporal decoder sees beside them"


def test_no_pass_mixes_what_one_way_runs_and_another_does_not() -> None:
    drawn, known = drawn_keyframes(intervals(100, 4), 2, 1, 0)[0], set(support(intervals(100, 4), 2).tolist())
    near = neighbours(100, drawn)
    found = stretches(0, range(100), keyframes=drawn, neighbours=near, support=known, limit=4)
    groups = [group for stretch in found for group in stretch.groups]
    assert sorted(frame for group in groups for frame in group) == sorted({*range(100)} - set(drawn.tolist()))
    for group in groups:
        in_support, windows = set(group) & known, {frame // WINDOW for frame in group}
        assert set(group) == in_support or (not in_support and len(windows) == 1)
    assert apart(range(20), {1, 17}) == [[1, 17], [0, *range(2, 16)], [16, 18, 19]]


# A window that is stopped goes on where it was


def test_windows_that_are_stopped_go_on_each_for_itself(long: Prepared) -> None:
    spec = edit_spec(solver="dpmpp_2m")
    keyframe_edit, expected = edit_at_once(long, spec)
    scratch = Memory()
    for window in WINDOWS:
        model, watched = Watched.of(long)
        model.limit = len(passed(long, spec, keyframe_edit, parts=[window]))
        with pytest.raises(Stopped):
            propagate(watched, spec, keyframe_edit, scratch, [window])
    model, watched = Watched.of(long)
    assert equal(propagate(watched, spec, keyframe_edit, scratch, WINDOWS), expected)
    assert {at for at, _ in model.passes} == {long.timesteps[-1]}, "no window does its first two steps again"


# Processes that share nothing but what was committed

WORKER = """
import sys
from tests.stages.test_windows import work
work(*sys.argv[1:])
"""


def work(committed: str, output: str) -> None:
    """What a worker does: load the model and what was committed, do the second window, put it down."""
    passes.WINDOW_FRAMES = WINDOW
    known, keyframe_edit = pickle.loads(Path(committed).read_bytes())
    known = replace(known, backbone=load(str(model_folder()), Runtime()))
    np.savez(output, **propagate(known, edit_spec(), keyframe_edit, parts=[range(16, 24)]))


@pytest.mark.slow
def test_windows_that_two_processes_do_are_the_clip_that_one_does(tmp_path: Path) -> None:
    """With the shipped model, 24 frames."""
    folder, spec = Path(model_folder()), edit_spec()
    known = prepare(load(str(folder), Runtime()), folder, moving_clip(24, 64, 64), steps=2, keyframe_interval=8)
    keyframe_edit, expected = edit_at_once(known, spec)
    committed, output = tmp_path / "committed", tmp_path / "second.npz"
    committed.write_bytes(pickle.dumps((replace(known, backbone=cast("Any", None)), keyframe_edit)))
    subprocess.run([sys.executable, "-c", WORKER, str(committed), str(output)], cwd=ROOT, check=True, timeout=300)
    ours = propagate(known, spec, keyframe_edit, parts=[range(16)])
    with np.load(output) as theirs:
        put_together: Held = {name: np.concatenate([ours[name][:16], theirs[name][16:]]) for name in ours}
    assert equal(put_together, expected)


# Shots


def test_a_shot_is_edited_as_if_the_others_were_not_there(long: Prepared) -> None:
    """Where keyframes attend to themselves alone; nothing but the rest of a pass can then reach over a cut."""
    spec = edit_spec(guidance_scale=1, attended_keyframes=1)
    both = rematched(long, keyframe_offsets=1, cuts=(21,))
    known = {name: {**getattr(both, name)} for name in ("latents", "tokens")}
    known["tokens"] |= {name: v.copy() for name, v in known["tokens"].items() if name.startswith("tokens.")}
    for name, values in known["tokens"].items():
        if name.startswith("tokens."):
            values[:, 21:] = values[:, 21:][:, ::-1]
    other = rematched(replace(both, tokens=known["tokens"]), keyframe_offsets=1, cuts=(21,))
    one, two = edit_of_clip(both, spec), edit_of_clip(other, spec)
    np.testing.assert_allclose(two[:21], one[:21], atol=2e-4)
    assert not np.allclose(two[21:], one[21:], atol=2e-2)


def edit_of_clip(known: Prepared, spec: Any) -> Any:
    """Edited latents (frame, c, h, w)."""
    return edit_at_once(known, spec)[1]["latents"]
