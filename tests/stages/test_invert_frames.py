"""Promises of the inversion: diffusers' own inverse scheduler, and a way back."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler
from torch import Tensor

from stages import invert_frames
from stages.backbones.stable_diffusion import StableDiffusion
from stages.diffusion.ddim import NoiseSchedule, inversion_timesteps, timesteps
from stages.diffusion.patching import patched
from store.schemas import Schema
from tests.tiny.method import Prepared, frames_schema, invert, moving_clip, prepare


def inverted_plainly(
    pipeline: Any, rgb: np.ndarray[Any, Any], prompt: str, steps: int
) -> tuple[Tensor, dict[int, Tensor]]:
    """x_0, and x_t at every timestep, all frames at once, with diffusers' own scheduler and nothing of ours."""
    scheduler = DDIMInverseScheduler.from_config(dict(pipeline.scheduler.config) | {"clip_sample": False})
    scheduler.set_timesteps(steps)
    text, _ = pipeline.encode_prompt([prompt] * len(rgb), "cpu", 1, False)
    pixels = torch.from_numpy(rgb).permute(0, 3, 1, 2) / 127.5 - 1
    encoded = pipeline.vae.encode(pixels)
    mean = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mean
    clean = latents = mean * pipeline.vae.config.scaling_factor
    seen = {}
    for t in scheduler.timesteps:
        noise = pipeline.unet(latents, t, encoder_hidden_states=text).sample
        latents = scheduler.step(noise, t, latents).prev_sample
        seen[int(t)] = latents
    return clean, seen


def reconstructed(backbone: StableDiffusion, latents: Tensor, prompt: str, visited: tuple[int, ...]) -> Tensor:
    """Plain DDIM sampling from the noisiest latents with the source prompt, by diffusers' scheduler."""
    scheduler = DDIMScheduler.from_config(dict(backbone.pipeline.scheduler.config) | {"clip_sample": False})
    scheduler.set_timesteps(len(visited))
    text = backbone.encode_text([prompt]).expand(len(latents), -1, -1)
    for t in visited:
        latents = scheduler.step(backbone.predict_noise(latents, t, text), t, latents).prev_sample
    return latents


@torch.inference_mode()
def test_inversion_is_that_of_diffusers(prepared: Prepared) -> None:
    clean, seen = inverted_plainly(prepared.backbone.pipeline, prepared.rgb, "a source", len(prepared.timesteps))
    np.testing.assert_allclose(prepared.latents["clean_latents"], clean, rtol=1e-3, atol=1e-4)  # float16 rounds by 5e-4
    assert list(prepared.timesteps) == sorted(seen, reverse=True)
    for row, t in enumerate(prepared.timesteps):
        np.testing.assert_allclose(prepared.latents["latents"][row], seen[t], rtol=1e-3, atol=1e-4)
    assert np.abs(prepared.latents["latents"][0] - clean.numpy()).max() > 0.3, (
        "the latents moved far from where they were"
    )


@torch.inference_mode()
def test_the_source_prompt_is_used(prepared: Prepared) -> None:
    _, other = inverted_plainly(prepared.backbone.pipeline, prepared.rgb[:2], "zzz", len(prepared.timesteps))
    assert np.abs(prepared.latents["latents"][0, :2] - other[prepared.timesteps[0]].numpy()).max() > 1e-2


