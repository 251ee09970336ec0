"""Measures of frames: values known beforehand, and clips whose motion is exact."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pocket.world import flow, render, sample_clip
from stages.measures.frames import Motion, gradient_energy, overlap, psnr, unit, warp_errors, warped

NOISE = torch.rand(1, 24, 24, 3, generator=torch.Generator().manual_seed(0))


def shifting(steps: int) -> Tensor:
    """Frames of a picture that moves one pixel to the right and two down per frame, what comes in being new."""
    return torch.stack([NOISE[0, 8 - 2 * i : 20 - 2 * i, 8 - i : 20 - i] for i in range(steps)])


def constant_motion(pairs: int, x: float, y: float, size: int = 12) -> Motion:
    backward = torch.tensor([x, y]).expand(pairs, size, size, 2)
    rows, columns = torch.meshgrid(torch.arange(size) + y, torch.arange(size) + x, indexing="ij")
    inside = (rows >= 0) & (rows <= size - 1) & (columns >= 0) & (columns <= size - 1)
    return Motion(backward, inside.expand(pairs, size, size))


def test_a_clip_that_moves_by_its_flow_has_no_warp_error() -> None:
    assert warp_errors(shifting(4), constant_motion(3, -1, -2)).tolist() == pytest.approx([0, 0, 0], abs=1e-10)


@pytest.mark.parametrize(("x", "y"), [(1, 2), (-2, -1), (0, 0)])
def test_the_wrong_way_has_a_warp_error(x: float, y: float) -> None:
    assert warp_errors(shifting(4), constant_motion(3, x, y)).min() > 0.05


def test_a_flicker_is_the_square_of_its_height() -> None:
    frames = torch.full((2, 4, 4, 3), 0.25)
    frames[1] += 0.1
    motion = Motion(torch.zeros(1, 4, 4, 2), torch.ones(1, 4, 4, dtype=torch.bool))
    assert warp_errors(frames, motion).item() == pytest.approx(0.01)


def test_what_is_hidden_does_not_count() -> None:
    frames = torch.zeros(2, 4, 4, 3)
    frames[1, :, :2] = 1
    visible = torch.ones(1, 4, 4, dtype=torch.bool)
    visible[:, :, :2] = False
    assert warp_errors(frames, Motion(torch.zeros(1, 4, 4, 2), visible)).item() == 0
    assert warp_errors(frames, Motion(torch.zeros(1, 4, 4, 2), ~visible)).item() == 1


def test_a_pair_with_nothing_visible_is_nan_alone() -> None:
    motion = constant_motion(3, -1, -2)
    visible = motion.visible.clone()
    visible[1] = False
    assert warp_errors(shifting(4), Motion(motion.backward, visible)).isnan().tolist() == [False, True, False]


def test_half_a_pixel_is_the_mean_of_two() -> None:
    frames = torch.arange(4.0).reshape(1, 1, 4, 1)
    moved = warped(frames, torch.tensor([0.5, 0.0]).expand(1, 1, 4, 2))
    assert moved.flatten().tolist() == pytest.approx([0.5, 1.5, 2.5, 3.0])  # the border is repeated


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_world_moves_by_its_own_flow(seed: int) -> None:
    scenes = sample_clip(6, torch.Generator().manual_seed(seed))
    frames, truth = render(scenes, 64).rgb, flow(scenes, 64)
    right = Motion(truth.backward, ~truth.occluded_backward)
    still = Motion(torch.zeros_like(truth.backward), right.visible)
    assert warp_errors(frames, right).mean() < 0.4 * warp_errors(frames, still).mean()


def test_psnr_of_known_errors() -> None:
    truth = torch.zeros(3, 4, 4, 3)
    frames = truth + torch.tensor([0.1, 0.01, 0.0]).reshape(3, 1, 1, 1)
    assert psnr(frames, truth).tolist() == pytest.approx([20, 40, 99], abs=1e-3)


def test_psnr_counts_the_mask_alone() -> None:
    truth = np.zeros((2, 4, 4, 3), np.uint8)
    frames = truth.copy()
    frames[:, :2] = 51
    mask = torch.zeros(2, 4, 4, dtype=torch.bool)
    mask[:, :2] = True
    assert psnr(frames, truth, mask).tolist() == pytest.approx([-20 * math.log10(0.2)] * 2, abs=1e-3)
    assert psnr(frames, truth, ~mask).tolist() == [99, 99]
    assert psnr(frames, truth, torch.zeros_like(mask)).isnan().all()


def test_bytes_and_units_are_the_same_frames() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 5, 6, 3), dtype=np.uint8)
    assert torch.equal(unit(frames), torch.from_numpy(frames).float() / 255)
    assert gradient_energy(frames) == gradient_energy(unit(frames))


def test_gradient_energy_of_stripes() -> None:
    stripes = torch.tensor([0.0, 1.0]).repeat(4)[None, None, :, None].expand(2, 8, 8, 3)
    assert gradient_energy(stripes) == pytest.approx(1)
    assert gradient_energy(torch.ones(2, 8, 8, 3)) == 0


def test_overlap_of_known_masks() -> None:
    mask = torch.zeros(4, 2, 4, dtype=torch.bool)
    truth = mask.clone()
    mask[0], truth[0] = True, True
    mask[1, 0], truth[1] = True, True
    mask[2, 0], truth[2, 1] = True, True
    assert overlap(mask, truth).tolist() == [1, 0.5, 0, 1]
