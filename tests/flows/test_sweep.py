"""A sweep: what is shared is computed once, a killed one goes on, and a real browser plays its page in step."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import xarray
from PIL import Image

from flows.export import make_folder
from flows.grid import choices, make_axes, named, setting, with_choice
from stages.diffusion.checks import NonFiniteLatents
from store.errors import InputError
from tests.flows.runs import PREPARE, Executed
from tests.flows.test_browser import page  # noqa: F401 (fixture)
from tests.test_cli import ROOT, Tf, made, refused, tf  # noqa: F401 (fixtures)
from tests.tiny.segmenters import save_sam

GRID = ["--grid", "pnp_attention=0,1", "--grid", "guidance_scale=2,6"]


@pytest.fixture
def prompts(tf: Tf) -> list[str | Path]:  # noqa: F811
    """A file of two prompts, the second of which the store knows in no setting of the grid."""
    Path("prompts.txt").write_text("a red ball\n\n# a comment\n  a blue ball  \na red ball\n")
    return ["--prompts", "prompts.txt"]


def swept(tf: Tf, *arguments: str | Path) -> Any:  # noqa: F811
    done = tf.edit("sweep", "clip.mp4", *arguments, "-o", "out", "--json")
    assert done.code == 0, done.err
    return done.json


def test_what_edits_share_is_computed_once_and_a_second_sweep_computes_nothing(
    tf: Tf,  # noqa: F811
    prompts: list[str | Path],
    executed: Executed,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TOKENFLOW_STORE", "empty")
    planned = tf.edit("sweep", "clip.mp4", *prompts, *GRID, "--plan", "--json")
    refused(tf.edit("sweep", "clip.mp4", *prompts, *GRID, "--guidance-scale", "3"), "leave one out")
    answer = swept(tf, *prompts, *GRID)
    assert [executed.stages[name] for name in PREPARE] == [1, 1, 1, 1] and executed.models == 1
    assert executed.stages["propagate_tokens"] == 8 == len(answer["edits"])
    assert planned.json["artifacts"] == 4 + 2 * 8 == planned.json["compute"] and planned.json["unshared"] == 6 * 8
    assert {each["keys"]["propagate_tokens"] for each in planned.json["edits"]} == {
        each["keys"]["propagate_tokens"] for each in answer["edits"]
    }
    executed.clear()
    again = swept(tf, *prompts, *GRID)
    assert not executed.stages and executed.models == 0, "scores are kept, too"
    assert all(each["computed"] == [] for each in again["edits"])
    assert [each["scores"] for each in again["edits"]] == [each["scores"] for each in answer["edits"]]


def test_edits_share_the_mask_that_a_model_of_the_users_finds(
    tf: Tf,  # noqa: F811
    prompts: list[str | Path],
    executed: Executed,
) -> None:
    asked = f"sam:{save_sam(Path('sam'))}@0.5,0.5"
    answer = swept(tf, *prompts, "--mask-from", asked)
    assert ["segment_masks" in each["computed"] for each in answer["edits"]] == [True, False]
    masks = {each["keys"]["segment_masks"] for each in answer["edits"]}
    clips = {each["keys"]["propagate_tokens"] for each in answer["edits"]}
    assert len(masks) == 1 and len(clips) == 2
    executed.clear()
    assert all(each["computed"] == [] for each in swept(tf, *prompts, "--mask-from", asked)["edits"])
    assert not executed.stages


def test_the_folder_holds_what_one_chooses_from(tf: Tf, prompts: list[str | Path]) -> None:  # noqa: F811
    answer = swept(tf, *prompts, *GRID)
    with Path("out/sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["prompt"], row["pnp.attention"], row["guidance_scale"]) for row in rows] == [
        (prompt, attention, scale)
        for attention in ("0", "1") for scale in ("2", "6") for prompt in ("a red ball", "a blue ball")
    ]  # fmt: skip
    table = xarray.open_zarr("out/sweep.zarr")
    for row, each, change in zip(rows, answer["edits"], table["change"].values, strict=True):
        assert Path("out", each["file"]).is_file() and Path("out", f"{each['file']}.json").is_file()
        assert row["key"] == each["keys"]["propagate_tokens"] and row["file"] == each["file"]
        assert each["scores"].keys() >= {"change", "warp_error", "sharpness"}
        assert float(row["change"]) == change == each["scores"]["change"] > 0
    assert json.loads(Path("out/sweep.json").read_text())["edits"] == answer["edits"]
    assert Image.open("out/sheet.png").height > 9 * (160 + 26) + 8 * 26, "the source, and eight edits with scores"
    assert len(list(Path("out").glob("source-*.mp4"))) == 1


@pytest.mark.slow
def test_a_killed_sweep_goes_on_where_it_was(tf: Tf, prompts: list[str | Path]) -> None:  # noqa: F811
    arguments = ["sweep", "clip.mp4", "--model", tf.model, "--steps", "4", "--keyframe-interval", "3", *prompts, *GRID]
    command = [sys.executable, str(ROOT / "cli.py"), *map(str, arguments), "-o", "out"]
    first = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)})
    page_json, until = Path("out/sweep.json"), time.monotonic() + 300
    while not page_json.is_file() and first.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL, "it was killed before it was through"
    finished = {each["keys"]["propagate_tokens"] for each in json.loads(page_json.read_text())["edits"]}
    second = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    edits = json.loads(second.stdout)["edits"]
    reused = {each["keys"]["propagate_tokens"] for each in edits if not each["computed"]}
    assert finished and finished <= reused and len(reused) < len(edits) == 8
    assert all(not set(PREPARE) & set(each["computed"]) for each in edits)
    assert "edit_keyframes" in edits[-1]["computed"]


def test_an_edit_that_cannot_be_made_stops_no_other(
    tf: Tf,  # noqa: F811
    prompts: list[str | Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import flows.sweep

    run_edit = flows.sweep.run_edit

    def failing(plan: Any, *given: Any) -> Any:
        if plan.guidance_scale == 6 and plan.config.prompts == ("a red ball",):
            raise NonFiniteLatents("latents became NaN at timestep 981")
        return run_edit(plan, *given)

    monkeypatch.setattr(flows.sweep, "run_edit", failing)
    done = tf.edit("sweep", "clip.mp4", *prompts, "--grid", "guidance_scale=2,6", "-o", "out", "--json")
    assert done.code == 1 and "1 of 4 edits could not be made" in done.err
    edits = done.json["edits"]
    assert [each["file"] is None for each in edits] == [False, False, True, False]
    assert edits[2]["fault"] == "latents became NaN at timestep 981"
    assert "latents became NaN" in Path("out/index.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--grid", "stepz=1,2"], "--grid stepz: neither an option (preset, model,"),
        (["--grid", "guidance_scale=-1,2"], "a red ball · guidance_scale -1: --guidance-scale -1: input should be"),
        (["--grid", "pnp.attention=2"], "a red ball · pnp.attention 2: editor pnp: attention 2"),
        (["--grid", "pnp.attentoin=1"], "editor pnp has no setting 'attentoin'; have attention, feature, strength"),
        (["--grid", "sdedit.strength=1"], "of the editor sdedit, which no edit of this sweep has"),
        (["--grid", "editor=pnpp"], "no editor 'pnpp' in stages/editors"),
        (["--grid", "steps"], "--grid 'steps' is not NAME=VALUE,VALUE"),
        (["--grid", "blend=linear", "--grid", "blend=nearest"], "--grid names blend twice"),
        (["--grid", "precision=float16,float32"], "no result depends on it"),
        (["--grid", "prompt=a,b"], "not varied here; prompts are given by --prompts"),
        (["--grid", "control=canny,depth"], "not varied here; make a sweep with each --control"),
        (["--grid", "editor=pnp,sdedit", "--control", "canny"], "of --editor controlnet, which no edit has; add"),
        (["--grid", "keep-background=a,b"], "not varied here; write mask_from=cross-attention:WORD"),
        (["--grid", "pnp.attention=0,1", "--set", "attention=0.5"], "varies pnp.attention, and --set attention sets"),
        (["--grid", "lora=a.safetensors", "--lora", "b.safetensors"], "varies loras, and --lora sets it; leave one"),
        (["--grid", "mask_from=cross-attention:a", "--keep-background", "b"], "and --mask-from sets it; leave one out"),
        (["--grid", "lora=a.safetensors"], "a red ball · loras a.safetensors: --lora a.safetensors is not there"),
        (["--grid", "seed=" + ",".join(map(str, range(600)))], "is 1200 edits; one may have 1000"),
        (["--prompts", "missing.txt"], "--prompts missing.txt is not there"),
        (["--flow", "deep"], "--flow 'deep'"),
        (["--clip-model", "/none"], "/none"),
        (["--keep-alpha"], "the clips of a sweep are .mp4, for its page, and hold no transparency"),
        (["--runner", "dask"], "and a sweep does without it; say --engine prefect too"),
        (["--detach"], "a sweep on a worker makes the edits alone, no folder, page or scores: leave out -o; give"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_what_cannot_be_tried_is_one_sentence_before_anything_runs(
    tf: Tf,  # noqa: F811
    prompts: list[str | Path],
    executed: Executed,
    arguments: list[str],
    says: str,
) -> None:
    done = tf.edit("sweep", "clip.mp4", *prompts, *arguments, "-o", "out")
    refused(done, says)
    assert not executed.stages and not Path("out/index.html").exists()


def test_settings_of_an_editor_are_tried_beside_it_alone() -> None:
    axes = make_axes([("editor", ["pnp", "sdedit"]), ("pnp_attention", [0.3, 0.5]), ("sdedit.strength", [0.5, 0.7])])
    assert choices(axes, "pnp") == [
        {"editor": "pnp", "pnp.attention": 0.3}, {"editor": "pnp", "pnp.attention": 0.5},
        {"editor": "sdedit", "sdedit.strength": 0.5}, {"editor": "sdedit", "sdedit.strength": 0.7},
    ]  # fmt: skip
    options = {"editor": "pnp", "editor_settings": {"feature": 0.1}}
    assert with_choice(options, choices(axes, "pnp")[0])["editor_settings"] == {"feature": 0.1, "attention": 0.3}
    assert with_choice(options, choices(axes, "pnp")[2])["editor_settings"] == {"strength": 0.5}
    with_controls = {"controls": ({"kind": "canny"},)}
    tried = [with_choice(with_controls, {"editor": editor}) for editor in ("pnp", "controlnet")]
    assert ["controls" in each for each in tried] == [False, True]


def test_what_a_run_says_may_be_given_several_times_is_one_value_of_a_grid(tf: Tf) -> None:  # noqa: F811
    (axis,) = make_axes([("lora", ["style.safetensors:0.5", ""])])
    tried = [with_choice({"loras": ("old.safetensors",)}, choice)["loras"] for choice in choices([axis], "pnp")]
    assert named("a ball", {"loras": "/long/way/style.safetensors:0.5", "blend": "linear"}) == (
        "a ball · loras style.safetensors:0.5 · blend linear"
    )
    assert setting({"mask": "/long/way/mask.png"}) == "mask mask.png", "as the table has it"
    assert axis.name == "loras" and tried == [("style.safetensors:0.5",), ()]
    Image.new("L", (40, 32), 255).save("white.png")
    grid = ["--grid", 'mask=["", "white.png"]', "--prompt", "a ball"]
    masked = {
        each["choice"]["mask"]: "read_masks" in each["keys"]
        for each in tf.edit("sweep", "clip.mp4", *grid, "--plan", "--json").json["edits"]
    }
    assert masked == {"": False, "white.png": True}, "an empty text is not the folder that one is in"
    grid = ["--grid", "region=white.png=a star,white.png=a ring", "--prompt", "a ball"]
    first, second = tf.edit("sweep", "clip.mp4", *grid, "--plan", "--json").json["edits"]
    assert first["choice"] == {"regions": "white.png=a star"}
    assert first["keys"]["read_masks"] == second["keys"]["read_masks"]
    assert first["keys"]["edit_keyframes"] != second["keys"]["edit_keyframes"]


def test_a_folder_is_not_called_like_a_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"out\.mp4 is to be a folder of several files; name it without \.mp4"):
        make_folder(tmp_path / "out.mp4")
    assert make_folder(tmp_path / "v1.2").is_dir()


def test_what_is_said_of_several_edits_is_said_once(tf: Tf) -> None:  # noqa: F811
    """The tiny model reads 16 letters."""
    done = tf.edit("sweep", "clip.mp4", "--prompt", "a red ball on the moon", "--grid", "guidance_scale=2,6")
    assert done.code == 0 and done.err.count("was cut") == 1


def test_a_grid_varies_what_an_earlier_run_had(tf: Tf) -> None:  # noqa: F811
    """Its interval was 3 and its steps were 2: what a grid tries is said anew, as an option would be."""
    grid = ["--grid", "keyframe_interval=3,4", "--grid", "preset=balanced,best"]
    planned = tf("sweep", "--like", "latest", *grid, "--plan", "--json")
    assert planned.code == 0, planned.err
    edits = planned.json["edits"]
    assert len({each["keys"]["match_tokens"] for each in edits}) == 4, "a preset brings its own options"
    ran = json.loads(tf("plan", "--like", "latest", "--json").out)["stages"]
    assert edits[0]["keys"] == {row["stage"]: row["key"] for row in ran}
    said = [*grid, "--keyframe-offsets", "2"]
    fixed = tf("sweep", "--like", "latest", *said, "--plan", "--json").json["edits"]
    assert len(fixed) == 2, "what is said beside the grid wins over the presets of it"
    refused(tf("sweep", "--like", "latest", *grid, "--keyframe-interval", "3"), "varies keyframe_interval, and --keyf")


def test_edits_that_share_a_stage_follow_each_other(tf: Tf, prompts: list[str | Path]) -> None:  # noqa: F811
    grid = ["--grid", "guidance_scale=2,6", "--grid", "keyframe_interval=3,2"]
    small = ["--model", tf.model, "--steps", "2"]
    planned = tf("sweep", "clip.mp4", *small, *prompts, *grid, "--plan", "--json")
    fields = [each["keys"]["match_tokens"] for each in planned.json["edits"]]
    assert len(fields) == 8 and fields[:4] == [fields[0]] * 4 and fields[4:] == [fields[4]] * 4
    assert fields[0] != fields[4]
    assert [each["number"] for each in planned.json["edits"]] == [1, 2, 5, 6, 3, 4, 7, 8]


def test_two_settings_that_come_to_the_same_are_one_edit(tf: Tf, prompts: list[str | Path]) -> None:  # noqa: F811
    planned = tf.edit("sweep", "clip.mp4", *prompts, "--grid", "keyframe_offsets=2,5,9", "--plan", "--json")
    assert [each["choice"]["keyframe_offsets"] for each in planned.json["edits"]] == [2, 2, 5, 5]


IN_STEP = """() => {
    const times = videos.map((video) => video.currentTime), loop = length();
    const ahead = times.map((time) => (time - times[0] + 1.5 * loop) % loop);
    return Math.max(...ahead) - Math.min(...ahead) < 1 / FPS;
}"""  # whether all clips are within a frame of each other, on their way round


@contextmanager
def opened(page: Any, file: Path) -> Iterator[Any]:  # noqa: F811
    """The page from disk, without a network; what it complains of fails the test."""
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.context.set_offline(True)
    page.goto(file.absolute().as_uri())
    yield page
    assert complaints == []


@pytest.mark.slow
@pytest.mark.browser
def test_a_browser_plays_the_clips_in_step_and_sorts_them(
    tf: Tf,  # noqa: F811
    prompts: list[str | Path],
    page: Any,  # noqa: F811
) -> None:
    answer = swept(tf, *prompts, *GRID)
    with opened(page, Path("out/index.html")):
        page.wait_for_function(
            "() => videos.length == 9 && videos.every((video) => video.currentTime > 0 && !video.paused)"
        )
        page.evaluate("videos[4].currentTime = (videos[4].currentTime + length() / 2) % length()")
        page.wait_for_function(IN_STEP)
        page.locator("#play").click()
        page.locator("#at").evaluate("(at) => { at.value = 0.5; at.dispatchEvent(new Event('input')); }")
        page.wait_for_function(
            "() => videos.every((video) => video.paused && Math.abs(video.currentTime - 0.14) < 0.01)"
        )

        page.locator("#sort").select_option("warp_error")
        errors = {str(each["number"]): each["scores"]["warp_error"] for each in answer["edits"]}
        numbers = page.evaluate("all('article.edit').map((card) => card.dataset.number)")
        assert numbers == sorted(numbers, key=lambda number: errors[number])
        page.locator("#turn").click()
        assert page.evaluate("all('article.edit').map((card) => card.dataset.number)") == numbers[::-1]
        assert page.evaluate("all('article')[0].className") == "source"
        page.locator(".filter[data-name='prompt']").select_option("a blue ball")
        assert page.locator("article.edit:visible").count() == 4
