"""What can be measured of frames alone, or with the motion and the masks that go with them.

Frames are rgb (frame, height, width, 3), uint8 or float in [0, 1]. Motion is exact (`pocket.truth`) or estimated
(`stages.measures.optical_flow`); nothing here knows which.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Frames = np.ndarray[Any, Any] | Tensor


@dataclass(frozen=True)
class Motion:
    """Where each frame's pixels were one frame before.

    backward   (pair, height, width, 2) float32: displacement (x, y) in pixels from frame i + 1 to frame i
    visible    (pair, height, width) bool: that point of frame i + 1 can be seen in frame i
    """

    backward: Tensor
    visible: Tensor


def unit(frames: Frames) -> Tensor:
    """Frames as float32 in [0, 1]."""
    values = torch.as_tensor(np.asarray(frames)) if isinstance(frames, np.ndarray) else frames
    return values.float() / 255 if values.dtype == torch.uint8 else values.float()


def warped(frames: Tensor, displacement: Tensor) -> Tensor:
    """Each frame seen from where its pixels went: bilinear, the border repeated.

    frames         (frame, height, width, channel) float
    displacement   (frame, height, width, 2): (x, y) in pixels, from the pixel asked for to where it is in `frames`
    """
    height, width = frames.shape[1:3]
    x = (torch.arange(width) + 0.5) * 2 / width - 1
    y = (torch.arange(height) + 0.5) * 2 / height - 1
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)
    grid = grid + displacement * torch.tensor([2 / width, 2 / height])
    seen = F.grid_sample(
        frames.permute(0, 3, 1, 2), grid, mode="bilinear", padding_mode="border", align_corners=False
    )  # fmt: skip
    return seen.permute(0, 2, 3, 1)


def warp_errors(frames: Frames, motion: Motion, cuts: Sequence[int] = ()) -> Tensor:
    """Per pair of neighbours, the mean squared difference of frame i + 1 and frame i warped onto it, where visible.

    RGB in [0, 1]; multiply by 1000 for the unit that is printed. NaN for a pair with nothing visible.

    cuts   frames at which a new shot begins: nothing of the frame before is seen in them, so their pairs are NaN
    Source: TokenFlow (arXiv 2307.10373), section 5.1, there with flow estimated by RAFT.
    """
    values = unit(frames)
    difference = (warped(values[:-1], motion.backward) - values[1:]).square().mean(-1)
    errors = (difference * motion.visible).sum((1, 2)) / motion.visible.sum((1, 2))
    errors[[cut - 1 for cut in cuts]] = torch.nan
    return errors


def psnr(frames: Frames, truth: Frames, mask: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio of each frame, dB, over the pixels of mask (frame, height, width) or over all.

    Equal frames have 99 dB, since infinity can be neither averaged nor drawn.
    """
    squared = (unit(frames) - unit(truth)).square().mean(-1)
    chosen = torch.ones_like(squared, dtype=torch.bool) if mask is None else mask
    error = (squared * chosen).sum((1, 2)) / chosen.sum((1, 2))
    return (-10 * torch.log10(error.clamp(min=1e-12))).clamp(max=99.0)


def gradient_energy(frames: Frames) -> float:
    """Mean squared difference of neighbouring pixels, across and down."""
    values = unit(frames)
    return float(values.diff(dim=1).square().mean() + values.diff(dim=2).square().mean())


def overlap(mask: Tensor, truth: Tensor) -> Tensor:
    """Intersection over union of masks (frame, height, width) bool, per frame; 1 where both are empty."""
    union = (mask | truth).sum((1, 2))
    return torch.where(union > 0, (mask & truth).sum((1, 2)) / union.clamp(min=1), torch.ones(len(mask)))
