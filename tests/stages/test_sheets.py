"""Pictures of fields, and the sheets they are laid out on."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest

from stages.media.flow_image import UNKNOWN, flow_colours, heat, scale, wheel
from stages.media.sheets import PAPER, Row, tile_sheet, tile_size


def hue(x: float, y: float) -> float:
    """Degrees."""
    rgb = flow_colours(np.array([[[x, y]]]), full=1.0)[0, 0] / 255
    return 360 * colorsys.rgb_to_hsv(*rgb)[0]


def test_no_displacement_is_white_and_a_long_one_has_full_colour() -> None:
    rgb = flow_colours(np.array([[[0.0, 0.0], [3.0, 0.0], [1.0, 0.0]]]), full=2.0)[0]
    assert rgb.tolist() == [[255, 255, 255], [255, 0, 0], [255, 128, 128]]


@pytest.mark.parametrize(("x", "y"), [(1.0, 0.0), (0.3, 0.7), (-0.5, 0.5)])
def test_opposite_directions_have_opposite_hues(x: float, y: float) -> None:
    assert abs((hue(x, y) - hue(-x, -y)) % 360 - 180) < 2


def test_the_wheel_shows_what_the_colours_mean() -> None:
    legend = np.asarray(wheel(81, "rim: 1 token"))
    for x, y in ((30, 0), (0, 30), (-20, -20)):
        expected = flow_colours(np.array([[[x / 40, y / 40]]]), full=1.0)[0, 0]
        assert np.abs(legend[40 + y, 40 + x].astype(int) - expected).max() <= 3
    assert tuple(legend[0, 0]) == PAPER


def test_heat_runs_from_low_to_high_and_does_not_colour_what_is_unknown() -> None:
    rgb = heat(np.array([[-1.0, 0.0, 0.5, 1.0, 9.0, np.nan]]), 0.0, 1.0)[0].astype(int)
    assert (rgb[0] == rgb[1]).all() and (rgb[3] == rgb[4]).all()
    brightness = rgb[:5].sum(1)
    assert brightness[1] < brightness[2] < brightness[3]
    assert tuple(rgb[5]) == UNKNOWN
    bar = np.asarray(scale(60, 0.0, 1.0, "cosine"))[:60, 5].astype(int)
    assert (bar[0] == rgb[3]).all() and (bar[59] == rgb[1]).all(), "high is above"


SIZES = [(64, 64, (192, 192)), (32, 48, (192, 128)), (512, 1024, (256, 128))]


@pytest.mark.parametrize(("height", "width", "size"), SIZES)
def test_small_frames_are_enlarged_by_whole_numbers_and_large_ones_shrunk(
    height: int, width: int, size: tuple[int, int]
) -> None:
    assert tile_size(height, width) == size


def test_tiles_keep_their_edges_and_captions_do_not_move_them() -> None:
    checks = (np.indices((4, 4)).sum(0)[..., None].repeat(3, -1) % 2 * 255).astype(np.uint8)
    rows = [Row("a row", [checks, checks], ["first", "a caption much longer than any tile is wide"])]
    sheet = np.asarray(tile_sheet(rows, (40, 40), "title", ["one", "two"]))
    other = np.asarray(tile_sheet([Row("a row", [checks, checks], ["x", "y"])], (40, 40), "title", ["one", "two"]))
    assert sheet.shape == other.shape and sheet.shape[0] % 2 == sheet.shape[1] % 2 == 0
    large = checks.repeat(10, 0).repeat(10, 1)
    assert sum((sheet[top : top + 40, 16:56] == large).all() for top in range(sheet.shape[0] - 40)) == 1
