"""DDIM inversion: clean latents x_0 → noisy latents x_t, kept at the timesteps that editing will visit.

Source: Song et al., arXiv 2010.02502, eq. 12 run towards noise; TokenFlow (arXiv 2307.10373), pre-processing; Pan et
al., arXiv 2309.04907, section 3.1, for the fixed-point refinement of a step.

A bad inversion is the commonest cause of a bad edit, so some frames are sampled back at once and compared.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from store.schemas import Arrays, Block, Blocks, Frozen, Schema, Variable

from .backbones import Backbone
from .backbones.layout import ModelLayout
from .diffusion import ddim
from .diffusion.checks import finite
from .diffusion.choices import Solver, Spacing
from .diffusion.solvers import Inverting, Sampling
from .measures.frames import psnr

VERSION = 3
FRAMES_PER_PART = 16
FRAMES_PER_CHECK = 16  # one frame in so many is sampled back; divides FRAMES_PER_PART


class Spec(Frozen):
    """Source prompt (may be empty), edit steps (which timesteps are kept) and inversion steps (which are visited).

    evaluations   of the model per step: the first is plain DDIM's, each further one refines it as a fixed point
    solver        ddim, or one of second order, see `diffusion.solvers`
    tiled         the autoencoder works in tiles, here and in all that is made of these latents
    timestep_spacing   of the edit's timesteps, where they are not spaced as the model's own file says
    """

    left_out: ClassVar[frozenset[str]] = frozenset({"tiled", "timestep_spacing"})

    prompt: str = ""
    num_steps: int = Field(50, ge=1, le=1000)
    num_inversion_steps: int = Field(50, ge=1, le=1000)
    evaluations: int = Field(1, ge=1, le=10)
    solver: Solver = "ddim"
    tiled: bool = False
    timestep_spacing: Spacing = "auto"


def checked_frames(frames: int) -> tuple[int, ...]:
    """The frames that are sampled back, ascending: the middle one of every `FRAMES_PER_CHECK`."""
    middles = range(FRAMES_PER_CHECK // 2, frames + FRAMES_PER_CHECK // 2, FRAMES_PER_CHECK)
    return tuple(sorted({min(middle, frames - 1) for middle in middles}))


def outputs(spec: Spec, *, frames: Schema, layout: ModelLayout) -> Schema:
    """Latents of every frame at every timestep the edit visits, noisiest first; x_0; how well some come back."""
    count = frames.size("frame")
    assert count is not None
    shape = (layout.latent_channels, layout.latent_height, layout.latent_width)
    chunk = min(count, FRAMES_PER_PART)
    checked = checked_frames(count)
    measured = {"dims": ("checked_frame",), "shape": (len(checked),), "dtype": "float32", "chunks": (1,), "units": "dB"}
    return Schema(
        artifact="latents",
        variables={
            "latents": Variable(
                dims=("timestep", "frame", "channel", "height", "width"),
                shape=(spec.num_steps, count, *shape),
                dtype="float16",
                chunks=(1, chunk, *shape),
                description="inverted latents x_t, in the autoencoder's scaled units",
                finite=True,
            ),
            "clean_latents": Variable(
                dims=("frame", "channel", "height", "width"),
                shape=(count, *shape),
                dtype="float16",
                chunks=(chunk, *shape),
                description="latents x_0 of the source, in the autoencoder's scaled units",
                finite=True,
            ),
            "inversion_psnr": Variable.model_validate(
                measured
                | {"description": "of the frame sampled back with no edit, against the autoencoder's picture of it"}
            ),
            "reconstruction_psnr": Variable.model_validate(
                measured | {"description": "of the same picture against the source frame itself"}
            ),
        },
        coordinates={"timestep": ddim.timesteps(layout.schedule, spec.num_steps), "checked_frame": checked},
        parts=("frame", FRAMES_PER_PART),
    )


@torch.inference_mode()
def run(spec: Spec, part: range, *, frames: Arrays, timesteps: tuple[int, ...], backbone: Backbone) -> Blocks:
    """Invert every frame of `part` on its own, from low noise to high.

    frames      rgb (frame, height, width, channel) uint8
    timesteps   kept, noisiest first
    yields      clean_latents, latents: (timestep, frame, channel, height, width) float16; inversion_psnr and
                reconstruction_psnr (checked_frame) float32, dB
    raises      NonFiniteLatents, naming the timestep and the first bad frame
    """
    clean = latents = backbone.encode(frames["rgb"][part.start : part.stop])
    finite(latents, "invert_frames", None, part)
    yield Block("clean_latents", (part.start, 0, 0, 0), latents.half().cpu().numpy())
    text = backbone.encode_text([spec.prompt])
    level: int | None = None
    inverting = Inverting(backbone.levels, spec.solver)
    for timestep in ddim.inversion_timesteps(timesteps, spec.num_inversion_steps):
        latents = inverted(latents, level, timestep, spec.evaluations, text, backbone, inverting)
        finite(latents, "invert_frames", timestep, part)
        if timestep in timesteps:
            start = (timesteps.index(timestep), part.start, 0, 0, 0)
            yield Block("latents", start, latents[None].half().cpu().numpy())
        level = timestep
    yield from _checked(spec, part, frames, clean, latents.half().float(), timesteps, text, backbone)


def inverted(
    latents: Tensor, level: int | None, timestep: int, evaluations: int, text: Tensor, backbone: Backbone,
    inverting: Inverting | None = None,
) -> Tensor:  # fmt: skip
    """Latents (frame, c, h, w) taken from the noise of `level` to that of `timestep`, one step.

    Sampling's step back is predicted at the noisier end, which is not known yet. Plain DDIM puts the latents in hand in
    its place, with the timestep that is being stepped to (as diffusers' inverse scheduler does); each further
    evaluation puts in what the last one arrived at.
    """
    inverting = inverting or Inverting(backbone.levels, "ddim")
    noisier = latents
    for _ in range(evaluations):
        noise = predicted(noisier, timestep, text, backbone)
        noisier = inverting.step(latents, noisier, noise, level, timestep)
    inverting.arrived()
    return noisier


def sampled(
    latents: Tensor, timesteps: tuple[int, ...], text: Tensor, backbone: Backbone, solver: Solver = "ddim"
) -> Tensor:
    """Latents (frame, c, h, w) at the noisiest of `timesteps` denoised to the end, under `text` alone, unguided."""
    sampling = Sampling(backbone.levels, solver)
    for timestep, following in zip(timesteps, (*timesteps[1:], None), strict=True):
        latents = sampling.step(latents, predicted(latents, timestep, text, backbone), timestep, following)
    return latents


def predicted(latents: Tensor, timestep: int, text: Tensor, backbone: Backbone) -> Tensor:
    """Noise (frame, c, h, w) that the model sees in every frame on its own."""
    noise = torch.empty_like(latents)

    def do(some: slice) -> None:
        noise[some] = backbone.predict_noise(latents[some], timestep, text.expand(len(latents[some]), -1, -1))

    backbone.each_pass(len(latents), do)
    return noise


def _checked(
    spec: Spec, part: range, frames: Arrays, clean: Tensor, noisiest: Tensor, timesteps: tuple[int, ...], text: Tensor,
    backbone: Backbone,
) -> Blocks:  # fmt: skip
    """PSNR of the part's checked frames after the whole way there and back."""
    checked = checked_frames(frames["rgb"].shape[0])
    chosen = [frame - part.start for frame in checked if frame in part]
    if not chosen:
        return
    back = backbone.decode(sampled(noisiest[chosen], timesteps, text, backbone, spec.solver))
    source = np.stack([frames["rgb"][part.start + place] for place in chosen])
    start = (checked.index(part.start + chosen[0]),)
    yield Block("inversion_psnr", start, psnr(back, backbone.decode(clean[chosen])).numpy())
    yield Block("reconstruction_psnr", start, psnr(back, source).numpy())
