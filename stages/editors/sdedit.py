"""SDEdit: noise the source part of the way, then denoise it under the edit prompt; nothing is injected.

Source: Meng et al., arXiv 2108.01073, algorithm 1, with DDIM in place of the stochastic sampler.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field
from torch import Tensor

from store.schemas import Frozen

from . import Conditions, Injection, Source, first_step_of, noised_alike

VERSION = 1


class Spec(Frozen):
    """How far the source is noised (1: all the way), and the seed of the noise."""

    strength: float = Field(0.75, gt=0, le=1)
    seed: int = Field(0, ge=0, lt=2**63)


class Editor:
    """SDEdit over one source."""

    def __init__(self, spec: Spec, source: Source) -> None:
        self.spec, self.source = spec, source
        self.first_step = first_step_of(spec.strength, len(source.timesteps))

    def first_latents(self, frames: Sequence[int]) -> Tensor:
        """x_0 noised to the first step's level, every frame with the same noise."""
        return noised_alike(self.source, self.first_step, frames, self.spec.seed)

    def conditions(self, step: int) -> Conditions:
        """The same text and guidance at every step."""
        return Conditions(self.source.text, self.source.guidance_scale)

    def injection(self, step: int) -> Injection:
        """Nothing."""
        return Injection()
