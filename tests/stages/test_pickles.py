"""Weights are numbers: no file of a model runs code, with --allow-pickle or without."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from flows.models import find_model
from stages.backbones.folders import check_folder, identity_files, unpack_single_file
from stages.backbones.stable_diffusion import Runtime, load
from store.errors import InputError
from store.store import Store
from tests.flows.runs import make_plan, small_clip

PARTS = {
    "unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "pytorch_model",
}  # fmt: skip


class Trap:
    """Unpickled, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mkdir, (str(self.folder),)


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_folder, tmp_path / "model")


def pickled(folder: Path, *components: str) -> Path:
    """The model with the weights of these components as torch.save writes them."""
    for component in components:
        file = next((folder / component).glob("*.safetensors"))
        torch.save(load_file(file), folder / component / f"{PARTS[component]}.bin")
        file.unlink()
    return folder


def trapped(folder: Path, component: str, trap: Path) -> Path:
    next((folder / component).glob("*.safetensors")).unlink()
    with (folder / component / f"{PARTS[component]}.bin").open("wb") as file:
        pickle.dump({"conv_in.weight": Trap(trap)}, file)
    return folder


@pytest.mark.parametrize("component", PARTS)
def test_pickled_weights_are_refused_and_the_option_is_named(folder: Path, tmp_path: Path, component: str) -> None:
    pickled(folder, component)
    with pytest.raises(InputError, match=rf"no .safetensors file in {component}; .* say --allow-pickle"):
        check_folder(folder)
    with pytest.raises(InputError, match=str(folder)):
        load(str(folder), Runtime())
    check_folder(folder, allow_pickle=True)


def test_with_the_option_they_are_the_same_numbers(folder: Path, tiny_folder: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    sound = find_model(str(tiny_folder), store, allow_pickle=True)
    assert not sound.pickled
    assert sound.key == find_model(str(tiny_folder), store).key, "the option is in no key"
    pickled(folder, *PARTS)
    found = find_model(str(folder), store, allow_pickle=True)
    assert found.pickled
    assert found.key != sound.key, "other bytes are another model"
    assert {path.name for path in identity_files(folder) if path.suffix == ".bin"} == {
        f"{p}.bin" for p in PARTS.values()
    }
    loaded, expected = load(str(folder), Runtime(allow_pickle=True)), load(str(tiny_folder), Runtime())
    for name, values in expected.unet.state_dict().items():
        assert torch.equal(loaded.unet.state_dict()[name], values)
    for name, values in expected.pipeline.text_encoder.state_dict().items():
        assert torch.equal(loaded.pipeline.text_encoder.state_dict()[name], values)


def test_a_run_says_that_its_weights_are_pickled(folder: Path, tmp_path: Path) -> None:
    clip = small_clip(tmp_path / "clip.mp4")
    noted = make_plan(clip, folder, tmp_path / "store", allow_pickle=True).notes
    pickled(folder, "vae")
    with pytest.raises(InputError, match="say --allow-pickle"):
        make_plan(clip, folder, tmp_path / "store")
    (new,) = set(make_plan(clip, folder, tmp_path / "store", allow_pickle=True).notes) - set(noted)
    assert f"the weights of {folder} are pickled" in new


@pytest.mark.parametrize("component", PARTS)
def test_a_trap_in_a_pickle_is_never_sprung(folder: Path, tmp_path: Path, component: str) -> None:
    trapped(folder, component, tmp_path / "sprung")
    check_folder(folder, allow_pickle=True)
    with pytest.raises(InputError, match=f"model {folder} cannot be loaded"):
        load(str(folder), Runtime(allow_pickle=True))
    assert not (tmp_path / "sprung").exists()
    with (folder / component / f"{PARTS[component]}.bin").open("rb") as file:
        pickle.load(file)
    assert (tmp_path / "sprung").exists(), "the trap works"


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth", ".bin"])
def test_a_single_pickled_file_is_refused_and_its_trap_never_sprung(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"model{suffix}"
    with file.open("wb") as opened:
        pickle.dump({"state_dict": Trap(tmp_path / "sprung")}, opened)
    store = Store(tmp_path / "store")
    with pytest.raises(InputError, match=r"is no .safetensors file; .* unless you trust it and say --allow-pickle"):
        find_model(str(file), store)
    with pytest.raises(InputError, match="cannot be read as Stable Diffusion") as said:
        find_model(str(file), store, allow_pickle=True)
    assert "\n" not in str(said.value)
    with pytest.raises(InputError):
        unpack_single_file(file, tmp_path / "unpacked")
    assert not (tmp_path / "sprung").exists()


def test_a_file_of_another_kind_is_refused_with_the_option_too(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"1234")
    for allow_pickle in (False, True):
        with pytest.raises(InputError, match=r"is no .safetensors file; other weight files are not opened$"):
            find_model(str(tmp_path / "clip.mp4"), Store(tmp_path / "store"), allow_pickle)


SPRUNG = "from pathlib import Path\nPath({!r}).mkdir(exist_ok=True)\nclass UNet2DConditionModel: ...\n"


@pytest.mark.parametrize(
    ("component", "value", "said"),
    [
        ("unet", ["trap", "UNet2DConditionModel"], "has its unet made by trap"),
        ("unet", ["model.trap", "UNet2DConditionModel"], "has its unet made by model.trap"),
        ("scheduler", ["os", "DDIMScheduler"], "has its scheduler made by os"),
        ("vae", [], "has its vae made by nothing"),
        ("extra", ["trap", "Extra"], "has its extra made by trap"),
        ("_class_name", ["trap", "StableDiffusionPipeline"], "is not supported"),
        ("_class_name", "TrapPipeline", "is not supported"),
    ],
)
def test_code_that_comes_with_a_model_is_never_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, component: str, value: object, said: str
) -> None:
    for place in (folder, folder / "unet", tmp_path):
        (place / "trap.py").write_text(SPRUNG.format(str(tmp_path / "sprung")))
        (place / "pipeline.py").write_text(SPRUNG.format(str(tmp_path / "sprung")))
    monkeypatch.syspath_prepend(str(tmp_path))
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {component: value}))
    with pytest.raises(InputError, match=said):
        find_model(str(folder), Store(tmp_path / "store"), allow_pickle=True)
    assert not (tmp_path / "sprung").exists()


def test_automatic_classes_of_a_config_are_not_followed(folder: Path, tmp_path: Path) -> None:
    for component, name in (
        ("text_encoder", "config.json"),
        ("tokenizer", "tokenizer_config.json"),
        ("unet", "config.json"),
    ):
        config = json.loads((folder / component / name).read_text())
        config["auto_map"] = {"AutoModel": "trap.Trap", "AutoTokenizer": ["trap.Trap", None], "AutoConfig": "trap.Trap"}
        (folder / component / name).write_text(json.dumps(config))
        (folder / component / "trap.py").write_text(SPRUNG.format(str(tmp_path / "sprung")))
    find_model(str(folder), Store(tmp_path / "store"), allow_pickle=True)
    load(str(folder), Runtime(allow_pickle=True))
    assert not (tmp_path / "sprung").exists()
