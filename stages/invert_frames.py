"""DDIM inversion: clean latents x_0 → noisy latents x_t, kept at the timesteps that editing will visit.

Source: Song et al., arXiv 2010.02502, eq. 12 run towards noise; TokenFlow (arXiv 2307.10373), pre-processing.
"""

from __future__ import annotations

import torch
from pydantic import Field

from store.schemas import Arrays, Block, Blocks, Frozen, Schema, Variable

from .backbones import Backbone
from .backbones.layout import ModelLayout
from .diffusion import ddim
from .diffusion.checks import finite

VERSION = 1
FRAMES_PER_PART = 16


class Spec(Frozen):
    """Source prompt (may be empty), edit steps (which timesteps are kept) and inversion steps (which are visited)."""

    prompt: str = ""
    num_steps: int = Field(50, ge=1, le=1000)
    num_inversion_steps: int = Field(50, ge=1, le=1000)


def outputs(spec: Spec, *, frames: Schema, layout: ModelLayout) -> Schema:
    """Latents of every frame at every timestep the edit visits, noisiest first, and x_0."""
    count = frames.size("frame")
    assert count is not None
    shape = (layout.latent_channels, layout.latent_height, layout.latent_width)
    chunk = min(count, FRAMES_PER_PART)
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
        },
        coordinates={"timestep": ddim.timesteps(layout.schedule, spec.num_steps)},
        parts=("frame", FRAMES_PER_PART),
    )


@torch.inference_mode()
def run(spec: Spec, part: range, *, frames: Arrays, timesteps: tuple[int, ...], backbone: Backbone) -> Blocks:
    """Invert every frame of `part` on its own, from low noise to high.

    frames      rgb (frame, height, width, channel) uint8
    timesteps   kept, noisiest first
    yields      clean_latents, latents: (timestep, frame, channel, height, width) float16
    raises      NonFiniteLatents, naming the timestep and the first bad frame
    """
    latents = backbone.encode(frames["rgb"][part.start : part.stop])
    finite(latents, "invert_frames", None, part)
    yield Block("clean_latents", (part.start, 0, 0, 0), latents.half().cpu().numpy())
    text = backbone.encode_text([spec.prompt])
    level: int | None = None
    for timestep in ddim.inversion_timesteps(timesteps, spec.num_inversion_steps):
        for some in backbone.passes(len(part)):
            # The prediction is made for the level that is being stepped to, as diffusers' inverse scheduler does.
            noise = backbone.predict_noise(latents[some], timestep, text.expand(latents[some].shape[0], -1, -1))
            latents[some] = backbone.levels.step(latents[some], noise, level, timestep)
        finite(latents, "invert_frames", timestep, part)
        if timestep in timesteps:
            start = (timesteps.index(timestep), part.start, 0, 0, 0)
            yield Block("latents", start, latents[None].half().cpu().numpy())
        level = timestep
