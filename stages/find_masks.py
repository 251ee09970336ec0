"""Masks from a word: where the source's pixels attend to it is what it names.

Source: Hertz et al., Prompt-to-Prompt, arXiv 2208.01626, section 3 and figure 4: the cross-attention of a word,
averaged over the decoder's layers of middling resolution and over timesteps, outlines what the word says. Nguyen et
al., Dataset Diffusion, arXiv 2309.14303, section 3.3: self-attention times cross-attention is the object itself, since
parts of one thing attend to each other. He et al., Guided Image Filtering: the border is that of the frame's colours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from store.errors import InputError
from store.schemas import Arrays, Block, Blocks, Frozen, Schema, Variable

from .backbones import Backbone
from .diffusion.attention import AttendedWords, AveragedByAttention, cross_attention_layers
from .diffusion.chunks import blocks_of
from .diffusion.patching import patched
from .editing.masking import mask_schema, softened

VERSION = 3
WORD_LEVELS = (0.2, 0.6)  # of the trained timesteps: noisier, the picture is not there yet; cleaner, no word matters
LIKENESS_LEVELS = (0.02, 0.2)  # little noise: what is alike is seen best
MOST_WORD_TIMESTEPS, MOST_LIKENESS_TIMESTEPS = 5, 2
MOST_TOKENS = 32 * 32  # of a frame, in the layers that are read: finer ones see texture
GUIDE = 4  # pixels of the guiding picture to a token's side, and radius of the filter: a token and its neighbours
MOST_LOST = 4  # times larger that the coarse mask may be than the guided one
NAMES_NOTHING = 0.33  # variation of attention to words that are not there: `python -m benchmarks.masks --words`
FLAT = 1e-3  # variance of colours (0 to 1) below which the guiding picture has no border

Reader = Callable[[str, slice], Any]
"""layer, frames of the block → the processor that reads it."""


class Spec(Frozen):
    """The words, the prompt they stand in, where the mask begins, the frames' size, and how wide the soft edge is.

    threshold   share of the way from the least attention in the clip to the largest; none: where Otsu's method parts
                object and ground
    """

    prompt: str
    words: str = Field(min_length=1)
    threshold: float | None = Field(None, gt=0, lt=1)
    width: int = Field(ge=1)
    height: int = Field(ge=1)
    feather: int = Field(8, ge=0, le=512)


def outputs(spec: Spec, *, frames: Schema) -> Schema:
    """A mask per frame, and how unevenly the frame attends to the word."""
    schema = mask_schema(frames, spec.height, spec.width)
    count = schema.size("frame")
    assert count is not None
    variation = Variable(
        dims=("frame",), shape=(count,), dtype="float32", chunks=(count,), units="1",
        description="of attention to the word that varies most: deviation over mean",
    )  # fmt: skip
    return schema.model_copy(update={"variables": schema.variables | {"variation": variation}})


def steps_read(timesteps: Sequence[int], trained: int) -> tuple[list[int], list[int]]:
    """Positions of the timesteps at which attention to words, and among pixels, is read: evenly spread, few."""

    def within(levels: tuple[float, float], most: int, otherwise: int) -> list[int]:
        low, high = (share * trained for share in levels)
        chosen = [step for step, timestep in enumerate(timesteps) if low <= timestep <= high] or [otherwise]
        count = min(most, len(chosen))
        return [chosen[(2 * place + 1) * len(chosen) // (2 * count)] for place in range(count)]

    return (
        within(WORD_LEVELS, MOST_WORD_TIMESTEPS, len(timesteps) // 2),
        within(LIKENESS_LEVELS, MOST_LIKENESS_TIMESTEPS, len(timesteps) - 1),
    )


@torch.inference_mode()
def run(
    spec: Spec, part: range, *, frames: Arrays, latents: Arrays, timesteps: tuple[int, ...], trained: int,
    backbone: Backbone,
) -> Blocks:  # fmt: skip
    """Read the source's attention to the words, and part the frames by it.

    frames    rgb (frame, height, width, 3) uint8
    latents   latents (timestep, frame, channel, height, width)
    trained   timesteps that the model was trained on
    yields    mask (frame, height, width) uint8, variation (frame,) float32
    raises    InputError where the prompt does not hold the words
    """
    assert part == range(1), "where the mask begins is one number for the whole clip"
    places = backbone.word_places(spec.prompt, spec.words)
    if not places:
        raise InputError(
            f"--mask-from: the source prompt {spec.prompt!r} does not hold {spec.words!r}; name a word of it, or say "
            "with --source-prompt what the video shows"
        )
    source = _Source(latents, timesteps, backbone.encode_text([spec.prompt]), backbone)
    of_words, of_likes = steps_read(timesteps, trained)
    blocks = blocks_of(latents["latents"].shape[1])
    by_word = torch.cat([source.attended(block, of_words, places) for block in blocks])
    yield Block("variation", (0,), variation(by_word))
    attended = _clip([by_word.sum(1)])
    heat = _clip([source.averaged(block, of_likes, attended[block.start : block.stop]) for block in blocks])
    grey = (255 * heat).astype(np.uint8)
    otsu = cv2.threshold(grey.reshape(-1, 1), 0, 255, cv2.THRESH_OTSU)[0]
    begins = spec.threshold if spec.threshold else otsu / 255
    for block in blocks:
        pictures = frames["rgb"][block.start : block.stop]
        masks = [parted(picture, heat[frame], begins) for picture, frame in zip(pictures, block, strict=True)]
        yield Block("mask", (block.start, 0, 0), np.stack([softened(mask, spec.feather) for mask in masks]))


def variation(attended: Tensor) -> NDArray[np.float32]:
    """Deviation over mean of the attention in each frame (frame,), of the word that has most of it in the clip.

    attended   shares (frame, word, height, width). A phrase has one word that stands for the thing, its last mostly;
               attention to the others is nearly the same all over
    """
    flat = attended.flatten(2)
    each = flat.std(-1, correction=0) / flat.mean(-1)
    most: NDArray[np.float32] = each[:, each.mean(0).argmax()].cpu().numpy()
    return most


def parted(picture: NDArray[np.uint8], heat: NDArray[np.float32], begins: float) -> NDArray[np.uint8]:
    """255 where the attention (row, column) to a frame (height, width, 3) is more than `begins`, else 0.

    A spot that is too small for the filter, and has no colour of its own, is left as coarse as attention has it.
    """
    fine, plain = guided_by(picture, heat) > begins, cv2.resize(heat, picture.shape[1::-1]) > begins
    lost = MOST_LOST * fine.sum() < plain.sum()
    return np.where(plain if lost else fine, 255, 0).astype(np.uint8)


def _clip(blocks: Sequence[Tensor]) -> NDArray[np.float32]:
    """Maps (frame, height, width) of a clip's blocks, its least value 0 and its largest 1."""
    whole: NDArray[np.float32] = torch.cat(list(blocks)).cpu().numpy()
    return (whole - whole.min()) / max(float(np.ptp(whole)), np.finfo(np.float32).tiny)


