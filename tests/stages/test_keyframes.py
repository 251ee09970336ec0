"""Promises of the keyframe schedule: who may be drawn, who follows whom, and how much."""

from __future__ import annotations

import tracemalloc
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.diffusion.choices import Blend
from stages.diffusion.keyframes import (
    adaptive_starts,
    allowed_places,
    blend_weights,
    drawn_keyframes,
    intervals,
    neighbours,
    shots,
    support,
)

CUTS = st.lists(st.integers(1, 90), max_size=6, unique=True).map(sorted)
FRAMES, INTERVALS, OFFSETS, SEEDS = st.integers(1, 80), st.integers(1, 20), st.integers(1, 20), st.integers(0, 2**40)


@given(frames=FRAMES, interval=INTERVALS)
def test_intervals_hold_every_frame_once(frames: int, interval: int) -> None:
    pieces = intervals(frames, interval)
    assert [frame for piece in pieces for frame in piece] == list(range(frames))
    assert all(len(piece) == interval for piece in pieces[:-1])
    assert 1 <= len(pieces[-1]) <= interval


@given(frames=FRAMES, interval=INTERVALS, offsets=OFFSETS, seed=SEEDS)
def test_keyframes_are_drawn_one_per_interval_from_the_allowed_places(
    frames: int, interval: int, offsets: int, seed: int
) -> None:
    drawn = drawn_keyframes(intervals(frames, interval), offsets, 7, seed)
    pieces = intervals(frames, interval)
    assert drawn.shape == (7, len(pieces))
    allowed = set(support(intervals(frames, interval), offsets).tolist())
    for row in drawn:
        assert all(int(keyframe) in piece for keyframe, piece in zip(row, pieces, strict=True))
        assert set(row.tolist()) <= allowed
    assert np.array_equal(drawn, drawn_keyframes(intervals(frames, interval), offsets, 7, seed))


@given(frames=FRAMES, interval=INTERVALS, offsets=OFFSETS)
def test_the_support_has_as_many_places_per_interval_as_asked(frames: int, interval: int, offsets: int) -> None:
    held = support(intervals(frames, interval), offsets).tolist()
    assert held == sorted(set(held))
    for piece in intervals(frames, interval):
        own = [frame for frame in held if frame in piece]
        assert own == allowed_places(piece, offsets)
        assert len(own) == min(offsets, len(piece))


@given(frames=FRAMES, interval=INTERVALS)
def test_with_every_place_allowed_the_support_is_the_clip(frames: int, interval: int) -> None:
    assert support(intervals(frames, interval), interval).tolist() == list(range(frames))


def test_draws_depend_on_the_seed_and_on_the_step_and_reach_every_place() -> None:
    drawn = drawn_keyframes(intervals(64, 8), 8, 200, seed=0)
    assert not np.array_equal(drawn, drawn_keyframes(intervals(64, 8), 8, 200, seed=1))
    assert len({tuple(row) for row in drawn.tolist()}) > 190
    counts = np.bincount((drawn % 8).ravel(), minlength=8)  # 1600 draws from 8 places: 200 each, deviation 13
    assert counts.min() > 140
    assert counts.max() < 260


def test_one_place_is_the_same_keyframes_at_every_step() -> None:
    assert (drawn_keyframes(intervals(21, 8), 1, 5, seed=3) == [[4, 12, 18]] * 5).all()


def test_a_longer_edit_starts_with_the_draws_of_a_shorter_one() -> None:
    assert np.array_equal(drawn_keyframes(intervals(30, 5), 5, 9, 1)[:4], drawn_keyframes(intervals(30, 5), 5, 4, 1))


@given(frames=FRAMES, interval=INTERVALS, offsets=OFFSETS, seed=SEEDS)
def test_every_frame_follows_the_nearest_keyframes_on_both_sides(
    frames: int, interval: int, offsets: int, seed: int
) -> None:
    keyframes = drawn_keyframes(intervals(frames, interval), offsets, 1, seed)[0]
    found = neighbours(frames, keyframes)
    assert found.shape == (frames, 2)
    for frame in range(frames):
        before = [place for place, keyframe in enumerate(keyframes) if keyframe <= frame]
        after = [place for place, keyframe in enumerate(keyframes) if keyframe >= frame]
        previous, following = (before or after[:1])[-1], (after or before[-1:])[0]
        assert found[frame].tolist() == [previous, following]


@given(frames=FRAMES, interval=INTERVALS, offsets=OFFSETS, seed=SEEDS, blend=st.sampled_from(get_args(Blend)))
def test_weights_sum_to_one(frames: int, interval: int, offsets: int, seed: int, blend: str) -> None:
    keyframes = drawn_keyframes(intervals(frames, interval), offsets, 1, seed)[0]
    weights = blend_weights(frames, keyframes, blend)  # type: ignore[arg-type]
    assert weights.dtype == np.float32
    assert weights.shape == (frames, 2)
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=0, atol=1e-6)


