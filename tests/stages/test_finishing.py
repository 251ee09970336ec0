"""Promises of what is done to decoded pictures: flicker goes, detail and wrong matches stay, windows do not show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from stages import propagate_tokens
from stages.backbones.stable_diffusion import StableDiffusion
from stages.editing.finishing import FLICKER, colour_transform, patch_colours, recoloured, steadied
from tests.tiny.memory import collect
from tests.tiny.method import Held, Prepared, edit_of_keyframes, edit_spec, frames_schema, moving_clip, prepare

GRID = 4, 5


@pytest.fixture
def pictures() -> np.ndarray:
    """rgb (3, 32, 40, 3) uint8 of middling levels."""
    return np.random.default_rng(0).integers(60, 190, (3, 32, 40, 3), np.uint8)


def test_flicker_goes_and_detail_stays(pictures: np.ndarray) -> None:
    flickering = (pictures + np.array([-6, 0, 6])[:, None, None, None]).astype(np.uint8)
    aims = patch_colours(pictures, GRID)
    steady = steadied(flickering, aims, GRID, 1.0).astype(float)
    left = (patch_colours(steady.astype(np.uint8), GRID) - aims).abs().mean((1, 2))
    assert (left[[0, 2]] < 1.6).all(), "of six levels"
    detail = (steady - steady.mean((1, 2), keepdims=True)) - (pictures - pictures.mean((1, 2), keepdims=True))
    assert np.abs(detail).mean() < 1
    half = steadied(flickering, aims, GRID, 0.5).astype(float)
    assert 2 < (half[2] - steady[2]).mean() < 4


def test_what_is_no_flicker_is_left_alone(pictures: np.ndarray) -> None:
    """A token whose match is another thing has another colour there."""
    far = patch_colours(pictures, GRID) + 6 * FLICKER
    assert np.array_equal(steadied(pictures, far, GRID, 1.0), pictures)


def test_pictures_get_the_mean_and_deviation_of_the_source(pictures: np.ndarray) -> None:
    source = (pictures * 0.7 + np.array([20, 0, 40])).astype(np.uint8)
    moved = recoloured(pictures, colour_transform(pictures, source), 1.0).astype(float)
    np.testing.assert_allclose(moved.mean((1, 2)), source.mean((1, 2)), atol=0.6)
    np.testing.assert_allclose(moved.std((1, 2)), source.std((1, 2)), atol=0.6)
    assert np.array_equal(recoloured(pictures, colour_transform(pictures, source), 0.0), pictures)
    flat = np.full_like(pictures, 9)
    assert np.isfinite(colour_transform(flat, pictures)).all()
    assert torch.equal(colour_transform(flat, pictures)[:, 0], torch.full((3, 3), 2.0)), "contrast is not invented"


@pytest.fixture(scope="module")
def short(backbone: StableDiffusion, tiny_folder: Path) -> Prepared:
    return prepare(backbone, tiny_folder, moving_clip(11), steps=2)


def finished(known: Prepared, spec: propagate_tokens.Spec, keyframes: Held, parts: list[range]) -> Held:
    """The clip, its windows one after another."""
    return collect(
        propagate_tokens.outputs(spec, frames=frames_schema(known.rgb), layout=known.layout),
        lambda part: propagate_tokens.run(
            spec, part, edit=edit_spec(), keyframe_edit=keyframes, latents=known.latents, tokens=known.tokens,
            field=known.field, frames={"rgb": known.rgb}, timesteps=known.timesteps, backbone=known.backbone,
        ),
        parts,
    )  # fmt: skip


def test_a_finished_clip_keeps_its_keyframes_and_its_latents_whatever_its_windows(short: Prepared) -> None:
    keyframes = edit_of_keyframes(short, edit_spec())
    plain = finished(short, propagate_tokens.Spec(), keyframes, [range(11)])
    steady = finished(short, propagate_tokens.Spec(deflicker=1), keyframes, [range(11)])
    assert np.array_equal(plain["latents"], steady["latents"])
    last = short.field["keyframes"][-1]
    difference = np.abs(plain["rgb"].astype(int) - steady["rgb"]).max((1, 2, 3))
    assert (difference[last] == 0).all()
    assert (np.delete(difference, last) > 0).any()
    spec = propagate_tokens.Spec(deflicker=0.5, match_colours=0.5)
    whole = finished(short, spec, keyframes, [range(11)])
    for part in (range(3), range(3, 8), range(8, 11)):
        own = finished(short, spec, keyframes, [part])["rgb"][part.start : part.stop]
        np.testing.assert_allclose(own.astype(int), whole["rgb"][part.start : part.stop], atol=1)
