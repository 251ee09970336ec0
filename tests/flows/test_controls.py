"""ControlNets of a run: what is asked for, whose keys it moves, and what is said where it cannot be had."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flows import controls
from flows.command_line import run_command
from flows.config import make_config
from flows.controls import Control, parse_controls
from flows.plan import Plan
from flows.reproduce import plan_again
from stages.control_frames import canny
from store.errors import InputError
from store.store import Store
from tests.flows.runs import Executed, computed, edit
from tests.stages.clips import write_clip

Plans = Callable[..., Plan]


@pytest.fixture
def asked(control_folder: Path) -> dict[str, Any]:
    """Options of an edit with one ControlNet."""
    return {"editor": "controlnet", "controls": ({"kind": "canny", "model": str(control_folder)},)}


def changed(asked: dict[str, Any], **control: Any) -> dict[str, Any]:
    return asked | {"controls": ({**asked["controls"][0], **control},)}


def stages_that_differ(one: Plan, other: Plan) -> list[str]:
    return [a.stage for a, b in zip(one.nodes, other.nodes, strict=True) if a.key != b.key]


# what is asked


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("canny", {"kind": "canny"}),
        ("canny:0.8", {"kind": "canny", "strength": 0.8}),
        ("canny:./edges:0.8:0-0.6", {"kind": "canny", "model": "./edges", "strength": 0.8, "start": 0, "stop": 0.6}),
        ("depth:some/depth-net", {"kind": "depth", "model": "some/depth-net"}),
        ("depth:some/net:1:0.1-1", {"kind": "depth", "model": "some/net", "strength": 1, "start": 0.1, "stop": 1}),
    ],
)
def test_a_control_is_read_as_it_is_written(text: str, expected: dict[str, Any]) -> None:
    [control] = parse_controls([text], [], "100-200")
    assert control == Control(**expected)
    assert parse_controls([control.written], [], "100-200") == (control,)


@pytest.mark.parametrize(
    ("texts", "videos", "thresholds", "said"),
    [
        (["edges"], [], "100-200", "--control 'edges' is not KIND.*canny, softedge, depth, openpose, given"),
        (["canny:x:3"], [], "100-200", "strength '3'"),
        (["canny:x:1:0.9-0.1"], [], "100-200", "its start is after its stop"),
        (["canny"], [], "100", "--canny-thresholds '100' is not LOW-HIGH"),
        (["canny"], [], "200-100", "its low above its high"),
        (["given:x"], [], "100-200", "--control given and --control-video go together"),
        (["canny"], [Path("a.mp4")], "100-200", "--control-video a.mp4 has no --control given"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(texts: list[str], videos: list[Path], thresholds: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as raised:
        parse_controls(texts, videos, thresholds)
    assert "\n" not in str(raised.value)


def test_the_command_of_a_run_says_its_controls(clip: Path) -> None:
    controls = (
        Control(model="edges", strength=0.5, low=50, high=60), Control(kind="given", model="a/b", video=Path("x.mp4")),
    )  # fmt: skip
    config = make_config(video=clip, prompts=("a ball",), editor="controlnet", controls=controls)
    command = run_command(config, "store")
    assert "--control canny:edges:0.5:0-1 --canny-thresholds 50-60" in command
    assert "--control given:a/b:1:0-1 --control-video x.mp4" in command


def test_control_and_editor_go_together(plan: Plans, asked: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="needs a control"):
        plan(editor="controlnet")
    with pytest.raises(InputError, match="--control is of --editor controlnet"):
        plan(**asked | {"editor": "pnp"})


# identity


def test_edits_share_the_control_images_and_other_editors_keep_their_keys(plan: Plans, asked: dict[str, Any]) -> None:
    one, two, pnp = plan(**asked), plan(**asked, prompts=("other words",)), plan()
    assert stages_that_differ(one, two) == ["edit_keyframes", "propagate_tokens"]
    assert [node.stage for node in one.nodes][:2] == ["decode_frames", "control_frames"]
    kept = [node.key for node in one.nodes if node.stage != "control_frames"]
    assert kept[:4] == [node.key for node in pnp.nodes][:4]
    assert not pnp.controls.nodes and "controls" not in pnp.edits[0][0].key.spec["editor"]["settings"]  # type: ignore


@pytest.mark.parametrize("how", [{"strength": 0.5}, {"start": 0.5}, {"stop": 0.5}])
def test_how_it_acts_moves_the_edit_alone(plan: Plans, asked: dict[str, Any], how: dict[str, float]) -> None:
    differs = stages_that_differ(plan(**asked), plan(**changed(asked, **how)))
    assert differs == ["edit_keyframes", "propagate_tokens"]


def test_thresholds_move_the_control_images_and_the_edit(plan: Plans, asked: dict[str, Any]) -> None:
    differs = stages_that_differ(plan(**asked), plan(**changed(asked, low=50)))
    assert differs == ["control_frames", "edit_keyframes", "propagate_tokens"]


def test_a_control_is_known_by_its_bytes(
    plan: Plans, asked: dict[str, Any], control_folder: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(control_folder, moved)
    assert stages_that_differ(plan(**asked), plan(**changed(asked, model=str(moved)))) == []
    (moved / "config.json").write_text((moved / "config.json").read_text() + "\n")
    differs = stages_that_differ(plan(**asked), plan(**changed(asked, model=str(moved))))
    assert differs == ["edit_keyframes", "propagate_tokens"]


def test_two_controls_of_the_same_images_have_them_once(plan: Plans, asked: dict[str, Any]) -> None:
    both = plan(**asked | {"controls": asked["controls"] * 2})
    assert [node.stage for node in both.nodes].count("control_frames") == 1
    assert len(both.controls.inputs) == 4


# runs


def test_a_run_caches_what_it_looked_at(plan: Plans, asked: dict[str, Any], executed: Executed, tmp_path: Path) -> None:
    first = edit(plan(**asked), tmp_path)
    assert computed(first) == ["control_frames", "edit_keyframes", "propagate_tokens"]
    frames, control = (next(u.artifact for u in first.uses if u.node.stage == name) for name in
                       ("decode_frames", "control_frames"))  # fmt: skip
    assert control.schema.artifact == "control"
    assert all(np.array_equal(c, canny(f, 100, 200)) for f, c in zip(frames["rgb"][:], control["rgb"][:], strict=True))
    again = edit(plan(**asked, prompts=("other words",)), tmp_path)
    assert computed(again) == ["edit_keyframes", "propagate_tokens"]
    none = edit(plan(**changed(asked, strength=0)), tmp_path).uses[-1].artifact
    assert np.abs(none["latents"][:] - first.uses[-1].artifact["latents"][:]).max() > 1e-3


def test_control_images_may_be_given(
    plan: Plans, store: Store, asked: dict[str, Any], tmp_path: Path, executed: Executed
) -> None:
    video = write_clip(tmp_path / "given.mp4", frames=7, width=32, height=32)
    given = changed(asked, kind="given", video=video)
    result = edit(plan(**given), tmp_path)
    control = next(use.artifact for use in result.uses if use.node.stage == "control_frames")
    assert control["rgb"].shape == (7, 32, 32, 3)
    copy = tmp_path / "copy.mp4"
    shutil.copy(video, copy)
    assert not plan(**changed(given, video=copy)).to_compute()
    part = plan(**given, frames="1:5:2")
    assert part.schema(part.controls.nodes[0]).size("frame") == 2


def drawn(folder: Path, count: int = 7, size: tuple[int, int] = (32, 32)) -> list[np.ndarray[Any, Any]]:
    """A folder of pictures whose numbers are not padded: sorted as texts, 10.png would come before 4.png."""
    folder.mkdir()
    pictures = [np.full((*size[::-1], 3), 30 * place, np.uint8) for place in range(count)]
    for place, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{4 + place}.png")
    return pictures


def test_control_images_may_be_a_folder(plan: Plans, asked: dict[str, Any], tmp_path: Path, executed: Executed) -> None:
    pictures = drawn(tmp_path / "edges")
    given = changed(asked, kind="given", video=tmp_path / "edges")
    use = edit(plan(**given, frames="1:6:2"), tmp_path).uses
    control = next(each.artifact for each in use if each.node.stage == "control_frames")
    assert np.array_equal(control["rgb"][:], np.stack(pictures[1:6:2]))
    shutil.copytree(tmp_path / "edges", tmp_path / "copy")
    assert not plan(**changed(given, video=tmp_path / "copy"), frames="1:6:2").to_compute()
    Image.new("RGB", (32, 32), "red").save(tmp_path / "copy" / "5.png")
    changed_stages = stages_that_differ(plan(**given), plan(**changed(given, video=tmp_path / "copy")))
    assert changed_stages == ["control_frames", "edit_keyframes", "propagate_tokens"]


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ({"count": 6}, "6 pictures and the video has 7"),
        ({"size": (48, 32)}, "is 48×32 and the edit 32×32"),
        ({"count": 0}, "0 pictures"),
    ],
)
def test_a_folder_that_does_not_fit_is_one_sentence(
    plan: Plans, asked: dict[str, Any], tmp_path: Path, made: dict[str, Any], said: str
) -> None:
    drawn(tmp_path / "edges", **made)
    with pytest.raises(InputError, match=said):
        plan(**changed(asked, kind="given", video=tmp_path / "edges"))


def test_a_picture_of_a_folder_that_cannot_be_read_is_one_sentence(
    plan: Plans, asked: dict[str, Any], tmp_path: Path
) -> None:
    drawn(tmp_path / "edges")
    (tmp_path / "edges" / "7.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"--control-video .*7\.png cannot be read as a picture"):
        plan(**changed(asked, kind="given", video=tmp_path / "edges"))


@pytest.mark.parametrize(
    ("made", "said"), [({"frames": 6}, "6 frames and the video has 7"), ({"width": 48}, "is 48×32 and the edit 32×32")]
)
def test_given_images_that_do_not_fit_are_one_sentence(
    plan: Plans, asked: dict[str, Any], tmp_path: Path, made: dict[str, int], said: str
) -> None:
    video = write_clip(tmp_path / "given.mp4", **{"frames": 7, "width": 32, "height": 32} | made)
    with pytest.raises(InputError, match=said):
        plan(**changed(asked, kind="given", video=video))


def test_a_clip_is_reproduced_with_its_controls(plan: Plans, asked: dict[str, Any], tmp_path: Path) -> None:
    made = edit(plan(**asked), tmp_path)
    sidecar = Path(str(made.outputs[0]["file"]) + ".json")
    assert json.loads(sidecar.read_text())["config"]["controls"][0]["kind"] == "canny"
    again, _ = plan_again(sidecar, plan().store, plan().runtime)
    assert [node.key for node in again.nodes] == [node.key for node in plan(**asked).nodes]


# ControlNets that cannot be had


def test_pickled_weights_of_a_detector_are_not_opened_unasked(
    plan: Plans, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "controlnet_aux", SimpleNamespace())
    with pytest.raises(InputError, match=r"drawn with pickled weights .*--allow-pickle"):
        plan(**changed(asked, kind="depth"))
    with pytest.raises(InputError, match=r"'lllyasviel/Annotators' .* cannot be downloaded"):
        plan(**changed(asked, kind="depth"), allow_pickle=True)


def test_a_single_file_is_taken_as_the_folder_is(
    plan: Plans, asked: dict[str, Any], control_folder: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    file = tmp_path / "control.safetensors"
    shutil.copy(control_folder / "diffusion_pytorch_model.safetensors", file)
    unpacked = plan(**changed(asked, model=str(file))).controls.files[0].folder
    ours, theirs = (load_file(f / "diffusion_pytorch_model.safetensors") for f in (unpacked, control_folder))
    assert ours.keys() == theirs.keys()
    assert all((ours[name] == theirs[name]).all() for name in ours)
    file.write_bytes(b"x" * 100)
    with pytest.raises(InputError, match="cannot be read as a ControlNet"):
        plan(**changed(asked, model=str(file)))


def test_half_precision_is_asked_of_the_hub_where_there_is_nothing_else(
    plan: Plans, asked: dict[str, Any], control_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hub that has what is in a folder, and gives what is asked of it."""
    on_hub, here = tmp_path / "hub", tmp_path / "here"
    shutil.copytree(control_folder, on_hub)
    here.mkdir()

    def snapshot(name: str, wanted: list[str]) -> Path:
        for file in on_hub.iterdir():
            if any(fnmatch(file.name, pattern) for pattern in wanted):
                shutil.copy(file, here)
        return here

    monkeypatch.setattr(controls, "snapshot", snapshot)
    weights = "diffusion_pytorch_model.safetensors"
    half = weights.replace(".", ".fp16.", 1)
    shutil.copy(on_hub / weights, on_hub / half)
    assert plan(**changed(asked, model="some/controlnet")).controls.files[0].folder == here
    assert sorted(path.name for path in here.iterdir()) == ["config.json", weights], "not both"
    for lost in (on_hub / weights, here / weights):
        lost.unlink()
    assert plan(**changed(asked, model="some/controlnet")).controls.files[0].folder == here
    assert sorted(path.name for path in here.iterdir()) == ["config.json", half]


