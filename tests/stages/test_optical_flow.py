"""Estimated flow against the world's exact flow, and which points it calls hidden."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
import torch

from pocket.world import flow, render, sample_clip
from stages.measures.optical_flow import choose, displacement, estimated_motion
from store.errors import InputError

Rgb = np.ndarray


def clip(seed: int, size: int = 64) -> tuple[Rgb, torch.Tensor, torch.Tensor]:
    """Frames rgb uint8, the exact backward flow, and what of it is visible."""
    scenes = sample_clip(4, torch.Generator().manual_seed(seed))
    truth = flow(scenes, size)
    return (render(scenes, size).rgb * 255).round().byte().numpy(), truth.backward, ~truth.occluded_backward


class Constant:
    """Says that every point moves by the same; back the same way, unless it is told another."""

    name = "constant"

    def __init__(self, there: tuple[float, float], back: tuple[float, float]) -> None:
        self.answers = [there, back]

    def __call__(self, source: Rgb, target: Rgb) -> Rgb:
        self.answers.append(self.answers[0])
        return np.broadcast_to(np.float32(self.answers.pop(0)), (*source.shape[:2], 2)).copy()


def hidden(there: tuple[float, float], back: tuple[float, float]) -> Rgb:
    blank = np.zeros((8, 10, 3), np.uint8)
    return displacement(blank, blank, Constant(there, back))[1]


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [64, 160])
def test_dis_is_closer_to_the_truth_than_standing_still(seed: int, size: int) -> None:
    frames, backward, visible = clip(seed, size)
    found = estimated_motion(frames, choose("dis"))
    error = (found.backward - backward).norm(dim=-1)[visible].mean()
    assert error < 0.6 * backward.norm(dim=-1)[visible].mean()


def test_dis_knows_left_from_right_and_pixels_from_shares() -> None:
    """A clip of noise, wider than high, of which each frame is moved by whole pixels."""
    noise = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    smooth = noise[:-1, :-1] // 4 + noise[1:, :-1] // 4 + noise[:-1, 1:] // 4 + noise[1:, 1:] // 4
    source, target = smooth[5:53, 10:82], smooth[7:55, 7:79]
    moved, _ = displacement(source, target, choose("dis"))
    assert moved.shape == (48, 72, 2) and moved.dtype == np.float32
    assert np.median(moved, axis=(0, 1)) == pytest.approx([3, -2], abs=0.15)


def test_a_still_does_not_move() -> None:
    frames = clip(1)[0][:1].repeat(3, 0)
    found = estimated_motion(frames, choose("dis"))
    assert found.backward.abs().max() < 0.05 and found.visible.all()


def test_motion_has_a_pair_less_than_frames() -> None:
    found = estimated_motion(clip(2)[0], choose("dis"))
    assert found.backward.shape == (3, 64, 64, 2) and found.backward.dtype == torch.float32
    assert found.visible.shape == (3, 64, 64) and found.visible.dtype == torch.bool


def test_motion_is_of_the_later_frame() -> None:
    frames = clip(3)[0][:2]
    moved, covered = displacement(frames[1], frames[0], choose("dis"))
    found = estimated_motion(frames, choose("dis"))
    assert np.array_equal(found.backward[0], moved) and np.array_equal(found.visible[0], ~covered)


@pytest.mark.parametrize(
    ("back", "lost"),
    [((-3.0, 0.0), False), ((-2.28, 0.0), False), ((-2.2, 0.0), True), ((3.0, 0.0), True)],
)
def test_a_point_that_does_not_come_home_is_hidden(back: tuple[float, float], lost: bool) -> None:
    """|f + b|² against 0.01 (|f|² + |b|²) + 0.5, for f = (3, 0): 0.518 < 0.642, and 0.640 > 0.638."""
    assert (hidden((3.0, 0.0), back)[:, :7] == lost).all()


def test_a_point_that_leaves_the_picture_is_hidden() -> None:
    found = hidden((3.0, -2.0), (-3.0, 2.0))
    assert found[:2].all() and found[:, 7:].all() and not found[2:, :7].any()


def test_an_unknown_method() -> None:
    with pytest.raises(InputError, match="no optical flow 'farneback'; have auto, raft, dis"):
        choose("farneback")


@pytest.mark.skipif(find_spec("torchvision") is not None, reason="torchvision is installed")
def test_without_torchvision() -> None:
    assert choose("auto").name == choose("dis").name
    with pytest.raises(InputError, match=r"optical flow by raft needs torchvision.*use dis"):
        choose("raft")
