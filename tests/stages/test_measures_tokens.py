"""Principal components of tokens, and fields in pixels."""

from __future__ import annotations

import numpy as np
import torch

from stages.measures.frames import warped
from stages.measures.tokens import colours, pixel_displacement, principal_components

SEEDED = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
CLIP = [torch.randn(4, 30, 12, generator=generator) * torch.arange(12.0) for generator in SEEDED]


def test_components_are_those_of_a_singular_value_decomposition() -> None:
    found = principal_components(lambda: CLIP)
    rows = torch.cat(CLIP).flatten(0, 1).double()
    _, sizes, axes = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)
    cosines = (found.axes * axes[:3].T).sum(0).abs()
    torch.testing.assert_close(cosines, torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(found.share, sizes[:3] ** 2 / (sizes**2).sum())


def test_components_do_not_depend_on_chance_on_blocks_or_on_signs() -> None:
    once = principal_components(lambda: CLIP).of(CLIP[0])
    torch.manual_seed(7)
    assert torch.equal(principal_components(lambda: CLIP).of(CLIP[0]), once)
    pieces = [piece for block in CLIP for piece in block.split(3)]
    torch.testing.assert_close(principal_components(lambda: pieces).of(CLIP[0]), once)
    mirrored = principal_components(lambda: [-block for block in CLIP])
    torch.testing.assert_close(mirrored.axes, principal_components(lambda: CLIP).axes)


def test_half_precision_tokens_are_summed_exactly() -> None:
    near = [(torch.ones(50, 100, 4) + 0.25 * torch.eye(4)[torch.arange(100) % 4]).half()]
    assert torch.allclose(principal_components(lambda: near).mean, torch.full((4,), 1.0625, dtype=torch.float64))


def test_colours_use_the_whole_range_and_not_the_outliers() -> None:
    values = torch.linspace(0, 1, 1000)[:, None].expand(-1, 3).clone()
    values[0] = -1e6
    rgb = colours(values)
    assert rgb.dtype == np.uint8
    assert rgb.min() == 0 and rgb.max() == 255
    assert abs(int(rgb[500, 0]) - 128) < 5, "one token far away does not decide the range"


def test_a_still_field_warps_a_frame_onto_itself() -> None:
    frame = torch.rand(1, 24, 40, 3, generator=torch.Generator().manual_seed(0))
    moved = pixel_displacement(torch.zeros(1, 3, 5, 2), 24, 40)
    torch.testing.assert_close(warped(frame, moved), frame, atol=1e-5, rtol=0)


def test_a_field_of_one_token_moves_a_token_of_pixels_each_way() -> None:
    frame = torch.rand(1, 24, 40, 3, generator=torch.Generator().manual_seed(0))
    moved = pixel_displacement(torch.tensor([1.0, 2.0]).expand(1, 12, 10, 2), 24, 40)  # tokens of 2 × 4 pixels
    torch.testing.assert_close(warped(frame, moved)[:, :20, :36], frame[:, 4:, 4:], atol=1e-4, rtol=0)


def test_a_field_is_bilinear_between_the_centres_of_its_tokens() -> None:
    ramp = pixel_displacement(torch.tensor([0.0, 1.0])[None, None, :, None].expand(1, 1, 2, 2), 4, 8)[0, 0, :, 0]
    expected = torch.tensor([0, 0, 0.125, 0.375, 0.625, 0.875, 1, 1]) * 4
    torch.testing.assert_close(ramp, expected)
