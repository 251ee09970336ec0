"""Promises about what is found in pictures alone: hard cuts and no other, and where the motion is."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pocket.world import flow, render, sample_clip
from stages.measures.cuts import cuts_of, motion_of, shrunk
from tests.stages.clips import numbered
from tests.tiny.method import moving_clip

Rgb = np.ndarray[Any, Any]


def rendered(frames: int, seed: int) -> Rgb:
    """A clip of the pocket world, rgb (frame, 64, 64, 3) uint8."""
    scenes = sample_clip(frames, torch.Generator().manual_seed(seed))
    return (render(scenes, 64).rgb * 255).round().byte().numpy()


def test_hard_cuts_are_found_and_no_others() -> None:
    for seed in range(12):
        lengths = np.random.default_rng(seed).integers(3, 20, 3).tolist()
        clip = np.concatenate([rendered(length, 1000 * seed + n) for n, length in enumerate(lengths)])
        assert cuts_of(clip) == np.cumsum(lengths)[:-1].tolist(), seed


def test_motion_is_no_cut_however_fast() -> None:
    for seed in range(6):
        assert cuts_of(rendered(24, 5000 + seed)[::4]) == []
    assert cuts_of(moving_clip(24)) == []
    assert cuts_of([numbered(frame, 96, 64) for frame in range(40)]) == []
    assert cuts_of(np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8)) == []


def test_what_becomes_of_gradual_changes() -> None:
    one, other = rendered(20, 1), rendered(20, 2)
    share = np.linspace(0, 1, 10)[1:-1, None, None, None]
    between = ((1 - share) * one[12:] + share * other[:8]).astype(np.uint8)
    assert cuts_of(np.concatenate([one[:12], between, other[8:]])) == [], "a dissolve is not found"
    flash = one.copy()
    flash[9] = 255
    assert cuts_of(flash) == [9, 10], "a flash is a shot of its own"


def test_short_and_still_clips_have_no_cuts() -> None:
    assert [cuts_of(rendered(24, 3)[:frames]) for frames in range(1, 6)] == [[]] * 5
    assert cuts_of(np.zeros((9, 16, 16, 3), np.uint8)) == []


def test_large_pictures_are_looked_at_small() -> None:
    large = rendered(1, 1)[0].repeat(10, 0).repeat(20, 1)
    assert shrunk(large).shape == (128, 256, 3)
    assert shrunk(large[:64, :64]).shape == (64, 64, 3)


def test_motion_is_the_mean_flow_as_a_share_of_the_width() -> None:
    scenes = sample_clip(48, torch.Generator().manual_seed(4))[torch.tensor([0, 1, 2, 2, 6, 10, 14])]
    clip = (render(scenes, 64).rgb * 255).round().byte().numpy()
    truth = flow(scenes, 64).backward.norm(dim=-1).mean((1, 2)) / 64
    found = motion_of(clip)
    assert found[0] == 0
    assert found[3] < 1e-3, "nothing moves between equal frames"
    np.testing.assert_allclose(found[1:], truth.numpy(), rtol=0.25, atol=2e-3)
