"""The model of a run, on the device of the run."""

from __future__ import annotations

from stages.backbones.stable_diffusion import Runtime, StableDiffusion, load
from stages.diffusion.heaps import share_heaps
from store.errors import InputError

from .plan import Plan


def load_backbone(plan: Plan) -> StableDiffusion:
    """Load the plan's model; InputError where it, or the device, cannot be had."""
    check_device(plan)
    share_heaps()
    asked = plan.runtime
    return load(plan.model.load_from, Runtime(plan.device, asked.frames_per_pass, asked.precision, asked.allow_pickle))


def check_device(plan: Plan) -> None:
    """InputError where the device that was asked for is not there: to be told before anything is computed."""
    import torch

    if plan.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: no CUDA device is visible to torch here; use --device cpu, or see tf doctor")
