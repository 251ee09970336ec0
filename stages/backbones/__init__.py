"""Model families, one file each; what stages may ask of a loaded model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from ..diffusion.ddim import NoiseLevels

Residuals = list[Tensor]
"""What ControlNets add to a UNet's skip connections, in order of execution; the last one to its middle block."""


class Backbone(Protocol):
    """A loaded text-to-image diffusion model that batches itself."""

    unet: Any
    layers: list[str]
    injected_layers: list[str]
    injected_feature: str | None  # none: too few blocks
    levels: NoiseLevels

    def each_pass(self, frames: int, do: Callable[[slice], None]) -> None:
        """Call `do` for consecutive slices that cover `frames` frames, none longer than fits at once.

        A slice that did not fit is done again in shorter ones: `do` must not mind that.
        """

    def to_device(self, values: np.ndarray[Any, Any]) -> Tensor:
        """A numpy array on the model's device, in its own dtype."""

    def encode(self, rgb: np.ndarray[Any, Any]) -> Tensor:
        """rgb (frame, height, width, channel) uint8 → scaled latents (frame, channel, height, width) float32."""

    def decode(self, latents: Tensor) -> np.ndarray[Any, Any]:
        """Scaled latents (frame, channel, height, width) → rgb (frame, height, width, channel) uint8."""

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """What the model is told (prompt, row, channel), opaque but for its first axis."""

    def cut_from(self, prompt: str) -> str:
        """The end of `prompt` that the tokenizer has no room for."""

    def word_places(self, prompt: str, words: str) -> list[int]:
        """Where `words` stand among the tokens of `prompt`; nowhere where it does not hold them."""

    def control(
        self, number: int, latents: Tensor, timestep: int, text: Tensor, pictures: np.ndarray[Any, Any], strength: float
    ) -> Residuals:
        """One pass of ControlNet `number`, its residuals (batch, channel, height, width) times `strength`.

        latents, text   as for `predict_noise`
        pictures        control images (frame, height, width, channel) uint8; the batch is branches of these frames
        """

    def predict_noise(
        self, latents: Tensor, timestep: int, text: Tensor, residuals: Residuals | None = None,
        guidance_scale: float = 1.0,
    ) -> Tensor:  # fmt: skip
        """One UNet pass over latents (batch, channel, height, width) and text (batch, row, channel) → float32.

        guidance_scale   what a UNet is told that takes it as an input; no other looks at it
        """
