"""Latent consistency models: few steps, and the guidance scale is an input of the UNet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stages.backbones.layout import noise_schedule
from stages.backbones.stable_diffusion import Runtime, StableDiffusion, load
from stages.diffusion.choices import Spacing
from stages.diffusion.ddim import timesteps
from store.errors import InputError
from tests.tiny.method import edit, edit_spec, moving_clip, prepare
from tests.tiny.models import LCM, make_lcm, make_scheduler, save_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model as latent consistency models are stored: their own pipeline, scheduler, and UNet."""
    return save_model(tmp_path_factory.mktemp("models") / "lcm", make_lcm)


@pytest.fixture(scope="module")
def model(folder: Path) -> StableDiffusion:
    return load(str(folder), Runtime(frames_per_pass=4))


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8, 50])
def test_the_timesteps_are_those_of_its_scheduler(folder: Path, steps: int) -> None:
    from diffusers import LCMScheduler

    theirs = LCMScheduler.from_config(LCM)
    theirs.set_timesteps(steps)
    written = json.loads((folder / "scheduler/scheduler_config.json").read_text())
    assert timesteps(noise_schedule(written), steps) == tuple(int(t) for t in theirs.timesteps)


@pytest.mark.parametrize("steps", [1, 4, 7])
@pytest.mark.parametrize(
    ("spacing", "scheduler"),
    [("lcm", "LCMScheduler"), *((spacing, "DDIMScheduler") for spacing in ("leading", "trailing", "linspace"))],
)
def test_a_spacing_that_is_asked_for_is_that_of_diffusers(spacing: Spacing, scheduler: str, steps: int) -> None:
    """Of a model whose own file says something else, as for a LoRA that was trained otherwise."""
    import diffusers

    own = dict(make_scheduler().config) | {"timestep_spacing": "linspace" if spacing == "leading" else "leading"}
    named = {} if spacing == "lcm" else {"timestep_spacing": spacing}
    theirs = getattr(diffusers, scheduler).from_config(own, **named)
    theirs.set_timesteps(steps)
    schedule = noise_schedule(own)
    assert timesteps(schedule.spaced(spacing), steps) == tuple(int(t) for t in theirs.timesteps)
    assert schedule.spaced("auto") == schedule


def test_more_steps_than_it_was_distilled_at_are_refused() -> None:
    with pytest.raises(InputError, match="distilled at 50 timesteps"):
        timesteps(noise_schedule(LCM), 51)


@torch.inference_mode()
@pytest.mark.parametrize("scale", [1.0, 8.5])
def test_the_unet_is_told_the_scale_as_its_pipeline_tells_it(model: StableDiffusion, scale: float) -> None:
    latents = torch.randn(3, 4, 8, 10, generator=torch.Generator().manual_seed(0))
    text = model.encode_text(["a thing"]).expand(3, -1, -1)
    told = model.pipeline.get_guidance_scale_embedding(torch.full((3,), scale - 1), embedding_dim=32)
    expected = model.unet(latents, 499, encoder_hidden_states=text, timestep_cond=told).sample
    torch.testing.assert_close(model.predict_noise(latents, 499, text, None, scale), expected, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_a_step_is_its_schedulers_with_the_predicted_noise_in_the_place_of_new(
    model: StableDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import LCMScheduler
    from diffusers.schedulers import scheduling_lcm

    theirs = LCMScheduler.from_config(LCM)
    theirs.set_timesteps(4)
    visited = [int(t) for t in theirs.timesteps]
    latents = torch.randn(2, 4, 8, 10, generator=torch.Generator().manual_seed(1))
    for here, there in zip(visited, [*visited[1:], None], strict=True):
        noise = model.predict_noise(latents, here, model.encode_text(["a thing"]).expand(2, -1, -1), None, 8.5)
        monkeypatch.setattr(scheduling_lcm, "randn_tensor", lambda *given, noise=noise, **named: noise)
        expected = theirs.step(noise, here, latents).prev_sample
        latents = model.levels.step(latents, noise, here, there)
        torch.testing.assert_close(latents, expected, rtol=1e-3, atol=1e-3)  # its boundary scalings are nearly 0 and 1


def test_an_edit_runs_one_branch_and_follows_the_scale(model: StableDiffusion, folder: Path) -> None:
    prepared = prepare(model, folder, moving_clip(5), steps=2)
    branches: list[int] = []

    def edited(**fields: Any) -> np.ndarray[Any, Any]:
        spec = edit_spec(guidance_embedded=True, **fields)
        branches.append(sum(spec.branches_at(step, 2) for step in range(2)))
        latents: np.ndarray[Any, Any] = edit(prepared, spec)["latents"]
        return latents

    strong, weak = edited(guidance_scale=8.5), edited(guidance_scale=2.0)
    off, never = edited(guidance_scale=8.5, guidance_stop=0.0), edited(guidance_scale=1.0)
    assert branches == [2, 2, 2, 2]
    assert np.abs(strong - weak).max() > 1e-3
    np.testing.assert_array_equal(off, never)


def test_features_found_at_one_scale_are_not_reused_at_another(model: StableDiffusion, folder: Path) -> None:
    """Guidance ends or begins at the second of two steps, with no branch that goes or comes."""
    prepared = prepare(model, folder, moving_clip(5), steps=2)

    def edited(**fields: Any) -> np.ndarray[Any, Any]:
        latents: np.ndarray[Any, Any] = edit(prepared, edit_spec(guidance_embedded=True, **fields))["latents"]
        return latents

    assert np.abs(edited(feature_reuse=2) - edited()).max() > 1e-3, "it is reused while the scale stays"
    for interval in ({"guidance_stop": 0.5}, {"guidance_start": 0.5}):
        np.testing.assert_array_equal(edited(feature_reuse=2, **interval), edited(**interval))
