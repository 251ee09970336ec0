"""The whole method in memory: stages run one after another on dicts, with the settings that a test wants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import JsonValue

from stages import edit_keyframes, editors, extract_tokens, invert_ddpm, invert_frames, match_tokens, propagate_tokens
from stages.backbones.decoders import Decoder
from stages.backbones.layout import ModelLayout, layout, read_configs
from stages.backbones.stable_diffusion import Runtime, StableDiffusion
from stages.control_frames import canny
from stages.editing.resuming import NOTHING_KEPT, Scratch
from store.schemas import Block, Schema, Variable

from .memory import collect

Held = dict[str, np.ndarray[Any, Any]]
"""An artifact in memory: variable or coordinate → array."""


def moving_clip(frames: int, width: int = 40, height: int = 32, seed: int = 0) -> np.ndarray[Any, Any]:
    """rgb (frame, height, width, channel) uint8: a random blocky texture that slides two pixels a frame."""
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 4, width // 4 + frames, 3), dtype=np.uint8)
    texture = coarse.repeat(4, axis=0).repeat(4, axis=1)
    return np.stack([texture[:height, 2 * frame : 2 * frame + width] for frame in range(frames)])


def frames_schema(rgb: np.ndarray[Any, Any]) -> Schema:
    """What decode_frames would promise for this clip."""
    variable = Variable(dims=("frame", "height", "width", "channel"), shape=rgb.shape, dtype="uint8", chunks=rgb.shape)
    return Schema(artifact="frames", variables={"rgb": variable})


@dataclass(frozen=True)
class Prepared:
    """A clip with everything that is known of it before any edit."""

    backbone: StableDiffusion
    layout: ModelLayout
    rgb: np.ndarray[Any, Any]
    timesteps: tuple[int, ...]
    schemas: Mapping[str, Schema]
    latents: Held
    tokens: Held
    field: Held
    controls: Sequence[Held] = ()  # per ControlNet of the backbone its control images
    mask: Held | None = None  # where it may be edited; everywhere without it
    decoder: Decoder | None = None  # in the place of the backbone's own
    cuts: Sequence[int] = ()  # that it does not see across
    regions: Sequence[Held] = ()  # masks of the regions of an edit

    @property
    def frames(self) -> int:
        """Frames of the clip."""
        return len(self.rgb)

    def in_passes_of(self, frames_per_pass: int) -> Prepared:
        """The same, with a model that takes so many frames at once."""
        runtime = Runtime(frames_per_pass=frames_per_pass)
        return replace(self, backbone=StableDiffusion(self.backbone.pipeline, runtime, controls=self.backbone.controls))

    def controlled(self, *controls: Any) -> Prepared:
        """The same with ControlNets, which are shown edges, and the frames themselves, in turn."""
        backbone = StableDiffusion(self.backbone.pipeline, self.backbone.runtime, controls=controls)
        edges = np.stack([canny(frame, 100, 200) for frame in self.rgb])
        shown: list[Held] = [{"rgb": self.rgb if number % 2 else edges} for number in range(len(controls))]
        return replace(self, backbone=backbone, controls=shown)


def prepare(
    backbone: StableDiffusion, folder: Path, rgb: np.ndarray[Any, Any], *, prompt: str = "a source", steps: int = 5,
    inversion_steps: int | None = None, **schedule: Any,
) -> Prepared:  # fmt: skip
    """Invert, extract and match `rgb` with the model of `folder`; `schedule` goes into the Spec of match_tokens."""
    shapes = layout(read_configs(folder), width=rgb.shape[2], height=rgb.shape[1])
    spec = invert_frames.Spec(prompt=prompt, num_steps=steps, num_inversion_steps=inversion_steps or steps)
    inverted = invert_frames.outputs(spec, frames=frames_schema(rgb), layout=shapes)
    empty: Held = {}
    prepared = Prepared(
        backbone, shapes, rgb, inverted.coordinates["timestep"], {"latents": inverted}, empty, empty, empty
    )
    prepared = replace(prepared, latents=invert(prepared, spec))
    tokens = extract_tokens.outputs(
        extract_tokens.Spec(prompt=prompt), latents=inverted, layout=shapes, keep_tokens=True
    )
    prepared = replace(prepared, schemas={"latents": inverted, "tokens": tokens})
    prepared = replace(prepared, tokens=extract(prepared, prompt))
    return rematched(prepared, **schedule)


def invert(prepared: Prepared, spec: invert_frames.Spec) -> Held:
    """invert_frames on the clip."""
    return collect(
        prepared.schemas["latents"],
        lambda part: invert_frames.run(
            spec, part, frames={"rgb": prepared.rgb}, timesteps=prepared.timesteps, backbone=prepared.backbone
        ),
    )


def extract(prepared: Prepared, prompt: str = "a source") -> Held:
    """extract_tokens on the inverted clip."""
    return collect(
        prepared.schemas["tokens"],
        lambda part: extract_tokens.run(
            extract_tokens.Spec(prompt=prompt), part, latents=prepared.latents, timesteps=prepared.timesteps,
            backbone=prepared.backbone,
        ),
    )  # fmt: skip


def rematched(prepared: Prepared, source: match_tokens.Tokens | None = None, **schedule: Any) -> Prepared:
    """The same clip matched under another keyframe schedule, from its stored tokens or from another source of them."""
    spec = match_tokens.Spec(**({"keyframe_interval": 4, "keyframe_offsets": 2} | schedule))
    schema = match_tokens.outputs(spec, latents=prepared.schemas["latents"], layout=prepared.layout)
    names = tuple(prepared.backbone.layers)
    stored = source or match_tokens.StoredTokens(prepared.tokens, names, "cpu")
    field = collect(
        schema,
        lambda part: match_tokens.run(
            spec, part, tokens=stored, frames=prepared.frames, steps=len(prepared.timesteps), layers=names,
            injected_layers=tuple(prepared.backbone.injected_layers),
        ),
    )  # fmt: skip
    return replace(prepared, field=field, schemas={**prepared.schemas, "field": schema})


def edit_spec(
    prompt: str = "an edit", editor: str = "pnp", settings: dict[str, JsonValue] | None = None, **fields: Any
) -> edit_keyframes.Spec:
    """An edit's Spec with the editor chosen by name."""
    return edit_keyframes.Spec(prompt=prompt, editor=editors.choose(editor, settings or {}), **fields)


