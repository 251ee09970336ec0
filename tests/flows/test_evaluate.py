"""Promises of `tf eval`: what is measured is what was edited, over the cache; an unusable suite is refused."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
import xarray

from flows.config import make_runtime
from flows.evaluate import Evaluation, Evaluator
from flows.evaluation_page import summarized, write_page
from flows.measure import Known, asked_attributes, edit_row, field_rows
from flows.run_suite import run_suite
from flows.scores import Scorer
from flows.suite import PER_FRAME, Clip, Metrics, Suite, pocket_clips, read_suite
from pocket.clips import write_video
from pocket.truth import truth_file
from pocket.world import flow, render, sample_clip
from stages.measures.frames import unit, warped
from stages.measures.optical_flow import choose
from store.errors import InputError
from store.store import Store
from tests.flows.runs import Executed
from tests.stages.clips import write_clip

SUITE = """
[options]
model = "{model}"
steps = 2
keyframe_interval = 3

[pocket]
clips = 2
frames = 5
size = 32
change = ["colour"]

[[settings]]
name = "ours"

[[settings]]
name = "fixed"
keyframe_offsets = 1
clips = 1
"""


@pytest.fixture
def suite(tmp_path: Path, tiny_folder: Path) -> Suite:
    file = tmp_path / "small.toml"
    file.write_text(SUITE.format(model=tiny_folder))
    return read_suite(file)


def run(suite: Suite, store: Store, said: list[str] | None = None) -> Evaluation:
    return Evaluator(suite, make_runtime(), store, (said if said is not None else []).append).run()


def of(evaluation: Evaluation, setting: str) -> list[dict[str, Any]]:
    return [row for row in evaluation.rows if row["setting"] == setting]


def test_every_setting_stands_beside_the_floor_and_per_frame_editing(
    suite: Suite, tmp_path: Path, executed: Executed
) -> None:
    evaluation = run(suite, Store(tmp_path / "store"))
    assert [len(of(evaluation, name)) for name in ("autoencoder", "ours", "fixed", "per-frame")] == [2, 2, 1, 2]
    for row in evaluation.rows:
        assert math.isfinite(row["warp_error"])
        assert 0 <= row["object_overlap"] <= 1
    assert all("edit_success" in row for row in of(evaluation, "ours"))
    assert all("edit_success" not in row for row in of(evaluation, "autoencoder"))
    assert {row["setting"] for row in evaluation.field_rows} == {"ours", "fixed"}
    assert executed.models == 1, "one model for all clips and settings"
    names = summarized(evaluation)[1]
    assert [line.setting for line in names] == ["autoencoder", "ours", "fixed", "per-frame"]


def test_a_second_evaluation_edits_nothing(suite: Suite, tmp_path: Path, executed: Executed) -> None:
    first = run(suite, Store(tmp_path / "store"))
    executed.clear()
    again = run(suite, Store(tmp_path / "store"))
    assert executed.names == []
    assert executed.passed == 0
    assert pandas.DataFrame(first.rows).equals(pandas.DataFrame(again.rows))


def test_what_was_collected_is_computed_again_and_said(suite: Suite, tmp_path: Path, executed: Executed) -> None:
    store, said = Store(tmp_path / "store"), []
    run(suite, store)
    gone = next(record for record in store.records("propagate_tokens"))
    shutil.rmtree(store.layout.object(gone.digest))
    executed.clear()
    run(suite, store, said)
    assert executed.names == ["propagate_tokens"]
    about = [sentence for sentence in said if gone.hex[:12] in sentence]
    assert len(about) == 1
    assert "computed again" in about[0]


def test_tables_and_page_are_written_and_open(suite: Suite, tmp_path: Path) -> None:
    nasty = suite.model_copy(update={"name": "<b>&"})
    evaluation, files = run_suite(nasty, make_runtime(), Store(tmp_path / "store"), tmp_path / "out", lambda said: None)
    frame = pandas.read_csv(files["edits.csv"])
    table = xarray.open_zarr(files["edits.zarr"])
    assert len(frame) == table.sizes["row"] == len(evaluation.rows)
    np.testing.assert_allclose(frame["warp_error"], table["warp_error"].values)
    assert table["warp_error"].attrs["units"] == "1e-3"
    page = Path(files["page"]).read_text()
    assert "<b>&" not in page
    assert "&lt;b&gt;&amp;" in page
    assert "http" not in page.replace("http-equiv", ""), "it loads nothing"
    assert page.count("data:image/webp;base64,") == 2


def test_truth_is_found_beside_the_clip_and_belongs_to_it(tmp_path: Path, tiny_folder: Path) -> None:
    """The exact flow explains the source's motion: warped by it, frame t is frame t + 1 but for sampling."""
    scenes = sample_clip(6, torch.Generator().manual_seed(3))
    write_video(tmp_path / "clip.mp4", scenes, size=64)
    rgb = (render(scenes, 64).rgb * 255).round().byte().numpy()
    known = Known(rgb, rgb, scenes, choose("dis"))
    exact = edit_row(known, rgb, None)
    still = Known(rgb, rgb, None, choose("dis"))
    values = unit(rgb)
    unmoved = (values[1:] - values[:-1]).square().mean(-1)[known.motion.visible].mean()
    assert exact["warp_error"] < 1000 * float(unmoved) / 3
    assert exact["warp_error"] < 1.1 * edit_row(still, rgb, None)["warp_error"], "estimating it is no better"
    assert exact["object_overlap"] > 0.7
    assert exact["kept"] > 0.9
    truth = flow(scenes, 64)
    error = (warped(values[:-1], truth.backward) - values[1:]).square().mean(-1)[~truth.occluded_backward].mean()
    assert exact["warp_error"] == pytest.approx(1000 * float(error), rel=0.05)


