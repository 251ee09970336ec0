"""What the ControlNets of an edit add to the UNet: their residuals, summed; on a pass that reuses features, the last.

Source: Zhang et al., ControlNet, arXiv 2302.05543, section 3.1; several are summed, section 3.4. With reused features
(Ma et al., DeepCache, arXiv 2312.00858) no ControlNet is run either: what the whole pass had of it, deep and shallow,
is used again, since both follow latents that change slowly between neighbouring steps.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch import Tensor

from store.schemas import Arrays

from ..backbones import Backbone, Residuals
from ..diffusion.chunks import frames_of


class Controlling:
    """The ControlNets of an edit, over their control images.

    pictures   per ControlNet its control images: rgb (frame, height, width, channel) uint8
    frames     those of which what is found may be kept, for `reused`
    """

    def __init__(self, backbone: Backbone, pictures: Sequence[Arrays], frames: Collection[int]) -> None:
        self.backbone, self.pictures, self.frames = backbone, pictures, set(frames)
        self.outermost = len(backbone.unet.down_blocks[0].resnets) + 1  # the skips that the last up block reads
        self.kept: dict[int, list[Tensor]] = {}  # frame → its outermost residuals (branch, …)
        self._zeros: Residuals = []

    def residuals(
        self, strengths: Sequence[float], frames: Sequence[int], latents: Tensor, timestep: int, text: Tensor,
        keep: bool = False,
    ) -> Residuals | None:  # fmt: skip
        """The sum over the ControlNets; None where none acts.

        strengths   per ControlNet; it is not run at 0
        keep        whether the sum is kept for `reused`
        latents     (branch · frame, channel, height, width)      text   (branch · frame, token, channel)
        """
        total: Residuals | None = None
        for number, strength in enumerate(strengths):
            if strength:
                shown = self._shown(number, frames)
                own = self.backbone.control(number, latents, timestep, text, shown, strength)
                total = own if total is None else [a + b for a, b in zip(total, own, strict=True)]
        if keep and total is not None:
            self._keep(total, frames)
        return total

    def reused(self, frames: Sequence[int], branches: int) -> Residuals | None:
        """What the last whole pass found, where it is still read; fewer branches than it had are the last ones."""
        if not self.kept:
            return None
        each = zip(*(self.kept[frame] for frame in frames), strict=True)
        return [*(torch.stack([r[-branches:] for r in rows], 1).flatten(0, 1) for rows in each), *self._zeros]

    def forget(self, frames: Sequence[int]) -> None:
        """Keep nothing of `frames` any more."""
        for frame in frames:
            self.kept.pop(frame, None)

    def _keep(self, total: Residuals, frames: Sequence[int]) -> None:
        own = [residual.unflatten(0, (-1, len(frames))) for residual in total[: self.outermost]]
        rows = {frame: row for row, frame in enumerate(frames) if frame in self.frames}
        self.kept.update({frame: [r[:, row].clone() for r in own] for frame, row in rows.items()})
        self._zeros = [residual.new_zeros(()) for residual in total[self.outermost :]]

    def _shown(self, number: int, frames: Sequence[int]) -> np.ndarray:
        return frames_of(self.pictures[number]["rgb"], frames)
