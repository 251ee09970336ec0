"""Promises of the field's measures: a field made from a known shift has no error, any other has exactly its own."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pocket.world import displacement, sample_clip
from stages.measures.correspondence import grid_of, match_displacement, pooled, positions, token_errors
from stages.measures.statistics import interval, paired_difference


@pytest.mark.parametrize(
    ("tokens", "latents", "grid"),
    [(256, (16, 16), (16, 16)), (64, (16, 16), (8, 8)), (4096, (64, 64), (64, 64)), (96, (8, 12), (8, 12)),
     (24, (8, 12), (4, 6)), (15, (9, 17), (3, 5))],
)  # fmt: skip
def test_a_layers_grid_is_a_halving_of_the_latents(
    tokens: int, latents: tuple[int, int], grid: tuple[int, int]
) -> None:
    assert grid_of(tokens, *latents) == grid


def test_tokens_that_fit_no_halving_are_refused() -> None:
    with pytest.raises(ValueError, match="no halving"):
        grid_of(100, 16, 16)


def test_a_shift_is_found_where_it_went() -> None:
    """γ built by hand for a shift of one to the right and two down; the last column and rows wrap and are wrong."""
    height, width = 5, 7
    places = positions(height, width).long()
    index = (places[:, 1] + 2) % height * width + (places[:, 0] + 1) % width
    moved = torch.tensor([1.0, 2.0]).expand(height, width, 2)
    errors = token_errors(index, moved)
    assert errors[:-2, :-1].abs().max() == 0
    assert errors[0, -1] == width, "seven tokens off to the left"
    assert match_displacement(index, height, width)[0].tolist() == [1, 2]


def test_the_identity_is_as_wrong_as_the_motion_is_long() -> None:
    """On a clip of the world the exact displacement is the error of a field that says nothing moved."""
    clip = sample_clip(8, torch.Generator().manual_seed(4))
    moved, _ = displacement(clip[:1], clip[7:8], 16)
    errors = token_errors(torch.arange(256)[None], moved)
    torch.testing.assert_close(errors, moved.norm(dim=-1))
    assert errors.mean() > 0.5, "there is motion to be wrong about"


def test_pooling_a_fine_flow_gives_the_coarse_one() -> None:
    """Away from the outline, an exact flow at 64 pixels brought to 16 tokens is the exact flow at 16."""
    clip = sample_clip(8, torch.Generator().manual_seed(4))
    fine, hidden = displacement(clip[:1], clip[5:6], 64)
    coarse, _ = displacement(clip[:1], clip[5:6], 16)
    brought, _ = pooled(fine, hidden, 16, 16)
    assert brought.shape == coarse.shape
    off = (brought - coarse).norm(dim=-1)
    assert off.median() < 0.01
    _, covered = pooled(fine, torch.ones_like(hidden), 16, 16)
    assert covered.all()


def test_an_interval_holds_the_mean_and_shrinks_with_clips() -> None:
    values = np.random.default_rng(1).normal(5, 1, 100)
    mean, lower, upper = interval(values)
    assert lower < mean < upper
    assert mean == pytest.approx(values.mean())
    assert upper - lower == pytest.approx(2 * 1.96 * values.std() / 10, rel=0.15)
    few = interval(values[:9])
    assert few[2] - few[1] > 2 * (upper - lower)


def test_what_clips_have_in_common_cancels_in_a_paired_difference() -> None:
    common = np.random.default_rng(2).normal(0, 10, 30)
    mean, lower, upper = paired_difference(common + 1, common)
    assert (mean, lower, upper) == pytest.approx((1, 1, 1))


def test_no_interval_is_claimed_of_two_clips_or_of_none() -> None:
    assert interval(np.array([1.0, 3.0]))[0] == 2
    assert math.isnan(interval(np.array([1.0, 3.0]))[1])
    assert all(math.isnan(value) for value in interval(np.array([np.nan])))
