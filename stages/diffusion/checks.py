"""Numbers that stopped being numbers are named at once: which stage, which timestep, which frame."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from store.errors import InputError


class NonFiniteLatents(InputError):
    """Latents became NaN or infinite: the model cannot be used with these settings.

    timestep   0 to 999, none in the autoencoder's output        frame   its number in the clip
    """

    stage: str | None = None
    timestep: int | None = None
    frame: int | None = None


class FullDeviceError(InputError):
    """The GPU's memory does not hold the least there is to be done at once: one frame."""


def finite(latents: Tensor, stage: str, timestep: int | None, frames: Sequence[int]) -> None:
    """Raise NonFiniteLatents unless all of latents (frame, …) are finite; `frames` are their numbers in the clip."""
    all_finite(finite_frames(latents), stage, timestep, frames)


def finite_frames(latents: Tensor) -> Tensor:
    """Whether all of a frame's latents (frame, …) are finite (frame) bool."""
    return torch.isfinite(latents).flatten(1).all(1)


def check_pictures(pixels: Tensor, latents: Tensor, decoder: str) -> None:
    """Raise InputError where a decoder makes other than numbers of latents that are: as bytes they would be black."""
    if not torch.isfinite(pixels).all() and torch.isfinite(latents).all():
        raise InputError(
            f"{decoder} makes pictures that are not finite: its weights are damaged or out of range; download it again"
        )


def all_finite(sound: Tensor, stage: str, timestep: int | None, frames: Sequence[int]) -> None:
    """The same of what `finite_frames` said."""
    bad = ~sound
    if bad.any():
        where = "the autoencoder's output" if timestep is None else f"timestep {timestep}"
        frame = frames[int(bad.nonzero()[0, 0])]
        error = NonFiniteLatents(
            f"{stage}: latents are not finite at {where}, frame {frame}; "
            "the model's weights or the guidance scale are out of range for these frames"
        )
        error.stage, error.timestep, error.frame = stage, timestep, frame
        raise error
