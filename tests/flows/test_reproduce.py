"""What lies beside a clip makes the same clip again, or says what would be another."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.config import make_runtime
from flows.plan import Plan
from flows.reproduce import output_again, plan_again, same_edit, verdict
from flows.run import run_edit
from flows.sidecar import read_sidecar
from stages import match_tokens
from store.errors import InputError
from store.store import Store
from tests.flows.runs import Executed, make_plan, small_clip
from tests.test_cli import Tf, made, tf  # noqa: F401 (fixtures)
from tests.tiny.checkpoints import write_checkpoint
from tests.tiny.models import make_pipeline, save_model

Plans = Callable[..., Plan]
RUNTIME = make_runtime()


@pytest.fixture
def sidecar(plan: Plans, tmp_path: Path) -> Path:
    """The sidecar of an edit."""
    run_edit(plan(), tmp_path / "out.mp4", "direct")
    return tmp_path / "out.mp4.json"


def test_the_same_keys_and_bits_in_another_store(sidecar: Path, executed: Executed, tmp_path: Path) -> None:
    first = read_sidecar(sidecar)
    again, then = plan_again(sidecar, Store(tmp_path / "other"), RUNTIME)
    assert [node.key.hex for node in again.nodes] == list(first.keys.values())
    executed.clear()
    result = run_edit(again, tmp_path / "again.mp4", "direct")
    assert len(executed.names) == 6, "a new store has nothing"
    assert same_edit(then, result) and verdict(then, result) == "bit for bit the same edit"
    assert (tmp_path / "again.mp4").read_bytes() == (tmp_path / "out.mp4").read_bytes()
    written = read_sidecar(tmp_path / "again.mp4.json")
    assert (written.recipes, written.config, written.digest) == (first.recipes, first.config, first.digest)


def test_what_a_clip_was_written_as_is_told_and_done_again(clip: Path, tiny_folder: Path, tmp_path: Path) -> None:
    run_edit(make_plan(clip, tiny_folder, tmp_path / "store", codec="av1", quality=40), tmp_path / "a.mp4", "direct")
    run_edit(make_plan(clip, tiny_folder, tmp_path / "store"), tmp_path / "pictures", "direct")
    for name in ("a.mp4", "pictures"):
        again, then = plan_again(tmp_path / f"{name}.json", Store(tmp_path / "store"), RUNTIME)
        place = output_again(tmp_path / f"{name}.json", then, None, again.store)
        run_edit(again, place, "direct")
        run_edit(again, tmp_path / f"again-{name}", "direct")
        assert read_sidecar(tmp_path / f"again-{name}.json").clip.key == then.clip.key
    with (tmp_path / "pictures" / "00000.png").open("ab") as picture:
        picture.write(b"touched")
    with pytest.raises(InputError, match="is not the clip that"):
        output_again(tmp_path / "pictures.json", then, None, again.store)


def test_a_single_file_with_the_settings_of_a_folder_is_found_again(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = make_pipeline()
    write_checkpoint(tmp_path / "one.safetensors", pipeline)
    pipeline.save_pretrained(tmp_path / "configs")
    for weights in (tmp_path / "configs").rglob("*.safetensors"):
        weights.unlink()
    monkeypatch.chdir(tmp_path)
    run_edit(make_plan(clip, Path("one.safetensors:configs"), tmp_path / "store"), tmp_path / "out.mp4", "direct")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again, then = plan_again(tmp_path / "out.mp4.json", Store(tmp_path / "store"), RUNTIME)
    assert again.to_compute() == []
    assert then.model.name == f"{tmp_path}/one.safetensors:{tmp_path}/configs"


def test_an_ending_that_holds_no_such_codec_gets_its_own_and_that_is_said(
    clip: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    plan = make_plan(clip, tiny_folder, tmp_path / "store", codec="hevc", pixel_format="yuv444p", quality=40)
    run_edit(plan, tmp_path / "a.mp4", "direct")
    for name, codec in (("again.webm", "vp9"), ("again.gif", "gif"), ("pictures", "png")):
        output = tmp_path / name
        again, then = plan_again(tmp_path / "a.mp4.json", plan.store, RUNTIME, output=output)
        assert [note for note in again.notes if f"holds no hevc: the clip is written as {codec}" in note]
        assert same_edit(then, run_edit(again, output, "direct"))
        assert read_sidecar(output.with_name(f"{name}.json")).encoding.codec in (None, codec)


def test_advised_and_default_values_are_written_out(clip: Path, tiny_folder: Path, tmp_path: Path) -> None:
    """So that the sidecar still tells the truth when the model's advice is another."""
    model = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    advice = {"guidance_scale": 2.5, "editors": {"pnp": {"feature": 0.5}}}
    (model / "tokenflow.json").write_text(json.dumps(advice))
    plan = make_plan(clip, model, tmp_path / "store", prompts=("a red ball", "a blue ball"))
    run_edit(plan, tmp_path / "out.mp4", "direct")
    (model / "tokenflow.json").unlink()
    for number, prompt in enumerate(("a red ball", "a blue ball"), 1):
        again, then = plan_again(tmp_path / f"out-{number}.mp4.json", Store(tmp_path / "store"), RUNTIME)
        assert (then.config.prompts, then.config.guidance_scale) == ((prompt,), 2.5)
        assert then.config.editor_settings["feature"] == 0.5
        assert again.to_compute() == []


