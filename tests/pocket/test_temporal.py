"""Promises of training layers along time: it can be paused, begins as the model's decoder, and moves nothing else."""

from __future__ import annotations

from pathlib import Path

import torch

from pocket import model_folder
from pocket.score import load_pipeline
from pocket.train_temporal import TINY, export, new_temporal, train_temporal
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
    drawn = new_temporal().state_dict()
    moved = {name for name, value in drawn.items() if not torch.equal(value, own[name])}
    assert moved
    assert all(".first." in name or ".second." in name for name in moved)
    export(whole, tmp_path / "vae")
    check_folder(tmp_path / "vae", model_folder())
    decoder = load_decoder(tmp_path / "vae", "cpu")
    [rgb] = decoder.pictures(torch.zeros(1, 4, 4, 4), 0, range(1), [range(1)])
    assert rgb.shape == (16, 16, 3)


def test_before_it_has_learnt_it_decodes_as_the_model_does() -> None:
    latents = torch.randn((3, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(new_temporal().decode(latents).sample, load_pipeline().vae.decode(latents).sample)
