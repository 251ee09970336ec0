"""Masks from a word: where the source's pixels attend to it is what it names.

Source: Hertz et al., Prompt-to-Prompt, arXiv 2208.01626, section 3 and figure 4: the cross-attention of a word,
averaged over the decoder's layers of middling resolution and over timesteps, outlines what the word says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from store.errors import InputError
from store.schemas import Arrays, Block, Blocks, Frozen, Schema

from .backbones import Backbone
from .diffusion.attention import AttendedWords, cross_attention_layers
from .diffusion.chunks import blocks_of
from .diffusion.patching import patched
from .editing.masking import mask_schema, softened

VERSION = 1
NOISE_LEVELS = (0.2, 0.6)  # of the trained timesteps: noisier, the picture is not there yet; cleaner, no word matters
MOST_TIMESTEPS = 5
MOST_TOKENS = 32 * 32  # of a frame, in the layers that are read: finer ones see texture


class Spec(Frozen):
    """The words, the prompt they stand in, where the mask begins, the frames' size, and how wide the soft edge is.

    threshold   share of the largest attention in the clip; none: where Otsu's method parts object and ground
    """

    prompt: str
    words: str = Field(min_length=1)
    threshold: float | None = Field(None, gt=0, lt=1)
    width: int = Field(ge=1)
    height: int = Field(ge=1)
    feather: int = Field(8, ge=0, le=512)


def outputs(spec: Spec, *, frames: Schema) -> Schema:
    """A mask per frame."""
    return mask_schema(frames, spec.height, spec.width)


def steps_read(timesteps: Sequence[int], trained: int) -> list[int]:
    """Positions of the timesteps at which attention is read: at most five, evenly spread over the middling noise."""
    low, high = (share * trained for share in NOISE_LEVELS)
    middling = [step for step, timestep in enumerate(timesteps) if low <= timestep <= high]
    chosen = middling or [len(timesteps) // 2]
    count = min(MOST_TIMESTEPS, len(chosen))
    return [chosen[(2 * place + 1) * len(chosen) // (2 * count)] for place in range(count)]


@torch.inference_mode()
def run(
    spec: Spec, part: range, *, latents: Arrays, timesteps: tuple[int, ...], trained: int, backbone: Backbone
) -> Blocks:  # fmt: skip
    """Read the source's attention to the words, and part the frames by it.

    latents   latents (timestep, frame, channel, height, width)
    trained   timesteps that the model was trained on
    yields    mask (frame, height, width) uint8
    raises    InputError where the prompt does not hold the words
    """
    assert part == range(1), "where the mask begins is one number for the whole clip"
    places = backbone.word_places(spec.prompt, spec.words)
    if not places:
        raise InputError(
            f"--mask-from: the source prompt {spec.prompt!r} does not hold {spec.words!r}; name a word of it, or say "
            "with --source-prompt what the video shows"
        )
    text = backbone.encode_text([spec.prompt])
    steps, blocks = steps_read(timesteps, trained), blocks_of(latents["latents"].shape[1])
    heat = np.concatenate([_heat(latents, frames, steps, timesteps, places, text, backbone) for frames in blocks])
    grey = np.clip(255 * heat / heat.max(), 0, 255).astype(np.uint8)
    begins = 255 * spec.threshold if spec.threshold else cv2.threshold(grey.reshape(-1, 1), 0, 255, cv2.THRESH_OTSU)[0]
    for frames in blocks:
        yield Block("mask", (frames.start, 0, 0), np.stack([_mask(spec, grey[frame], begins) for frame in frames]))


def _heat(
    latents: Arrays, frames: range, steps: Sequence[int], timesteps: tuple[int, ...], places: list[int], text: Tensor,
    backbone: Backbone,
) -> np.ndarray[Any, Any]:  # fmt: skip
    """Attention to the words (frame, height, width) float32, averaged over steps and layers, in latent pixels."""
    height, width = latents["latents"].shape[-2:]
    unet, layers = backbone.unet, _layers(backbone, (height, width))
    total: Tensor | None = None
    for step in steps:
        noisy = backbone.to_device(latents["latents"][step, frames.start : frames.stop])
        pieces: list[Tensor] = []

        def do(some: slice, step: int = step, noisy: Tensor = noisy, pieces: list[Tensor] = pieces) -> None:
            readers = {name: AttendedWords(unet.get_submodule(name).processor, places) for name in layers}
            with patched(unet, readers):
                backbone.predict_noise(noisy[some], timesteps[step], text.expand(len(noisy[some]), -1, -1))
            maps = [_as_picture(readers[name].taken(), grid, (height, width)) for name, grid in layers.items()]
            pieces.append(torch.stack(maps).mean(0))

        backbone.each_pass(len(noisy), do)
        own = torch.cat(pieces)
        total = own if total is None else total + own
    assert total is not None, "there is always one step to read"
    return (total / len(steps)).cpu().numpy()


def _layers(backbone: Backbone, size: tuple[int, int]) -> Mapping[str, tuple[int, int]]:
    """The decoder's cross-attention layers of the largest grid that is not too fine, and of half of it: their grids."""
    grids = cross_attention_layers(backbone.unet, size)
    decoder = {name: grid for name, grid in grids.items() if name.startswith("up_blocks.")}
    fitting = {name: grid for name, grid in decoder.items() if grid[0] * grid[1] <= MOST_TOKENS} or decoder
    largest = max(grid[0] * grid[1] for grid in fitting.values())
    return {name: grid for name, grid in fitting.items() if 5 * grid[0] * grid[1] >= largest}


def _as_picture(attended: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Attention (frame, token) float32 of one layer as pictures (frame, height, width)."""
    return F.interpolate(attended.unflatten(1, grid)[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def _mask(spec: Spec, grey: np.ndarray[Any, Any], begins: float) -> np.ndarray[Any, Any]:
    large = cv2.resize(grey, (spec.width, spec.height), interpolation=cv2.INTER_LINEAR)
    return softened(np.where(large > begins, 255, 0).astype(np.uint8), spec.feather)
