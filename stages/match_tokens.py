"""The nearest-neighbour field γ: which token of its keyframes each token of each frame is, from the source alone.

Source: TokenFlow (arXiv 2307.10373), section 4.2, eq. 3. Depends on the keyframe schedule, never on an edit prompt.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Annotated, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from store.errors import InputError
from store.schemas import Arrays, Block, Blocks, Frozen, Schema, Variable

from .backbones.layout import ModelLayout
from .diffusion import keyframes as schedule
from .diffusion.choices import Blend
from .diffusion.chunks import blocks_of, frames_per_chunk
from .diffusion.matching import nearest_tokens, normalized

VERSION = 1
TIMESTEPS_PER_PART = 5
WHOLE_PART_BYTES = 1 << 19  # to write a file takes 1 to 2 ms; to unpack this much at each of its timesteps, less


FirstFrame = Annotated[int, Field(ge=1)]


class Spec(Frozen):
    """The keyframe schedule and the blend: everything about time that an edit follows.

    cuts              frames of the clip at which a new shot begins, ascending
    interval_starts   frames at which an interval begins, where it is not every `keyframe_interval` frames of a shot
    """

    left_out: ClassVar[frozenset[str]] = frozenset({"cuts", "interval_starts"})

    keyframe_interval: int = Field(8, ge=1, le=64)
    keyframe_offsets: int = Field(2, ge=1, le=64)
    blend: Blend = "linear"
    seed: int = Field(0, ge=0, lt=2**63)
    cuts: tuple[FirstFrame, ...] = ()
    interval_starts: tuple[FirstFrame, ...] = ()

    def intervals(self, frames: int) -> list[range]:
        """The frames of a clip of so many in pieces, each of which has one keyframe."""
        return schedule.intervals(frames, self.keyframe_interval, self.cuts, self.interval_starts)


def outputs(spec: Spec, *, latents: Schema, layout: ModelLayout) -> Schema:
    """Per layer index and similarity; the schedule; and the source tokens that PnP takes q and k from.

    The coordinate `support` names every frame that may be drawn as a keyframe.
    """
    steps, count = latents.size("timestep"), latents.size("frame")
    assert steps is not None and count is not None
    pieces = spec.intervals(count)
    drawn, support = len(pieces), schedule.support(pieces, spec.keyframe_offsets)
    variables = {
        "keyframes": Variable(
            dims=("timestep", "keyframe"), shape=(steps, drawn), dtype="int32",
            chunks=chunks(steps, drawn, 4), ge=0, le=count - 1,
            description="frames drawn as keyframes at each timestep",
        ),
        "neighbour": Variable(
            dims=("timestep", "frame", "side"), shape=(steps, count, 2), dtype="int32",
            chunks=(*chunks(steps, count, 8), 2), ge=0, le=drawn - 1,
            description="position among the keyframes of the one at or before, and of the one at or after, each frame",
        ),
        "weights": Variable(
            dims=("timestep", "frame", "side"), shape=(steps, count, 2), dtype="float32",
            chunks=(*chunks(steps, count, 8), 2), ge=0, le=1, sums_to_one="side", finite=True,
            description="how much of a frame comes from each of its keyframes",
        ),
    }  # fmt: skip
    for layer in layout.layers:
        token = f"token_{layer.tokens}"
        if layer.tokens > np.iinfo(np.uint16).max + 1:
            raise InputError(
                f"frames of this size have {layer.tokens} tokens in {layer.name}, more than the 65536 that a field "
                "can name; choose a smaller --size"
            )
        shared = {
            "dims": ("timestep", "frame", "side", token),
            "shape": (steps, count, 2, layer.tokens),
            "chunks": (*chunks(steps, count, 2 * layer.tokens * 2), 2, layer.tokens),
            "compress": True,
        }
        variables[f"index.{layer.name}"] = Variable.model_validate(
            shared
            | {"dtype": "uint16", "le": layer.tokens - 1, "description": "the keyframe's token with the largest cosine"}
        )
        variables[f"similarity.{layer.name}"] = Variable.model_validate(
            shared | {"dtype": "float16", "ge": -1.01, "le": 1.01, "finite": True, "description": "that cosine"}
        )
        if layer.name in layout.injected_layers:
            variables[f"source.{layer.name}"] = Variable(
                dims=("timestep", "keyframe", token, f"channel_{layer.channels}"),
                shape=(steps, drawn, layer.tokens, layer.channels),
                dtype="float16",
                chunks=(*chunks(steps, drawn, layer.tokens * layer.channels * 2), layer.tokens, layer.channels),
                description="source tokens at the keyframes: PnP's q and k are projections of them",
                finite=True,
            )
    return Schema(
        artifact="field",
        variables=variables,
        coordinates={
            "support": tuple(int(frame) for frame in support),
            "timestep": latents.coordinates["timestep"],
        },
        attrs={"sides": ["previous keyframe", "next keyframe"]},
        parts=("timestep", TIMESTEPS_PER_PART),
    )


def drawn_keyframes(spec: Spec, frames: int, steps: int) -> NDArray[np.int32]:
    """The frames that are keyframes at each step (timestep, keyframe): known before anything runs."""
    return schedule.drawn_keyframes(spec.intervals(frames), spec.keyframe_offsets, steps, spec.seed)


def chunks(steps: int, count: int, row_bytes: int) -> tuple[int, int]:
    """Timesteps and rows (frames or keyframes) per chunk: a whole part where it is small, else rows of one timestep.

    A part that is one chunk is held until its last timestep is there, so it has to be small; so has a chunk of rows,
    since an edit unpacks all of it for a few.
    """
    if is_whole(count, row_bytes):
        return min(steps, TIMESTEPS_PER_PART), count
    return 1, rows_per_chunk(count, row_bytes)


def rows_per_chunk(count: int, row_bytes: int) -> int:
    """A power of two, at least what `frames_per_chunk` gives, so that blocks of 16 frames fill whole chunks."""
    fitting = max(1, WHOLE_PART_BYTES // row_bytes)
    return min(count, max(frames_per_chunk(count, row_bytes), 1 << (fitting.bit_length() - 1)))


def is_whole(count: int, row_bytes: int) -> bool:
    """Whether all rows of a part's timesteps are one chunk."""
    return TIMESTEPS_PER_PART * count * row_bytes <= WHOLE_PART_BYTES