def latents_for(prepared: Prepared, spec: edit_keyframes.Spec) -> Held:
    """The latents that the edit's editor wants: its own inversion's, where it has one."""
    if editors.inversion(spec.editor.name) is None:
        return prepared.latents
    own = invert_ddpm.Spec(prompt="a source", num_steps=len(prepared.timesteps))
    return collect(
        invert_ddpm.outputs(own, latents=prepared.schemas["latents"], layout=prepared.layout),
        lambda part: invert_ddpm.run(
            own, part, latents=prepared.latents, timesteps=prepared.timesteps, backbone=prepared.backbone
        ),
    )


def edit_of_keyframes(prepared: Prepared, spec: edit_keyframes.Spec, scratch: Scratch = NOTHING_KEPT) -> Held:
    """edit_keyframes."""
    return collect(
        edit_keyframes.outputs(spec, field=prepared.schemas["field"], layout=prepared.layout),
        lambda part: edit_keyframes.run(
            spec, part, latents=latents_for(prepared, spec), tokens=prepared.tokens, field=prepared.field,
            timesteps=prepared.timesteps, backbone=prepared.backbone, scratch=scratch, controls=prepared.controls,
            mask=prepared.mask, regions=prepared.regions,
        ),
    )  # fmt: skip


def propagate(
    prepared: Prepared, spec: edit_keyframes.Spec, keyframe_edit: Held, scratch: Scratch = NOTHING_KEPT,
    parts: Sequence[range] | None = None,
) -> Held:  # fmt: skip
    """propagate_tokens: the clip continued in one piece, or in `parts`."""
    own = propagate_tokens.Spec()
    return collect(
        propagate_tokens.outputs(own, frames=frames_schema(prepared.rgb), layout=prepared.layout),
        lambda part: propagate_tokens.run(
            own, part, edit=spec, keyframe_edit=keyframe_edit, latents=latents_for(prepared, spec),
            tokens=prepared.tokens, field=prepared.field, timesteps=prepared.timesteps, backbone=prepared.backbone,
            scratch=scratch, controls=prepared.controls, mask=prepared.mask, decoder=prepared.decoder,
            cuts=prepared.cuts, regions=prepared.regions,
        ),
        [range(prepared.frames)] if parts is None else parts,
    )  # fmt: skip


def edit_at_once(prepared: Prepared, spec: edit_keyframes.Spec, scratch: Scratch = NOTHING_KEPT) -> tuple[Held, Held]:
    """Both editing stages' artifacts, keyframes' and clip's, made together."""
    own, blocks = propagate_tokens.Spec(), list[Block]()
    edited = collect(
        propagate_tokens.outputs(own, frames=frames_schema(prepared.rgb), layout=prepared.layout),
        lambda part: propagate_tokens.run_whole(
            own, part, edit=spec, latents=latents_for(prepared, spec), tokens=prepared.tokens, field=prepared.field,
            timesteps=prepared.timesteps, backbone=prepared.backbone, put_keyframes=blocks.append,
            scratch=scratch, controls=prepared.controls, mask=prepared.mask, decoder=prepared.decoder,
            cuts=prepared.cuts, regions=prepared.regions,
        ),
        [range(prepared.frames)],
    )  # fmt: skip
    keyframes = edit_keyframes.outputs(spec, field=prepared.schemas["field"], layout=prepared.layout)
    return collect(keyframes, lambda part: iter(blocks)), edited


def edit(prepared: Prepared, spec: edit_keyframes.Spec) -> Held:
    """Both editing stages: the whole edited clip."""
    return propagate(prepared, spec, edit_of_keyframes(prepared, spec))
