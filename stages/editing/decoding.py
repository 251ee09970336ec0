"""An edit's latents as pictures, and outside of the mask the source's.

Latents that are put back are not enough: the decoder looks past the mask's border, and a latent pixel on it is a
mixture. So pictures are put together as well, of the decoded edit and the decoded source, along the mask's soft edge.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from store.schemas import Arrays

from ..backbones import Backbone
from ..diffusion.chunks import frames_of


class Decoding:
    """Pictures of the clip's frames.

    latents   of the source, where its pictures are put back        mask   of read_masks or find_masks; None: nowhere
    """

    def __init__(self, backbone: Backbone, latents: Arrays, mask: Arrays | None) -> None:
        self.backbone, self.latents, self.mask = backbone, latents, mask

    def __call__(self, frames: Sequence[int], edited: Tensor) -> NDArray[np.uint8]:
        """rgb (frame, height, width, channel) of the edit's latents (frame, c, h, w) at `frames`, ascending."""
        rgb: NDArray[np.uint8] = self.backbone.decode(edited)
        if self.mask is None:
            return rgb
        source = torch.from_numpy(frames_of(self.latents["clean_latents"], frames)).float()
        return blended(rgb, self.backbone.decode(source), frames_of(self.mask["mask"], frames))


def blended(edited: NDArray[np.uint8], source: NDArray[np.uint8], mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pictures (frame, height, width, 3): `edited` where mask (frame, height, width) is 255, `source` where it is 0."""
    share = mask[..., None].astype(np.float32) / 255
    mixed: NDArray[np.uint8] = np.rint(source + share * (edited.astype(np.float32) - source)).astype(np.uint8)
    return mixed
