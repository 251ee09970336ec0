"""The world keeps its promises: flow carries one frame into the next, masks and captions say what is painted."""

from dataclasses import fields, replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pocket.world import (
    COLOURS,
    GROUNDS,
    SHAPES,
    SURFACES,
    Scene,
    caption,
    flow,
    render,
    render_two,
    sample_clip,
    sample_scenes,
)  # fmt: skip


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _fetch(frames: Tensor, displacement: Tensor) -> Tensor:
    """Look up frames (n, h, w, 3) at every pixel plus displacement (n, h, w, 2), bicubically."""
    size = frames.shape[1]
    line = torch.arange(size) + 0.5
    y, x = torch.meshgrid(line, line, indexing="ij")
    grid = (torch.stack([x, y], dim=-1) + displacement) * (2 / size) - 1
    fetched = F.grid_sample(
        frames.permute(0, 3, 1, 2), grid, mode="bicubic", padding_mode="border", align_corners=False
    )
    return fetched.permute(0, 2, 3, 1)


def _psnr(a: Tensor, b: Tensor, where: Tensor) -> float:
    return float(-10 * torch.log10((a - b).square().mean(dim=-1)[where].mean()))


@pytest.mark.parametrize(("seed", "size"), [(seed, 64) for seed in range(6)] + [(2, 128), (4, 128)])
def test_exact_flow_carries_one_frame_into_the_next(seed: int, size: int) -> None:
    clip = sample_clip(5, _generator(seed), ground=GROUNDS[seed])
    rgb, between = render(clip, size).rgb, flow(clip, size)
    assert _psnr(_fetch(rgb[1:], between.forward), rgb[:-1], ~between.occluded_forward) >= 28
    assert _psnr(_fetch(rgb[:-1], between.backward), rgb[1:], ~between.occluded_backward) >= 28


@pytest.mark.parametrize("seed", range(6))
def test_flow_beats_standing_still(seed: int) -> None:
    clip = sample_clip(24, _generator(seed), ground=GROUNDS[seed])[::6]
    rgb, between = render(clip, 64).rgb, flow(clip, 64)
    seen = ~between.occluded_forward
    still = _psnr(rgb[1:], rgb[:-1], seen)
    assert _psnr(_fetch(rgb[1:], between.forward), rgb[:-1], seen) > still + 6


def test_forward_then_backward_comes_home() -> None:
    clip = sample_clip(8, _generator(3))
    between = flow(clip, 64)
    there = between.forward
    back = _fetch(torch.cat([between.backward, torch.zeros_like(between.backward[..., :1])], dim=-1), there)[..., :2]
    mask = render(clip, 64).mask[:-1].float()
    inside = F.avg_pool2d(mask[:, None], 7, stride=1, padding=3)[:, 0]
    away_from_edges = ((inside == 0) | (inside == 1)) & ~between.occluded_forward
    assert (there + back)[away_from_edges].abs().max() < 0.02


def test_motion_is_gentle_and_present() -> None:
    for seed in range(8):
        length = flow(sample_clip(24, _generator(seed)), 64).forward.norm(dim=-1)
        assert length.max() < 3
        assert length.mean() > 0.25


def test_occlusion_marks_exactly_the_ground_that_gets_covered() -> None:
    clip = sample_clip(24, _generator(5))[torch.tensor([0, 12])]
    between, mask = flow(clip, 64), render(clip, 64).mask
    assert between.occluded_forward.any()
    landed = _fetch(mask[1:, :, :, None].float().expand(-1, -1, -1, 3), between.forward)[..., 0] > 0.5
    inside = _fetch(torch.ones(1, 64, 64, 3), between.forward)[..., 0] > 0
    expected = landed & ~mask[:-1] & inside
    outside = between.occluded_forward & ~expected
    differs = (between.occluded_forward != expected) & ~outside
    assert differs.float().mean() < 0.01


@pytest.mark.parametrize("shape", SHAPES)
def test_mask_is_the_object_and_nothing_else(shape: str) -> None:
    here = sample_scenes(6, _generator(0), shape=shape, colour="red", ground="snow")
    other = Scene(**{f.name: getattr(here, f.name) for f in fields(here)} | {"colour": torch.full_like(here.colour, 4)})
    a, b = render(here, 64), render(other, 64)
    repainted = (a.rgb - b.rgb).abs().sum(dim=-1) > 0
    assert torch.equal(repainted & (a.coverage == 0), torch.zeros_like(a.mask))
    assert torch.equal(a.mask, a.coverage > 0.5)
    share = a.mask.float().mean(dim=(1, 2))
    assert share.min() > 0.06
    assert share.max() < 0.4


def test_ball_mask_has_the_area_of_its_circle() -> None:
    scene = sample_scenes(5, _generator(1), shape="ball")
    scene = Scene(**{f.name: getattr(scene, f.name) for f in fields(scene)} | {"centre": torch.zeros(5, 2)})
    area = render(scene, 256).mask.float().mean(dim=(1, 2)) * 4
    assert torch.allclose(area, torch.pi * scene.scale**2, rtol=0.01)


def test_caption_names_what_was_asked_for() -> None:
    scene = sample_scenes(1, _generator(0), shape="ring", colour="orange", surface="dotted", ground="snow")
    assert caption(scene) == "an orange dotted ring on snow"
    plain = sample_scenes(1, _generator(0), shape="star", colour="red", surface="plain", ground="lava")
    assert caption(plain) == "a red star on lava"
    assert caption(plain, plain=True) == "a red plain star on lava"
    assert caption(plain, say=(False, False, False)) == "a star"


def test_every_attribute_turns_up_about_equally_often() -> None:
    scenes = sample_scenes(4000, _generator(0))
    for values, names in [
        (scenes.shape, SHAPES),
        (scenes.colour, COLOURS),
        (scenes.surface, SURFACES),
        (scenes.ground, GROUNDS),
    ]:
        counts = torch.bincount(values, minlength=len(names))
        assert counts.min() > 0.8 * 4000 / len(names)


def test_unknown_attribute_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="no 'cube' in the world; have ball, square, star, ring"):
        sample_scenes(1, _generator(0), shape="cube")


def test_same_seed_same_pixels() -> None:
    first, again, other = (render(sample_clip(4, _generator(seed)), 64).rgb for seed in (7, 7, 8))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_rendering_does_not_depend_on_the_batch() -> None:
    scenes = sample_scenes(12, _generator(2))
    together = render(scenes, 32).rgb
    alone = torch.cat([render(scenes[i : i + 1], 32).rgb for i in range(12)])
    assert torch.allclose(together, alone, atol=1e-5)


def test_two_objects_stand_on_one_ground_and_the_second_hides_the_first() -> None:
    first, second = (sample_clip(4, _generator(seed), ground=GROUNDS[seed]) for seed in (1, 2))
    rgb, behind, front = render_two(first, second, 64)
    alone, other = render(first, 64), render(replace(second, ground=first.ground), 64)
    assert (front == other.mask).all()
    assert (alone.mask & ~behind == alone.mask & front).all()
    inside = other.coverage == 1
    torch.testing.assert_close(rgb[inside], other.rgb[inside])
    away = other.coverage == 0
    torch.testing.assert_close(rgb[away], alone.rgb[away])
    apart = replace(second, centre=torch.full_like(second.centre, 9.0))
    torch.testing.assert_close(render_two(first, apart, 64)[0], alone.rgb)
