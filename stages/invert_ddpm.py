"""Edit-friendly DDPM inversion: noisy latents drawn around x_0, and the noise that leads from each to the next.

Source: Huberman-Spiegelglas et al., arXiv 2304.06140, section 3.2 and algorithm 1: the x_t are independent draws of the
forward process, so they hold more of the picture than those of sampling would, and what a DDPM step from x_t must add
to arrive at x_{t−1} is kept. Sampled with that, every frame comes back exactly, whatever the number of steps.

Differs: draws of a timestep are the same for all frames, where the paper knows one picture: different noise would
flicker. What is kept is σ_t z_t, not z_t: at the clean end σ may be zero, and yet x_0 is met.
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
    """Source prompt (may be empty), steps of the edit, and the seed of the draws."""

    prompt: str = ""
    num_steps: int = Field(50, ge=1, le=1000)
    seed: int = Field(0, ge=0, lt=2**63)


def outputs(spec: Spec, *, latents: Schema, layout: ModelLayout) -> Schema:
    """Latents of every frame at every timestep of the edit, noisiest first; x_0; what each step adds."""
    count = latents.size("frame")
    assert count is not None
    shape = (layout.latent_channels, layout.latent_height, layout.latent_width)
    chunk = min(count, FRAMES_PER_PART)
    dims = ("timestep", "frame", "channel", "height", "width")
    every = {"dims": dims, "shape": (spec.num_steps, count, *shape), "chunks": (1, chunk, *shape), "finite": True}
    return Schema(
        artifact="noise",
        variables={
            "latents": Variable.model_validate(
                every | {"dtype": "float16", "description": "x_t, each drawn around x_0 on its own"}
            ),
            "noise": Variable.model_validate(
                every | {"dtype": "float32", "description": "σ_t z_t: what the step from x_t adds to its mean"}
            ),
            "clean_latents": Variable(
                dims=dims[1:],
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
def run(spec: Spec, part: range, *, latents: Arrays, timesteps: tuple[int, ...], backbone: Backbone) -> Blocks:
    """Draw the latents of the frames of `part`, and find what leads from each timestep to the next.

    latents   clean_latents (frame, channel, height, width) of invert_frames
    yields    clean_latents (frame, c, h, w) float16; latents float16, noise float32 (timestep, frame, c, h, w)
    raises    NonFiniteLatents, naming the timestep and the first bad frame
    """
    kept = latents["clean_latents"][part.start : part.stop]
    yield Block("clean_latents", (part.start, 0, 0, 0), kept)
    clean = backbone.to_device(kept).float()
    text = backbone.encode_text([spec.prompt])
    generator = torch.Generator().manual_seed(spec.seed)
    drawn = [torch.randn(clean.shape[1:], generator=generator) for _ in timesteps]
    for step, timestep in enumerate(timesteps):
        now = _drawn(clean, drawn[step], timestep, backbone)
        last = step + 1 == len(timesteps)
        following = None if last else timesteps[step + 1]
        target = clean if following is None else _drawn(clean, drawn[step + 1], following, backbone)
        prediction = torch.empty_like(now)

        def do(some: slice, now: torch.Tensor = now, timestep: int = timestep, out: torch.Tensor = prediction) -> None:
            out[some] = backbone.predict_noise(now[some], timestep, text.expand(len(now[some]), -1, -1))

        backbone.each_pass(len(now), do)
        noise = target - backbone.levels.ddpm_mean(now, prediction, timestep, following)
        finite(noise, "invert_ddpm", timestep, part)
        start = (step, part.start, 0, 0, 0)
        yield Block("latents", start, now[None].half().cpu().numpy())
        yield Block("noise", start, noise[None].cpu().numpy())


def _drawn(clean: torch.Tensor, noise: torch.Tensor, timestep: int, backbone: Backbone) -> torch.Tensor:
    """x_t (frame, channel, height, width) float32, rounded as it is kept: what a step adds is exact for these."""
    return ddim.noised(backbone.levels, clean, noise.to(clean.device), timestep).half().float()
