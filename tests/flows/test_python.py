"""From Python: the functions of the commands, their artifacts as xarray, and the notebook that shows them."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import cli
from flows import edit_video, plan_video, sweep_video
from flows.config import EditConfig
from flows.grid import make_axes
from flows.options import GIVEN_AS
from store.errors import InputError
from tests.flows.runs import ALL, SMALL, Executed
from tests.test_cli import ROOT

SHORT = {*GIVEN_AS.values(), "keep_background", "control", "control_video", "canny_thresholds"}  # of other options
NOT_OPTIONS = {"video", "store", "cache_size"} | SHORT


@pytest.fixture
def small(clip: Path, tiny_folder: Path, tmp_path: Path) -> dict[str, Any]:
    """Arguments of a small edit, in a store of its own."""
    options = {name: value for name, value in SMALL.items() if name != "prompts"}
    return {"video": clip, "model": str(tiny_folder), "store": tmp_path / "store", **options}


def test_importing_it_loads_no_model_library_and_no_engine() -> None:
    heavy = "print([name for name in ('torch', 'prefect', 'zarr') if name in sys.modules])"
    asked = f"import sys; from flows import edit_video; {heavy}"
    done = subprocess.run([sys.executable, "-c", asked], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_it_has_every_option_of_the_command_line() -> None:
    shown = inspect.signature(edit_video).parameters
    assert set(inspect.signature(cli.edit_options).parameters) - NOT_OPTIONS <= set(shown)
    assert set(EditConfig.model_fields) <= set(shown)
    assert (shown["steps"].default, shown["steps"].annotation) == (50, int)


def test_an_edit_gives_its_artifacts_as_datasets(small: dict[str, Any], tmp_path: Path, executed: Executed) -> None:
    result = edit_video(prompts=["a red ball", "a blue ball"], output=tmp_path / "edit.mp4", **small)
    assert [Path(each["file"]).name for each in result.outputs] == ["edit-1.mp4", "edit-2.mp4"]
    frames = result.dataset("decode_frames")
    for prompt in ("a red ball", "a blue ball"):
        edited = result.dataset("propagate_tokens", prompt)
        assert edited["rgb"].dims == frames["rgb"].dims == ("frame", "height", "width", "channel")
        assert edited["rgb"].shape == frames["rgb"].shape
    assert (result.dataset("propagate_tokens", "a red ball")["rgb"] != edited["rgb"]).any()
    assert {use.node.stage for use in result.uses} == {*ALL}
    executed.clear()
    plan = plan_video(prompts="a red ball", **small)
    assert plan.to_compute() == []
    assert edit_video(prompts="a red ball", **small).outputs == [] and not executed.stages
    with pytest.raises(InputError, match="the run used no artifact 'tokens'; it has those of decode_frames"):
        result.dataset("tokens")


def test_like_and_config_are_understood(small: dict[str, Any], tmp_path: Path) -> None:
    first = edit_video(prompts="a red ball", guidance_scale=3, output=tmp_path / "a.mp4", **small)
    place = {"store": small["store"]}
    assert plan_video(like=first.run, **place).to_compute() == []
    assert len(plan_video(like=str(tmp_path / "a.mp4"), prompts="a star", **place).to_compute()) == 2
    (tmp_path / "edit.toml").write_text('prompts = ["a red ball"]\nguidance_scale = 3\n')
    assert plan_video(config=tmp_path / "edit.toml", **small).to_compute() == []
    with pytest.raises(InputError, match="there is no option 'stepz'; have preset, model"):
        edit_video(small["video"], "a red ball", stepz=3)
    with pytest.raises(InputError, match="there is no video"):
        edit_video(prompts="a red ball", **place)


def test_texts_and_paths_are_taken_as_python_has_them(small: dict[str, Any], tmp_path: Path) -> None:
    Image.new("L", (32, 32), 255).save(tmp_path / "white.png")
    plan = plan_video(prompts=(text for text in ("a star", "a ring")), regions=f"{tmp_path}/white.png=a ball", **small)
    assert plan.config.prompts == ("a star", "a ring") and plan.regions.prompts == ("a ball",)
    (axis,) = make_axes([("mask", [tmp_path / "white.png", None])])
    assert axis.values == (str(tmp_path / "white.png"), None), "JSON can hold it"
    for said in ({"prompts": 5}, {"regions": [(tmp_path, "a ball")]}, {"loras": 0.5}):
        with pytest.raises(InputError, match="is neither a text nor a list of texts"):
            plan_video(**{"prompts": "a star", **small, **said})


def test_a_sweep_gives_its_table(small: dict[str, Any], tmp_path: Path) -> None:
    swept = sweep_video(prompts=["a red ball"], grid={"pnp.attention": [0, 1]}, output=tmp_path / "out", **small)
    table = swept.dataset()
    assert table["pnp.attention"].values.tolist() == ["0", "1"] and (table["change"] > 0).all()


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"grid": {"blend": "linear"}}, "--grid blend: 'linear' is no list of values"),
        ({"grid": {"seed": 3}}, "--grid seed: 3 is no list of values"),
        ({"grid": {"seed": [1, 2]}, "seed": 3}, "--grid varies seed, and --seed sets it"),
        ({"engine": "perfect"}, "there is no engine 'perfect'; have auto, prefect, direct"),
        ({"prompt": "a star"}, "prompt is prompts by another name"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_sweep_that_cannot_be_is_one_sentence(small: dict[str, Any], said: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        sweep_video(prompts=["a red ball"], **said, **{n: v for n, v in small.items() if n not in said})


def test_the_notebook_runs_from_top_to_bottom(
    small: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its cells in order, in one namespace; the second, tagged `parameters`, is followed by what the test wants."""
    cells = json.loads((ROOT / "examples" / "artifacts.ipynb").read_text("utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    monkeypatch.chdir(tmp_path)
    own = {"VIDEO": small["video"], "STORE": small["store"], "MODEL": small["model"], "STEPS": 2, "INTERVAL": 3}
    names: dict[str, Any] = {}
    for number, cell in enumerate(code):
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
        if "parameters" in cell["metadata"].get("tags", ()):
            assert own.keys() <= names.keys()
            names |= own
    assert names["result"].outputs == [] and names["field"].sizes["frame"] == 7
