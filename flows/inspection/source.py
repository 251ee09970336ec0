"""A clip under inspection: its artifacts, its tokens, and what the truth beside it says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor

from pocket.world import Scene
from stages.backbones.layout import Layer
from stages.diffusion.chunks import blocks_of
from stages.editing.swapping import ReadTokens
from stages.extract_tokens import SourcePass
from stages.match_tokens import StoredTokens
from stages.measures.correspondence import grid_of
from store.artifact import Artifact
from store.errors import InputError

from ..plan import Node, Plan
from ..prepare import Prepared, prepare
from ..runtime import check_device
from ..tasks import Progress, Quiet, Session
from ..truth import true_scenes

Say = Callable[[str], None]
Rgb = np.ndarray[Any, Any]


class Source:
    """One clip: what the store has of it is read, what is missing is computed, without an engine and said aloud.

    Tokens are read where they are kept, and else recomputed by a source pass over the frames that are asked for; they
    are never written.
    """

    def __init__(self, plan: Plan, say: Say, progress: Progress | None = None) -> None:
        self.plan, self.say = plan, say
        self.session = Session(plan, progress=progress or Quiet())
        self.prepared: Prepared = prepare(self.session)

    # what was asked for

    def layer(self, name: str | None) -> Layer:
        """The self-attention layer called `name`; without it the last of the decoder's with the most tokens."""
        layers = self.plan.layout.layers
        if name is None:
            decoder = [layer for layer in layers if layer.name.startswith("up_blocks.")] or list(layers)
            return max(reversed(decoder), key=lambda layer: layer.tokens)
        chosen = [layer for layer in layers if layer.name == name]
        if not chosen:
            have = ", ".join(layer.name for layer in layers)
            raise InputError(f"--layer {name!r} is no self-attention layer of this model; have {have}")
        return chosen[0]

    def step(self, timestep: int | None) -> int:
        """The position of a timestep among those visited; without one, of the cleanest: see docs/inspect.md."""
        visited = self.plan.timesteps
        if timestep is None:
            return len(visited) - 1
        if timestep not in visited:
            nearest = min(visited, key=lambda other: abs(other - timestep))
            raise InputError(
                f"--timestep {timestep} is not among those that {len(visited)} steps visit; the nearest is {nearest}"
            )
        return visited.index(timestep)

    def frame(self, number: int | None) -> int:
        """A frame of the clip; the middle one without a number."""
        if number is None:
            return self.count // 2
        if not 0 <= number < self.count:
            raise InputError(f"--from {number}: the clip has frames 0 to {self.count - 1}")
        return number

    def grid(self, layer: Layer) -> tuple[int, int]:
        """(height, width) of the layer's tokens."""
        return grid_of(layer.tokens, self.plan.layout.latent_height, self.plan.layout.latent_width)

    # what is known of it

    @property
    def count(self) -> int:
        """Frames of the clip, exactly: they are decoded if need be."""
        return int(self.frames["rgb"].shape[0])

    @cached_property
    def frames(self) -> Artifact:
        self._announce(self.plan.decode)
        return self.prepared.frames()

    @cached_property
    def latents(self) -> Artifact:
        self._announce(self.plan.decode, self.plan.invert)
        return self.prepared.latents()

    @cached_property
    def field(self) -> Artifact:
        self._announce(self.plan.decode, self.plan.invert, self.plan.extract, self.plan.match)
        return self.prepared.field()

    @cached_property
    def rgb(self) -> Rgb:
        """The decoded frames (frame, height, width, 3) uint8."""
        whole: Rgb = self.frames["rgb"][:]
        return whole

    @cached_property
    def keeps_tokens(self) -> bool:
        """Whether the tokens are in the store."""
        found = self.session.find(self.plan.extract)
        return bool(found and found.attrs["tokens_kept"])

    @cached_property
    def read_tokens(self) -> ReadTokens:
        """(step, frames) → layer → tokens (frame, token, channel), from the store or by a source pass."""
        plan = self.plan
        found = self.session.find(plan.extract)
        if found and self.keeps_tokens:
            return StoredTokens(found, tuple(layer.name for layer in plan.layout.layers), plan.device).read
        check_device(plan)
        latents = self.latents
        return SourcePass(
            plan.extract.spec, latents, plan.timesteps, self.session.backbone, put_feature=lambda block: None
        ).read

    def tokens(self, layer: Layer, step: int) -> Iterator[Tensor]:
        """Tokens (frame, token, channel) of one layer at one step, the clip in blocks."""
        return (self.read_tokens(step, block)[layer.name] for block in blocks_of(self.count))

    @cached_property
    def scenes(self) -> Scene | None:
        """A scene per decoded frame where the world rendered the clip; None where nobody knows, or for no squares."""
        return true_scenes(self.plan.config.video, self.plan.decode.spec.model_dump(), self.rgb.shape)

    # work

    @contextmanager
    def working(self, what: str, passes: int) -> Iterator[None]:
        """A bar over so many UNet passes of one frame, which are neither read from the store nor kept in it."""
        check_device(self.plan)
        self.say(f"{what}, which is not kept")
        self.session.progress.begin(replace(self.plan.invert, stage=what), passes)
        try:
            yield
        finally:
            self.session.progress.end()

    def _announce(self, *nodes: Node) -> None:
        """Say what is computed for the store, once it is sure that it can be."""
        missing = [node for node in nodes if not self.plan.find(node)]
        if not missing or self.plan.find(nodes[-1]):
            return
        check_device(self.plan)
        self.plan.store.check_writable()
        self.plan.store.check_space(sum(self.plan.needed_bytes(node) for node in missing))
        self.say(f"computing {', '.join(node.stage for node in missing)}, which the store keeps")
