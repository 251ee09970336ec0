"""Parts of the picture with a prompt each: what the model predicts for every prompt, laid over one another.

Source: Bar-Tal et al., MultiDiffusion, arXiv 2302.08113, section 4.2 and eq. 5: per latent pixel the mean of the
prompts' predictions, weighted by their masks.
Differs: a later region lies over earlier ones, where the paper takes the mean of overlapping ones: two objects that
are mixed half and half are neither (stages/test_regions.py). Disjoint masks give the same. And predictions of the
noise are combined instead of denoised latents: a step of the sampler is linear in both, so that is the same as well;
guidance is then applied once, with the one unconditional prediction.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from store.schemas import Array

from ..diffusion.chunks import blocks_of, frames_of
from .masking import in_latents


class Region:
    """Where a prompt rules.

    mask            (frame, height, width) uint8 of all frames of the clip
    frames          those that are asked for at any step
    height, width   of latents
    """

    def __init__(self, mask: Array, frames: Collection[int], height: int, width: int) -> None:
        known = sorted(frames)
        some = [known[block.start : block.stop] for block in blocks_of(len(known))]
        self._shares = torch.cat([in_latents(frames_of(mask, frames), height, width) for frames in some])
        self._row = {frame: row for row, frame in enumerate(known)}

    def share(self, frames: Sequence[int]) -> Tensor:
        """How much of each latent pixel is the region's (frame, 1, height, width) float32, 0 to 1."""
        return self._shares[[self._row[frame] for frame in frames]]


def overlaid(noise: Tensor, regions: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """The prompt's prediction with those of the regions over it, in their order; shares of all sum to one.

    noise     (frame, channel, height, width)
    regions   per region its prediction, of the same shape, and its share (frame, 1, height, width)
    """
    for own, share in regions:
        noise = torch.lerp(noise, own, share.to(noise))
    return noise
