"""Frames rebuilt with another frame's tokens, on the tiny model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stages.editing.swapping import swapped
from stages.invert_frames import sampled
from stages.match_tokens import StoredTokens
from tests.tiny.method import Prepared

SOURCE = "a source"


def swap(prepared: Prepared, donor: int, frames: range) -> Tensor:
    stored = StoredTokens(prepared.tokens, tuple(prepared.backbone.layers), "cpu")
    return swapped(
        donor, frames, latents=prepared.latents, read=stored.read, prompt=SOURCE, timesteps=prepared.timesteps,
        backbone=prepared.backbone,
    )  # fmt: skip


@torch.inference_mode()
def plain(prepared: Prepared) -> Tensor:
    noisiest = torch.from_numpy(prepared.latents["latents"][0]).float()
    return sampled(noisiest, prepared.timesteps, prepared.backbone.encode_text([SOURCE]), prepared.backbone)


def test_a_frame_swapped_with_itself_is_its_plain_reconstruction(short: Prepared) -> None:
    torch.testing.assert_close(swap(short, 3, range(3, 4))[0], plain(short)[3], atol=1e-4, rtol=1e-4)


def test_another_frames_tokens_change_a_frame(short: Prepared) -> None:
    away = (swap(short, 3, range(short.frames)) - plain(short)).abs().amax((1, 2, 3))
    assert away[3] < 1e-3
    assert all(away[frame] > 0.01 for frame in range(short.frames) if frame != 3), away


@pytest.mark.parametrize("frames_per_pass", [1, 3])
def test_passes_do_not_show(short: Prepared, frames_per_pass: int) -> None:
    together = swap(short, 2, range(short.frames))
    torch.testing.assert_close(
        swap(short.in_passes_of(frames_per_pass), 2, range(short.frames)), together, atol=1e-4, rtol=1e-4
    )


def test_the_model_is_put_back(short: Prepared) -> None:
    before = dict(short.backbone.unet.attn_processors)
    swap(short, 0, range(2))
    assert short.backbone.unet.attn_processors == before
