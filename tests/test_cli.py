"""What a user types, and what comes back: one sentence and a code, or one answer on stdout."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

import cli
from store.errors import InputError
from store.store import Store
from tests.flows.runs import ALL, EDIT, small_clip
from tests.stages.clips import audio_packets, write_clip

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Done:
    """What a command answered."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Tf:
    """`tf` in this process, in a folder, with the tiny model and few steps where a video is edited."""

    def __init__(self, model: Path, capsys: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch) -> None:
        self.model, self.capsys, self.patch = model, capsys, patch

    def __call__(self, *arguments: str | Path) -> Done:
        self.patch.setattr(sys, "argv", ["tf", *map(str, arguments)])
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.dispatch()
        captured = self.capsys.readouterr()
        code = left.value.code
        return Done(code if isinstance(code, int) else 0, captured.out, captured.err)

    def edit(self, verb: str, video: str | Path, *arguments: str | Path) -> Done:
        engine = [] if verb == "plan" else ["--engine", "direct"]
        small = ["--model", self.model, "--steps", "2", "--keyframe-interval", "3"]
        return self(verb, video, *small, *engine, *arguments)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A folder with a clip that has sound, and a store in which it was edited as "a red ball"."""
    folder = tmp_path_factory.mktemp("made")
    small_clip(folder / "clip.mp4", rate=25, audio="aac", seconds_of_audio=0.28)
    from flows.run import run_edit
    from tests.flows.runs import make_plan

    plan = make_plan(folder / "clip.mp4", tiny_folder, folder / "store")
    run_edit(plan, folder / "first.mp4", "direct")
    return folder


@pytest.fixture
def tf(
    made: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Tf:
    """`tf` in an empty folder; the store is a copy of the one with the edit."""
    shutil.copytree(made / "store", tmp_path / "store")
    shutil.copyfile(made / "clip.mp4", tmp_path / "clip.mp4")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOKENFLOW_STORE", "store")
    return Tf(tiny_folder, capsys, monkeypatch)


def broken_model(model: Path, name: str) -> Path:
    """A copy of a model with something wrong."""
    folder = shutil.copytree(model, Path(name))
    if name == "no-unet":
        shutil.rmtree(folder / "unet")
    elif name == "no-unet-config":
        (folder / "unet" / "config.json").unlink()
    elif name == "broken-weights":
        weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:4000])
    elif name == "broken-index":
        (folder / "model_index.json").write_text("{")
    else:
        index = folder / "model_index.json"
        index.write_text(index.read_text().replace('"StableDiffusionPipeline"', '"StableDiffusionXLPipeline"'))
    return folder


def refused(done: Done, says: str) -> None:
    """One line on stderr that begins with "tf: " and holds `says`, nothing on stdout, exit code 2."""
    assert done.code == 2, done
    assert done.out == ""
    assert done.err.startswith("tf: ") and done.err.endswith("\n") and done.err.count("\n") == 1, done.err
    assert says in done.err
    assert "Traceback" not in done.err and "unexpected" not in done.err


@pytest.mark.parametrize("command", [["plan"], ["sweep"], ["eval"], ["inspect", "field"]], ids=" ".join)
def test_whoever_looks_at_all_frames_shows_how_far_it_is(
    tf: Tf, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    @contextmanager
    def bar(title: str, frames: int) -> Iterator[None]:
        raise InputError(f"a bar for {title} in {frames} frames")
        yield

    monkeypatch.setenv("TOKENFLOW_STORE", "empty")
    monkeypatch.setattr("flows.terminal._frame_bar", bar)
    refused(tf(*command, "clip.mp4", "--prompt", "a ball", "--model", tf.model), "a bar for looking for cuts in 7")


BAD_VIDEOS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing.mp4": (lambda path: None, "does not exist"),
    "folder.mp4": (lambda path: path.mkdir(), "is a folder"),
    "empty.mp4": (lambda path: path.touch(), "is empty"),
    "text.mp4": (lambda path: path.write_text("hello\n" * 99), "is a text file"),
    "cut.mp4": (lambda path: path.write_bytes(Path("clip.mp4").read_bytes()[:1200]), "cut off before its index"),
    "noise.mp4": (lambda path: path.write_bytes(bytes(range(256)) * 9), "not a video that FFmpeg can read"),
}


@pytest.mark.parametrize("name", BAD_VIDEOS)
@pytest.mark.parametrize("verb", ["run", "plan", "preview"])
def test_a_bad_video_is_refused(tf: Tf, name: str, verb: str) -> None:
    make, says = BAD_VIDEOS[name]
    make(Path(name))
    refused(tf.edit(verb, name, "--prompt", "a ball"), says)


def test_sound_alone_is_refused(tf: Tf, tmp_path: Path) -> None:
    with av.open("sound.mp4", "w") as container:
        stream = container.add_stream("aac", rate=48_000, layout="mono")
        piece = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.int16), format="s16", layout="mono")
        piece.sample_rate = 48_000
        container.mux(stream.encode(piece))
        container.mux(stream.encode(None))
    refused(tf.edit("run", "sound.mp4", "--prompt", "a ball"), "has no moving pictures (only audio in it)")


BAD_OPTIONS: dict[str, tuple[list[str], str]] = {
    "no prompt": ([], "there is no prompt"),
    "empty prompt": (["--prompt", " "], "--prompt is empty"),
    "unreadable prompt": (["--prompt", "a\udcff"], "not valid UTF-8"),
    "prompt for the terminal": (["--prompt", "a\x1b[31m"], "holds control characters"),
    "frames beyond": (["--prompt", "a", "--frames", "0:99"], "the clip has 7 frames"),
    "frames reversed": (["--prompt", "a", "--frames", "5:2"], "START must be below STOP"),
    "frames garbled": (["--prompt", "a", "--frames", "a:b"], "is not START:STOP"),
    "frames step 0": (["--prompt", "a", "--frames", "0:5:0"], "step of 0"),
    "size garbled": (["--prompt", "a", "--size", "big"], "is not WIDTHxHEIGHT"),
    "size no multiple": (["--prompt", "a", "--size", "30x32"], "take 28x32 or 32x32"),
    "size 0": (["--prompt", "a", "--size", "0x0"], "leaves no pixel"),
    "model empty": (["--prompt", "a", "--model", ""], "--model is empty"),
    "model missing": (["--prompt", "a", "--model", "./nowhere"], "no model './nowhere'"),
    "model no folder": (["--prompt", "a", "--model", "store"], "no model_index.json"),
    "model a video": (["--prompt", "a", "--model", "clip.mp4"], "no .safetensors file"),
    "model unknown id": (["--prompt", "a", "--model", "nobody/nothing"], "cannot be downloaded"),
    "editor": (
        ["--prompt", "a", "--editor", "pnpp"],
        "no editor 'pnpp' in stages/editors; have controlnet, ddpm, joint, per-frame, pnp, sdedit",
    ),
    "setting unknown": (["--prompt", "a", "--set", "foo=1"], "has no setting 'foo'; have attention, feature"),
    "setting out of range": (["--prompt", "a", "--set", "feature=2"], "feature 2: input should be less than"),
    "setting not a number": (["--prompt", "a", "--set", "feature=NaN"], "feature 'NaN': "),
    "setting without value": (["--prompt", "a", "--set", "feature"], "is not NAME=VALUE"),
    "steps 0": (["--prompt", "a", "--steps", "0"], "--steps 0: "),
    "steps beyond": (["--prompt", "a", "--steps", "1001"], "--steps 1001: "),
    "inversion below steps": (["--prompt", "a", "--steps", "3", "--inversion-steps", "2"], "--inversion-steps 2: "),
    "guidance nan": (["--prompt", "a", "--guidance-scale", "nan"], "--guidance-scale nan: "),
    "guidance below 0": (["--prompt", "a", "--guidance-scale", "-1"], "--guidance-scale -1.0: "),
    "seed": (["--prompt", "a", "--seed", "-1"], "--seed -1: "),
    "interval": (["--prompt", "a", "--keyframe-interval", "0"], "--keyframe-interval 0: "),
    "offsets": (["--prompt", "a", "--keyframe-offsets", "65"], "--keyframe-offsets 65: "),
    "attended": (["--prompt", "a", "--attended-keyframes", "0"], "--attended-keyframes 0: "),
    "blend": (["--prompt", "a", "--blend", "cubic"], "--blend 'cubic': input should be 'linear', 'sigmoid', 'near"),
    "device": (["--prompt", "a", "--device", "tpu"], "--device 'tpu': input should be 'auto', 'cpu' or 'cuda'"),
    "budget": (["--prompt", "a", "--token-budget", "lots"], "--token-budget 'lots' is not a size"),
    "budget below 0": (["--prompt", "a", "--token-budget", "-5"], "--token-budget '-5' is not a size"),
    "passes": (["--prompt", "a", "--frames-per-pass", "0"], "--frames-per-pass 0: "),
    "store a file": (["--prompt", "a", "--store", "clip.mp4"], "cannot write a store in"),
    "store empty": (["--prompt", "a", "--store", ""], "--store is empty"),
    "store not ours": (["--prompt", "a", "--store", "."], "is no store and not empty"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_a_bad_option_is_refused(tf: Tf, case: str) -> None:
    given, says = BAD_OPTIONS[case]
    before = sorted(Path("store/keys").rglob("*"))
    refused(tf.edit("run", "clip.mp4", *given), says)
    assert sorted(Path("store/keys").rglob("*")) == before


BAD_OUTPUTS = {
    "x.avi": "end its name in .mp4", ".": "holds other things than pictures", "clip.mp4": "is the source itself",
    "nowhere/x.mp4": "there is no folder nowhere", "folder.mp4": "is a folder",
}  # fmt: skip


@pytest.mark.parametrize("output", BAD_OUTPUTS)
def test_a_bad_output_is_refused_before_anything_runs(tf: Tf, output: str) -> None:
    Path("folder.mp4").mkdir()
    refused(tf.edit("run", "clip.mp4", "--prompt", "new", "--store", "new", "-o", output), BAD_OUTPUTS[output])
    assert not list(Path("new").glob("keys/*"))


def test_a_bad_picture_or_engine_is_refused(tf: Tf) -> None:
    for output, says in {"x.jpg": "in .png", "nowhere/x.png": "no folder", ".": "in .png", "clip.mp4": ".png"}.items():
        refused(tf.edit("preview", "clip.mp4", "--prompt", "new", "-o", output), says)
    refused(tf.edit("run", "clip.mp4", "--prompt", "a red ball", "--engine", "dask"), "have auto, prefect, direct")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("no-unet", "has no unet; give a complete diffusers folder"),
        ("no-unet-config", "has no unet/config.json"),
        ("broken-weights", "cannot be loaded"),
        ("broken-index", "is not valid JSON"),
        ("xl", "has no text_encoder_2; give a complete diffusers folder"),
    ],
)
def test_a_bad_model_is_refused(tf: Tf, tiny_folder: Path, name: str, says: str) -> None:
    broken_model(tiny_folder, name)
    refused(tf.edit("run", "clip.mp4", "--prompt", "a red ball", "--model", name), says)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "clip.mp4", "--nonsense"], "tf: no such option: --nonsense"),
        (["run"], "tf: missing argument"),
        (["rnu"], "tf: no such command 'rnu'"),
        (["run", "clip.mp4", "--steps", "many"], "tf: invalid value for '--steps'"),
        (["export", "abc"], "name one thing to write"),
        (["show", "zz"], "tf: 'zz' is not a key"),
        (["show", "0" * 64], "no artifact's key begins with"),
        (["export", "0" * 64, "-o", "x.mp4"], "no artifact's key begins with"),
        (["sheet", "clip.mp4", "-o", "x.jpg"], "end its name in .png"),
        (["sheet", "missing.mp4", "-o", "x.png"], "missing.mp4 does not exist"),
        (["sheet", "clip.mp4", "-o", "x.png", "--label", "a", "--label", "b"], "1 videos but 2 labels"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_makes_no_sense_is_answered_in_a_line(tf: Tf, arguments: list[str], says: str) -> None:
    refused(tf(*arguments), says)


def test_run_answers_with_one_json_object(tf: Tf) -> None:
    Path("out").mkdir()
    done = tf.edit("run", "clip.mp4", "--prompt", "a red ball", "--prompt", "naïve 漢字", "-o", "out/x.mp4", "--json")
    assert (done.code, done.err) == (0, "")
    answer = done.json
    assert list(answer) == ["outputs", "stages", "seconds", "store", "run"]
    assert [(use["stage"], use["hit"]) for use in answer["stages"]] == [
        *((name, True) for name in ALL), *((name, False) for name in EDIT)
    ]  # fmt: skip
    for use in answer["stages"]:
        assert {name: type(value) for name, value in use.items()} == {
            "stage": str, "key": str, "hit": bool, "seconds": float, "bytes": int
        }  # fmt: skip
        assert use["bytes"] > 0 and (use["seconds"] > 0) != use["hit"]
    assert answer["outputs"] == [
        {"prompt": prompt, "file": f"out/x-{n}.mp4", "frames": 7, "fps": 25.0, "width": 32, "height": 32}
        for n, prompt in enumerate(["a red ball", "naïve 漢字"], 1)
    ]
    assert type(answer["seconds"]) is float
    assert answer["store"] == str(Path("store").absolute())
    for each in answer["outputs"]:
        with av.open(each["file"]) as container:
            stream = container.streams.video[0]
            frames = list(container.decode(stream))
            assert (len(frames), stream.average_rate, stream.width, stream.height) == (7, 25, 32, 32)
        assert audio_packets(Path(each["file"])) == audio_packets(Path("clip.mp4"))


def test_run_answers_a_person_with_a_table_and_paths(tf: Tf) -> None:
    done = tf.edit("run", "clip.mp4", "--prompt", "a red ball")
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert [line.split()[:2] for line in lines[1:7]] == [[name, "reused"] for name in ALL]
    assert lines[7:] == ["clip-a-red-ball.mp4"]
    assert Path("clip-a-red-ball.mp4").is_file()


def test_prompts_of_one_name_get_files_of_their_own(tf: Tf) -> None:
    prompts = ["a [red] ball", "a red ball", "???"]
    done = tf.edit("run", "clip.mp4", *(part for p in prompts for part in ("--prompt", p)))
    assert done.code == 0, done.err
    files = [f"clip-{name}.mp4" for name in ("a-red-ball", "a-red-ball-2", "edit")]
    assert done.out.splitlines()[-3:] == files
    assert all(Path(file).is_file() for file in files)
    assert " a [red] ball " in done.out


def test_a_long_prompt_edits_and_says_what_was_cut_every_time(tf: Tf) -> None:
    prompt = "a red ball on the snow"
    for _ in range(2):
        done = tf.edit("run", "clip.mp4", "--prompt", prompt)
        assert done.code == 0
        assert done.err.startswith(f"tf: the prompt {prompt!r} is longer than the model reads: ")
        assert done.err.count("\n") == 1
        assert "e s n o w" in done.err or "snow" in done.err


def test_odd_sizes_uneven_times_and_sound_survive(tf: Tf) -> None:
    ticks = [0, 40, 140, 180, 300]
    write_clip(
        Path("odd.mp4"), frames=5, width=35, height=33, pixel_format="yuv444p", ticks=ticks,
        time_base=Fraction(1, 1000), rate=25, options={"bf": "0"}, audio="aac", seconds_of_audio=0.3,
    )  # fmt: skip
    done = tf.edit("run", "odd.mp4", "--prompt", "a red ball", "-o", "x.mp4", "--json")
    assert done.code == 0
    padded, kept = done.err.splitlines()
    assert padded.startswith("tf: for the model 35×33 is padded to ") and "the odd size 35×33 is kept" in kept
    output = done.json["outputs"][0]
    with av.open("x.mp4") as container:
        frames = list(container.decode(video=0))
        assert [round(float(frame.time) * 1000) for frame in frames] == ticks
        assert (frames[0].width, frames[0].height) == (output["width"], output["height"]) == (35, 33)
    assert audio_packets(Path("x.mp4")) == audio_packets(Path("odd.mp4"))


def test_a_clip_of_one_frame_works(tf: Tf) -> None:
    small_clip(Path("one.mp4"), frames=1)
    done = tf.edit("run", "one.mp4", "--prompt", "a red ball", "--json")
    assert (done.code, done.err) == (0, "")
    assert done.json["outputs"][0]["frames"] == 1


def test_preview_draws_source_and_edit(tf: Tf) -> None:
    done = tf.edit("preview", "clip.mp4", "--prompt", "a red ball", "--json")
    assert (done.code, done.err) == (0, "")
    assert done.json["outputs"] == [{"prompt": "a red ball", "file": "clip-a-red-ball-preview.png", "frames": 5}]
    pixels = np.asarray(Image.open("clip-a-red-ball-preview.png").convert("RGB")).astype(int)
    rows = np.flatnonzero((np.abs(pixels - pixels[0, 0]).max(2) > 8).mean(1) > 0.5)
    bands = np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1)
    assert len([band for band in bands if len(band) > 100]) == 2  # two rows of pictures


def test_plan_tells_what_a_run_would_do(tf: Tf) -> None:
    done = tf.edit("plan", "clip.mp4", "--prompt", "a red ball", "--guidance-scale", "9", "--json")
    assert (done.code, done.err) == (0, "")
    plan = done.json
    assert list(plan) == ["stages", "bytes", "free", "store", "notes"]
    assert plan["free"] > plan["bytes"]
    assert [row["hit"] for row in plan["stages"]] == [True] * 4 + [False] * 2
    assert plan["bytes"] == sum(row["bytes"] for row in plan["stages"]) > 0
    table = tf.edit("plan", "clip.mp4", "--prompt", "a red ball", "--guidance-scale", "9").out
    assert "guidance_scale 7.5 → 9" in table and "2 of 6 artifacts to compute over 7 frames" in table
    assert f" are needed in {Path('store').absolute()}, where " in table
    assert "nothing would be computed" in tf.edit("plan", "clip.mp4", "--prompt", "a red ball").out


def test_what_is_in_the_store_can_be_listed_shown_and_exported(tf: Tf) -> None:
    listed = tf("list", "--json").json["artifacts"]
    keys = {each["stage"]: each["key"] for each in listed}
    assert sorted(keys) == sorted(ALL)
    table = tf("list").out
    assert table.startswith("clip.mp4") and all(key[:12] in table for key in keys.values())
    shown = tf("show", keys["match_tokens"][:10], "--json").json
    assert (shown["hex"], shown["stage"]) == (keys["match_tokens"], "match_tokens")
    assert Path(shown["path"]).is_dir()
    text = tf("show", keys["edit_keyframes"][:10]).out
    assert "prompt = 'a red ball'" in text and "xarray.open_zarr(" in text
    exported = tf("export", keys["propagate_tokens"][:10], "-o", "again.mp4", "--json")
    assert (exported.code, exported.err) == (0, "")
    assert (exported.json["file"], exported.json["frames"], exported.json["fps"]) == ("again.mp4", 7, "25")
    of_run = tf("export", "latest", "-o", "of-run.mp4")
    assert (of_run.code, of_run.err) == (0, "")
    assert Path("of-run.mp4").read_bytes() == Path("again.mp4").read_bytes()
    store = Store(Path("store"))
    of_two = store.runs()[0]
    of_two["stages"] += [{**row, "key": "a" * 64} for row in of_two["stages"] if row["stage"] == "propagate_tokens"]
    many = store.save_run({name: value for name, value in of_two.items() if name != "id"})
    refused(tf("export", many, "-o", "no.mp4"), f"the run {many} made 2 edits; give the key of one")
    refused(tf("export", keys["match_tokens"][:10], "-o", "no.mp4"), "is no video; export a propagate_tokens")
    refused(tf("export", keys["propagate_tokens"][:10], "-o", "x.avi"), "end its name in")
    shared = tf("export", keys["propagate_tokens"][:10], "-o", "x.gif", "--quality", "40", "--json").json
    assert (shared["codec"], shared["frames"]) == ("gif", 7)


def keys_of(tf: Tf) -> dict[str, str]:
    return {each["stage"]: each["key"] for each in tf("list", "--json").json["artifacts"]}


def test_list_and_show_tell_videos_pins_files_and_what_depends_on_what(tf: Tf) -> None:
    keys = keys_of(tf)
    assert tf("pin", keys["match_tokens"][:10]).out == keys["match_tokens"] + "\n"
    listed = {each["stage"]: each for each in tf("list", "--json").json["artifacts"]}
    assert [each["stage"] for each in listed.values() if each["pinned"]] == ["match_tokens"]
    assert all(each["there"] for each in listed.values())
    assert listed["edit_keyframes"]["prompt"] == "a red ball"
    video = listed["invert_frames"]["video"]
    assert (video["name"], video["width"], video["height"], video["frames"]) == ("clip.mp4", 32, 32, 7)
    table = tf("list").out
    assert table.startswith("clip.mp4 · 32×32 · 7 frames · ") and table.count("pinned") == 1
    shown = tf("show", keys["match_tokens"][:10], "--json").json
    assert [each["stage"] for each in shown["dependents"]] == EDIT
    assert shown["files"]["zarr.json"]["size"] > 0
    text = " ".join(tf("show", keys["edit_keyframes"][:10]).out.split())
    assert f"used by propagate_tokens {keys['propagate_tokens']} a red ball" in text and "file zarr.json " in text
    assert tf("unpin", keys["match_tokens"][:10], "--json").json == {"unpinned": [keys["match_tokens"]], "pins": []}


def test_verify_exits_1_on_damage_names_it_and_repairs_it(tf: Tf) -> None:
    keys = keys_of(tf)
    whole = tf("verify")
    assert (whole.code, whole.err) == (0, "")
    assert whole.out.startswith("6 artifacts, ") and "every file has the bytes that were written" in whole.out
    artifact = Store("store").find(keys["match_tokens"])
    assert artifact is not None
    chunk = next(path for path in sorted(artifact.path.rglob("c/*")) if path.is_file() or path.is_dir())
    chunk = chunk if chunk.is_file() else next(path for path in chunk.rglob("*") if path.is_file())
    chunk.write_bytes(bytes(chunk.stat().st_size))
    name = chunk.relative_to(artifact.path).as_posix()
    damaged = tf("verify")
    assert (damaged.code, damaged.err) == (1, "")
    assert f"damaged: match_tokens/{keys['match_tokens'][:12]} in {artifact.path}" in damaged.out
    assert f"{name} has other bytes than were written" in damaged.out
    assert f"edit_keyframes/{keys['edit_keyframes'][:12]} ('a red ball')" in damaged.out
    answer = tf("verify", keys["match_tokens"][:8], "--json")
    assert (answer.code, answer.json["ok"]) == (1, False)
    assert list(answer.json["damaged"][0]["files"]) == [name]
    repaired = tf("verify", "--repair")
    assert repaired.code == 0 and "dropped: match_tokens/" in repaired.out
    assert tf("verify").code == 0
    assert not {each["stage"]: each for each in tf("list", "--json").json["artifacts"]}["match_tokens"]["there"]
    assert tf.edit("run", "clip.mp4", "--prompt", "a blue ball").code == 0
    assert Store("store").find(keys["match_tokens"]) is not None


def test_gc_says_what_it_freed_and_what_had_to_stay(tf: Tf) -> None:
    keys = keys_of(tf)
    size = sum(Store("store").objects().values())
    nothing = tf("gc", "--json")
    assert (nothing.code, nothing.err, nothing.json["freed"], nothing.json["left"]) == (0, "", 0, size)
    rehearsed = tf("gc", "--max-size", "0", "--keep-edits", "--dry-run")
    assert rehearsed.code == 0 and "would free " in rehearsed.out and "edits that are kept" in rehearsed.out
    assert sum(Store("store").objects().values()) == size
    tf("pin", keys["decode_frames"])
    done = tf("gc", "--max-size", "1KB")
    assert "freed " in done.out and "more than --max-size had to stay: " in done.out and " pinned" in done.out
    assert Store("store").held() == {Store("store").find(keys["decode_frames"]).digest}  # type: ignore[union-attr]
    assert tf("list").out.count("collected") == 5
    again = tf.edit("run", "clip.mp4", "--prompt", "a red ball", "--json")
    assert [use["hit"] for use in again.json["stages"]] == [True] + [False] * 5


def test_explain_names_the_field(tf: Tf) -> None:
    made = tf.edit("run", "clip.mp4", "--prompt", "a red ball", "--guidance-scale", "3", "--json").json
    said = tf("explain", made["run"])
    assert said.code == 0
    assert said.out.count("reused") == 4 and "edit_keyframes.guidance_scale 7.5 → 3" in said.out
    assert tf("explain", "latest").out == said.out
    clip = made["stages"][-1]["key"]
    told = tf("explain", clip[:16], "--json").json
    assert told["differences"] == [{"stage": "edit_keyframes", "what": "guidance_scale 7.5 → 3"}]
    assert "re-runs edit onward" in tf("explain", told["from"], clip).out


BAD_UPKEEP = {
    "size": (["gc", "--max-size", "big"], "--max-size 'big' is not a size"),
    "age": (["gc", "--older-than", "30"], "--older-than '30' is not a length of time; write for example 30d"),
    "pin nothing": (["pin"], "no key is given"),
    "pin unknown": (["pin", "f" * 64], "no artifact's key begins with"),
    "verify unknown": (["verify", "f" * 64], "no artifact's key begins with"),
    "explain unknown": (["explain", "20200101-000000-abcdef"], "no run '20200101-000000-abcdef'"),
    "explain no key": (["explain", "nonsense"], "'nonsense' is not a key"),
}


@pytest.mark.parametrize("case", BAD_UPKEEP)
def test_upkeep_that_makes_no_sense_is_refused(tf: Tf, case: str) -> None:
    arguments, says = BAD_UPKEEP[case]
    refused(tf(*arguments), says)


def test_an_empty_store_says_what_fills_it(tf: Tf) -> None:
    done = tf("list", "--store", "new")
    assert (done.code, done.out) == (0, "the store is empty; tf run VIDEO --prompt TEXT fills it\n")


def test_sheet_draws_a_row_per_video(tf: Tf) -> None:
    done = tf("sheet", "clip.mp4", "clip.mp4", "--label", "one", "--label", "two", "--columns", "3", "-o", "x.png")
    assert (done.code, done.out, done.err) == (0, "x.png\n", "")
    assert Image.open("x.png").size[0] > 3 * 32


def test_a_damaged_record_is_said_and_passed_over(tf: Tf) -> None:
    record = next(Path("store/keys/propagate_tokens").glob("*.json"))
    record.write_text("{")
    done = tf.edit("plan", "clip.mp4", "--prompt", "a red ball", "--json")
    assert done.code == 0
    assert [row["hit"] for row in done.json["stages"]] == [True] * 5 + [False]
    assert "damaged" in done.json["stages"][-1]["why"]


def test_the_store_is_where_it_is_said_to_be(tf: Tf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tf("list", "--json").json["artifacts"]
    assert tf("list", "--store", "other/place", "--json").json == {"artifacts": []}
    assert Path("other/place/format").is_file()
    monkeypatch.setenv("TOKENFLOW_STORE", str(tmp_path / "third"))
    assert tf("list", "--json").json == {"artifacts": []}
    monkeypatch.delenv("TOKENFLOW_STORE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert tf("list", "--json").json == {"artifacts": []}
    assert list((tmp_path / "cache").rglob("format"))


def test_doctor_says_what_it_finds(tf: Tf) -> None:
    done = tf("doctor", "--json")
    findings = {each["what"]: each for each in done.json["findings"]}
    assert {"packages", "device", "store", "disk", "pocket model", "prefect", "ffmpeg"} <= set(findings)
    assert done.code == int(not all(each["ok"] for each in findings.values()))
    assert "6 artifacts" in findings["store"]["found"]
    assert all(each["ok"] or each["way_out"] or each["what"] == "store" for each in findings.values())


def test_interruption_is_one_line(tf: Tf, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*given: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Store, "summaries", interrupted)
    importlib.import_module("prefect")  # as other tests do, and a run under its engine
    done = tf("list")
    assert (done.code, done.out) == (130, "")
    assert done.err == "tf: interrupted; what was finished is kept, and the next run goes on from there\n"
    ends = [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]
    assert not ends, "this process would be ended with the command"


def own_process(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`tf` in a process of its own, as a user's terminal has it."""
    kept = {name: value for name, value in os.environ.items() if "VERBOSITY" not in name}
    return subprocess.run(
        [sys.executable, "-m", "cli", *map(str, arguments)],
        capture_output=True, text=True, cwd=ROOT, timeout=300, env={**kept, **environment},
    )  # fmt: skip