class _Source:
    """The source's attention at some timesteps, in float32 maps of the finest grid read."""

    def __init__(self, latents: Arrays, timesteps: Sequence[int], text: Tensor, backbone: Backbone) -> None:
        self.latents, self.timesteps, self.text, self.backbone = latents["latents"], timesteps, text, backbone
        height, width = self.latents.shape[-2:]
        self.layers = _layers(backbone, (height, width))
        self.grid = max(self.layers.values())

    def attended(self, block: range, steps: Sequence[int], places: list[int]) -> Tensor:
        """Attention to each word at `places`, averaged over steps and layers (frame, word, height, width)."""
        return self._read(block, steps, self.layers, lambda layer, _: AttendedWords(self._processor(layer), places))

    def averaged(self, block: range, steps: Sequence[int], maps: NDArray[np.float32]) -> Tensor:
        """Maps (frame, height, width) averaged over what each pixel attends to, beside the finest of the layers."""
        values = torch.from_numpy(maps).flatten(1).to(self.text.device)
        finest = {
            f"{layer.removesuffix('attn2')}attn1": grid for layer, grid in self.layers.items() if grid == self.grid
        }
        averaged = self._read(
            block, steps, finest, lambda layer, some: AveragedByAttention(self._processor(layer), values[some])
        )
        return averaged[:, 0]

    def _processor(self, layer: str) -> Any:
        return self.backbone.unet.get_submodule(layer).processor

    def _read(
        self, block: range, steps: Sequence[int], layers: Mapping[str, tuple[int, int]], reader: Reader
    ) -> Tensor:
        """What the readers of `layers` took, averaged over them and over steps."""
        unet, total = self.backbone.unet, torch.zeros(())
        for step in steps:
            noisy = self.backbone.to_device(self.latents[step, block.start : block.stop])
            pieces: list[Tensor] = []

            def do(some: slice, step: int = step, noisy: Tensor = noisy, pieces: list[Tensor] = pieces) -> None:
                readers = {layer: reader(layer, some) for layer in layers}
                with patched(unet, readers):
                    text = self.text.expand(len(noisy[some]), -1, -1)
                    self.backbone.predict_noise(noisy[some], self.timesteps[step], text)
                maps = [_as_picture(readers[layer].taken(), grid, self.grid) for layer, grid in layers.items()]
                pieces.append(torch.stack(maps).mean(0))

            self.backbone.each_pass(len(noisy), do)
            own = torch.cat(pieces)
            total = total.to(own.device) + own
        return total / len(steps)


