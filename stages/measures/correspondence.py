"""How true a field is: where each token's match lies, against where a flow says it went.

Positions and displacements are in tokens of the layer's own grid, (x, y), row by row as the UNet flattens them.
"""

from __future__ import annotations

import torch
from torch import Tensor

WITHIN = 1.0  # tokens: a match no farther from the truth than this counts as right


def grid_of(tokens: int, height: int, width: int) -> tuple[int, int]:
    """(height, width) of a layer's token grid, given its number of tokens and the latents' height and width.

    A UNet halves both, rounding up, so the first halving with as many tokens is the layer's grid.
    """
    rows, columns = height, width
    while rows * columns > tokens:
        rows, columns = -(-rows // 2), -(-columns // 2)
    if rows * columns != tokens:
        raise ValueError(f"{tokens} tokens are no halving of {height} × {width} latents")
    return rows, columns


def positions(height: int, width: int) -> Tensor:
    """(height · width, 2) float32: the places (x, y) of a grid's tokens."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([columns, rows], -1).reshape(-1, 2).float()


def match_displacement(index: Tensor, height: int, width: int) -> Tensor:
    """Where each token's match lies, relative to the token: (…, token, 2); index (…, token) int64."""
    places = positions(height, width)
    return places[index] - places


def token_errors(index: Tensor, displacement: Tensor) -> Tensor:
    """End-point error of each match, in tokens: (…, height, width).

    index          (…, token) int64: γ
    displacement   (…, height, width, 2): where the flow says the token went, in tokens
    """
    height, width = displacement.shape[-3:-1]
    found = match_displacement(index, height, width).unflatten(-2, (height, width))
    return (found - displacement).norm(dim=-1)


def pooled(displacement: Tensor, hidden: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """A flow in pixels brought to a token grid: displacement in tokens (…, height, width, 2), hidden where half is.

    displacement   (…, picture height, picture width, 2) in pixels; hidden (…, picture height, picture width) bool
    """
    size = displacement.shape[-3:-1]
    flat = displacement.reshape(-1, *size, 2).permute(0, 3, 1, 2)
    mean = torch.nn.functional.adaptive_avg_pool2d(flat, (height, width)).permute(0, 2, 3, 1)
    scale = torch.tensor([width / size[1], height / size[0]])
    covered = torch.nn.functional.adaptive_avg_pool2d(hidden.reshape(-1, *size).float(), (height, width)) > 0.5
    leading = displacement.shape[:-3]
    return (mean * scale).reshape(*leading, height, width, 2), covered.reshape(*leading, height, width)