@pytest.mark.slow
def test_help_needs_none_of_the_heavy_libraries() -> None:
    code = (
        "import sys, cli\nsys.argv = ['tf', 'run', '--help']\n"
        "try: cli.dispatch()\nexcept SystemExit as left: assert not left.code\n"
        "heavy = {'torch', 'numpy', 'prefect', 'zarr', 'av', 'diffusers', 'rich.table'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "--keyframe-interval" in done.stdout


@pytest.mark.slow
def test_who_watches_or_cancels_a_run_does_not_wait_for_torch() -> None:
    code = "import sys, flows.following, flows.remote_control\nassert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_run_of_its_own_is_quiet_but_for_its_answer(made: Path, tiny_folder: Path, tmp_path: Path) -> None:
    small = ["--model", tiny_folder, "--steps", "2", "--keyframe-interval", "3", "--store", tmp_path / "store"]
    output = tmp_path / "x.mp4"
    asked = ["run", made / "clip.mp4", "--prompt", "a red ball", *small, "--engine", "direct", "-o", output, "--json"]
    done = own_process(*asked)
    assert (done.returncode, done.stderr) == (0, "")
    assert [use["hit"] for use in json.loads(done.stdout)["stages"]] == [False] * 6
    assert (tmp_path / "x.mp4").is_file()
    wrong = own_process("run", tmp_path / "none.mp4", "--prompt", "a")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_closed_pipe_is_no_error(made: Path) -> None:
    command = f"{sys.executable} -m cli list --store {made / 'store'} | head -c 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert (len(done.stdout), done.stderr) == (1, "")


# eval


def test_eval_measures_a_video_beside_its_baselines(tf: Tf) -> None:
    done = tf("eval", "clip.mp4", "--prompt", "a red ball", "--model", tf.model, "--steps", "2", "--keyframe-interval",
              "3", "-o", "out", "--json")  # fmt: skip
    assert done.code == 0, done.err
    assert [entry["setting"] for entry in done.json["settings"]] == ["autoencoder", "ours", "per-frame"]
    assert done.json["flow"] == "OpenCV DIS"
    assert all(entry["warp_error"] > 0 for entry in done.json["settings"])
    assert "× 1000" in done.json["measures"]["warp_error"]
    assert {path.name for path in Path("out").iterdir()} == {
        "edits.csv", "edits.zarr", "field.csv", "field.zarr", "summary.html",
    }  # fmt: skip


BAD_EVALUATIONS = {
    "no suite": (["gone.toml"], "suite gone.toml is not there"),
    "option": (["suite.toml", "--steps", "3"], "--steps does not go with a suite; write it into suite.toml"),
    "setting": (["suite.toml", "--set", "feature=1"], "--set does not go with a suite"),
    "unknown": (["suite.toml"], "no option 'steeps'"),
    "flow": (["clip.mp4", "--prompt", "a", "--flow", "farneback"], "--flow 'farneback': have auto, raft, dis"),
    "raft": (["clip.mp4", "--prompt", "a", "--flow", "raft"], "needs torchvision"),
    "clip model": (["clip.mp4", "--prompt", "a", "--clip-model", "nowhere"], "nowhere"),
    "output": (["clip.mp4", "--prompt", "a", "-o", "clip.mp4"], "clip.mp4 is no folder"),
    "no prompt": (["clip.mp4"], "there is no prompt"),
}


@pytest.mark.parametrize("name", BAD_EVALUATIONS)
def test_an_evaluation_that_cannot_be_made_is_refused(name: str, tf: Tf) -> None:
    arguments, says = BAD_EVALUATIONS[name]
    Path("suite.toml").write_text("[options]\nsteeps = 3\n[pocket]\nclips = 1\n")
    refused(tf("eval", *arguments), says)
    assert not Path("suite-eval").exists()
    assert not Path("clip-eval").exists()