class Tokens(Protocol):
    """Where tokens come from: an artifact, or a source pass that is run as they are needed."""

    def read(self, step: int, frames: range) -> Mapping[str, Tensor]:
        """Layer → tokens (frame, token, channel) float16."""


@dataclass
class StoredTokens:
    """Tokens read from an artifact of extract_tokens."""

    tokens: Arrays
    layers: tuple[str, ...]
    device: str
    on_read: Callable[[int], None] = lambda frames: None  # told how many frames were read

    def read(self, step: int, frames: range) -> dict[str, Tensor]:
        """Layer → tokens (frame, token, channel) float16 on the device."""
        self.on_read(len(frames))
        stored = {name: self.tokens[f"tokens.{name}"][step, frames.start : frames.stop] for name in self.layers}
        return {name: torch.from_numpy(values).to(self.device) for name, values in stored.items()}


@torch.inference_mode()
def run(
    spec: Spec, part: range, *, tokens: Tokens, frames: int, steps: int, layers: tuple[str, ...],
    injected_layers: tuple[str, ...],
) -> Blocks:  # fmt: skip
    """Match every frame with its keyframes at the steps of `part`, walking over the clip once per step.

    tokens    read in blocks of 16 frames, each once; what is held is bounded by two keyframe intervals
    yields    keyframes, neighbour, weights, index.<layer>, similarity.<layer>, source.<layer>
    """
    drawn = drawn_keyframes(spec, frames, steps)

    def blocks(step: int) -> Blocks:
        keyframes = drawn[step]
        yield Block("keyframes", (step, 0), keyframes[None])
        yield Block("neighbour", (step, 0, 0), schedule.neighbours(frames, keyframes, spec.cuts)[None])
        weights = schedule.blend_weights(frames, keyframes, spec.blend, spec.cuts)
        yield Block("weights", (step, 0, 0), weights[None])
        matchers = {name: Matcher(frames, keyframes.tolist(), name in injected_layers, spec.cuts) for name in layers}
        for block in blocks_of(frames):
            for name, values in tokens.read(step, block).items():
                matchers[name].take(block, values)
                yield from matchers[name].finished(step, name)

    held: dict[str, list[Block]] = {}  # of variables whose part is one chunk
    for step in part:
        for block in blocks(step):
            count = drawn.shape[1] if block.variable.startswith(("keyframes", "source.")) else frames
            if is_whole(count, prod(block.values.shape[2:]) * block.values.itemsize):
                held.setdefault(block.variable, []).append(block)
            else:
                yield block
    for variable, pieces in held.items():
        values = [np.concatenate([piece.values for piece in pieces if piece.start[0] == n], axis=1) for n in part]
        yield Block(variable, (part.start, *pieces[0].start[1:]), np.concatenate(values))


