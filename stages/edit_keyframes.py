"""The edit of the support: every frame that is ever a keyframe, denoised from first to last step.

Source: TokenFlow (arXiv 2307.10373), section 4.1 and algorithm 1. Only frames that are drawn as keyframes at some step
can influence a keyframe, so the whole method runs on them alone; they can be looked at before the video is paid for.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from store.schemas import Arrays, Blocks, Schema, Variable

from .backbones import Backbone
from .backbones.layout import ModelLayout
from .editing.decoding import Decoding
from .editing.denoising import Denoiser, EditSpec, keyframe_pictures, latents_block
from .editing.resuming import NOTHING_KEPT, Scratch

VERSION = 2
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
    backbone: Backbone, scratch: Scratch = NOTHING_KEPT, controls: Sequence[Arrays] = (), mask: Arrays | None = None,
    regions: Sequence[Arrays] = (),
) -> Blocks:  # fmt: skip
    """Denoise the support: at each step its keyframes jointly, the rest of it along the field.

    mask     where it may be edited; everywhere without it
    regions  masks of the regions that have a prompt of their own
    scratch  where steps that are done are kept, and those of a run that was stopped are found
    controls control images of each ControlNet: rgb (frame, height, width, channel) uint8
    yields   latents (timestep, frame, c, h, w), clean_latents (frame, c, h, w), rgb (frame, height, width, 3) uint8
    raises   NonFiniteLatents, naming the timestep and the first bad frame
    """
    support = [int(frame) for frame in field["support"][:]]
    denoiser = Denoiser(
        spec, support, latents=latents, tokens=tokens, field=field, timesteps=timesteps, backbone=backbone,
        controls=controls, mask=mask, regions=regions,
    )  # fmt: skip
    for moment in denoiser.trajectory("edit_keyframes", followed=support, scratch=scratch):
        yield latents_block(moment, timesteps)
    decode = Decoding(backbone, latents, mask if spec.pictures_kept else None)
    yield from keyframe_pictures(support, moment.edited, decode)
