"""The model of a run, on the device of the run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from stages.backbones.controlnet import load_controlnet
from stages.backbones.stable_diffusion import Runtime, StableDiffusion, load
from stages.diffusion.heaps import share_heaps
from store.errors import InputError

from .plan import Plan

_kept: ContextVar[dict[tuple[str, Runtime], StableDiffusion]] = ContextVar("_kept")


@contextmanager
def model_kept() -> Iterator[None]:
    """Within the block the model that was loaded last serves every run that wants the same, in the same way."""
    token = _kept.set({})
    try:
        yield
    finally:
        _kept.reset(token)


def load_backbone(plan: Plan) -> StableDiffusion:
    """Load the plan's model; InputError where it, or the device, cannot be had."""
    check_device(plan)
    share_heaps()
    asked = plan.runtime
    runtime = Runtime(plan.device, asked.frames_per_pass, asked.precision, asked.allow_pickle)
    kept, wanted = _kept.get({}), (plan.model.key, runtime)
    if wanted not in kept:
        kept.clear()  # before another is loaded: a GPU may not hold two
        kept[wanted] = load(plan.model.load_from, runtime, plan.model.adapters)
    backbone = kept[wanted]
    backbone.tile(plan.invert.spec.tiled)
    backbone.controls = [load_controlnet(files.folder, plan.device, runtime.dtype) for files in plan.controls.files]
    return backbone


def check_device(plan: Plan) -> None:
    """InputError where the device that was asked for is not there: to be told before anything is computed."""
    import torch

    if plan.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: no CUDA device is visible to torch here; use --device cpu, or see tf doctor")