@torch.inference_mode()
def test_an_autoencoder_with_a_posterior_is_inverted_alike(kl_folder: Path) -> None:
    """AutoencoderKL's mean, times its own scaling factor (0.18215 by default, never 1)."""
    from stages.backbones.stable_diffusion import Runtime, load

    backbone, rgb = load(str(kl_folder), Runtime()), moving_clip(2, width=48, height=32)
    assert backbone.vae.config.scaling_factor != 1
    prepared = prepare(backbone, kl_folder, rgb, prompt="", steps=2, keyframe_interval=2)
    clean, seen = inverted_plainly(backbone.pipeline, rgb, "", 2)
    np.testing.assert_allclose(prepared.latents["clean_latents"], clean, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(prepared.latents["latents"][0], seen[prepared.timesteps[0]], rtol=1e-3, atol=1e-4)


@torch.inference_mode()
def test_more_inversion_steps_than_edit_steps_keep_the_edits_timesteps(prepared: Prepared) -> None:
    """Eq. 12 written out over eight levels, of which the edit's five are kept."""
    one = replace(prepared, rgb=prepared.rgb[:1], schemas={"latents": inverted_schema(prepared, 1)})
    finer = invert(one, invert_frames.Spec(prompt="a source", num_steps=5, num_inversion_steps=8))
    alphas = prepared.backbone.pipeline.scheduler.alphas_cumprod
    text = prepared.backbone.encode_text(["a source"])
    x, alpha = prepared.backbone.encode(prepared.rgb[:1]), alphas[0]
    visited = inversion_timesteps(prepared.timesteps, 8)
    assert len(visited) == 8
    for t in visited:
        noise = prepared.backbone.unet(x, t, encoder_hidden_states=text).sample
        x = alphas[t].sqrt() * (x - (1 - alpha).sqrt() * noise) / alpha.sqrt() + (1 - alphas[t]).sqrt() * noise
        alpha = alphas[t]
        if t in prepared.timesteps:
            kept = finer["latents"][prepared.timesteps.index(t)]
            np.testing.assert_allclose(kept, x, rtol=1e-3, atol=1e-4)
    assert np.abs(finer["latents"][0, 0] - prepared.latents["latents"][0, 0]).max() > 1e-2


def inverted_schema(prepared: Prepared, frames: int) -> Schema:
    """What inverting the first `frames` frames gives."""
    spec = invert_frames.Spec(num_steps=len(prepared.timesteps))
    return invert_frames.outputs(spec, frames=frames_schema(prepared.rgb[:frames]), layout=prepared.layout)


@pytest.mark.parametrize("family", ["backbone", "sdxl_backbone"])
@torch.inference_mode()
def test_inversion_then_reconstruction_returns_the_source(family: str, request: pytest.FixtureRequest) -> None:
    """With no edit the way back is the way there, up to an error that falls with the length of the steps."""
    backbone: StableDiffusion = request.getfixturevalue(family)
    errors, measured = {}, {}
    with calmed(backbone) as (calm, schedule):
        for steps in (5, 20):
            spec = invert_frames.Spec(prompt="a source", num_steps=steps, num_inversion_steps=steps)
            visited = timesteps(schedule, steps)
            rgb = {"rgb": moving_clip(1)}
            blocks = list(invert_frames.run(spec, range(1), frames=rgb, timesteps=visited, backbone=calm))
            first, last = blocks[0], [block for block in blocks if block.variable == "latents"][-1]
            assert (first.variable, last.start[0]) == ("clean_latents", 0)
            clean, noisy = torch.from_numpy(first.values).float(), torch.from_numpy(last.values[0]).float()
            again = reconstructed(calm, noisy, "a source", visited)
            errors[steps] = float((again - clean).norm() / clean.norm())
            told = {block.variable: float(block.values[0]) for block in blocks if block.values.shape == (1,)}
            back, floor = (torch.from_numpy(calm.decode(latents)).float() / 255 for latents in (again, clean))
            truths = {"inversion_psnr": floor, "reconstruction_psnr": torch.from_numpy(rgb["rgb"]).float() / 255}
            for name, truth in truths.items():
                assert told[name] == pytest.approx(float(-10 * (back - truth).square().mean().log10()), abs=0.1)
            measured[steps] = told["inversion_psnr"]
            unsolved = float((noisy / calm.levels.at(visited[0]) ** 0.5 - clean).norm() / clean.norm())
            assert unsolved > 0.2, "the source is not simply the noisy latents scaled"
    assert errors[20] < 0.03
    assert errors[20] < errors[5] / 2
    assert measured[20] > measured[5] + 3, "the artifact says so"


@torch.inference_mode()
def test_refined_steps_come_closer_to_the_way_back(backbone: StableDiffusion) -> None:
    """The fixed point of a step is where sampling's step leads back exactly; each evaluation goes nearer to it."""
    with calmed(backbone) as (calm, schedule):
        text, timestep = calm.encode_text(["a source"]), timesteps(schedule, 5)[-2]
        clean, left = calm.encode(moving_clip(2)), []
        for evaluations in (1, 2, 4):
            noisier = invert_frames.inverted(clean, None, timestep, evaluations, text, calm)
            noise = calm.predict_noise(noisier, timestep, text.expand(2, -1, -1))
            left.append(float((calm.levels.step(noisier, noise, timestep, None) - clean).norm()))
    assert left[1] < 0.75 * left[0]
    assert left[2] < 0.75 * left[1]


def test_checked_frames_are_in_the_clip_and_in_every_part() -> None:
    for frames in range(1, 70):
        checked = invert_frames.checked_frames(frames)
        assert list(checked) == sorted(set(checked))
        assert checked[-1] < frames
        for start in range(0, frames, invert_frames.FRAMES_PER_PART):
            assert any(start <= frame < start + invert_frames.FRAMES_PER_PART for frame in checked)


@contextmanager
def calmed(backbone: StableDiffusion) -> Iterator[tuple[StableDiffusion, NoiseSchedule]]:
    """A random UNet is no denoiser: its prediction damped and the noise moderate, so that steps can follow its path."""
    schedule = NoiseSchedule(beta_end=0.002, timestep_spacing="trailing")
    pipeline = copy.copy(backbone.pipeline)
    pipeline.scheduler = DDIMScheduler.from_config(schedule.model_dump(), clip_sample=False)
    with patched(backbone.unet, {}, {"conv_out": lambda module, inputs, output: 0.3 * output}):
        yield StableDiffusion(pipeline), schedule


def test_every_part_of_a_long_clip_is_inverted_on_its_own(backbone: StableDiffusion) -> None:
    """18 frames are two parts; a frame's latents are the same wherever the parts are cut."""
    spec = invert_frames.Spec(num_steps=2, num_inversion_steps=2)
    rgb = moving_clip(18, width=32, height=32)
    visited = timesteps(NoiseSchedule(), 2)

    def latents(part: range) -> np.ndarray[Any, Any]:
        blocks = invert_frames.run(spec, part, frames={"rgb": rgb}, timesteps=visited, backbone=backbone)
        own = [block for block in blocks if block.variable == "latents"]
        assert {block.start[1] for block in own} == {part.start}
        return np.concatenate([block.values for block in sorted(own, key=lambda block: block.start)])

    tail, shifted = latents(range(16, 18)), latents(range(14, 18))
    np.testing.assert_allclose(tail, shifted[:, 2:], rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("steps", [0, 1001])
def test_a_count_of_steps_that_makes_no_sense_is_refused(steps: int) -> None:
    with pytest.raises(ValueError, match="num_steps"):
        invert_frames.Spec(num_steps=steps)
