"""Edit-friendly DDPM: sample with the source's own noise, so that what the prompt does not change comes back exactly.

Source: Huberman-Spiegelglas et al., arXiv 2304.06140, section 4: of 100 steps the first 36 are skipped.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field
from torch import Tensor

from store.schemas import Frozen

from . import Conditions, Injection, Source, first_step_of, inverted

VERSION = 1
INVERSION = "invert_ddpm"  # the stage whose latents are the source's


class Spec(Frozen):
    """strength: share of the steps that are run; 1 starts at noise that holds nothing but layout."""

    strength: float = Field(0.64, gt=0, le=1)


class Editor:
    """Edit-friendly DDPM over one source, whose latents are those of invert_ddpm."""

    def __init__(self, spec: Spec, source: Source) -> None:
        self.source = source
        self.first_step = first_step_of(spec.strength, len(source.timesteps))

    def first_latents(self, frames: Sequence[int]) -> Tensor:
        """What was drawn around the source at the first step's timestep."""
        return inverted(self.source, self.first_step, frames)

    def conditions(self, step: int) -> Conditions:
        """The same text and guidance at every step."""
        return Conditions(self.source.text, self.source.guidance_scale)

    def injection(self, step: int) -> Injection:
        """The source's noise, at every step."""
        return Injection(noise=True)
