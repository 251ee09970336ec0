"""The edit of every other frame: self-attention replaced by the keyframes' tokens, followed along the field.

Source: TokenFlow (arXiv 2307.10373), section 4.2, eq. 4 and algorithm 1. The keyframes' trajectory is known, so each
step's joint pass is repeated from it rather than its tokens stored (46 MB per keyframe and step at SD 512²).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch

from store.schemas import Arrays, Block, Blocks, Frozen, Schema, Variable

from .backbones import Backbone
from .backbones.layout import ModelLayout
from .diffusion.chunks import FRAMES_PER_BLOCK, blocks_of
from .editing.denoising import Denoiser, EditSpec, latents_block
from .editing.resuming import NOTHING_KEPT, Scratch

VERSION = 2


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
    spec: Spec, part: range, *, edit: EditSpec, latents: Arrays, tokens: Arrays, field: Arrays,
    timesteps: tuple[int, ...], backbone: Backbone, keyframe_edit: Arrays,
    scratch: Scratch = NOTHING_KEPT,
) -> Blocks:  # fmt: skip
    """Denoise all frames that are never keyframes, then decode the clip.

    edit     what the keyframe edit was asked for
    scratch  where the newest step is kept, and that of a run that was stopped is found
    yields   latents (frame, c, h, w) float32, rgb (frame, height, width, 3) uint8
    raises   NonFiniteLatents, naming the timestep and the first bad frame
    """
    support = [int(frame) for frame in keyframe_edit["frame"][:]]
    clip = range(latents["latents"].shape[1])
    # What is reused is kept per frame from step to step: then no frame may be left out.
    frames = [frame for frame in clip if edit.feature_reuse > 1 or frame not in set(support)]
    clean = torch.from_numpy(keyframe_edit["clean_latents"][:])
    if frames and len(support) < len(clip):
        denoiser = Denoiser(
            edit, frames, latents=latents, tokens=tokens, field=field, timesteps=timesteps, backbone=backbone
        )
        moments = denoiser.trajectory("propagate_tokens", keyframe_edit["latents"], scratch=scratch)
        [moment] = deque(moments, maxlen=1)
        rest = moment.edited.cpu()[[row for row, frame in enumerate(frames) if frame not in set(support)]]
        clean = torch.cat([clean, rest])
    order = [*support, *(frame for frame in clip if frame not in set(support))]
    position = {frame: row for row, frame in enumerate(order)}
    for block in blocks_of(len(clip)):
        chosen = clean[[position[frame] for frame in block]]
        rgb = np.empty((len(block), *keyframe_edit["rgb"].shape[1:]), np.uint8)
        known = [frame for frame in block if position[frame] < len(support)]
        other = [frame for frame in block if position[frame] >= len(support)]
        if known:
            first, last = position[known[0]], position[known[-1]]
            rgb[[frame - block.start for frame in known]] = keyframe_edit["rgb"][first : last + 1]
        if other:
            rgb[[frame - block.start for frame in other]] = backbone.decode(clean[[position[frame] for frame in other]])
        yield Block("latents", (block.start, 0, 0, 0), chosen.numpy())
        yield Block("rgb", (block.start, 0, 0, 0), rgb)


@torch.inference_mode()
def run_whole(
    spec: Spec, part: range, *, edit: EditSpec, latents: Arrays, tokens: Arrays, field: Arrays,
    timesteps: tuple[int, ...], backbone: Backbone, put_keyframes: Callable[[Block], None],
    editing_keyframes: Callable[[], AbstractContextManager[None]] = nullcontext, scratch: Scratch = NOTHING_KEPT,
) -> Blocks:  # fmt: skip
    """Like `run`, where the keyframe edit is not there yet: all frames at once, so that no joint pass is run twice.

    put_keyframes       takes the blocks of edit_keyframes' artifact
    editing_keyframes   entered for every joint pass
    """
    support = [int(frame) for frame in field["support"][:]]
    clip = range(latents["latents"].shape[1])
    denoiser = Denoiser(
        edit, clip, latents=latents, tokens=tokens, field=field, timesteps=timesteps, backbone=backbone,
        editing_keyframes=editing_keyframes,
    )  # fmt: skip
    for moment in denoiser.trajectory("propagate_tokens", followed=support, scratch=scratch):
        put_keyframes(latents_block(moment, timesteps))
    pictures: list[np.ndarray[Any, Any]] = []
    put = 0
    for block in blocks_of(len(clip)):
        chosen = moment.edited[block.start : block.stop].cpu()
        rgb = backbone.decode(chosen)
        yield Block("latents", (block.start, 0, 0, 0), chosen.numpy())
        yield Block("rgb", (block.start, 0, 0, 0), rgb)
        pictures += [rgb[frame - block.start] for frame in support if frame in block]
        while len(pictures) >= FRAMES_PER_BLOCK or (pictures and block.stop == len(clip)):
            put_keyframes(Block("rgb", (put, 0, 0, 0), np.stack(pictures[:FRAMES_PER_BLOCK])))
            put += len(pictures[:FRAMES_PER_BLOCK])
            del pictures[:FRAMES_PER_BLOCK]
