"""Deep features of a UNet kept from one step for the next: most of a pass is then not executed.

Source: Ma et al., DeepCache, arXiv 2312.00858, section 3.3: features of the deep blocks change slowly between
neighbouring steps. Here the cut is below the outermost blocks: all but the first down block and the last up block are
left out on the steps between.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..diffusion.patching import Forward, Hook


def shallow_layers(unet: Any, layers: Sequence[str]) -> list[str]:
    """The self-attention layers that are executed when deep features are reused."""
    last = len(unet.up_blocks) - 1
    return [name for name in layers if name.startswith(("down_blocks.0.", f"up_blocks.{last}."))]


class DeepFeatures:
    """What the last up block was given, per frame and branch, since the last step that executed the whole UNet."""

    def __init__(self, unet: Any) -> None:
        self.unet = unet
        self.kept: dict[int, Tensor] = {}  # frame → (branch, channel, height, width)

    def keeping(self, frames: Sequence[int], branches: int) -> dict[str, Hook]:
        """Hooks of a whole pass over (branch, frame) that keep its deep features."""

        def keep(module: Any, inputs: Any, output: Tensor) -> None:
            parts = output.unflatten(0, (branches, len(frames))).unbind(1)
            self.kept.update({frame: part.clone() for frame, part in zip(frames, parts, strict=True)})

        return {f"up_blocks.{len(self.unet.up_blocks) - 2}": keep}

    def reusing(self, frames: Sequence[int], branches: int) -> dict[str, Forward]:
        """Forwards that put what was kept for `frames` in the place of everything deep.

        Fewer branches than were kept are the last ones: the conditional branch comes last.
        """
        deep = torch.stack([self.kept[frame][-branches:] for frame in frames], 1).flatten(0, 1)
        unet = self.unet
        skipped: dict[str, Forward] = {
            f"down_blocks.{place}": _skipping(block) for place, block in enumerate(unet.down_blocks) if place > 0
        }
        skipped["mid_block"] = lambda hidden_states, *args, **kwargs: hidden_states
        for place in range(len(unet.up_blocks) - 1):
            skipped[f"up_blocks.{place}"] = lambda *args, **kwargs: deep
        return skipped


def _skipping(block: Any) -> Forward:
    """A down block that computes nothing: its residuals are read by up blocks alone that are skipped as well."""
    residuals = len(block.resnets) + (block.downsamplers is not None)
    return lambda hidden_states, *args, **kwargs: (hidden_states, (hidden_states,) * residuals)