def test_a_run_that_does_nothing_leaves_the_sidecar_alone(sidecar: Path, plan: Plans, store: Store) -> None:
    before, runs = sidecar.stat().st_mtime_ns, len(store.runs())
    assert run_edit(plan(), sidecar.with_suffix(""), "direct").run is None
    assert (sidecar.stat().st_mtime_ns, len(store.runs())) == (before, runs)
    sidecar.unlink()
    run = run_edit(plan(), sidecar.with_suffix(""), "direct").run
    assert run is not None and read_sidecar(sidecar).run == run == store.runs()[0]["id"]


def test_another_edit_under_the_same_name_has_another_sidecar(sidecar: Path, plan: Plans) -> None:
    before = read_sidecar(sidecar)
    run_edit(plan(guidance_scale=2.0), sidecar.with_suffix(""), "direct")
    after = read_sidecar(sidecar)
    assert after.keys["decode_frames"] == before.keys["decode_frames"]
    assert after.keys["edit_keyframes"] != before.keys["edit_keyframes"]
    assert after.clip.key != before.clip.key


def test_a_file_that_is_no_sidecar_is_not_overwritten(plan: Plans, executed: Executed, tmp_path: Path) -> None:
    other = tmp_path / "out.mp4.json"
    other.write_text('{"mine": 1}')
    with pytest.raises(InputError, match=r"out\.mp4\.json is in the way .* move it"):
        run_edit(plan(prompts=("new",)), tmp_path / "out.mp4", "direct")
    assert (other.read_text(), executed.names) == ('{"mine": 1}', [])


def test_the_video_may_have_moved_but_not_changed(sidecar: Path, store: Store, clip: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copy(clip, tmp_path / "moved.mp4"))
    text = sidecar.read_text().replace(str(clip), str(tmp_path / "gone.mp4"))
    sidecar.write_text(text)
    with pytest.raises(InputError, match=r"gone\.mp4 of .* is not there; say where it is with --video"):
        plan_again(sidecar, store, RUNTIME)
    assert plan_again(sidecar, store, RUNTIME, video=moved)[0].to_compute() == []
    small_clip(moved, frames=8)
    with pytest.raises(InputError, match=r"moved\.mp4 has other bytes .*--video"):
        plan_again(sidecar, store, RUNTIME, video=moved)


def test_another_model_is_refused(sidecar: Path, store: Store, tmp_path: Path) -> None:
    other = save_model(tmp_path / "model", vae="tiny", seed=1)
    with pytest.raises(InputError, match=r"the model .* has other bytes .*--model"):
        plan_again(sidecar, store, RUNTIME, model=str(other))


