"""SDEdit: noise the source part of the way, then denoise it under the edit prompt; nothing is injected.

Source: Meng et al., arXiv 2108.01073, algorithm 1, with DDIM in place of the stochastic sampler.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from store.schemas import Frozen

from ..diffusion.ddim import noised
from . import Conditions, Injection, Source

VERSION = 1


class Spec(Frozen):
    """How far the source is noised (1: all the way), and the seed of the noise."""

    strength: float = Field(0.75, gt=0, le=1)
    seed: int = Field(0, ge=0, lt=2**63)


class Editor:
    """SDEdit over one source."""

    def __init__(self, spec: Spec, source: Source) -> None:
        steps = len(source.timesteps)
        self.spec, self.source = spec, source
        self.first_step = min(steps - 1, steps - round(spec.strength * steps))

    def first_latents(self, frames: Sequence[int]) -> Tensor:
        """x_0 noised to the first step's level, every frame with the same noise: different noise would flicker."""
        clean = self.source.latents["clean_latents"]
        chosen = torch.stack([torch.from_numpy(clean[frame : frame + 1][0]).float() for frame in frames])
        noise = torch.randn(clean.shape[1:], generator=torch.Generator().manual_seed(self.spec.seed))
        return noised(self.source.levels, chosen, noise, self.source.timesteps[self.first_step])

    def conditions(self, step: int) -> Conditions:
        """The same text and guidance at every step."""
        return Conditions(self.source.text, self.source.guidance_scale)

    def injection(self, step: int) -> Injection:
        """Nothing."""
        return Injection()
