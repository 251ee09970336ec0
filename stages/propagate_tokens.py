"""The edit of every other frame: self-attention replaced by the keyframes' tokens, followed along the field.

Source: TokenFlow (arXiv 2307.10373), section 4.2, eq. 4 and algorithm 1. The keyframes' trajectory is known, so each
step's joint pass is repeated from it rather than its tokens stored (46 MB per keyframe and step at SD 512²).
"""

from __future__ import annotations

import torch

from store.schemas import Arrays, Block, Blocks, Frozen, Schema, Variable

from .backbones import Backbone
from .backbones.layout import ModelLayout
from .diffusion.checks import finite
from .diffusion.chunks import blocks_of
from .editing.denoising import Denoiser, EditSpec

VERSION = 1


class Spec(Frozen):
    """Nothing of its own: the edit is named by the keyframe edit that it continues."""


def outputs(spec: Spec, *, frames: Schema, layout: ModelLayout) -> Schema:
    """Latents and pictures of the whole edited clip."""
    count = frames.size("frame")
    assert count is not None
    shape = (layout.latent_channels, layout.latent_height, layout.latent_width)
    size = (layout.latent_height * layout.multiple, layout.latent_width * layout.multiple)
    chunk = min(count, 16)
    return Schema(
        artifact="edit",
        variables={
            "latents": Variable(
                dims=("frame", "latent_channel", "latent_height", "latent_width"),
                shape=(count, *shape),
                dtype="float32",
                chunks=(chunk, *shape),
                description="edited latents",
                finite=True,
            ),
            "rgb": Variable(
                dims=("frame", "height", "width", "channel"),
                shape=(count, *size, 3),
                dtype="uint8",
                chunks=(chunk, *size, 3),
                description="edited frames",
                compress=True,
            ),
        },
    )


@torch.inference_mode()
def run(
    spec: Spec, part: range, *, edit: EditSpec, keyframe_edit: Arrays, latents: Arrays, tokens: Arrays, field: Arrays,
    timesteps: tuple[int, ...], backbone: Backbone,
) -> Blocks:  # fmt: skip
    """Denoise all frames that are never keyframes, then decode the clip.

    edit     what the keyframe edit was asked for
    yields   latents (frame, c, h, w) float32, rgb (frame, height, width, 3) uint8
    raises   NonFiniteLatents, naming the timestep and the first bad frame
    """
    support = [int(frame) for frame in keyframe_edit["frame"][:]]
    place = {frame: position for position, frame in enumerate(support)}
    rest = [frame for frame in range(latents["latents"].shape[1]) if frame not in place]
    clean = torch.from_numpy(keyframe_edit["clean_latents"][:])
    if rest:
        denoiser = Denoiser(edit, latents=latents, tokens=tokens, field=field, timesteps=timesteps, backbone=backbone)
        now = denoiser.editor.first_latents(rest).to(denoiser.text(0).device)
        for step in denoiser.steps:
            trajectory = backbone.to_device(keyframe_edit["latents"][step])
            keyframes = [place[frame] for frame in denoiser.keyframes(step)]
            _, base_tokens = denoiser.joint(step, trajectory[keyframes])
            now = denoiser.step(step, now, denoiser.propagated(step, rest, now, base_tokens))
            finite(now, "propagate_tokens", timesteps[step], rest)
        clean = torch.cat([clean, now.cpu()])
    position = {frame: row for row, frame in enumerate([*support, *rest])}
    for block in blocks_of(len(position)):
        chosen = clean[[position[frame] for frame in block]]
        yield Block("latents", (block.start, 0, 0, 0), chosen.numpy())
        yield Block("rgb", (block.start, 0, 0, 0), backbone.decode(chosen))
