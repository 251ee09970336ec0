"""ControlNet: the layout is held by control images of the source (edges, depth …), the rest follows the prompt.

Source: Zhang et al., arXiv 2302.05543; shares of the steps as in diffusers' StableDiffusionControlNetPipeline.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator
from torch import Tensor

from store.schemas import Frozen

from . import Conditions, Injection, Source, first_step_of, inverted, noised_alike

VERSION = 1


class Share(Frozen):
    """How strongly one ControlNet acts, and between which shares of the steps."""

    strength: float = Field(1.0, ge=0, le=2)
    start: float = Field(0.0, ge=0, le=1)
    stop: float = Field(1.0, ge=0, le=1)

    @model_validator(mode="after")
    def _in_order(self) -> Share:
        if self.start > self.stop:
            raise ValueError("start is after stop")
        return self

    def at(self, step: int, steps: int) -> float:
        """The strength at `step` of `steps`."""
        return self.strength if round(self.start * steps) <= step < round(self.stop * steps) else 0.0


class Spec(Frozen):
    """Where the edit starts, and how each ControlNet acts.

    begin      inverted: at the source's inverted latents, which keep its motion, and some of its colours;
               noise: at noise that all frames share, on which the prompt alone decides what is no layout
    strength   share of the steps that are run
    seed       of the noise
    controls   one per ControlNet of the edit, in order
    """

    begin: Literal["inverted", "noise"] = "inverted"
    strength: float = Field(1.0, gt=0, le=1)
    seed: int = Field(0, ge=0, lt=2**63)
    controls: tuple[Share, ...] = ()


class Editor:
    """ControlNets over one source."""

    def __init__(self, spec: Spec, source: Source) -> None:
        self.spec, self.source = spec, source
        self.first_step = first_step_of(spec.strength, len(source.timesteps))

    def first_latents(self, frames: Sequence[int]) -> Tensor:
        """Inverted latents, or x_0 noised to the first step's level."""
        if self.spec.begin == "inverted":
            return inverted(self.source, self.first_step, frames)
        return noised_alike(self.source, self.first_step, frames, self.spec.seed)

    def conditions(self, step: int) -> Conditions:
        """The same text and guidance at every step, and the ControlNets whose turn it is."""
        strengths = tuple(share.at(step, len(self.source.timesteps)) for share in self.spec.controls)
        return Conditions(self.source.text, self.source.guidance_scale, strengths)

    def injection(self, step: int) -> Injection:
        """Nothing."""
        return Injection()
