"""AutoencoderTiny with layers along time in its decoder, as Stable Video Diffusion's decoder is made of SD's.

Source: Blattmann et al., arXiv 2311.15127, appendix D: residual layers along time behind every block of a decoder of
pictures, which change nothing before they are trained. They have no normalization, as an AutoencoderTiny has none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

NAME = "AutoencoderTinyTemporalDecoder"  # in config.json; diffusers has none of the kind


class AlongTime(nn.Module):
    """A block of pictures, then two convolutions over three frames each, added to what it gives."""

    def __init__(self, block: nn.Module, channels: int) -> None:
        super().__init__()
        self.block = block
        self.first, self.second = (nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0)) for _ in range(2))
        for parameter in self.second.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """x (frame, channel, height, width): frames that follow each other, of one clip."""
        x = self.block(x)
        change: Tensor = self.second(torch.relu(self.first(x.movedim(0, 1)[None])))
        return x + change[0].movedim(1, 0)


def with_time(vae: Any) -> Any:
    """An AutoencoderTiny, its decoder given layers along time in place."""
    layers = vae.decoder.layers
    for place, layer in enumerate(layers):
        if type(layer).__name__ == "AutoencoderTinyBlock":
            layers[place] = AlongTime(layer, layer.conv[-1].out_channels)
    return vae


def from_config(config: dict[str, Any]) -> Any:
    """One of random weights."""
    from diffusers import AutoencoderTiny

    return with_time(AutoencoderTiny.from_config({**config, "_class_name": "AutoencoderTiny"}))


def from_weights(config: dict[str, Any], weights: Path) -> Any:
    """The one whose safetensors are given; RuntimeError where they are of another."""
    vae = from_config(config)
    vae.load_state_dict({name: value.float() for name, value in load_file(weights).items()})
    return vae