def test_linear_weights_reach_one() -> None:
    weights = blend_weights(12, np.array([2, 6, 9], np.int32), "linear")
    assert weights[:, 0].tolist() == pytest.approx([1, 1, 1, 3 / 4, 1 / 2, 1 / 4, 1, 2 / 3, 1 / 3, 1, 1, 1])


def test_one_keyframe_alone_may_be_followed() -> None:
    nearest = blend_weights(12, np.array([2, 6, 9], np.int32), "nearest")
    assert nearest[:, 0].tolist() == [1, 1, 1, 1, 1, 0, 1, 1, 0, 1, 1, 1], "of two as near, the earlier"
    assert (blend_weights(12, np.array([2, 6, 9], np.int32), "previous")[:, 0] == 1).all()


def test_sigmoid_weights_never_leave_the_middle() -> None:
    weights = blend_weights(12, np.array([2, 6, 9], np.int32), "sigmoid")
    between = [3, 4, 5, 7, 8]
    assert ((weights[between] > 0.268) & (weights[between] < 0.732)).all()
    assert weights[4, 0] == pytest.approx(1 - 1 / (1 + np.exp(-0.5)))
    assert (np.diff(weights[3:6, 0]) < 0).all(), "the nearer the next keyframe, the less of the previous one"
    assert (weights[[0, 1, 2, 6, 9, 10, 11], 0] == 1).all(), "a frame with one neighbour is not mixed"


@given(frames=FRAMES, interval=INTERVALS, cuts=CUTS, starts=CUTS)
def test_no_interval_reaches_over_a_cut(frames: int, interval: int, cuts: list[int], starts: list[int]) -> None:
    for pieces in (intervals(frames, interval, cuts), intervals(frames, interval, cuts, starts)):
        assert [frame for piece in pieces for frame in piece] == list(range(frames))
        assert {cut for cut in cuts if cut < frames} <= {piece.start for piece in pieces}
    assert max(map(len, intervals(frames, interval, cuts))) <= interval
    for shot in shots(frames, cuts):
        own = [piece for piece in intervals(frames, interval, cuts) if piece.start in shot]
        assert [range(p.start - shot.start, p.stop - shot.start) for p in own] == intervals(len(shot), interval)


@given(frames=FRAMES, interval=INTERVALS, offsets=OFFSETS, seed=SEEDS, cuts=CUTS)
def test_no_frame_follows_a_keyframe_of_another_shot(
    frames: int, interval: int, offsets: int, seed: int, cuts: list[int]
) -> None:
    [keyframes] = drawn_keyframes(intervals(frames, interval, cuts), offsets, 1, seed)
    found, weights = neighbours(frames, keyframes, cuts), blend_weights(frames, keyframes, "linear", cuts)
    for shot in shots(frames, cuts):
        inside = [keyframe for keyframe in keyframes.tolist() if keyframe in shot]
        alone = [keyframe - shot.start for keyframe in inside]
        assert inside, "however short, a shot has a keyframe"
        first = keyframes.tolist().index(inside[0])
        assert (found[shot] - first).tolist() == neighbours(len(shot), np.array(alone, np.int32)).tolist()
        assert np.array_equal(weights[shot], blend_weights(len(shot), np.array(alone, np.int32), "linear"))


@given(motion=st.lists(st.floats(0, 1), min_size=1, max_size=80), interval=INTERVALS, cuts=CUTS)
def test_adaptive_intervals_are_as_many_and_neither_short_nor_long(
    motion: list[float], interval: int, cuts: list[int]
) -> None:
    frames = len(motion)
    equal = intervals(frames, interval, cuts)
    adaptive = intervals(frames, interval, cuts, adaptive_starts(motion, cuts, interval) or [frames])
    assert len(adaptive) == len(equal)
    whole = {(shot.start, shot.stop) for shot in shots(frames, cuts)}
    for piece in adaptive:
        assert interval // 2 <= len(piece) <= 2 * interval or (piece.start, piece.stop) in whole


def test_adaptive_intervals_of_a_long_clip_take_little_memory() -> None:
    """A byte per frame and interval is remembered, 2 MB here, and no more than a number or two per frame beside it."""
    motion = np.random.default_rng(0).random(4000)
    tracemalloc.start()
    adaptive_starts(motion, [], 8)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def test_adaptive_intervals_are_short_where_much_moves() -> None:
    motion = [1.0] * 32 + [6.0] * 32
    lengths = [len(piece) for piece in intervals(64, 8, (), adaptive_starts(motion, [], 8))]
    assert len(lengths) == 8
    assert max(lengths[4:]) < 8 < min(lengths[:2])
    even = adaptive_starts([0.3] * 64, [], 8)
    assert even == list(range(8, 64, 8))