def test_a_perfect_edit_is_called_one() -> None:
    """Frames of the same scenes in another colour: asked for, they succeed and keep the rest; unasked, they do not."""
    scenes = sample_clip(
        4, torch.Generator().manual_seed(11), colour="red", shape="ball", ground="grass", surface="plain"
    )
    blue = sample_clip(
        4, torch.Generator().manual_seed(11), colour="blue", shape="ball", ground="grass", surface="plain"
    )
    rgb, edited = ((render(each, 64).rgb * 255).round().byte().numpy() for each in (scenes, blue))
    known = Known(rgb, rgb, scenes, choose("dis"))
    asked = edit_row(known, edited, "a blue ball on grass")
    assert (asked["edit_success"], asked["kept"]) == (1.0, 1.0)
    assert asked["background_psnr"] > 30
    assert edit_row(known, rgb, "a blue ball on grass")["edit_success"] == 0
    assert edit_row(known, edited, "a red ball on snow")["kept"] == pytest.approx(2 / 3), "colour was to be kept"


@pytest.mark.parametrize(
    ("prompt", "asked"),
    [("a blue ball on grass", {"colour"}), ("a red striped ball on snow", {"surface", "ground"}), ("a RED ball", set()),
     ("a watercolour", set())],
)  # fmt: skip
def test_what_a_prompt_asks_is_what_it_names_otherwise(prompt: str, asked: set[str]) -> None:
    scenes = sample_clip(2, torch.Generator(), colour="red", shape="ball", ground="grass", surface="plain")
    assert set(asked_attributes(prompt, scenes)) == asked


