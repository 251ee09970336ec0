"""The shipped ControlNet: small, fitting, and its pictures and edits keep to the edges that they are shown."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from flows.config import make_config, make_runtime
from flows.edit import edit
from flows.plan import Plan
from flows.tasks import Session
from pocket import control_folder, model_folder
from pocket.edges import agreement, edges
from pocket.score import load_pipeline
from pocket.score_control import drawn
from pocket.train_control import TINY, export, train_control
from pocket.world import render, sample_scenes
from stages.backbones.controlnet import check_folder, load_controlnet
from store.store import Store

BALL = Path(__file__).parent.parent.parent / "examples" / "ball.mp4"


def test_folder_is_small_and_fits_the_model() -> None:
    assert sum(path.stat().st_size for path in control_folder().glob("*.safetensors")) <= 10e6
    assert {path.name for path in control_folder().iterdir()} == {
        "README.md", "config.json", "diffusion_pytorch_model.safetensors", "samples.png",
    }  # fmt: skip
    check_folder(control_folder(), model_folder())


def test_paused_training_ends_at_the_same_weights_and_leaves_the_model_alone(tmp_path: Path) -> None:
    whole = train_control(TINY, tmp_path / "whole")
    assert train_control(TINY, tmp_path / "paused", stop_at=8) is None
    resumed = train_control(TINY, tmp_path / "paused")
    assert whole is not None and resumed is not None
    weights = resumed.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in whole.state_dict().items())
    moved = [name for name, value in weights.items() if name.startswith("controlnet_down") and value.abs().max() > 0]
    assert moved, "what starts at zero has learned"
    export(resumed, tmp_path / "out")
    loaded = load_controlnet(tmp_path / "out", "cpu", torch.float32)
    assert tuple(loaded.config.conditioning_embedding_out_channels) == (16, 32, 64), "halved as the autoencoder halves"


def test_another_seed_is_another_control(tmp_path: Path) -> None:
    one, other = (train_control(replace(TINY, seed=seed), tmp_path / str(seed)) for seed in (0, 1))
    assert one is not None and other is not None
    weights = other.state_dict()
    assert any(not torch.equal(value, weights[name]) for name, value in one.state_dict().items())


def test_pictures_keep_to_the_edges_they_are_drawn_from() -> None:
    pipeline = load_pipeline()
    rgb = render(sample_scenes(4, torch.Generator().manual_seed(77)), 64).rgb
    wanted = edges((rgb * 255).round().byte().numpy())
    captions = ["a green ball on snow", "a red square on grass", "a blue ring on sand", "a yellow square on water"]
    kept = [
        agreement(wanted, edges((picture * 255).round().byte().numpy()))
        for picture in (drawn(pipeline, captions, torch.from_numpy(wanted), strength) for strength in (1.0, 0.0))
    ]
    assert kept[0] > 0.7
    assert kept[0] > kept[1] + 0.25


def test_edits_keep_to_the_edges_of_their_source(tmp_path: Path) -> None:
    """Better than sdedit with the same start: noise that all frames share."""
    store, kept = Store(tmp_path / "store"), []
    control: dict[str, Any] = {"editor": "controlnet", "controls": ({"kind": "canny"},)}
    for way in (control | {"editor_settings": {"begin": "noise"}}, {"editor": "sdedit"}):
        settings = way.pop("editor_settings", {}) | {"strength": 1.0}
        config = make_config(
            video=BALL, prompts=("a blue ball on sand",), steps=10, frames="0:4", editor_settings=settings, **way
        )
        session = Session(Plan(config, make_runtime(device="cpu"), store))
        [edited] = edit(session)
        frames = session.find(session.plan.decode)
        assert frames is not None
        kept.append(agreement(edges(frames["rgb"][:]), edges(edited["rgb"][:])))
    assert kept[0] > 0.75
    assert kept[0] > kept[1] + 0.25
