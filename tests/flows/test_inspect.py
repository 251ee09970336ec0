"""`tf inspect`: what is drawn, from what, and what is refused, on the tiny model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from flows.inspection.fields import Field, true_field
from flows.inspection.rebuild import warped_from
from flows.inspection.source import Source
from flows.plan import Plan
from pocket.truth import read_truth
from pocket.world import displacement
from tests.flows.runs import Executed
from tests.test_cli import Done, Tf, refused

BALL = Path(__file__).parents[2] / "examples" / "ball.mp4"
LAYER = "up_blocks.3.attentions.1.transformer_blocks.0.attn1"


@pytest.fixture
def tf(
    edited: tuple[Path, Any], clip: Path, tiny_folder: Path, executed: Executed, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> Tf:  # fmt: skip
    """`tf` in an empty folder with clip.mp4 in it; the store is a copy of one with an edit of it."""
    shutil.copytree(edited[0], tmp_path / "store")
    shutil.copyfile(clip, tmp_path / "clip.mp4")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOKENFLOW_STORE", "store")
    return Tf(tiny_folder, capsys, monkeypatch)


def inspect(tf: Tf, what: str, *arguments: str | Path, video: str | Path = "clip.mp4") -> Done:
    small = ["--model", tf.model, "--steps", "2", "--keyframe-interval", "3"]
    return tf("inspect", what, video, *small, *arguments)


def drawn(done: Done) -> Any:
    """The answer; every file it names is there, and nothing else."""
    assert done.code == 0, done.err
    answer = done.json
    for name, file in answer["files"].items():
        assert Path(file).name == name and Path(file).stat().st_size > 0
    folder = Path(next(iter(answer["files"].values()))).parent
    assert {path.name for path in folder.iterdir()} == set(answer["files"])
    return answer


def frames_of(file: str) -> int:
    with av.open(file) as container:
        return sum(1 for _ in container.decode(video=0))


FILES = {
    "swap": ["swap.png", "swap.mp4"], "warp": ["warp.png", "warp.mp4"], "field": ["field.png", "field.mp4"],
    "pca": ["pca.png", "slice.png", "pca.mp4"], "reconstruct": ["reconstruct.png", "reconstruct.mp4"],
}  # fmt: skip


@pytest.mark.parametrize("what", FILES)
def test_an_inspection_needs_no_prompt_and_writes_its_pictures(tf: Tf, executed: Executed, what: str) -> None:
    answer = drawn(inspect(tf, what, "--json"))
    assert list(answer["files"]) == FILES[what]
    assert Path("clip-inspect").is_dir()
    assert frames_of(answer["files"][f"{what}.mp4"]) == 7
    assert not executed.names, "all of it is in the store"


def test_swap_and_warp_of_the_frame_itself(tf: Tf) -> None:
    rows = drawn(inspect(tf, "swap", "--from", "2", "--json"))["rows"]
    assert [row["distance"] for row in rows] == [0, 1, 2, 4]
    own = rows[0]
    assert own["swap"] == pytest.approx(own["reconstruction"], abs=0.05)
    assert own["warp"] == own["warp_decoded"] == 99.0
    assert all(row["warp"] < 99.0 for row in rows[1:])


def test_the_warped_donor_is_the_frame_bit_by_bit(plan: Callable[..., Plan]) -> None:
    source = Source(plan(video=BALL, frames="0:24:12"), say=lambda sentence: None)
    warped = warped_from(source, 1, source.rgb, source.layer(None), source.step(None))
    assert (warped[1] == source.rgb[1]).all()
    assert (warped[0] != source.rgb[1]).any()


@pytest.mark.parametrize(("what", "picture"), [("pca", "pca.png"), ("swap", "swap.png")])
def test_tokens_that_are_not_kept_give_the_same_picture(tf: Tf, executed: Executed, what: str, picture: str) -> None:
    kept = drawn(inspect(tf, what, "-o", "kept", "--json"))
    assert not executed.stages["source pass"]
    live = drawn(inspect(tf, what, "-o", "live", "--token-budget", "0", "--store", "other", "--json"))
    assert executed.stages["source pass"]
    assert live["rows"] == kept["rows"]
    assert Path("live", picture).read_bytes() == Path("kept", picture).read_bytes()


def test_what_is_missing_is_computed_aloud_and_only_that(tf: Tf, executed: Executed) -> None:
    done = inspect(tf, "reconstruct", "--store", "other", "--json")
    drawn(done)
    assert executed.names == ["decode_frames", "invert_frames"]
    assert "computing decode_frames" in done.err and "invert_frames, which the store keeps" in done.err
    executed.clear()
    again = inspect(tf, "reconstruct", "--store", "other", "-o", "again", "--json")
    drawn(again)
    assert not executed.names and "computing" not in again.err


def test_a_reconstruction_says_what_was_lost_where(tf: Tf) -> None:
    answer = drawn(inspect(tf, "reconstruct", "--json"))
    assert [row["frame"] for row in answer["rows"]] == list(range(7))
    assert answer["mean_autoencoder"] == pytest.approx(np.mean([row["autoencoder"] for row in answer["rows"]]))


def test_pca_of_a_prompt_shows_its_edits(tf: Tf, executed: Executed) -> None:
    alone = drawn(inspect(tf, "pca", "-o", "alone", "--json"))
    answer = drawn(inspect(tf, "pca", "--prompt", "a red ball", "--json"))
    assert executed.names == ["match_tokens", "edit_keyframes", "propagate_tokens"], "the per-frame edit alone"
    assert executed.stages["propagate_tokens"] == 1
    assert Path(answer["files"]["slice.png"]).read_bytes() != Path(alone["files"]["slice.png"]).read_bytes()


def test_a_field_is_held_against_the_truth_of_the_frames_it_has(tf: Tf) -> None:
    answer = drawn(inspect(tf, "field", "--frames", "2:12:3", "--side", "next", "--json", video=BALL))
    for row in answer["rows"]:
        if row["frame"] == row["keyframe"]:
            assert row["within_one_token"] == row["similarity"] == 1
            assert row["error"] == pytest.approx(0, abs=1e-5)
    assert 0 <= answer["accuracy"] <= 1
    unknown = drawn(inspect(tf, "field", "-o", "unknown", "--json"))
    assert "accuracy" not in unknown and "error" not in unknown["rows"][0]


def test_the_scenes_are_those_of_the_chosen_frames(plan: Callable[..., Plan]) -> None:
    truth = read_truth(BALL)
    scenes = Source(plan(video=BALL, frames="2:12:3"), say=lambda sentence: None).scenes
    assert truth is not None and scenes is not None
    assert torch.equal(scenes.centre, truth.centre[[2, 5, 8, 11]])


def test_a_true_field_has_no_error_and_hidden_tokens_no_say() -> None:
    truth = read_truth(BALL)
    assert truth is not None
    keyframes, similarity = np.array([0, 0, 0]), np.ones((3, 16, 16), np.float32)
    scenes = truth[torch.tensor([0, 8, 16])]
    moved, hidden = displacement(scenes, scenes[torch.tensor([0, 0, 0])], 16, border=1)
    errors = true_field(scenes, Field(keyframes, moved.numpy(), similarity)).errors
    assert np.isnan(errors).tolist() == hidden.tolist()
    assert np.nanmax(errors) == 0
    off = true_field(scenes, Field(keyframes, moved.numpy() + np.array([3, 4]), similarity)).errors
    assert np.nanmin(off) == pytest.approx(5, abs=1e-4)


def test_a_run_or_a_key_stands_for_its_video_and_settings(tf: Tf, executed: Executed) -> None:
    run = tf.edit("run", "clip.mp4", "--prompt", "a blue ball", "--json").json
    executed.clear()
    by_file = drawn(inspect(tf, "reconstruct", "-o", "file", "--json"))
    key = next(stage["key"] for stage in run["stages"] if stage["stage"] == "propagate_tokens")
    for name in (run["run"], key[:12]):
        answer = drawn(tf("inspect", "reconstruct", name, "-o", f"by {name}", "--json"))
        assert answer["rows"] == by_file["rows"]
    assert not executed.names
    refused(tf("inspect", "field", run["run"], "--steps", "3"), "--steps does not go with")
    refused(tf("inspect", "field", "abcdef123456"), "neither a video file nor a key")
    refused(tf("inspect", "field", "20260101-000000-abcdef"), "no run")


BAD: dict[str, tuple[list[str], str]] = {
    "layer": (["pca", "--layer", "attn9"], "have down_blocks.0.attentions.0.transformer_blocks.0.attn1"),
    "timestep": (["field", "--timestep", "490"], "the nearest is 501"),
    "frame": (["swap", "--from", "7"], "the clip has frames 0 to 6"),
    "negative frame": (["warp", "--from", "-1"], "the clip has frames 0 to 6"),
    "side": (["field", "--side", "left"], "have previous, next"),
    "row": (["pca", "--row", "32"], "rows 0 to 31"),
    "folder is a file": (["reconstruct", "-o", "clip.mp4"], "is no folder"),
    "folder in a file": (["reconstruct", "-o", "clip.mp4/there"], "cannot be made"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_is_refused_before_anything_is_computed(tf: Tf, executed: Executed, name: str) -> None:
    (what, *arguments), says = BAD[name]
    refused(inspect(tf, what, *arguments), says)
    assert not executed.names and not executed.passed
    assert not Path("clip-inspect").exists()


def test_a_clip_of_one_frame_can_be_inspected(tf: Tf) -> None:
    for what in FILES:
        drawn(inspect(tf, what, "--frames", "3:4", "-o", what, "--json"))
    rendered = drawn(inspect(tf, "field", "--frames", "3:4", "-o", "rendered", "--json", video=BALL))
    assert rendered["accuracy"] is None, "the only frame is its own keyframe"


def test_a_table_for_people(tf: Tf) -> None:
    done = inspect(tf, "swap")
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[0].split()[:6] == ["distance", "frames", "autoencoder", "reconstruction", "swap", "warp"]
    assert f"layer {LAYER}" in lines
    assert lines[-2:] == ["clip-inspect/swap.png", "clip-inspect/swap.mp4"]
    assert json.loads(inspect(tf, "swap", "--json").out)["inspection"] == "swap"
