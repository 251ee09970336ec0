"""What is asked again is never computed again: stage executions are counted, not believed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from flows.config import EditConfig, RuntimeConfig, make_runtime
from flows.explain import explain_plan
from flows.plan import Plan
from flows.run import run_edit, run_preview
from stages import editors
from stages.diffusion.choices import Blend
from store.keys import ArtifactKey
from store.store import Store
from tests.flows.runs import ALL, EDIT, PREPARE, Executed, computed, digests, edit, make_plan, small_clip
from tests.tiny.models import save_model

Plans = Callable[..., Plan]


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the same shape with other weights."""
    return save_model(tmp_path_factory.mktemp("other") / "model", vae="tiny", seed=1)


def remove(store: Store, plan: Plan, *stages: str) -> None:
    """Remove the objects of stages, as a collection does: their records stay."""
    for node in plan.nodes:
        if node.stage in stages and (artifact := store.find(node.key)):
            shutil.rmtree(artifact.path)


def test_the_first_run_executes_every_stage(
    executed: Executed, clip: Path, tiny_folder: Path, tmp_path: Path, edited: Any
) -> None:
    result = edit(make_plan(clip, tiny_folder, tmp_path / "new"), tmp_path)
    assert executed.names == computed(result) == ALL
    assert executed.models == 1
    assert digests(result) == edited[1]


def test_second_run_computes_nothing(plan: Plans, executed: Executed, tmp_path: Path, edited: Any) -> None:
    result = edit(plan(), tmp_path)
    assert executed.names == computed(result) == []
    assert executed.models == 0
    assert digests(result) == edited[1]
    assert [use.node.stage for use in result.uses] == ALL


