"""Promises of single checkpoint files: whole models of each family under their first names, settings from a folder."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from flows.models import absolute_place, find_model
from stages.backbones.folders import unpack_single_file
from stages.backbones.stable_diffusion import Runtime, load
from store.errors import InputError
from store.store import Store
from tests.tiny.checkpoints import write_checkpoint
from tests.tiny.models import make_pipeline, make_sdxl

Single = tuple[Path, Path]


def sd2() -> Any:
    """As wide as the text that diffusers tells SD 2.x by, with v-prediction."""
    pipeline = make_pipeline(cross_attention_dim=1024, use_linear_projection=True, attention_head_dim=(2, 4, 4, 4))
    pipeline.scheduler.register_to_config(prediction_type="v_prediction")
    return pipeline


MAKERS: dict[str, Callable[[], Any]] = {"sd1": make_pipeline, "sd2": sd2, "sdxl": lambda: make_sdxl(layers=10)}


@pytest.fixture(scope="module", params=MAKERS)
def single(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Single:
    """(a checkpoint file, the folder of the same pipeline)."""
    place = tmp_path_factory.mktemp(request.param)
    pipeline = MAKERS[request.param]()
    pipeline.save_pretrained(place / "folder", safe_serialization=True)
    return write_checkpoint(place / "one.safetensors", pipeline), place / "folder"


@torch.inference_mode()
def test_a_single_file_is_the_model_that_it_was_made_of(single: Single, tmp_path: Path) -> None:
    file, folder = single
    found = find_model(f"{file}:{folder}", Store(tmp_path / "store"))
    theirs, ours = load(str(folder), Runtime()), load(found.load_from, Runtime())
    assert ours.levels.prediction_type == theirs.levels.prediction_type
    noisy = torch.randn(2, 4, 8, 8, generator=torch.manual_seed(0))
    noise, same = (model.predict_noise(noisy, 401, model.encode_text(["a red ball", ""])) for model in (ours, theirs))
    assert torch.equal(noise, same)
    assert np.array_equal(ours.decode(noisy), theirs.decode(noisy))


def test_settings_are_taken_without_any_weights_and_are_part_of_the_model(single: Single, tmp_path: Path) -> None:
    file, folder = single
    bare = Path(shutil.copytree(folder, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors")))
    store = Store(tmp_path / "store")
    model = find_model(f"{file}:{bare}", store)
    assert model.key == find_model(f"{file}:{folder}", store).key
    scheduler = bare / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps(json.loads(scheduler.read_text()) | {"beta_end": 0.013}))
    assert model.key != find_model(f"{file}:{bare}", store).key, "another noise schedule is another model"


def test_settings_come_from_the_hubs_cache_where_no_folder_is_named(
    single: Single, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is downloaded: with an empty cache it is said how to fill it."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (file, folder), store = single, Store(tmp_path / "store")
    with pytest.raises(InputError, match="where there is a network say hf download ") as caught:
        find_model(str(file), store)
    (base,) = re.findall(r"hf download (\S+)", str(caught.value))
    cached = tmp_path / "hub" / f"models--{base.replace('/', '--')}"
    shutil.copytree(folder, cached / "snapshots" / ("0" * 40), ignore=shutil.ignore_patterns("*.safetensors"))
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0" * 40)
    assert find_model(str(file), store).key == find_model(f"{file}:{folder}", store).key


def test_a_folder_of_another_kind_is_refused(single: Single, tmp_path: Path) -> None:
    file, folder = single
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    index = other / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"_class_name": "FluxPipeline"}))
    for place, reason in ((other, "is of FluxPipeline, and .* is of Stable"), (tmp_path, "no model_index.json")):
        with pytest.raises(InputError, match=reason):
            unpack_single_file(file, tmp_path / "out", place)
    assert not (tmp_path / "out").exists()


def test_weights_that_do_not_fit_the_settings_are_refused(single: Single, tmp_path: Path) -> None:
    file, folder = single
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    config = other / "unet" / "config.json"
    wider = json.loads(config.read_text())
    config.write_text(json.dumps(wider | {"block_out_channels": [2 * width for width in wider["block_out_channels"]]}))
    with pytest.raises(InputError, match="cannot be read as Stable Diffusion") as caught:
        unpack_single_file(file, tmp_path / "out", other)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("part", ["model.diffusion_model", "first_stage_model", "cond"])
def test_a_file_that_lacks_weights_is_refused_and_leaves_nothing(single: Single, tmp_path: Path, part: str) -> None:
    file, folder = single
    weights = load_file(file)
    gone = next(name for name in sorted(weights, reverse=True) if name.startswith(part) and "weight" in name)
    save_file({name: values for name, values in weights.items() if name != gone}, tmp_path / "lacks.safetensors")
    with pytest.raises(InputError, match=r"lacks? .*weights"):
        unpack_single_file(tmp_path / "lacks.safetensors", tmp_path / "model", folder)
    assert not list(tmp_path.glob("model*"))


def test_a_place_is_understood_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one.safetensors").touch()
    (tmp_path / "configs").mkdir()
    (tmp_path / "a:b").mkdir()
    monkeypatch.chdir(tmp_path)
    assert absolute_place("one.safetensors:configs") == f"{tmp_path}/one.safetensors:{tmp_path}/configs"
    assert absolute_place("one.safetensors:org/name") == f"{tmp_path}/one.safetensors:org/name"
    assert absolute_place("a:b") == f"{tmp_path}/a:b"
    assert absolute_place("org/name") == "org/name"
