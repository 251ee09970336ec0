"""A run that fails leaves nothing that is taken for a result, and the next one does only what is missing."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import store.layout
from flows.plan import STAGES
from flows.run import run_edit, run_preview
from stages import extract_tokens, match_tokens, propagate_tokens
from stages.backbones.stable_diffusion import StableDiffusion
from store import zarr_io
from store.errors import InputError, StorePlaceError
from store.store import Store
from tests.flows.runs import ALL, EDIT, Executed, computed, digests, edit, make_plan, small_clip
from tests.flows.server import PATIENCE
from tests.tiny.models import save_model

ROOT = Path(__file__).parents[2]


class Stopped(Exception):
    """Somebody stopped it."""


@pytest.fixture
def two_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages that are divided by timestep have two parts where there are two timesteps."""
    for module in (extract_tokens, match_tokens):
        monkeypatch.setattr(module, "TIMESTEPS_PER_PART", 1)


def stopping(run: Any, part: int, after: int) -> Any:
    """A stage that stops in its part number `part`, after so many blocks."""
    begun = 0

    def stops(*given: Any, **named: Any) -> Iterator[Any]:
        nonlocal begun
        begun += 1
        for position, block in enumerate(run(*given, **named)):
            if begun == part and position == after:
                raise Stopped
            yield block

    return stops


