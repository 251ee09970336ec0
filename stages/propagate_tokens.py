"""The edit of every other frame: self-attention replaced by the keyframes' tokens, followed along the field.

Source: TokenFlow (arXiv 2307.10373), section 4.2, eq. 4 and algorithm 1. The keyframes' trajectory is known, so each
step's joint pass is repeated from it rather than its tokens stored (46 MB per keyframe and step at SD 512²). So the
clip may be done in windows of frames, in any order and anywhere: each repeats the joint passes that its frames follow.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from store.schemas import Array, Arrays, Block, Blocks, Frozen, Schema, Variable

from .backbones import Backbone
from .backbones.decoders import Decoder, seen
from .backbones.layout import ModelLayout
from .diffusion.chunks import FRAMES_PER_BLOCK, blocks_of, frames_of
from .diffusion.keyframes import neighbours, shots
from .editing import passes
from .editing.decoding import Decoding, blended
from .editing.denoising import Denoiser, EditSpec, Picture, keyframe_pictures, latents_block
from .editing.finishing import Finish
from .editing.resuming import NOTHING_KEPT, Scratch
from .measures.correspondence import grid_of

VERSION = 2


class Spec(Frozen):
    """What is done to the decoded pictures: for the rest, the edit is named by the keyframe edit that it continues.

    deflicker       how far each patch of a picture is drawn to the colour that its keyframes have there
    match_colours   how far pictures are moved to the source's mean and deviation of each channel
    decoding        `decoders.VERSION` where another decoder is used
    """

    left_out: ClassVar[frozenset[str]] = frozenset({"deflicker", "match_colours", "decoding"})

    deflicker: float = Field(0.0, ge=0, le=1)
    match_colours: float = Field(0.0, ge=0, le=1)
    decoding: int = Field(0, ge=0)

    @property
    def finishes(self) -> bool:
        """Whether anything is done to the pictures: then those of the keyframes have to be there before."""
        return bool(self.deflicker or self.match_colours)


def outputs(spec: Spec, *, frames: Schema, layout: ModelLayout) -> Schema:
    """Latents and pictures of the whole edited clip, which may be done in windows."""
    count = frames.size("frame")
    assert count is not None
    shape = (layout.latent_channels, layout.latent_height, layout.latent_width)
    size = (layout.latent_height * layout.multiple, layout.latent_width * layout.multiple)
    chunk = min(count, FRAMES_PER_BLOCK)
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
        parts=("frame", passes.WINDOW_FRAMES),
    )


def frames_passed(
    part: range, frames: int, keyframes: NDArray[np.int32], support: Sequence[int], limit: int,
    cuts: Sequence[int] = (), border: int = 0,
) -> list[int]:  # fmt: skip
    """How many frames `run` puts through the UNet for `part` at each step where the whole of it is executed.

    frames      of the clip              keyframes   the drawn ones (timestep, keyframe)
    support     frames that are ever drawn           limit   keyframes that attend to each other
    cuts        frames at which a new shot begins
    border      of the decoder
    """
    known = set(support)
    others = [frame for frame in _denoised(part, frames, cuts, border) if frame not in known]

    def passed(step: int) -> int:
        found = passes.stretches(
            step, others, keyframes=keyframes[step], neighbours=neighbours(frames, keyframes[step], cuts),
            support=known, limit=limit, border=border,
        )  # fmt: skip
        return len(others) + sum(len(stretch.keyframes) for stretch in found)

    return [passed(step) for step in range(len(keyframes))]


@torch.inference_mode()
def run(
    spec: Spec, part: range, *, edit: EditSpec, latents: Arrays, tokens: Arrays, field: Arrays,
    timesteps: tuple[int, ...], backbone: Backbone, keyframe_edit: Arrays, frames: Arrays | None = None,
    scratch: Scratch = NOTHING_KEPT, controls: Sequence[Arrays] = (), mask: Arrays | None = None,
    decoder: Decoder | None = None, cuts: Sequence[int] = (), regions: Sequence[Arrays] = (),
) -> Blocks:  # fmt: skip
    """Denoise the frames of some windows that are never keyframes, then decode them.

    part     frames of one window, or of several that follow each other: then no joint pass is run twice for them
             (where a temporal decoder sees frames beyond them, those are denoised too)
    edit     what the keyframe edit was asked for
    frames   of decode_frames, where colours are matched to the source's
    scratch  where the newest step is kept, and that of a run that was stopped is found
    controls control images of each ControlNet: rgb (frame, height, width, channel) uint8
    mask     where it may be edited; everywhere without it
    decoder  decodes all frames in the place of the backbone's own, keyframes too
    cuts     frames at which a new shot begins: what decodes sees nothing across them
    regions  masks of the regions that have a prompt of their own
    yields   latents (frame, c, h, w) float32, rgb (frame, height, width, 3) uint8
    raises   NonFiniteLatents, naming the timestep and the first bad frame
    """
    support = [int(frame) for frame in keyframe_edit["frame"][:]]
    count, border = latents["clean_latents"].shape[0], decoder.border if decoder else 0
    denoised = _denoised(part, count, cuts, border)
    first, last = (bisect_left(support, frame) for frame in (denoised.start, denoised.stop))
    known = support[first:last]
    others = [frame for frame in denoised if frame not in set(known)]
    clean = torch.from_numpy(keyframe_edit["clean_latents"][first:last])
    if others:
        denoiser = Denoiser(
            edit, others, latents=latents, tokens=tokens, field=field, timesteps=timesteps, backbone=backbone,
            controls=controls, mask=mask, regions=regions, border=border,
        )  # fmt: skip
        name = f"frames_{part.start}_{part.stop}"
        moments = denoiser.trajectory("propagate_tokens", keyframe_edit["latents"], scratch=scratch, kept_as=name)
        [moment] = deque(moments, maxlen=1)
        clean = torch.cat([clean, moment.edited.cpu()])
    row = {frame: place for place, frame in enumerate([*known, *others])}
    edited = clean[[row[frame] for frame in denoised]]
    kept = mask if edit.pictures_kept else None
    if decoder is not None:
        yield from _decoded_anew(part, denoised, edited, decoder, shots(count, cuts), latents, kept)
        return
    decode = Decoding(backbone, latents, kept)
    blocks = _blocks(part, edited, set(known), _rows_between(keyframe_edit["rgb"], first, last), decode)
    if not spec.finishes:
        yield from blocks
        return
    finish = finish_of(
        spec, field=field, layers=[*backbone.layers], latent_size=(clean.shape[-2], clean.shape[-1]),
        keyframe_edit=keyframe_edit, frames=frames,
    )  # fmt: skip
    for block in blocks:
        if block.variable == "rgb":
            own = range(block.start[0], block.start[0] + len(block.values))
            block = Block("rgb", block.start, finish(own, block.values))
        yield block


@torch.inference_mode()
def run_whole(
    spec: Spec, part: range, *, edit: EditSpec, latents: Arrays, tokens: Arrays, field: Arrays,
    timesteps: tuple[int, ...], backbone: Backbone, put_keyframes: Callable[[Block], None],
    editing_keyframes: Callable[[], AbstractContextManager[None]] = nullcontext, scratch: Scratch = NOTHING_KEPT,
    controls: Sequence[Arrays] = (), mask: Arrays | None = None, decoder: Decoder | None = None,
    cuts: Sequence[int] = (), regions: Sequence[Arrays] = (),
) -> Blocks:  # fmt: skip
    """Like `run`, where the keyframe edit is not there yet: all frames at once, so that no joint pass is run twice.

    spec                one that does nothing to the pictures
    part                all frames of the clip
    put_keyframes       takes the blocks of edit_keyframes' artifact
    editing_keyframes   entered for every joint pass, and while keyframes are decoded
    """
    assert not spec.finishes, "pictures are finished by those of the keyframes, which are not there yet"
    support = [int(frame) for frame in field["support"][:]]
    denoiser = Denoiser(
        edit, part, latents=latents, tokens=tokens, field=field, timesteps=timesteps, backbone=backbone,
        editing_keyframes=editing_keyframes, controls=controls, mask=mask, regions=regions,
        border=decoder.border if decoder else 0,
    )  # fmt: skip
    for moment in denoiser.trajectory("propagate_tokens", followed=support, scratch=scratch):
        put_keyframes(latents_block(moment, timesteps))
    edited = moment.edited.cpu()
    kept = mask if edit.pictures_kept else None
    decode = Decoding(backbone, latents, kept)

    def pictures() -> Iterator[Picture]:
        for block in keyframe_pictures(support, edited[support], decode, editing_keyframes):
            put_keyframes(block)
            yield from block.values

    if decoder is not None:
        deque(pictures(), maxlen=0)  # the keyframes' artifact has them as the model itself shows them
        yield from _decoded_anew(part, part, edited, decoder, shots(len(part), cuts), latents, kept)
        return
    yield from _blocks(part, edited, set(support), pictures(), decode)


def finish_of(
    spec: Spec, *, field: Arrays, layers: Sequence[str], latent_size: tuple[int, int], keyframe_edit: Arrays,
    frames: Arrays | None,
) -> Finish:  # fmt: skip
    """What is done to decoded pictures, along the last of the finest layers: small patches, next to the picture."""
    index = max((field[f"index.{name}"] for name in reversed(layers)), key=lambda index: index.shape[-1])
    grid = grid_of(index.shape[-1], *latent_size)
    return Finish(spec, field=field, index=index, grid=grid, keyframe_edit=keyframe_edit, frames=frames)


def _rows_between(rgb: Array, first: int, last: int) -> Iterator[Picture]:
    """Pictures `first` up to `last`, each stored chunk read once."""
    for block in blocks_of(last):
        if block.stop > first:
            yield from rgb[max(first, block.start) : block.stop]


def _blocks(part: range, edited: Tensor, known: set[int], pictures: Iterator[Picture], decode: Decoding) -> Blocks:
    """The artifact's blocks for the frames of `part`, in their order.

    edited     latents (frame, c, h, w) of all of them
    known      those whose picture is the next of `pictures`; the others are decoded here, window by window
    """
    groups = passes.apart([frame for frame in part if frame not in known], ())
    others = (
        picture
        for group in groups
        for block in blocks_of(len(group))
        for frames in [group[block.start : block.stop]]
        for picture in decode(frames, edited[[frame - part.start for frame in frames]])
    )
    for block in blocks_of(len(part)):
        rgb = np.stack([next(pictures if part[place] in known else others) for place in block])
        first = part[block.start]
        yield Block("latents", (first, 0, 0, 0), edited[block.start : block.stop].numpy())
        yield Block("rgb", (first, 0, 0, 0), rgb)


def _denoised(part: range, frames: int, cuts: Sequence[int], border: int) -> range:
    """The frames that are denoised for `part`: with a temporal decoder also those beside it that it sees."""
    if not border:
        return part
    return passes.widened(part, seen(part, shots(frames, cuts)), border, frames)


def _decoded_anew(
    part: range, denoised: range, edited: Tensor, decoder: Decoder, shots: Sequence[range], latents: Arrays,
    mask: Arrays | None,
) -> Blocks:  # fmt: skip
    """The artifact's blocks for the frames of `part`, all of them decoded by `decoder`, outside of `mask` the source's.

    edited   latents (frame, c, h, w) of the frames `denoised`, all that a temporal decoder sees for those of `part`
    """
    pictures = decoder.pictures(edited, denoised.start, part, shots)
    if mask is not None:
        source = torch.from_numpy(frames_of(latents["clean_latents"], denoised)).float()
        of_source = decoder.pictures(source, denoised.start, part, shots)
    own = edited[part.start - denoised.start :]
    for block in blocks_of(len(part)):
        frames = part[block.start : block.stop]
        rgb = np.stack([next(pictures) for _ in block])
        if mask is not None:
            rgb = blended(rgb, np.stack([next(of_source) for _ in block]), frames_of(mask["mask"], frames))
        yield Block("latents", (frames.start, 0, 0, 0), own[block.start : block.stop].numpy())
        yield Block("rgb", (frames.start, 0, 0, 0), rgb)
