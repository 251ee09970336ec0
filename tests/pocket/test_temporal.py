"""Promises of training a temporal decoder: it can be paused, and what comes out decodes the pocket model's latents."""

from __future__ import annotations

from pathlib import Path

import torch

from pocket import model_folder
from pocket.score import load_pipeline
from pocket.train_control import export
from pocket.train_temporal import TINY, new_temporal, train_temporal
from stages.backbones.decoders import check_folder, load_decoder


def test_a_paused_training_goes_on_to_the_same_weights_and_its_export_fits(tmp_path: Path) -> None:
    whole = train_temporal(TINY, tmp_path / "whole")
    assert train_temporal(TINY, tmp_path / "paused", stop_at=8) is None
    resumed = train_temporal(TINY, tmp_path / "paused")
    assert whole is not None
    assert resumed is not None
    own = resumed.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in whole.state_dict().items())
    torch.manual_seed(TINY.seed)
    drawn = new_temporal(load_pipeline()).state_dict()
    moved = {name for name, value in drawn.items() if not torch.equal(value, own[name])}
    assert moved
    assert all(name.startswith("decoder.") for name in moved)
    export(whole, tmp_path / "vae")
    check_folder(tmp_path / "vae", model_folder())
    [rgb] = load_decoder(tmp_path / "vae", "cpu").pictures(torch.zeros(1, 4, 4, 4), [range(1)])
    assert rgb.shape == (16, 16, 3)
