"""Plug-and-Play: start at the inverted latents, take self-attention and one feature from the source for a while.

Source: Tumanyan et al., arXiv 2211.12572, section 4; shares of the steps as in TokenFlow, section 5.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field
from torch import Tensor

from store.schemas import Frozen

from . import Conditions, Injection, Source, first_step_of, inverted

VERSION = 1


class Spec(Frozen):
    """For which first shares of the steps the source is injected (0: never, 1: always), and how far back it is taken.

    strength   share of the steps that are run: 1 starts at the noisiest latents, less starts at cleaner ones
    """

    attention: float = Field(0.5, ge=0, le=1)  # q and k of the decoder's self-attention
    feature: float = Field(0.8, ge=0, le=1)  # output of the second residual block of the second up block
    strength: float = Field(1.0, gt=0, le=1)


class Editor:
    """PnP over one source."""

    def __init__(self, spec: Spec, source: Source) -> None:
        steps = len(source.timesteps)
        self.source = source
        self.first_step = first_step_of(spec.strength, steps)
        self.attention_steps, self.feature_steps = round(spec.attention * steps), round(spec.feature * steps)

    def first_latents(self, frames: Sequence[int]) -> Tensor:
        """The source's own inverted latents at the first step's timestep.

        Differs: the reference code noises x_0 anew, which loses what inversion found (test_editors.py).
        """
        return inverted(self.source, self.first_step, frames)

    def conditions(self, step: int) -> Conditions:
        """The same text and guidance at every step."""
        return Conditions(self.source.text, self.source.guidance_scale)

    def injection(self, step: int) -> Injection:
        """Attention and feature, each while its share of the steps lasts."""
        return Injection(attention=step < self.attention_steps, feature=step < self.feature_steps)
