"""Options from a file and of a remembered run: what is said anew wins, the rest is as it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from flows.config import EditConfig, RuntimeConfig, make_config
from flows.options import Options, config_of, given_of, options_of, over, read_options, renamed
from store.errors import InputError
from tests.test_cli import Tf, made, refused, tf  # noqa: F401 (fixtures)

FILE = """
video = "clip.mp4"
prompts = ["a red ball", "a blue ball"]
preset = "fast"
steps = 2
keyframe_interval = 3
model = {model}
token_budget = "1GiB"
device = "cpu"
guidance_scale = 3

[editor_settings]
attention = 0.25
"""


@pytest.fixture
def file(tf: Tf) -> Path:  # noqa: F811
    """A file of options in a folder of its own, with its clip beside it."""
    folder = Path("elsewhere")
    folder.mkdir()
    shutil.move("clip.mp4", folder / "clip.mp4")
    (folder / "edit.toml").write_text(FILE.format(model=json.dumps(str(tf.model))))
    return folder / "edit.toml"


def keys(tf: Tf, *arguments: str | Path) -> list[tuple[str, str]]:  # noqa: F811
    """(stage, key) of what a run of these arguments would use."""
    done = tf("plan", *arguments, "--json")
    assert done.code == 0, done.err
    return [(row["stage"], row["key"]) for row in done.json["stages"]]


def test_a_file_says_what_the_options_say(tf: Tf, file: Path) -> None:  # noqa: F811
    written_out = [
        "elsewhere/clip.mp4", "--model", tf.model, "--steps", "2", "--keyframe-interval", "3", "--preset", "fast",
        "--prompt", "a red ball", "--prompt", "a blue ball", "--guidance-scale", "3", "--set", "attention=0.25",
    ]  # fmt: skip
    assert keys(tf, "--config", file) == keys(tf, *written_out)


def test_the_command_line_wins_even_with_a_default(tf: Tf, file: Path) -> None:  # noqa: F811
    given = ["elsewhere/clip.mp4", "--model", tf.model, "--steps", "2", "--prompt", "a star"]
    own = ["--guidance-scale", "3", "--set", "attention=0.5", "--keyframe-interval", "8"]
    said = ["--prompt", "a star", "--keyframe-interval", "8", "--set", "attention=0.5", "--preset", "balanced"]
    assert keys(tf, "--config", file, *said) == keys(tf, *given, *own)


def test_another_editor_does_not_get_the_settings_of_the_old_one(tf: Tf, file: Path) -> None:  # noqa: F811
    assert keys(tf, "--config", file, "--editor", "sdedit")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("stepz = 3", "no option 'stepz'; have preset, video, prompts"),
        ("steps = ", "is not valid TOML"),
        ("steps = 0", "--steps 0: input should be greater than or equal to 1"),
        ('prompts = "a ball"', 'prompts is no list of texts; write prompts = ["a text"]'),
        ("editor_settings = 3", "editor_settings is no table"),
        ("video = 3", "video is no text"),
        ('video = "clip.mp4"\nsource_prompt = 3', "--source-prompt 3: input should be a valid string"),
        ('prompts = ["a"]', "missing argument VIDEO: name the video, or --config FILE.toml or --like RUN that does"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_sentence(tf: Tf, text: str, says: str) -> None:  # noqa: F811
    Path("bad.toml").write_text(text)
    video = ["clip.mp4"] if text == "steps = 0" else []
    refused(tf("plan", *video, "--config", "bad.toml", "--prompt", "a ball"), says)
    refused(tf("plan", "--config", "missing.toml"), "--config missing.toml is not there")


def test_a_word_beside_another_mask_is_not_passed_over(tf: Tf) -> None:  # noqa: F811
    asked = ["clip.mp4", "--prompt", "a star", "--source-prompt", "a ball", "--keep-background", "ball"]
    refused(tf("plan", *asked, "--mask-from", "cross-attention:a"), "--keep-background is short for --mask-from")
    Path("word.toml").write_text('mask_from = "cross-attention:a"')
    assert keys(tf, *asked, "--config", "word.toml") == keys(tf, *asked)


def test_a_file_in_another_encoding_is_one_sentence_and_a_mark_before_the_text_is_none(tmp_path: Path) -> None:
    file = tmp_path / "edit.toml"
    file.write_bytes('steps = 2\nprompts = ["a ball"]'.encode("utf-8-sig"))
    assert read_options(file) == {"steps": 2, "prompts": ["a ball"]}
    file.write_bytes('prompts = ["ein grüner Ball"]'.encode("latin-1"))
    with pytest.raises(InputError, match="is no text in UTF-8; give a"):
        read_options(file)


def test_a_setting_that_is_said_twice_is_refused() -> None:
    both = {"attention": 0.3, "feature": 0.4}
    assert options_of({"set_": ["attention=0.3", "feature=0.4"]}) == {"editor_settings": both}
    with pytest.raises(InputError, match="--set attention is said twice"):
        options_of({"set_": ["attention=0.3", "attention=0.4"]})


def test_like_a_run_is_that_run_but_for_what_is_said(tf: Tf) -> None:  # noqa: F811
    """Everything of the run is found again; a new prompt computes the two stages that see it."""
    done = tf("run", "--like", "latest", "--prompt", "a star", "-o", "star.mp4", "--engine", "direct", "--json")
    assert done.code == 0, done.err
    assert [use["stage"] for use in done.json["stages"] if not use["hit"]] == ["edit_keyframes", "propagate_tokens"]
    again = keys(tf, "--like", "star.mp4")
    assert again == [(use["stage"], use["key"]) for use in done.json["stages"]]
    assert keys(tf, "--like", "star.mp4.json") == keys(tf, "--like", done.json["run"]) == again
    assert keys(tf, "--like", "star.mp4", "--preset", "best")[:3] == again[:3]
    assert keys(tf, "--like", "star.mp4", "--preset", "best")[3] != again[3]


def test_like_a_run_whose_video_is_another_now(tf: Tf) -> None:  # noqa: F811
    video = Path(json.loads(tf("list", "--json").out)["artifacts"] and "clip.mp4")
    done = tf("run", video, "--like", "latest", "-o", "again.mp4", "--engine", "direct")
    assert done.code == 0, done.err
    with video.open("ab") as clip:
        clip.write(b"\0")
    refused(tf("run", "--like", "again.mp4"), "has other bytes than then; name VIDEO")
    video.rename("moved.mp4")
    refused(tf("run", "--like", "again.mp4"), "is not there any more; name VIDEO")
    assert keys(tf, "moved.mp4", "--like", "again.mp4")
    refused(tf("run", "--like", "20990101-000000-abcdef"), "no run '20990101-000000-abcdef'")


def test_a_worker_in_another_folder_is_told_where_everything_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("model", "edges", "decoder"):
        Path(folder).mkdir()
    given = {"kind": "given", "model": "edges", "video": "edges.mp4"}
    config = make_config(
        video="clip.mp4", prompts=("a ball",), model="model", editor="controlnet", controls=(given, {"kind": "canny"}),
        decoder="decoder", mask="mask.png",
    ).anywhere()  # fmt: skip
    held, plain = config.controls
    places = [config.video, config.model, held.model, held.video, config.decoder, config.mask]
    names = ["clip.mp4", "model", "edges", "edges.mp4", "decoder", "mask.png"]
    assert [str(place) for place in places] == [str(tmp_path / name) for name in names]
    assert (plain.model, plain.video) == ("", None)
    for model, named in {"org/name": "org/name", "model:edges": f"{tmp_path}/model:{tmp_path}/edges"}.items():
        assert make_config(video="clip.mp4", prompts=("a ball",), model=model).anywhere().model == named


def test_what_is_not_said_is_left_out_and_nothing_is_lost() -> None:
    config = EditConfig(video=Path("v.mp4"), prompts=("a", "b"), editor_settings={"attention": 0.5, "name": "x y"})
    options = {name: value for name, value in config.model_dump().items() if value is not None}
    assert options_of(given_of(options)) == options
    assert options_of(given_of({"token_budget": 5, **RuntimeConfig().model_dump(exclude={"token_budget"})}))


def test_a_prompt_of_a_whole_book_is_refused_in_one_short_sentence() -> None:
    with pytest.raises(InputError, match=r"--prompt 'xxx.*…: string should have at most 2000 characters") as raised:
        make_config(video=Path("v.mp4"), prompts=("x" * 3000,))
    assert len(str(raised.value)) < 250


def test_the_names_of_the_command_line_are_understood_too() -> None:
    assert renamed({"lora": "a.safetensors", "region": ["m=x"], "keep_background": "ball", "seed": 3}) == {
        "loras": ["a.safetensors"], "regions": ["m=x"], "mask_from": "cross-attention:ball", "seed": 3
    }  # fmt: skip
    for twice in ({"prompt": "a", "prompts": ["b"]}, {"mask_from": "sam:m@0,0", "keep_background": "a"}):
        with pytest.raises(InputError, match="by another name; say one of them"):
            renamed(twice)


@pytest.mark.parametrize("said", [{"mask": Path("none")}, {"mask_from": "none"}, {"mask": ""}])
def test_a_mask_can_be_left_out_of_what_an_earlier_run_was_asked(said: Options, tmp_path: Path) -> None:
    asked: Options = {"video": "clip.mp4", "prompts": ["one"], "mask": "m.png", "mask_feather": 3, "decoder": "folder"}
    config = config_of(over(asked, said))
    assert (config.mask, config.mask_from, config.mask_feather) == (None, None, None)
    assert config.decoder is not None
    assert config_of(over(asked, {"decoder": Path("none")})).decoder is None
    file = tmp_path / "options.toml"
    file.write_text('mask = "none"\n')
    assert config_of(over(asked, read_options(file))).mask is None


def test_one_mask_takes_the_place_of_the_other() -> None:
    assert options_of({"keep_background": "ball"}) == {"mask_from": "cross-attention:ball"}
    assert over({"mask": Path("m.png"), "seed": 3}, options_of({"keep_background": "ball"})) == {
        "seed": 3, "mask_from": "cross-attention:ball", "editor_settings": {}
    }  # fmt: skip


def test_controls_come_from_a_file_and_leave_with_their_editor(tmp_path: Path) -> None:
    file = tmp_path / "edit.toml"
    file.write_text('editor = "controlnet"\n[[controls]]\nkind = "given"\nmodel = "m"\nvideo = "drawn.mp4"\n')
    options = read_options(file)
    (control,) = options_of(given_of(options))["controls"]
    assert control == {"kind": "given", "model": "m", "video": tmp_path / "drawn.mp4"}
    assert "controls" not in over(options, {"editor": "pnp"})
    baseline = {"editor": "per-frame", "keyframe_interval": 1, "attended_keyframes": 1, "seed": 3}
    assert over(baseline, {"editor": "pnp"}) == {"editor": "pnp", "seed": 3, "editor_settings": {}}
    anew = options_of({"control": ["canny:0.5"], "control_video": []})
    assert [control.strength for control in over(options, anew)["controls"]] == [0.5]


def test_texts_that_begin_with_a_place_mean_what_lies_beside_the_file(tmp_path: Path) -> None:
    for name in ("one.safetensors", "sam2/config.json", "style.safetensors", "net/config.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    file = tmp_path / "edit.toml"
    file.write_text(
        'model = "one.safetensors:org/name"\nloras = ["style.safetensors:0.5", "elsewhere.safetensors"]\n'
        'mask_from = "sam:sam2@0.5,0.4"\n[[controls]]\nkind = "canny"\nmodel = "net"\n'
    )
    options = read_options(file)
    assert options["model"] == f"{tmp_path}/one.safetensors:org/name"
    assert options["loras"] == [f"{tmp_path}/style.safetensors:0.5", "elsewhere.safetensors"]
    assert options["mask_from"] == f"sam:{tmp_path}/sam2@0.5,0.4"
    assert options["controls"][0]["model"] == f"{tmp_path}/net"
    file.write_text('model = "one.safetensors:sam2"')
    assert read_options(file)["model"] == f"{tmp_path}/one.safetensors:{tmp_path}/sam2", "FILE:CONFIGS"
    file.write_text('model = "org/name"\nmask_from = "cross-attention:dog"\n')
    assert read_options(file) == {"model": "org/name", "mask_from": "cross-attention:dog"}


def test_a_preset_said_anew_brings_its_own_options() -> None:
    assert over({"feature_reuse": 1, "seed": 3}, {"preset": "fast"}) == {
        "seed": 3, "preset": "fast", "editor_settings": {}
    }  # fmt: skip
