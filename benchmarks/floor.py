"""The floor: the bare UNet forwards that the method cannot do without, with no hooks and no store.

Prepare: one forward per frame, inversion step and evaluation, and one per frame and step for the source's tokens.
An edit: per step, the keyframes in two branches with joint self-attention, and every other frame in two branches with
no self-attention at all. The autoencoder, the field and everything else comes on top, and is what the ratios show.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stages.backbones.stable_diffusion import StableDiffusion
from stages.diffusion.attention import ExtendedAttention
from stages.diffusion.patching import patched


class NoSelfAttention:
    """A self-attention layer that is not executed."""

    def __call__(self, attention: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return hidden_states


@torch.inference_mode()
def prepare(backbone: StableDiffusion, latents: Tensor, forwards_per_frame: int) -> None:
    """The forwards of inversion and of the source pass: latents (frame, c, h, w), so many times."""
    text = backbone.encode_text([""])
    for _ in range(forwards_per_frame):
        backbone.each_pass(
            len(latents), lambda some: forward(backbone, latents[some], text.expand(len(latents[some]), -1, -1))
        )


@torch.inference_mode()
def edit(backbone: StableDiffusion, latents: Tensor, keyframes: int, steps: int) -> None:
    """The forwards of one prompt: latents (frame, c, h, w), of which so many are keyframes at each step."""
    text = backbone.encode_text(["", "a prompt"])
    rest = latents[keyframes:]
    for _ in range(steps):
        with patched(backbone.unet, {name: ExtendedAttention(2) for name in backbone.layers}):
            forward(backbone, latents[:keyframes].repeat(2, 1, 1, 1), text.repeat_interleave(keyframes, 0))
        with patched(backbone.unet, {name: NoSelfAttention() for name in backbone.layers}):
            backbone.each_pass(
                len(rest),
                lambda some: forward(
                    backbone, rest[some].repeat(2, 1, 1, 1), text.repeat_interleave(len(rest[some]), 0)
                ),
            )


def forward(backbone: StableDiffusion, latents: Tensor, text: Tensor) -> None:
    """One UNet pass."""
    backbone.predict_noise(latents, 401, text)
