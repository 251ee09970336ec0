"""Promises of the noise schedule: diffusers' own DDIM schedulers, step by step, in both directions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from stages.backbones.stable_diffusion import StableDiffusion, noise_levels
from stages.diffusion.ddim import NoiseSchedule, guided, inversion_timesteps, noised, timesteps
from store.errors import InputError

SPACINGS = ("leading", "trailing", "linspace")


def config(**changes: Any) -> dict[str, Any]:
    return NoiseSchedule().model_dump() | {"clip_sample": False} | changes


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("count", [1, 2, 3, 7, 25, 50, 333, 999])
@pytest.mark.parametrize("offset", [0, 1])
def test_timesteps_are_those_of_diffusers(spacing: Any, count: int, offset: int) -> None:
    scheduler = DDIMScheduler.from_config(config(timestep_spacing=spacing, steps_offset=offset))
    scheduler.set_timesteps(count)
    schedule = NoiseSchedule(timestep_spacing=spacing, steps_offset=offset)
    assert timesteps(schedule, count) == tuple(scheduler.timesteps.tolist())


def test_more_steps_than_the_model_has_noise_levels_is_one_sentence() -> None:
    """With an offset of one it would be asked for timestep 1000 of 0–999: diffusers fails on it with an IndexError."""
    with pytest.raises(InputError, match="999"):
        timesteps(NoiseSchedule(steps_offset=1), 1000)
    assert timesteps(NoiseSchedule(steps_offset=0), 1000)[0] == 999


def test_noise_cannot_be_predicted_where_there_is_nothing_else() -> None:
    """arXiv 2305.08891, section 3.2; where its timestep is not visited there is nothing to refuse."""
    schedule = NoiseSchedule(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    with pytest.raises(InputError, match=r"nothing but noise at timestep 999.*--timestep-spacing leading"):
        timesteps(schedule, 4)
    assert timesteps(schedule.spaced("leading"), 4)[0] == 751
    assert timesteps(schedule.model_copy(update={"prediction_type": "v_prediction"}), 4)[0] == 999


@given(count=st.integers(1, 60), extra=st.integers(0, 150), spacing=st.sampled_from(SPACINGS))
def test_inversion_visits_every_timestep_of_the_edit(count: int, extra: int, spacing: Any) -> None:
    visited = timesteps(NoiseSchedule(timestep_spacing=spacing), count)
    if count + extra > visited[0] + 1:
        return
    finer = inversion_timesteps(visited, count + extra)
    assert len(finer) == count + extra
    assert list(finer) == sorted(set(finer)), "ascending, none twice"
    assert set(visited) <= set(finer)
    assert finer[0] >= 0
    assert finer[-1] == visited[0]
    if extra == 0:
        assert finer == visited[::-1]


def test_inversion_refuses_what_it_cannot_visit() -> None:
    visited = timesteps(NoiseSchedule(), 20)
    with pytest.raises(ValueError, match="20"):
        inversion_timesteps(visited, 19)
    with pytest.raises(ValueError, match=str(visited[0])):
        inversion_timesteps(visited, visited[0] + 2)
    assert len(inversion_timesteps(visited, visited[0] + 1)) == visited[0] + 1


def unet_of(backbone: StableDiffusion, text: Tensor) -> Any:
    return lambda latents, t: backbone.unet(latents, t, encoder_hidden_states=text).sample


@pytest.mark.parametrize(
    ("prediction", "count", "spacing", "to_one"),
    [
        ("epsilon", 5, "leading", False),
        ("epsilon", 7, "leading", True),
        ("v_prediction", 6, "leading", False),
        ("epsilon", 5, "trailing", True),
    ],
)
@torch.inference_mode()
def test_sampling_is_that_of_diffusers(
    backbone: StableDiffusion, prediction: str, count: int, spacing: str, to_one: bool
) -> None:
    settings = config(prediction_type=prediction, timestep_spacing=spacing, set_alpha_to_one=to_one)
    levels, visited = noise_levels(settings), timesteps(NoiseSchedule(timestep_spacing=spacing), count)
    scheduler = DDIMScheduler.from_config(settings)
    scheduler.set_timesteps(count)
    unet = unet_of(backbone, backbone.encode_text(["a thing"]))
    ours = theirs = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    for t, following in zip(visited, [*visited[1:], None], strict=True):
        ours = levels.step(ours, unet(ours, t), t, following)
        theirs = scheduler.step(unet(theirs, t), t, theirs).prev_sample
    torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(("prediction", "count"), [("epsilon", 6), ("epsilon", 5), ("v_prediction", 7)])
@torch.inference_mode()
def test_inversion_is_that_of_diffusers(backbone: StableDiffusion, prediction: str, count: int) -> None:
    settings = config(prediction_type=prediction)
    levels, visited = noise_levels(settings), timesteps(NoiseSchedule(), count)[::-1]
    scheduler = DDIMInverseScheduler.from_config(settings)
    scheduler.set_timesteps(count)
    assert tuple(scheduler.timesteps.tolist()) == visited
    unet = unet_of(backbone, backbone.encode_text(["a thing"]))
    ours = theirs = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    for start, t in zip([None, *visited[:-1]], visited, strict=True):
        ours = levels.step(ours, unet(ours, t), start, t)
        theirs = scheduler.step(unet(theirs, t), t, theirs).prev_sample
    torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_step_there_and_back_with_one_prediction_changes_nothing(prediction: str) -> None:
    levels = noise_levels(config(prediction_type=prediction))
    latents, clean = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    noisy = noised(levels, clean, latents, 600)
    signal, noise = levels.at(600) ** 0.5, (1 - levels.at(600)) ** 0.5
    truth = latents if prediction == "epsilon" else signal * latents - noise * clean
    torch.testing.assert_close(
        levels.step(noisy, truth, 600, 300), noised(levels, clean, latents, 300), rtol=0, atol=1e-5
    )
    found_clean, found_noise = levels.split(noisy, truth, 600)
    torch.testing.assert_close(found_clean, clean, rtol=0, atol=1e-5)
    torch.testing.assert_close(found_noise, latents, rtol=0, atol=1e-5)


def test_noising_is_that_of_diffusers() -> None:
    scheduler = DDIMScheduler.from_config(config())
    clean, noise = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    for timestep in (0, 1, 500, 999):
        theirs = scheduler.add_noise(clean, noise, torch.tensor([timestep] * 3))
        torch.testing.assert_close(noised(noise_levels(config()), clean, noise, timestep), theirs, rtol=1e-6, atol=1e-6)


def test_half_precision_latents_are_stepped_in_single_precision() -> None:
    latents, prediction = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(1)).half()
    levels = noise_levels(config())
    stepped = levels.step(latents, prediction, 981, 961)
    assert stepped.dtype == torch.float32
    torch.testing.assert_close(stepped, levels.step(latents.float(), prediction.float(), 981, 961), rtol=0, atol=0)


@given(scale=st.floats(0, 30))
def test_guidance_is_a_step_from_unconditional_to_conditional(scale: float) -> None:
    uncond, cond = torch.randn(2, 2, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(guided(uncond, cond, scale), uncond + scale * (cond - uncond), rtol=1e-4, atol=1e-4)
    assert torch.equal(guided(uncond, cond, 1), cond)
    assert torch.equal(guided(uncond, cond, 0), uncond)


@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_noise_levels_fall_from_clean_to_noisy(beta_schedule: str) -> None:
    levels = noise_levels(config(beta_schedule=beta_schedule))
    assert levels.alphas_cumprod.dtype == torch.float64
    assert np.all(np.diff(levels.alphas_cumprod.numpy()) < 0)
    assert levels.at(None) == levels.at(0) < 1
    assert noise_levels(config(beta_schedule=beta_schedule, set_alpha_to_one=True)).at(None) == 1


def test_an_unknown_noise_is_one_sentence() -> None:
    with pytest.raises(InputError, match=r"prediction_type = 'sample'") as raised:
        noise_levels(config(prediction_type="sample"))
    assert "\n" not in str(raised.value)


def test_rescaled_guidance_has_the_deviation_of_its_conditional_branch() -> None:
    """As diffusers' `rescale_noise_cfg` (arXiv 2305.08891, section 3.4), here for each frame on its own."""
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    uncond, cond = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    for rescale in (0.3, 1.0):
        ours = guided(uncond, cond, 7.5, rescale)
        theirs = rescale_noise_cfg(guided(uncond, cond, 7.5), cond, guidance_rescale=rescale)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    whole = guided(uncond, cond, 7.5, 1.0)
    torch.testing.assert_close(whole.std((1, 2, 3)), cond.std((1, 2, 3)))
    assert torch.equal(guided(uncond, cond, 7.5, 0.0), guided(uncond, cond, 7.5))
