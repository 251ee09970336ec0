"""Promises of distilling a latent consistency model: it can be paused, and what comes out is taken as any user's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from pocket import model_folder
from pocket.score import load_pipeline
from pocket.train_consistency import TINY, Distillation, export, new_student, train_consistency
from stages.backbones.adapters import Adapters
from stages.backbones.layout import noise_schedule, read_configs
from stages.backbones.stable_diffusion import Runtime, load
from stages.diffusion.ddim import timesteps


def test_a_paused_training_ends_at_the_same_weights_and_its_export_is_a_model(tmp_path: Path) -> None:
    whole = train_consistency(TINY, tmp_path / "whole")
    assert train_consistency(TINY, tmp_path / "paused", stop_at=8) is None
    resumed = train_consistency(TINY, tmp_path / "paused")
    assert whole is not None and resumed is not None
    weights = resumed.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in whole.state_dict().items())
    told = weights["time_embedding.cond_proj.weight"]
    assert told.abs().max() > 0, "what starts at zero has learned"
    export(resumed, tmp_path / "model")
    assert timesteps(noise_schedule(read_configs(tmp_path / "model")["scheduler"]), 4) == (999, 749, 499, 249)
    model = load(str(tmp_path / "model"), Runtime())
    torch.testing.assert_close(model.unet.time_embedding.cond_proj.weight, told.half().float())


def test_a_lora_is_one_of_the_published_kind(tmp_path: Path) -> None:
    student = train_consistency(replace(TINY, rank=2), tmp_path / "run")
    assert student is not None
    base = load_pipeline().unet.state_dict()
    frozen = {name.replace(".base_layer", ""): value for name, value in student.state_dict().items()}
    assert all(torch.equal(value, frozen[name]) for name, value in base.items()), "the model itself stays"
    export(student, tmp_path / "lora")
    file = tmp_path / "lora" / "pytorch_lora_weights.safetensors"
    assert all(name.startswith("unet.") and ".lora_" in name for name in load_file(file))
    model = load(str(model_folder()), Runtime(), Adapters.read([str(file)], []))
    moved = [name for name, value in model.unet.state_dict().items() if not torch.equal(value, base[name])]
    assert any("attn1.to_q" in name for name in moved) and any("conv1" in name for name in moved)


@torch.no_grad()
def test_a_student_begins_as_its_teacher_and_its_average_follows() -> None:
    teacher = load_pipeline().unet.eval().requires_grad_(False)
    module = Distillation(new_student(teacher, None))
    latents, text = torch.randn(1, 4, 8, 8), torch.randn(1, 16, 96)
    told = torch.randn(1, 256)
    torch.testing.assert_close(
        module.student(latents, 499, text, timestep_cond=told).sample, teacher(latents, 499, text).sample
    )
    module.student.conv_in.bias += 1.0
    before = module.target.conv_in.bias.clone()
    module.follow()
    torch.testing.assert_close(module.target.conv_in.bias - before, torch.full_like(before, 0.05))
