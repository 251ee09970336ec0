"""What the benchmark of tiles calls a seam."""

from __future__ import annotations

import torch

from benchmarks.seams import borders, seams

TILE, SIDE = 64, 256


def test_tiles_begin_where_diffusers_puts_them() -> None:
    assert borders(TILE, SIDE) == [48, 64, 96, 112, 144, 160, 192, 208, 240]


def test_a_step_at_borders_is_a_seam_and_noise_is_none() -> None:
    generator = torch.Generator().manual_seed(0)
    whole = torch.zeros(1, 3, SIDE, SIDE)
    noise = torch.randn(1, 3, SIDE, SIDE, generator=generator) * 0.01
    levels = torch.zeros(SIDE)
    for number, place in enumerate(borders(TILE, SIDE)):
        levels[place:] = 0.05 * (number % 2 == 0)
    assert abs(seams(whole, noise, TILE) - 1) < 0.05
    assert seams(whole, noise + levels[None, :] + levels[:, None], TILE) > 3
