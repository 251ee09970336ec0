"""What tokens say of a clip without any edit: their principal components, and where a field sends every pixel.

A leaf, like `correspondence`, whose units it keeps: displacements in tokens of the layer's own grid, (x, y).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

COMPONENTS = 3  # as many as a picture has colours
TAIL = 1.0  # percent of the values beyond either end of a colour: a few odd tokens must not decide the range


@dataclass(frozen=True)
class Components:
    """Principal axes of tokens: mean (channel,), axes (channel, component), share (component,) of the variance."""

    mean: Tensor
    axes: Tensor
    share: Tensor

    def of(self, tokens: Tensor) -> Tensor:
        """Tokens (…, channel) as their components (…, component), float32."""
        return ((tokens.to(self.axes) - self.mean) @ self.axes).float()


def principal_components(blocks: Callable[[], Iterable[Tensor]], count: int = COMPONENTS) -> Components:
    """The first `count` principal components over all tokens, exact and the same each time.

    By the covariance in float64, so that a clip is read twice and never held. The sign of an axis is free; the entry
    of the largest size is made positive.

    blocks   called twice: tokens (frame, token, channel) of the clip, a few frames at a time
    """
    total = sum(block.double().flatten(0, -2).sum(0) for block in blocks())
    number = sum(block[..., 0].numel() for block in blocks())
    assert isinstance(total, Tensor), "there is at least one block"
    mean = total / number
    centred = (block.double().flatten(0, -2) - mean for block in blocks())
    covariance = sum(rows.T @ rows for rows in centred) / number
    assert isinstance(covariance, Tensor)
    variance, axes = torch.linalg.eigh(covariance)
    variance, axes = variance.flip(0)[:count], axes.flip(1)[:, :count]
    largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
    share = variance / covariance.diagonal().sum().clamp(min=torch.finfo(torch.float64).tiny)
    return Components(mean, axes * torch.where(largest < 0, -1.0, 1.0), share)


def colours(components: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Three components (…, 3) as rgb uint8, each stretched over its own range, the same for all frames."""
    values = components.cpu().numpy()
    low, high = np.percentile(values.reshape(-1, 3), [TAIL, 100 - TAIL], axis=0)
    unit = (values - low) / np.maximum(high - low, 1e-12)
    return np.rint(unit.clip(0, 1) * 255).astype(np.uint8)


def pixel_displacement(displacement: Tensor, height: int, width: int) -> Tensor:
    """A field's displacement in pixels: bilinear between the centres of its tokens, the border repeated.

    displacement   (frame, token row, token column, 2) in tokens
    returns        (frame, height, width, 2) in pixels
    """
    rows, columns = displacement.shape[1:3]
    fine = F.interpolate(displacement.permute(0, 3, 1, 2), (height, width), mode="bilinear", align_corners=False)
    return fine.permute(0, 2, 3, 1) * torch.tensor([width / columns, height / rows], device=fine.device)