def test_a_raised_version_is_named(sidecar: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    then = match_tokens.VERSION
    monkeypatch.setattr(match_tokens, "VERSION", then + 1)
    said = rf"match_tokens is version {then + 1} here and was version {then}; use tokenflow 0\.\d"
    with pytest.raises(InputError, match=said):
        plan_again(sidecar, store, RUNTIME)


def test_a_default_that_changed_meanwhile_does_not_matter(
    sidecar: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.plan.GUIDANCE_SCALE", 5.0)
    assert plan_again(sidecar, store, RUNTIME)[0].to_compute() == []


def test_a_configuration_that_does_not_give_the_recipes_is_refused(sidecar: Path, store: Store) -> None:
    told = json.loads(sidecar.read_text())
    told["config"]["keyframe_interval"] += 1
    sidecar.write_text(json.dumps(told))
    with pytest.raises(InputError, match="match_tokens is asked for another keyframe_interval"):
        plan_again(sidecar, store, RUNTIME)


def test_other_libraries_are_only_told(sidecar: Path, store: Store) -> None:
    assert plan_again(sidecar, store, RUNTIME)[0].notes == []
    note = json.loads(sidecar.read_text())
    note["software"]["torch"] = "1.0"
    sidecar.write_text(json.dumps(note))
    (told,) = plan_again(sidecar, store, RUNTIME)[0].notes
    assert "torch 1.0 then" in told


def cut(text: str) -> str:
    return text[: len(text) // 2]


def other_recipe(text: str) -> str:
    return text.replace('"stop": null', '"stop": 3')


DAMAGES: dict[str, Callable[[str], str]] = {
    "cut": cut, "empty": lambda text: "", "no object": lambda text: "[]", "no note": lambda text: "{}",
    "another layout": lambda text: text.replace('"format": 1', '"format": 2'), "another recipe": other_recipe,
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_sidecar(sidecar: Path, store: Store, damage: Callable[[str], str]) -> None:
    sidecar.write_text(damage(sidecar.read_text()))
    with pytest.raises(InputError, match="is damaged or no sidecar of tf run") as said:
        plan_again(sidecar, store, RUNTIME)
    assert "\n" not in str(said.value)


def test_only_the_very_clip_is_replaced_without_asking(sidecar: Path, store: Store, tmp_path: Path) -> None:
    then, clip = read_sidecar(sidecar), tmp_path / "out.mp4"
    assert output_again(sidecar, then, None, store) == clip
    clip.write_bytes(b"something else")
    with pytest.raises(InputError, match=r"is not the clip that .* -o "):
        output_again(sidecar, then, None, store)
    assert output_again(sidecar, then, clip, store) == clip
    clip.unlink()
    assert output_again(sidecar, then, None, store) == clip


def test_the_command(tf: Tf, made: Path) -> None:  # noqa: F811
    assert tf.edit("run", made / "clip.mp4", "--prompt", "a red ball", "-o", "out.mp4").code == 0
    done = tf("reproduce", "out.mp4.json", "--engine", "direct", "--json")
    assert (done.code, done.json["identical"], done.json["outputs"][0]["file"]) == (0, True, "out.mp4")
    assert done.err == "tf: bit for bit the same edit\n"
    for arguments in (
        ["gone.json"],
        ["out.mp4"],
        ["."],
        ["out.mp4.json", "--video", "gone.mp4"],
        ["out.mp4.json", "--engine", "no"],
    ):
        done = tf("reproduce", *arguments)
        assert (done.code, done.out, done.err.count("\n")) == (2, "", 1), arguments


def test_everything_is_named_by_absolute_paths(sidecar: Path, clip: Path, tiny_folder: Path) -> None:
    told: dict[str, Any] = json.loads(sidecar.read_text())
    assert told["config"]["video"] == told["video"]["name"] == str(clip)
    assert told["config"]["model"] == told["model"]["name"] == str(tiny_folder)
    assert not list(sidecar.parent.glob(".*")), "nothing half-written is left"