class Matcher:
    """One layer at one step: takes the clip block by block, and matches a frame once its keyframes are known.

    What is finished leaves in whole chunks of the artifact, so what is held does not grow with the clip.
    """

    def __init__(self, frames: int, keyframes: list[int], keep_source: bool, cuts: Sequence[int] = ()) -> None:
        self.frames, self.keyframes, self.keep_source = frames, keyframes, keep_source
        # Keyframes and cuts to come; where both are one frame, a shot ends before the next one's keyframe is met.
        self.events = deque(sorted([*((at, False) for at in cuts), *((at, True) for at in keyframes)]))
        self.source: list[Tensor] = []  # tokens of keyframes that have not left yet, as they came
        self.sources_left = 0
        self.held: Tensor | None = None  # unit tokens of the last keyframe seen (1, token, channel)
        self.waiting: list[tuple[range, Tensor]] = []  # frames since then, until the next keyframe comes
        self.index: Tensor | None = None  # (frame, side, token) of those that have not left yet
        self.similarity: Tensor | None = None
        self.left = 0  # frames that have
        self.known = 0  # frames whose matches are final

    def take(self, block: range, values: Tensor) -> None:
        """Tokens (frame, token, channel) of the next frames in order."""
        shape = (len(block), 2, values.shape[1])
        self.index = _grown(self.index, values.new_zeros(shape, dtype=torch.int32))
        self.similarity = _grown(self.similarity, values.new_ones(shape, dtype=torch.float32))
        units = normalized(values)
        start = block.start
        while self.events and self.events[0][0] < block.stop:
            frame, is_keyframe = self.events.popleft()
            self._wait(range(start, frame), units[start - block.start : frame - block.start])
            start = frame
            if not is_keyframe:
                self._end_shot(frame)
                continue
            self._meet(frame, units[frame - block.start][None])
            if self.keep_source:
                self.source.append(values[frame - block.start].clone())
            start = frame + 1
        self._wait(range(start, block.stop), units[start - block.start :])
        if block.stop == self.frames:
            self._end_shot(self.frames)

    def finished(self, step: int, layer: str) -> Blocks:
        """Whole chunks: index uint16, similarity float16 (frame, side, token), source (keyframe, token, channel)."""
        while self.left < self.known:
            assert self.index is not None and self.similarity is not None
            chunk = rows_per_chunk(self.frames, 2 * self.index.shape[-1] * 2)
            stop = min(self.left + chunk, self.frames)
            if stop > self.known:
                break
            index, similarity = self._rows(range(self.left, stop))
            yield Block(f"index.{layer}", (step, self.left, 0, 0), index[None].cpu().numpy().astype(np.uint16))
            yield Block(f"similarity.{layer}", (step, self.left, 0, 0), similarity[None].half().cpu().numpy())
            self.index, self.similarity = self.index[len(index) :], self.similarity[len(index) :]
            self.left = stop
        while self.source:
            drawn = len(self.keyframes)
            going_sources = min(rows_per_chunk(drawn, self.source[0].numel() * 2), drawn - self.sources_left)
            if len(self.source) < going_sources:
                return
            values = torch.stack(self.source[:going_sources])[None].cpu().numpy()
            yield Block(f"source.{layer}", (step, self.sources_left, 0, 0), values)
            self.sources_left += going_sources
            del self.source[:going_sources]

    def _end_shot(self, stop: int) -> None:
        """Frames after the last keyframe of a shot, which ends before `stop`, have that one only."""
        for frames, _ in self.waiting:
            self._copy(frames, from_side=0)
        self.waiting.clear()
        self.held, self.known = None, stop

    def _wait(self, frames: range, units: Tensor) -> None:
        if len(frames):
            if self.held is not None:
                self._match(frames, units, self.held, side=0)
            self.waiting.append((frames, units))

    def _meet(self, keyframe: int, unit: Tensor) -> None:
        first = self.held is None
        for frames, units in self.waiting:
            self._match(frames, units, unit, side=1)
            if first:
                self._copy(frames, from_side=1)
        self.waiting.clear()
        self.held = unit.clone()  # alone: a view would keep its whole block
        # A keyframe's tokens are their own nearest tokens (cosine 1): nothing to compute, and no tie to lose.
        self._rows(range(keyframe, keyframe + 1))[0][:] = torch.arange(unit.shape[1], device=unit.device)
        self.known = keyframe + 1

    def _match(self, frames: range, units: Tensor, keys: Tensor, side: int) -> None:
        for held, values in zip(self._rows(frames), nearest_tokens(units, keys), strict=True):
            held[:, side] = values

    def _copy(self, frames: range, from_side: int) -> None:
        for held in self._rows(frames):
            held[:, 1 - from_side] = held[:, from_side]

    def _rows(self, frames: range) -> tuple[Tensor, Tensor]:
        """Index and similarity (frame, side, token) of frames that have not left, to be written into."""
        assert self.index is not None and self.similarity is not None
        some = slice(frames.start - self.left, frames.stop - self.left)
        return self.index[some], self.similarity[some]


def _grown(held: Tensor | None, more: Tensor) -> Tensor:
    return more if held is None or not len(held) else torch.cat([held, more])
