"""DDIM: which timesteps are visited, and the deterministic step between two noise levels.

Source: Song et al., arXiv 2010.02502, eq. 12 with σ = 0; Salimans & Ho, arXiv 2202.00512, for v-prediction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from store.errors import InputError
from store.schemas import Frozen

from .choices import Spacing

CONSISTENCY_STEPS = 50  # timesteps that a LoRA of latent consistency was distilled at (arXiv 2311.05556)


class NoiseSchedule(Frozen):
    """What a model's scheduler file says: everything about its noise but the weights; JSON, so a plan can hold it."""

    num_train_timesteps: int = Field(1000, ge=1)
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "scaled_linear"
    steps_offset: int = Field(1, ge=0)
    timestep_spacing: Literal["leading", "trailing", "linspace"] = "leading"
    set_alpha_to_one: bool = False
    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon"
    rescale_betas_zero_snr: bool = False
    original_inference_steps: int | None = None  # of a latent consistency model: those that it was distilled at

    def spaced(self, spacing: Spacing) -> NoiseSchedule:
        """The same with other timesteps: diffusers' spacings by name, "lcm" as `LCMScheduler` has them by default."""
        if spacing == "auto":
            return self
        if spacing == "lcm":
            return self.model_copy(
                update={"original_inference_steps": self.original_inference_steps or CONSISTENCY_STEPS}
            )
        return self.model_copy(update={"timestep_spacing": spacing, "original_inference_steps": None})


def timesteps(schedule: NoiseSchedule, num_steps: int) -> tuple[int, ...]:
    """The `num_steps` timesteps of sampling, noisiest first, spaced as diffusers' own schedulers space them.

    raises   InputError where a timestep would lie beyond those that the model was trained on, or distilled at, or
             where noise is predicted and there is nothing else: x_0 cannot be told from it (arXiv 2305.08891, section
             3.2)
    """
    trained, distilled = schedule.num_train_timesteps, schedule.original_inference_steps
    if distilled is not None:  # arXiv 2310.04378, section 4.3: every so many of the steps that were skipped over
        if num_steps > distilled:
            raise InputError(f"this model was distilled at {distilled} timesteps; use at most so many steps, or 4 to 8")
        known = np.arange(distilled, 0, -1) * (trained // distilled) - 1
        return tuple(int(t) for t in known[np.floor(np.linspace(0, distilled, num_steps, endpoint=False)).astype(int)])
    if schedule.timestep_spacing == "leading":
        visited = np.arange(num_steps, dtype=float)[::-1] * (trained // num_steps) + schedule.steps_offset
    elif schedule.timestep_spacing == "trailing":
        visited = np.round(trained - np.arange(num_steps) * (trained / num_steps)) - 1
    else:
        visited = np.linspace(0, trained - 1, num_steps).round()[::-1]
    if visited[0] >= trained:
        raise InputError(
            f"{num_steps} steps begin at timestep {int(visited[0])}, and this model knows 0 to {trained - 1}; "
            f"use at most {trained - schedule.steps_offset} steps"
        )
    if schedule.rescale_betas_zero_snr and schedule.prediction_type == "epsilon" and visited[0] == trained - 1:
        raise InputError(
            f"this model's scheduler leaves nothing but noise at timestep {trained - 1} (rescale_betas_zero_snr), "
            "where a model that predicts noise has nothing to go by; say --timestep-spacing leading, or use a model "
            "that predicts v"
        )
    return tuple(int(t) for t in visited)


def inversion_timesteps(visited: tuple[int, ...], num_steps: int) -> tuple[int, ...]:
    """`num_steps` timesteps, cleanest first, that contain every timestep of `visited` (noisiest first).

    The steps beyond `visited` are put in one at a time, each halving the widest gap that is left, so any number from
    len(visited) up to the noisiest timestep works and equal numbers give exactly `visited`.
    """
    chosen = sorted(visited)
    if num_steps < len(chosen):
        raise ValueError(f"{num_steps} inversion steps cannot visit all of the edit's {len(chosen)} timesteps")
    while len(chosen) < num_steps:
        edges = [-1, *chosen]
        gap, position = max(
            (upper - lower, -place) for place, (lower, upper) in enumerate(zip(edges, chosen, strict=False))
        )
        if gap < 2:
            raise ValueError(f"there are no {num_steps} different timesteps up to {chosen[-1]}")
        chosen.insert(-position, (edges[-position] + chosen[-position]) // 2)
    return tuple(chosen)


@dataclass(frozen=True)
class NoiseLevels:
    """ᾱ of every timestep, and of the clean end: float64 tensor (timestep,)."""

    alphas_cumprod: Tensor
    clean: float
    prediction_type: str

    def at(self, timestep: int | None) -> float:
        """ᾱ at a timestep (0–999), or at the clean end for None."""
        return self.clean if timestep is None else float(self.alphas_cumprod[timestep])

    def split(self, latents: Tensor, prediction: Tensor, timestep: int | None) -> tuple[Tensor, Tensor]:
        """What a prediction made of x_t at the noise level of `timestep` says: (x_0, ε)."""
        alpha = self.at(timestep)
        signal, noise = alpha**0.5, (1 - alpha) ** 0.5
        if self.prediction_type == "v_prediction":
            return signal * latents - noise * prediction, signal * prediction + noise * latents
        return (latents - noise * prediction) / signal, prediction

    def step(self, latents: Tensor, prediction: Tensor, start: int | None, stop: int | None) -> Tensor:
        """One deterministic DDIM step (eq. 12, σ = 0) of `latents` from the noise level of `start` to that of `stop`.

        Towards the clean end this samples, towards noise it inverts. Computed in float32 whatever comes in.
        """
        clean, noise = self.split(latents.float(), prediction.float(), start)
        alpha = self.at(stop)
        return alpha**0.5 * clean + (1 - alpha) ** 0.5 * noise

    def ddpm_mean(self, latents: Tensor, prediction: Tensor, start: int, stop: int | None) -> Tensor:
        """The mean of a DDPM step (eq. 12, σ as of η = 1): what σ z is added to. Computed in float32."""
        clean, noise = self.split(latents.float(), prediction.float(), start)
        here, there = self.at(start), self.at(stop)
        variance = (1 - there) / (1 - here) * (1 - here / there)
        return there**0.5 * clean + max(0.0, 1 - there - variance) ** 0.5 * noise


def noised(levels: NoiseLevels, clean: Tensor, noise: Tensor, timestep: int) -> Tensor:
    """x_t drawn around x_0: the forward process q(x_t | x_0) with the given noise (DDPM, arXiv 2006.11239, eq. 4)."""
    alpha = levels.at(timestep)
    return alpha**0.5 * clean + (1 - alpha) ** 0.5 * noise


def guided(uncond: Tensor, cond: Tensor, guidance_scale: float, rescale: float = 0.0) -> Tensor:
    """Classifier-free guidance (arXiv 2207.12598, eq. 6, in the form where 1 is no guidance).

    uncond, cond   (frame, channel, height, width)
    rescale        how far each frame's deviation is led back to that of `cond` (arXiv 2305.08891, eq. 15 and 16)
    """
    stronger = torch.lerp(uncond.float(), cond.float(), guidance_scale)
    if not rescale:
        return stronger
    deviation = cond.float().std((1, 2, 3), keepdim=True) / stronger.std((1, 2, 3), keepdim=True)
    return stronger * torch.lerp(torch.ones_like(deviation), deviation, rescale)