def test_what_is_no_fitting_controlnet_is_one_sentence(
    plan: Plans, asked: dict[str, Any], control_folder: Path, tiny_folder: Path, kl_folder: Path, tmp_path: Path
) -> None:
    cases: list[tuple[str, str]] = [
        (str(tiny_folder), "is no folder of a ControlNetModel"),
        ("no/such-id", "as a hub id it cannot be downloaded"),
        ("../nowhere", "it is no folder, no file and no hub id"),
        ("", "names no ControlNet, and none comes with the model"),
    ]
    empty = tmp_path / "empty"
    shutil.copytree(control_folder, empty)
    (empty / "diffusion_pytorch_model.safetensors").unlink()
    cases.append((str(empty), "has no diffusion_pytorch_model.safetensors"))
    pickled = tmp_path / "pickled"
    shutil.copytree(empty, pickled)
    (pickled / "diffusion_pytorch_model.bin").write_bytes(b"")
    cases.append((str(pickled), "--allow-pickle"))
    grey = tmp_path / "grey"
    shutil.copytree(control_folder, grey)
    config = json.loads((grey / "config.json").read_text())
    (grey / "config.json").write_text(json.dumps({**config, "conditioning_channels": 1}))
    cases.append((str(grey), "reads control images of 1 channels, and a picture has 3"))
    for model, said in cases:
        with pytest.raises(InputError, match=said) as raised:
            plan(**changed(asked, model=model))
        assert "\n" not in str(raised.value)
    with pytest.raises(InputError, match="was made for another model: its block_out_channels"):
        plan(**asked, model=kl_folder)
    damaged = tmp_path / "damaged"
    shutil.copytree(control_folder, damaged)
    (damaged / "diffusion_pytorch_model.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(InputError, match="damaged"):
        edit(plan(**changed(asked, model=str(damaged))), tmp_path)
