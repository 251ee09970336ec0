"""The edit of the support: every frame that is ever a keyframe, denoised from first to last step.

Source: TokenFlow (arXiv 2307.10373), section 4.1 and algorithm 1. Only frames that are drawn as keyframes at some step
can influence a keyframe, so the whole method runs on them alone; they can be looked at before the video is paid for.
"""

from __future__ import annotations

import torch

from store.schemas import Arrays, Block, Blocks, Schema, Variable

from .backbones import Backbone
from .backbones.layout import ModelLayout
from .diffusion.checks import finite
from .editing.denoising import Denoiser, EditSpec

VERSION = 1
Spec = EditSpec


def outputs(spec: Spec, *, field: Schema, layout: ModelLayout) -> Schema:
    """The support's latents at the start of every step, at the end, and as pictures."""
    support, timesteps = field.coordinates["support"], field.coordinates["timestep"]
    places, steps = len(support), len(timesteps)
    shape = (layout.latent_channels, layout.latent_height, layout.latent_width)
    size = (layout.latent_height * layout.multiple, layout.latent_width * layout.multiple)
    latents_dims = ("latent_channel", "latent_height", "latent_width")
    return Schema(
        artifact="keyframe edit",
        variables={
            "latents": Variable(
                dims=("timestep", "frame", *latents_dims),
                shape=(steps, places, *shape),
                dtype="float32",
                chunks=(1, places, *shape),
                description="latents at the start of each step; before the edit's first step, where it starts",
                finite=True,
            ),
            "clean_latents": Variable(
                dims=("frame", *latents_dims),
                shape=(places, *shape),
                dtype="float32",
                chunks=(places, *shape),
                description="edited latents",
                finite=True,
            ),
            "rgb": Variable(
                dims=("frame", "height", "width", "channel"),
                shape=(places, *size, 3),
                dtype="uint8",
                chunks=(min(places, 16), *size, 3),
                description="edited frames",
                compress=True,
            ),
        },
        coordinates={"timestep": timesteps, "frame": support},
    )


@torch.inference_mode()
def run(
    spec: Spec, part: range, *, latents: Arrays, tokens: Arrays, field: Arrays, timesteps: tuple[int, ...],
    backbone: Backbone,
) -> Blocks:  # fmt: skip
    """Denoise the support: at each step its keyframes jointly, the rest of it along the field.

    yields   latents (timestep, frame, c, h, w), clean_latents (frame, c, h, w), rgb (frame, height, width, 3) uint8
    raises   NonFiniteLatents, naming the timestep and the first bad frame
    """
    denoiser = Denoiser(spec, latents=latents, tokens=tokens, field=field, timesteps=timesteps, backbone=backbone)
    support = [int(frame) for frame in field["support"][:]]
    place = {frame: position for position, frame in enumerate(support)}
    now = denoiser.editor.first_latents(support).to(denoiser.text(0).device)
    for step in range(denoiser.steps.start):
        yield Block("latents", (step, 0, 0, 0, 0), now[None].cpu().numpy())
    for step in denoiser.steps:
        yield Block("latents", (step, 0, 0, 0, 0), now[None].cpu().numpy())
        keyframes = denoiser.keyframes(step)
        drawn = [place[frame] for frame in keyframes]
        rest = [position for position in range(len(support)) if position not in drawn]
        noise = torch.empty_like(now)
        noise[drawn], base_tokens = denoiser.joint(step, now[drawn])
        if rest:
            noise[rest] = denoiser.propagated(step, [support[position] for position in rest], now[rest], base_tokens)
        now = denoiser.step(step, now, noise)
        finite(now, "edit_keyframes", timesteps[step], support)
    yield Block("clean_latents", (0, 0, 0, 0), now.cpu().numpy())
    for first in range(0, len(support), 16):
        yield Block("rgb", (first, 0, 0, 0), backbone.decode(now[first : first + 16]))