def test_second_preview_computes_nothing_and_first_preview_no_clip(
    executed: Executed, clip: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "new"
    run_preview(make_plan(clip, tiny_folder, folder), tmp_path / "one.png", "direct")
    assert executed.names == [*PREPARE, "edit_keyframes"]
    executed.clear()
    again = make_plan(clip, tiny_folder, folder)
    assert again.to_compute(preview=True) == []
    run_preview(again, tmp_path / "two.png", "direct")
    assert (executed.names, executed.models) == ([], 0)
    edit(make_plan(clip, tiny_folder, folder), tmp_path)
    assert executed.names == ["propagate_tokens"]


NEW_EDITS: list[dict[str, Any]] = [
    {"prompts": ("a blue ball",)}, {"editor": "sdedit"}, {"guidance_scale": 3.0}, {"guidance_scale": 1.0},
    {"negative_prompt": "dull"}, {"editor_settings": {"feature": 0.5}}, {"attended_keyframes": 2},
]  # fmt: skip
NEW_SCHEDULES: list[dict[str, Any]] = [
    {"keyframe_interval": 4}, {"keyframe_offsets": 3}, {"blend": "sigmoid"}, {"seed": 7}, {"cuts": "3"}
]  # fmt: skip
NEW_FINISHES: list[dict[str, Any]] = [{"deflicker": 0.5}, {"match_colours": 1}]


def first_quick(cases: list[Any], quick: int) -> list[Any]:
    """All cases run in the whole suite, the first few in the quick one."""
    return [*cases[:quick], *(pytest.param(case, marks=pytest.mark.slow) for case in cases[quick:])]


def test_plans_of_new_edits_and_schedules_reuse_the_rest(plan: Plans) -> None:
    for changed in NEW_EDITS:
        assert [node.stage for node in plan(**changed).to_compute()] == EDIT, changed
    for changed in NEW_SCHEDULES:
        assert [node.stage for node in plan(**changed).to_compute()] == ["match_tokens", *EDIT], changed
    for changed in NEW_FINISHES:
        assert [node.stage for node in plan(**changed).to_compute()] == ["propagate_tokens"], changed


@pytest.mark.parametrize("changed", NEW_FINISHES, ids=str)
def test_a_new_finish_reuses_the_keyframes(
    plan: Plans, executed: Executed, tmp_path: Path, changed: dict[str, Any], edited: Any
) -> None:
    result = edit(plan(**changed), tmp_path)
    assert executed.names == computed(result) == ["propagate_tokens"]
    assert digests(result)["propagate_tokens", "a red ball"] != edited[1]["propagate_tokens", "a red ball"]


def test_a_finish_gives_the_same_whether_keyframes_were_there_or_not(
    plan: Plans, clip: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    options = {"deflicker": 0.5, "match_colours": 0.5}
    known = edit(plan(**options), tmp_path)
    fresh = edit(make_plan(clip, tiny_folder, tmp_path / "new", **options), tmp_path)
    assert digests(known) == digests(fresh)


@pytest.mark.parametrize("changed", first_quick(NEW_EDITS, 2), ids=str)
def test_a_new_edit_reuses_the_field(plan: Plans, executed: Executed, tmp_path: Path, changed: dict[str, Any]) -> None:
    result = edit(plan(**changed), tmp_path)
    assert executed.names == computed(result) == EDIT


@pytest.mark.parametrize("changed", first_quick(NEW_SCHEDULES, 1), ids=str)
def test_a_new_schedule_reuses_kept_tokens(
    plan: Plans, executed: Executed, tmp_path: Path, changed: dict[str, Any]
) -> None:
    result = edit(plan(**changed), tmp_path)
    assert executed.names == computed(result) == ["match_tokens", *EDIT]


def test_a_new_schedule_extracts_again_where_tokens_were_not_kept(
    executed: Executed, clip: Path, tiny_folder: Path, tmp_path: Path, edited: Any
) -> None:
    fused = edit(make_plan(clip, tiny_folder, tmp_path / "new", token_budget=0), tmp_path)
    kept = edited[1]
    for stage in ("decode_frames", "invert_frames"):
        assert digests(fused)[stage, None] == kept[stage, None]
    executed.clear()
    new = make_plan(clip, tiny_folder, tmp_path / "new", token_budget=0, keyframe_interval=4)
    result = edit(new, tmp_path)
    assert executed.names == ["extract_tokens", "match_tokens", *EDIT]
    assert computed(result) == ["match_tokens", *EDIT]  # the tokens' record (its feature) was there
    executed.clear()
    edit(make_plan(clip, tiny_folder, tmp_path / "new", prompts=("a blue ball",)), tmp_path)
    assert executed.names == EDIT


def test_tokens_matched_as_they_come_give_the_same_edit(
    executed: Executed, clip: Path, tiny_folder: Path, tmp_path: Path, edited: Any
) -> None:
    fused = edit(make_plan(clip, tiny_folder, tmp_path / "new", token_budget=0), tmp_path)
    assert not fused.uses[2].artifact.attrs["tokens_kept"]
    assert {key: digest for key, digest in digests(fused).items() if key[0] != "extract_tokens"} == {
        key: digest for key, digest in edited[1].items() if key[0] != "extract_tokens"
    }
    executed.clear()
    again = edit(make_plan(clip, tiny_folder, tmp_path / "new", token_budget=1 << 30), tmp_path)
    assert executed.names == computed(again) == []


@pytest.mark.parametrize("budget", first_quick([0, 1 << 30], 1))
def test_half_of_a_fused_pair_is_found_and_only_the_rest_is_done(
    plan: Plans, store: Store, executed: Executed, tmp_path: Path, budget: int, edited: Any
) -> None:
    remove(store, plan(), "extract_tokens", "propagate_tokens")
    result = edit(plan(token_budget=budget), tmp_path)
    assert executed.names == computed(result) == ["extract_tokens", "propagate_tokens"]
    assert digests(result)["propagate_tokens", "a red ball"] == edited[1]["propagate_tokens", "a red ball"]


def test_a_copy_under_another_name_reuses_everything(
    plan: Plans, clip: Path, tiny_folder: Path, executed: Executed, tmp_path: Path
) -> None:
    copy = shutil.copyfile(clip, tmp_path / "Über 'copy'.mp4")
    other = shutil.copytree(tiny_folder, tmp_path / "model")
    result = edit(plan(video=copy, model=other), tmp_path)
    assert executed.names == computed(result) == []


def test_another_source_prompt_inverts_anew(plan: Plans, executed: Executed, tmp_path: Path) -> None:
    result = edit(plan(source_prompt="a ball"), tmp_path)
    assert executed.names == computed(result) == ALL[1:]


@pytest.mark.parametrize("changed", [{"steps": 3}, {"inversion_steps": 4}], ids=str)
def test_other_steps_invert_anew(plan: Plans, changed: dict[str, Any]) -> None:
    assert [node.stage for node in plan(**changed).to_compute()] == ALL[1:]


@pytest.mark.parametrize("changed", [{"size": "32x36"}, {"frames": "0:4"}, {"frames": "0:7:2"}], ids=str)
def test_other_frames_decode_anew(plan: Plans, changed: dict[str, Any]) -> None:
    assert [node.stage for node in plan(**changed).to_compute()] == ALL


def test_another_size_gives_an_edit_of_that_size(plan: Plans, executed: Executed, tmp_path: Path) -> None:
    result = edit(plan(size="24x28", frames="1:6:2"), tmp_path)
    assert executed.names == ALL
    assert [result.outputs[0][name] for name in ("frames", "width", "height", "fps")] == [3, 24, 28, 12.0]


def test_another_model_reuses_the_frames(plan: Plans, other_model: Path, executed: Executed, tmp_path: Path) -> None:
    result = edit(plan(model=other_model), tmp_path)
    assert executed.names == computed(result) == ALL[1:]


def test_several_prompts_share_what_they_can(
    executed: Executed, clip: Path, tiny_folder: Path, tmp_path: Path, edited: Any
) -> None:
    prompts = ("a red ball", "a blue ball", "a red ball")
    result = edit(make_plan(clip, tiny_folder, tmp_path / "new", prompts=prompts), tmp_path)
    assert [use.node.stage for use in result.uses] == [*ALL, *EDIT]
    assert [executed.stages[name] for name in ("decode_frames", "invert_frames", *EDIT)] == [1, 1, 2, 2]
    assert executed.models == 1
    assert edited[1].items() <= digests(result).items()
    assert [Path(each["file"]).name for each in result.outputs] == ["edit-1.mp4", "edit-2.mp4"]
    assert digests(result)["propagate_tokens", "a red ball"] != digests(result)["propagate_tokens", "a blue ball"]


@pytest.mark.parametrize("gone", [["extract_tokens"], ["invert_frames", "extract_tokens", "match_tokens"]], ids=str)
def test_an_edit_outlives_what_it_was_made_from(
    plan: Plans, store: Store, executed: Executed, tmp_path: Path, gone: list[str]
) -> None:
    remove(store, plan(), *gone)
    again = plan()
    assert again.to_compute() == []
    assert {row["bytes"] for row in explain_plan(again)} == {0}
    assert "nothing would be computed" in again.summary()
    result = edit(again, tmp_path)
    assert (executed.names, executed.models) == ([], 0)
    assert [use.node.stage for use in result.uses] == [name for name in ALL if name not in gone]


@pytest.mark.parametrize(
    "gone", first_quick([["invert_frames", "match_tokens"], ["extract_tokens"], ["match_tokens"]], 1), ids=str
)
def test_what_was_collected_is_made_again_for_a_new_prompt(
    plan: Plans, store: Store, executed: Executed, tmp_path: Path, gone: list[str], edited: Any
) -> None:
    remove(store, plan(), *gone)
    result = edit(plan(prompts=("a blue ball",)), tmp_path)
    assert executed.names == computed(result) == [*gone, *EDIT]
    for stage in gone:
        assert digests(result)[stage, None] == edited[1][stage, None]


@pytest.mark.parametrize(
    "changed",
    first_quick(
        [{"prompts": ("a red ball", "a blue ball")}, {"frames": "0:4"}, {"keyframe_interval": 4, "token_budget": 0}], 1
    ),
    ids=str,
)
def test_a_plan_is_what_the_run_does(plan: Plans, executed: Executed, tmp_path: Path, changed: dict[str, Any]) -> None:
    rows = explain_plan(plan(**changed))
    assert executed.models == 0
    result = edit(plan(**changed), tmp_path)
    assert [(row["stage"], row["key"], row["hit"]) for row in rows] == [
        (use.node.stage, use.node.key.hex, use.hit) for use in result.uses
    ]
    assert [row["compute"] for row in rows] == [not row["hit"] for row in rows]
    for row, use in zip(rows, result.uses, strict=True):
        assert row["bytes"] == (use.artifact.schema.nbytes() if row["compute"] else 0)
    assert [row["why"] for row in explain_plan(plan(**changed))] == [None] * len(rows)


@pytest.mark.parametrize(
    ("changed", "stage", "why"),
    [
        ({"guidance_scale": 9}, "edit_keyframes", "guidance_scale 7.5 → 9"),
        ({"prompts": ("a cube",)}, "edit_keyframes", 'prompt "a red ball" → "a cube"'),
        ({"editor_settings": {"feature": 0.5}}, "edit_keyframes", "editor.settings.feature 0.8 → 0.5"),
        ({"keyframe_interval": 4}, "match_tokens", "keyframe_interval 3 → 4"),
        ({"keyframe_interval": 4}, "edit_keyframes", "field from match_tokens (keyframe_interval 3 → 4)"),
        ({"steps": 3}, "invert_frames", "num_steps 2 → 3, num_inversion_steps 2 → 3"),
        ({"size": "24x24"}, "decode_frames", "width 32 → 24, height 32 → 24"),
    ],
    ids=str,
)
def test_a_plan_says_why(plan: Plans, changed: dict[str, Any], stage: str, why: str) -> None:
    rows = {row["stage"]: row for row in explain_plan(plan(**changed))}
    assert rows[stage]["why"] == why
    assert all((row["why"] is None) == row["hit"] for row in rows.values())


def test_a_plan_in_an_empty_store_has_nothing_to_compare_with(clip: Path, tiny_folder: Path, tmp_path: Path) -> None:
    rows = explain_plan(make_plan(clip, tiny_folder, tmp_path / "new"))
    assert {row["why"] for row in rows} == {"nothing like it yet"}
    assert list((tmp_path / "new" / "drafts").glob("*")) == []


def test_what_a_plan_wants_may_be_removed_meanwhile(plan: Plans, store: Store, tmp_path: Path) -> None:
    """A plan remembers what it found; a run of a new plan looks again."""
    before = plan()
    assert before.to_compute() == []
    remove(store, before, "propagate_tokens")
    assert [node.stage for node in plan().to_compute()] == ["propagate_tokens"]


CHANGES: dict[str, Any] = {
    "prompts": ("another",), "source_prompt": "other", "frames": "1:6", "size": "24x24", "steps": 3,
    "inversion_steps": 5, "inversion_evaluations": 3, "seed": 5, "editor": "sdedit",
    "editor_settings": {"attention": 0.1}, "guidance_scale": 2.0, "negative_prompt": "no", "keyframe_interval": 5,
    "keyframe_offsets": 1, "attended_keyframes": 4, "blend": "sigmoid", "guidance_start": 0.5, "guidance_stop": 0.5,
    "guidance_rescale": 0.7,
    "feature_reuse": 2, "solver": "dpmpp_2m", "controls": ({"kind": "canny"},), "cuts": "4",
    "keyframe_placement": "adaptive", "deflicker": 0.5, "match_colours": 0.5, "mask_from": "cross-attention:a",
    "fps": 4.0, "prompt_weighting": True, "letterbox": "4,0,4,0", "vae_tiling": "on",
    "regions": ("cross-attention:a=b",), "timestep_spacing": "trailing",
}  # fmt: skip


def needed(name: str, value: object, control: Path) -> dict[str, Any]:
    """A changed option, and what it does not go without."""
    with_control = {"editor": "controlnet", "controls": ({"model": str(control)},)}
    return with_control if name == "controls" or value == "controlnet" else {name: value}


def test_every_field_that_may_change_the_result_moves_a_key(
    plan: Plans, other_model: Path, tmp_path: Path, clip: Path, control_folder: Path, temporal_folder: Path
) -> None:
    lora, word = tmp_path / "lora.safetensors", tmp_path / "word.safetensors"
    save_file({"unet.lora_A.weight": torch.zeros(1)}, lora)
    save_file({"<cat>": torch.zeros(24)}, word)
    apart = {"video", "model", "loras", "embeddings", "mask", "mask_feather", "decoder"}
    apart.add("background_colour")  # of clips with alpha
    assert set(CHANGES) | apart == set(EditConfig.model_fields)
    drawn = tmp_path / "mask.png"
    Image.new("L", (32, 32), 255).save(drawn)
    masks: dict[str, dict[str, Any]] = {
        "mask": {"mask": drawn},
        "mask_feather": {"mask_from": "cross-attention:a", "mask_feather": 3},
    }
    plans = {name: plan(**needed(name, value, control_folder)) for name, value in CHANGES.items()}
    plans |= {name: plan(**options) for name, options in masks.items()}
    plans |= {"video": plan(video=small_clip(tmp_path / "a.mp4", frames=8)), "model": plan(model=other_model)}
    plans |= {"loras": plan(loras=(str(lora),)), "embeddings": plan(embeddings=(str(word),))}
    plans |= {"decoder": plan(decoder=temporal_folder)}
    last = {name: each.nodes[-1].key.hex for name, each in plans.items()} | {"": plan().nodes[-1].key.hex}
    assert len(set(last.values())) == len(last)


def test_every_editor_and_blend_names_another_edit(plan: Plans, control_folder: Path) -> None:
    names = {plan(**needed("editor", name, control_folder)).nodes[-1].key.hex for name in editors.names()}
    blends = {plan(blend=blend).nodes[-1].key.hex for blend in get_args(Blend)}
    assert (len(names), len(blends)) == (len(editors.names()), len(get_args(Blend)))


@pytest.mark.parametrize(("name", "attended"), [("per-frame", 1), ("joint", 4096)])
def test_a_baseline_decides_its_keyframes_itself(plan: Plans, name: str, attended: int) -> None:
    one = plan(editor=name, keyframe_interval=4, keyframe_placement="adaptive")
    other = plan(keyframe_interval=1, keyframe_offsets=1, attended_keyframes=attended)
    assert one.match == other.match
    mine, usual = (each.nodes[-2].spec.model_dump() for each in (one, other))
    assert (mine["editor"].pop("name"), usual["editor"].pop("name")) == (name, "pnp")
    assert mine == usual


def test_no_runtime_field_moves_a_key(plan: Plans, store: Store, tmp_path: Path) -> None:
    others: dict[str, Any] = {
        "device": "cuda",
        "frames_per_pass": 3,
        "token_budget": 0,
        "precision": "bfloat16",
        "runner": "dask",
        "address": "tcp://127.0.0.1:9",
    }
    others |= {"allow_pickle": True, "codec": "hevc", "quality": 40, "pixel_format": "yuv444p"}
    others |= {"keep_alpha": True, "source_rate": True}
    assert set(others) == set(RuntimeConfig.model_fields)
    assert make_runtime(**others) != make_runtime()
    keys = [node.key for node in plan().nodes]
    for name, value in others.items():
        assert [node.key for node in plan(**{name: value}).nodes] == keys
    elsewhere = Plan(plan().config, RuntimeConfig(), Store(tmp_path / "elsewhere"))
    assert [node.key for node in elsewhere.nodes] == keys


def test_every_version_moves_the_keys_below(plan: Plans, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.plan import STAGES

    for position, (name, module) in enumerate(STAGES.items()):
        before = plan().nodes
        with monkeypatch.context() as patch:
            patch.setattr(module, "VERSION", module.VERSION + 1)
            changed = [a.stage for a, b in zip(before, plan().nodes, strict=True) if a.key != b.key]
        assert changed == ALL[position:], name


def test_fewer_frames_per_pass_give_the_same_edit_to_rounding(plan: Plans, clip: Path, tiny_folder: Path) -> None:
    """The key says so; here the numbers do."""
    import numpy as np

    one = plan().find(plan().edits[0][1])
    assert one is not None
    folder = plan().store.root.parent
    other = edit(make_plan(clip, tiny_folder, folder / "other", frames_per_pass=2), folder).uses[-1].artifact
    assert np.abs(one["latents"][:] - other["latents"][:]).max() < 2e-2 * np.abs(one["latents"][:]).max()


def test_keyframe_offsets_beyond_the_interval_are_the_interval(plan: Plans) -> None:
    keys: list[ArtifactKey] = [plan(keyframe_offsets=offsets).match.key for offsets in (3, 4, 64)]
    assert len({key.hex for key in keys}) == 1


def test_a_clip_in_its_whole_length_by_number_is_the_whole_clip(plan: Plans) -> None:
    assert plan(frames="0:7").to_compute() == []


def test_an_export_that_is_there_is_not_written_again(plan: Plans, tmp_path: Path) -> None:
    file = tmp_path / "out.mp4"
    run_edit(plan(), file, "direct")
    first = (file.stat().st_mtime_ns, file.read_bytes())
    run_edit(plan(), file, "direct")
    assert (file.stat().st_mtime_ns, file.read_bytes()) == first
    file.write_bytes(b"something else")
    run_edit(plan(), file, "direct")
    assert file.read_bytes() == first[1]


def test_another_encoding_is_written_anew_from_the_same_edit(plan: Plans, tmp_path: Path) -> None:
    file = tmp_path / "out.mp4"
    run_edit(plan(), file, "direct")
    first = file.read_bytes()
    result = run_edit(plan(codec="hevc", quality=40), file, "direct")
    assert all(use.hit for use in result.uses)
    assert file.read_bytes() != first
    run_edit(plan(), file, "direct")
    assert file.read_bytes() == first


def test_a_folder_of_pictures_that_is_there_is_not_written_again(plan: Plans, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    run_edit(plan(), folder, "direct")
    first = (folder / "00003.png").stat()
    run_edit(plan(), folder, "direct")
    assert (folder / "00003.png").stat().st_ino == first.st_ino
    (folder / "00003.png").unlink()
    run_edit(plan(), folder, "direct")
    assert len(list(folder.iterdir())) == 7


@pytest.mark.slow
def test_a_plan_loads_no_weights(clip: Path, tiny_folder: Path, tmp_path: Path) -> None:
    code = """
import sys
import safetensors.torch
def refuse(*given, **named): raise AssertionError("weights were loaded")
safetensors.torch.load_file = safetensors.torch.load = safetensors.safe_open = refuse
import flows.runtime
flows.runtime.load_backbone = refuse
sys.argv = ["tf", "plan", *sys.argv[1:]]
import cli
cli.main()
"""
    asked = [clip, "--prompt", "a", "--model", tiny_folder, "--store", tmp_path / "s", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", code, *asked],
        capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("{")