@pytest.mark.parametrize(
    ("stage", "part", "budget"),
    [
        pytest.param("decode_frames", 1, 1 << 30, marks=pytest.mark.slow),
        pytest.param("invert_frames", 1, 1 << 30, marks=pytest.mark.slow),
        ("extract_tokens", 2, 1 << 30),
        pytest.param("match_tokens", 2, 1 << 30, marks=pytest.mark.slow),
        ("match_tokens", 2, 0),
        pytest.param("propagate_tokens", 1, 1 << 30, marks=pytest.mark.slow),
    ],
)
def test_a_stage_that_stops_is_not_found_and_its_finished_parts_are_kept(
    stage: str, part: int, budget: int, clip: Path, tiny_folder: Path, tmp_path: Path, executed: Executed,
    two_parts: None, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    place = tmp_path / "store"
    plan = make_plan(clip, tiny_folder, place, token_budget=budget)
    with monkeypatch.context() as patch:
        run = "run_whole" if stage == "propagate_tokens" else "run"
        patch.setattr(STAGES[stage], run, stopping(getattr(STAGES[stage], run), part, 1))
        with pytest.raises(Stopped):
            edit(plan, tmp_path)
    assert not (tmp_path / "edit.mp4").exists()
    along = {"propagate_tokens": "edit_keyframes"} | ({} if budget else {"match_tokens": "extract_tokens"})
    finished = ALL[: ALL.index(along.get(stage, stage))]
    assert {record.stage for record in Store(place).records()} == set(finished)

    again = make_plan(clip, tiny_folder, place, token_budget=budget)
    missing = [node.stage for node in again.to_compute()]
    assert missing == ALL[len(finished) :]
    why = again.store.explain(again.to_compute()[0].key)
    assert ("1 finished parts are kept" in str(why)) == (part == 2)
    executed.clear()
    result = edit(again, tmp_path)
    assert computed(result) == missing
    parts = len(again.schema(next(node for node in again.nodes if node.stage == stage)).divided())
    assert executed.stages[stage] == parts - (part - 1)
    uninterrupted = digests(edit(make_plan(clip, tiny_folder, tmp_path / "whole"), tmp_path))
    for key, digest in digests(result).items():
        assert digest == uninterrupted[key] or (key[0] == "extract_tokens" and not budget)


def test_one_prompt_that_fails_leaves_the_other(
    clip: Path, tiny_folder: Path, tmp_path: Path, executed: Executed, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = ("a red ball", "a blue ball")
    with monkeypatch.context() as patch:
        patch.setattr(propagate_tokens, "run_whole", stopping(propagate_tokens.run_whole, 2, 0))
        with pytest.raises(Stopped):
            edit(make_plan(clip, tiny_folder, tmp_path / "store", prompts=prompts), tmp_path)
    executed.clear()
    edit(make_plan(clip, tiny_folder, tmp_path / "store", prompts=prompts[:1]), tmp_path)
    assert executed.names == []
    edit(make_plan(clip, tiny_folder, tmp_path / "store", prompts=prompts), tmp_path)
    assert [executed.stages[name] for name in EDIT] == [1, 1]
    assert executed.names == EDIT


@pytest.mark.parametrize("stage", ["invert_frames", *(pytest.param(name, marks=pytest.mark.slow) for name in EDIT)])
def test_latents_that_become_nan_are_named(
    stage: str, clip: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "run_whole" if stage == "propagate_tokens" else "run"
    run, predict = getattr(STAGES[stage], name), StableDiffusion.predict_noise
    plan = make_plan(clip, tiny_folder, tmp_path / "store")

    def poisoned(*given: Any, **named: Any) -> Iterator[Any]:
        def predict_nan(backbone: Any, latents: Any, timestep: int, text: Any, residuals: Any = None) -> Any:
            noise = predict(backbone, latents, timestep, text, residuals)
            noise[-1] = float("nan") if timestep == plan.timesteps[0] else noise[-1]
            return noise

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(StableDiffusion, "predict_noise", predict_nan)
            yield from run(*given, **named)

    monkeypatch.setattr(STAGES[stage], name, poisoned)
    asked = run_preview if stage == "edit_keyframes" else run_edit
    with pytest.raises(InputError, match=rf"^{stage}: .*timestep {plan.timesteps[0]}, frame \d+") as caught:
        asked(plan, tmp_path / ("edit.png" if stage == "edit_keyframes" else "edit.mp4"), "direct")
    assert "\n" not in str(caught.value)
    assert plan.store.find(next(node for node in plan.nodes if node.stage == stage).key) is None
    assert not (tmp_path / "edit.mp4").exists()


def test_a_full_disk_is_told_before_anything_runs(
    clip: Path, tiny_folder: Path, tmp_path: Path, executed: Executed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Store, "free_bytes", lambda store: 1000)
    with pytest.raises(StorePlaceError, match=r"^this run would write up to .* where 1\.0 kB is free; free some space"):
        edit(make_plan(clip, tiny_folder, tmp_path / "store"), tmp_path)
    assert executed.names == []


def test_a_disk_that_fills_on_the_way_is_told_and_the_next_run_goes_on(
    clip: Path, tiny_folder: Path, tmp_path: Path, executed: Executed, monkeypatch: pytest.MonkeyPatch,
    edited: tuple[Path, dict[Any, str]],
) -> None:  # fmt: skip
    create = zarr_io.create_arrays

    def filling(folder: Path, schema: Any, *given: Any) -> Any:
        if schema.artifact == "field":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return create(folder, schema, *given)

    with monkeypatch.context() as patch:
        patch.setattr(zarr_io, "create_arrays", filling)
        patch.setattr(store.layout, "free_bytes", lambda root: 12_000)
        with pytest.raises(
            StorePlaceError, match=r"^the disk is full: field match_tokens/\w+ needs .*12\.0 kB is free"
        ):
            edit(make_plan(clip, tiny_folder, tmp_path / "store"), tmp_path)
    executed.clear()
    result = edit(make_plan(clip, tiny_folder, tmp_path / "store"), tmp_path)
    assert computed(result) == executed.names == ["match_tokens", *EDIT]
    assert digests(result) == edited[1]


def test_a_damaged_object_is_made_again(
    plan: Any, store: Store, executed: Executed, tmp_path: Path, edited: Any
) -> None:
    artifact = store.find(plan().match.key)
    assert artifact is not None
    (artifact.path / "zarr.json").unlink()
    result = edit(plan(prompts=("a blue ball",)), tmp_path)
    assert executed.names == computed(result) == ["match_tokens", *EDIT]
    assert digests(result)["match_tokens", None] == edited[1]["match_tokens", None]


def test_an_output_that_cannot_be_written_is_told_before_anything_runs(
    clip: Path, tiny_folder: Path, tmp_path: Path, executed: Executed
) -> None:
    plan = make_plan(clip, tiny_folder, tmp_path / "store")
    for output in (tmp_path / "no" / "x.mp4", tmp_path / "x.avi", tmp_path, clip):
        with pytest.raises(InputError):
            run_edit(plan, output, "direct")
    assert executed.names == []


@pytest.fixture
def unprivileged() -> list[str]:
    """A prefix with which a command runs as somebody who may not write everywhere."""
    if os.geteuid():
        return []
    try:
        subprocess.run(["setpriv", "--version"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("root may write everywhere, and setpriv is not here")
    return ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override"]


def tf(*arguments: str | Path, prefix: list[str] | None = None, **named: Any) -> subprocess.CompletedProcess[str]:
    """`tf` in a process of its own."""
    return subprocess.run(
        [*(prefix or []), sys.executable, "-m", "cli", *map(str, arguments)],
        capture_output=True, text=True, cwd=ROOT, timeout=300, **named,
    )  # fmt: skip


def options(clip: Path, model: Path, place: Path, output: Path, *more: str) -> list[str | Path]:
    return [
        "run", clip, "--prompt", "a red ball", "--model", model, "--steps", "6", "--keyframe-interval", "3",
        "--engine", "direct", "--store", place, "-o", output, *more,
    ]  # fmt: skip


@pytest.mark.slow
def test_a_store_that_may_only_be_read_serves_what_is_there_and_refuses_the_rest(
    edited: tuple[Path, dict[Any, str]], clip: Path, tiny_folder: Path, tmp_path: Path, unprivileged: list[str]
) -> None:
    place = tmp_path / "store"
    shutil.copytree(edited[0], place)
    folders = [place, *(path for path in place.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        asked = [*options(clip, tiny_folder, place, tmp_path / "x.mp4"), "--steps", "2"]
        reused = tf(*asked, "--json", prefix=unprivileged)
        assert reused.returncode == 0, reused.stderr
        assert (tmp_path / "x.mp4").is_file()
        for changed in (["--guidance-scale", "3"], ["--size", "24x24"]):
            refused = tf(*asked, *changed, prefix=unprivileged)
            assert refused.returncode == 2
            notes, sentence = refused.stderr.splitlines()[:-1], refused.stderr.splitlines()[-1]
            assert sentence.startswith("tf: cannot write a draft in ") and "(Permission denied)" in sentence
            assert len(notes) == ("--size" in changed)
    finally:
        for folder in folders:
            folder.chmod(0o755)


@pytest.fixture(scope="module")
def undisturbed(clip: Path, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Any, str]:
    """Digests of a run of 6 steps, two parts of the stages that are divided by timestep, when nothing goes wrong."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return digests(edit(make_plan(clip, tiny_folder, folder / "store", steps=6), folder))


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM], ids=["kill", "interrupt", "terminate"])
def test_a_killed_run_resumes(
    how: signal.Signals, clip: Path, tiny_folder: Path, tmp_path: Path, undisturbed: dict[Any, str]
) -> None:
    place = tmp_path / "store"
    asked = [str(each) for each in options(clip, tiny_folder, place, tmp_path / "x.mp4")]
    process = subprocess.Popen(
        [sys.executable, "-m", "cli", *asked], cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    until = time.monotonic() + PATIENCE
    while not list(place.glob("drafts/match_tokens-*/parts/*.json")) and time.monotonic() < until:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(how)
    out, err = process.communicate(timeout=PATIENCE)
    assert out == ""
    polite = {signal.SIGINT: (130, "tf: interrupted"), signal.SIGTERM: (143, "tf: terminated")}
    if how in polite:
        code, said = polite[how]
        assert process.returncode == code
        assert err.startswith(said) and err.count("\n") == 1
    else:
        assert (process.returncode, err) == (-how, "")
    assert not (tmp_path / "x.mp4").exists()
    assert {record.stage for record in Store(place).records()} <= set(ALL[:4])
    result = edit(make_plan(clip, tiny_folder, place, steps=6), tmp_path)
    assert {"decode_frames", "invert_frames", "extract_tokens"}.isdisjoint(computed(result))
    assert digests(result) == undisturbed


@pytest.mark.slow
def test_a_model_of_nan_weights_fails_in_one_sentence(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = save_model(tmp_path / "model", vae="tiny")
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["conv_out.bias"] *= float("nan")
    save_file(tensors, weights, metadata={"format": "pt"})
    clip = small_clip(tmp_path / "clip.mp4", frames=3)
    done = tf(*options(clip, model, tmp_path / "store", tmp_path / "x.mp4"))
    assert done.returncode == 2
    assert done.stderr.startswith("tf: invert_frames: latents are not finite at timestep ")
    assert done.stderr.count("\n") == 1 and ", frame 0;" in done.stderr
    assert [record.stage for record in Store(tmp_path / "store").records()] == ["decode_frames"]