def test_a_field_made_of_the_truth_is_accurate(tmp_path: Path, tiny_folder: Path, suite: Suite) -> None:
    """The exact displacement rounded to tokens has an accuracy of one; the identity has that of a still clip."""
    store = Store(tmp_path / "store")
    run(suite, store)
    from flows.plan import Plan

    clip = pocket_clips(suite.pocket, store.root / "clips")[0]  # type: ignore[arg-type]
    plan = Plan(suite.config(clip, suite.settings[0]), make_runtime(), store)
    field = plan.find(plan.match)
    assert field is not None
    scenes = sample_clip(5, torch.Generator().manual_seed(0))
    known = Known(np.zeros((5, 32, 32, 3), np.uint8), np.zeros((5, 32, 32, 3), np.uint8), scenes, choose("dis"))
    keyframes, neighbour = field["keyframes"][:], field["neighbour"][:]
    perfect: dict[str, Any] = {name: field[name][:] for name in ("keyframes", "neighbour", "timestep")}
    for layer in plan.layout.layers:
        side = round(layer.tokens**0.5)
        index = np.array(field[f"index.{layer.name}"][:])
        for step, frame, which in np.ndindex(*index.shape[:3]):
            moved = known.travels([(frame, int(keyframes[step, neighbour[step, frame, which]]))], side, side)[0][0]
            rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
            x = (columns + moved[..., 0]).round().clamp(0, side - 1).long()
            y = (rows + moved[..., 1]).round().clamp(0, side - 1).long()
            index[step, frame, which] = (y * side + x).flatten().numpy()
        perfect[f"index.{layer.name}"] = index
    rows = list(field_rows(known, perfect, plan.layout))
    assert rows
    assert all(row["accuracy"] == 1 for row in rows if "accuracy" in row)
    assert all(row["error"] < 0.75 for row in rows if "error" in row)


def test_a_clip_of_no_world_has_its_motion_estimated(tmp_path: Path, clip: Path, tiny_folder: Path) -> None:
    options = {"model": str(tiny_folder), "steps": 2, "keyframe_interval": 3}
    suite = Suite(name="any", options=options, clips=(Clip(video=clip, prompts=("a red ball",)),))
    evaluation = run(suite, Store(tmp_path / "store"))
    assert {row["setting"] for row in evaluation.rows} == {"autoencoder", "ours", "per-frame"}
    assert all(math.isfinite(row["warp_error"]) and "edit_success" not in row for row in evaluation.rows)
    assert evaluation.field_rows
    assert all(math.isnan(row["object_accuracy"]) for row in evaluation.field_rows if "accuracy" in row)


def test_padding_is_neither_measured_nor_shown(tmp_path: Path, tiny_folder: Path, executed: Executed) -> None:
    video = write_clip(tmp_path / "odd.mkv", frames=4, width=35, height=33, codec="ffv1", pixel_format="bgr0")
    options = {"model": str(tiny_folder), "steps": 2, "keyframe_interval": 3}
    suite = Suite(name="odd", options=options, clips=(Clip(video=video, prompts=("a red ball",)),), per_frame=False)
    store = Store(tmp_path / "store")
    evaluator = Evaluator(suite, make_runtime(), store, lambda said: None)
    evaluation = evaluator.run()
    assert [frames.shape for _, frames in evaluation.pictures[0].rows] == [(4, 33, 35, 3)] * 3

    plan = evaluator.plans[video, "ours"]
    frames, edit = plan.find(plan.decode), plan.find(plan.edits[0][1])
    assert frames is not None and edit is not None
    width, height = plan.size
    assert frames["rgb"].shape[1:3] == (height, width) != (33, 35)
    backbone = evaluator._backbone((plan.model.key, plan.device), plan)
    floor = backbone.decode(backbone.encode(frames["rgb"][:]))
    source, floor, edited = (rgb[:, :33, :35] for rgb in (frames["rgb"][:], floor, edit["rgb"][:]))
    [row] = of(evaluation, "ours")
    by_hand = edit_row(Known(source, floor, None, choose("dis")), edited, None)
    assert {name: row[name] for name in by_hand} == by_hand
    scores = Scorer(store, Metrics(flow="dis"))(plan, edit, frames)
    assert scores == by_hand | {"change": 100 * np.abs(edited.astype(int) - floor).mean() / 255}