def _layers(backbone: Backbone, size: tuple[int, int]) -> Mapping[str, tuple[int, int]]:
    """The decoder's cross-attention layers of the largest grid that is not too fine, and of half of it: their grids."""
    grids = cross_attention_layers(backbone.unet, size)
    decoder = {name: grid for name, grid in grids.items() if name.startswith("up_blocks.")}
    fitting = {name: grid for name, grid in decoder.items() if grid[0] * grid[1] <= MOST_TOKENS} or decoder
    largest = max(grid[0] * grid[1] for grid in fitting.values())
    return {name: grid for name, grid in fitting.items() if 5 * grid[0] * grid[1] >= largest}


def _as_picture(read: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """What was read of one layer (frame, token) or (frame, word, token) as pictures (frame, word, height, width)."""
    return F.interpolate(read.reshape(len(read), -1, *grid), size, mode="bilinear", align_corners=False)


def guided_by(picture: NDArray[np.uint8], values: NDArray[np.float32]) -> NDArray[np.float32]:
    """A coarse map (row, column) at the size of `picture` (height, width, 3), its borders where the picture has them.

    Around each pixel the map is a linear function of the colour, fitted on a smaller picture: He and Sun, Fast Guided
    Filter, arXiv 1505.00996, with equations 14 to 16 of Guided Image Filtering (TPAMI 2013) for colours.
    """
    height, width = picture.shape[:2]
    size = (GUIDE * values.shape[1], GUIDE * values.shape[0])
    colour = cv2.resize(picture, size, interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    coarse = cv2.resize(values, size, interpolation=cv2.INTER_LINEAR)
    around, mean = _mean(colour), _mean(coarse)
    products = np.stack([_mean(colour * colour[..., [channel]]) for channel in range(3)], axis=-1)
    variance = products - around[..., None] * around[..., None, :] + FLAT * np.eye(3, dtype=np.float32)
    covariance = _mean(colour * coarse[..., None]) - around * mean[..., None]
    slope = np.linalg.solve(variance, covariance[..., None])[..., 0]
    offset = mean - (slope * around).sum(-1)
    slopes, offsets = (cv2.resize(_mean(part), (width, height)) for part in (slope, offset))
    fitted: NDArray[np.float32] = (slopes * (picture.astype(np.float32) / 255)).sum(-1) + offsets
    return fitted


def _mean(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of the pixels around each one."""
    return cv2.blur(values, (2 * GUIDE + 1, 2 * GUIDE + 1), borderType=cv2.BORDER_REFLECT)
