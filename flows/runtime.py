"""The model of a run, on the device of the run."""

from __future__ import annotations

import ctypes
from contextlib import suppress

from stages.backbones.stable_diffusion import Runtime, StableDiffusion, load
from store.errors import InputError

from .plan import Plan

M_ARENA_MAX = -8  # of malloc.h


def load_backbone(plan: Plan) -> StableDiffusion:
    """Load the plan's model; InputError where it, or the device, cannot be had."""
    check_device(plan)
    _share_heaps()
    asked = plan.runtime
    return load(plan.model.load_from, Runtime(plan.device, asked.frames_per_pass, asked.precision))


def _share_heaps() -> None:
    """Have glibc keep two heaps instead of eight per core.

    Blocks that one thread reads and another frees leave holes in every heap: on a long clip 40 MB of 840.
    """
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 2)


def check_device(plan: Plan) -> None:
    """InputError where the device that was asked for is not there: to be told before anything is computed."""
    import torch

    if plan.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: no CUDA device is visible to torch here; use --device cpu, or see tf doctor")