def test_tokens_of_padding_count_as_hidden() -> None:
    picture = render(sample_clip(2, torch.Generator().manual_seed(3)), 48).rgb
    rgb = np.repeat((picture[:1] * 255).round().byte().numpy(), 2, axis=0)
    known = Known(rgb, rgb, None, choose("dis"), padding=(16, 32))
    moved, hidden = known.travels([(1, 0)], 5, 4)
    assert not hidden[0, :3, :3].any() and hidden[0, 3:].all() and hidden[0, :, 3:].all()
    assert moved.shape == (1, 5, 4, 2) and moved.abs().max() < 0.01


def test_without_prompts_only_the_inversion_is_looked_at(suite: Suite, tmp_path: Path, executed: Executed) -> None:
    assert suite.pocket is not None
    calm = suite.model_copy(update={"pocket": suite.pocket.model_copy(update={"change": ()}), "per_frame": False})
    evaluation = run(calm, Store(tmp_path / "store"))
    assert executed.names == ["decode_frames", "invert_frames"]
    assert all(math.isfinite(row["inversion_psnr"]) and "warp_error" not in row for row in evaluation.rows)
    write_page(evaluation, tmp_path / "page.html")


def test_per_frame_editing_is_every_frame_alone() -> None:
    assert PER_FRAME == {"keyframe_interval": 1, "keyframe_offsets": 1, "attended_keyframes": 1}


def test_rendered_clips_are_rendered_once(suite: Suite, tmp_path: Path) -> None:
    assert suite.pocket is not None
    first = pocket_clips(suite.pocket, tmp_path)
    times = [clip.video.stat().st_mtime_ns for clip in first]
    truth_file(first[1].video).unlink()
    assert pocket_clips(suite.pocket, tmp_path) == first
    assert first[0].video.stat().st_mtime_ns == times[0]
    assert first[1].video.stat().st_mtime_ns != times[1], "half a clip is no clip"


BROKEN = {
    "option": ('[options]\nkeyframe_ofsets = 2\n[pocket]\nclips = 1', "no option 'keyframe_ofsets'; have "),
    "setting": ('[pocket]\nclips = 1\n[[settings]]\nname = "a"\nsteeps = 3', "settings 'a': no option 'steeps'"),
    "value": ("[options]\nsteps = 0\n[pocket]\nclips = 1", "--steps 0"),
    "field": ("pockets = 3", "pockets is not known here"),
    "twice": ('[pocket]\nclips = 1\n[[settings]]\nname = "a"\n[[settings]]\nname = "a"', "two settings are called 'a'"),
    "nameless": ("[pocket]\nclips = 1\n[[settings]]\nsteps = 3", "name"),
    "no clips": ("[options]\nsteps = 2", "no clips"),
    "clip": ('[[clips]]\nvideo = "gone.mp4"\nprompts = ["a"]', "there is no clip"),
    "toml": ("[options", "is not valid TOML"),
    "editor": ('[options]\neditor = "pnpp"\n[pocket]\nclips = 1', "no editor 'pnpp'"),
    "flow": ('[pocket]\nclips = 1\n[metrics]\nflow = "farneback"', "metrics.flow"),
    "clip model": ('[pocket]\nclips = 1\n[metrics]\nclip_model = "nowhere"', "nowhere"),
    "scalar": ('settings = 3\n[pocket]\nclips = 1', "settings is no list of tables"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_suite_that_cannot_be_used_is_one_sentence(name: str, tmp_path: Path, executed: Executed) -> None:
    text, says = BROKEN[name]
    file = tmp_path / "suite.toml"
    file.write_text(text)
    with pytest.raises(InputError) as refused:
        run(read_suite(file), Store(tmp_path / "store"))
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)
    assert executed.names == []


def test_json_has_no_nan(suite: Suite, tmp_path: Path) -> None:
    from flows.evaluation_page import as_json

    answer = as_json(run(suite, Store(tmp_path / "store")), {})
    json.dumps(answer, allow_nan=False)
    assert [entry["setting"] for entry in answer["settings"]] == ["autoencoder", "ours", "fixed", "per-frame"]
