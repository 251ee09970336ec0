"""Decode → invert → extract → match: nothing here sees the edit prompt, so every prompt on a known video shares it.

So are the masks of a local edit and of its regions, where there are any.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stages import (
    control_frames,
    decode_frames,
    extract_tokens,
    find_masks,
    invert_ddpm,
    invert_frames,
    match_tokens,
    read_masks,
    segment_masks,
)
from stages.media.picture_folders import pictures_in, read_rgb
from store.artifact import Artifact
from store.schemas import Blocks

from .plan import Node
from .tasks import Along, Session, Step, counted

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Prepared:
    """What is known of a video before any edit; each is there when it is asked for."""

    frames: Step
    latents: Step
    tokens: Step
    field: Step
    controls: list[Step]  # per ControlNet its control images
    mask: Step | None
    regions: list[Step]  # masks, one per region of the edit
    noise: Step | None  # latents that the editor wants in the place of `latents`


@dataclass(frozen=True)
class Extracted:
    """Tokens as the source pass gives them, whose time is extraction's."""

    source: extract_tokens.SourcePass
    along: Along

    def read(self, step: int, frames: range) -> Mapping[str, Tensor]:
        """Layer → tokens (frame, token, channel) float16."""
        with self.along.working():
            return self.source.read(step, frames)


def prepare(session: Session) -> Prepared:
    """The four stages that an edit stands on."""
    plan = session.plan
    layers = tuple(layer.name for layer in plan.layout.layers)
    keep_tokens = plan.keeps_tokens

    def decode(part: range) -> Blocks:
        return counted(decode_frames.run(plan.decode.spec, part, video=plan.config.video), session.progress)

    def invert(part: range, frames: Artifact) -> Blocks:
        return invert_frames.run(
            plan.invert.spec, part, frames=frames, timesteps=plan.timesteps, backbone=session.backbone
        )

    def extract(part: range, latents: Artifact) -> Blocks:
        return extract_tokens.run(
            plan.extract.spec, part, latents=latents, timesteps=plan.timesteps, backbone=session.backbone,
            keep_tokens=keep_tokens,
        )  # fmt: skip

    def match(part: range, source: match_tokens.Tokens) -> Blocks:
        return match_tokens.run(
            plan.match.spec, part, tokens=source, frames=plan.frames, steps=len(plan.timesteps), layers=layers,
            injected_layers=plan.layout.injected_layers,
        )  # fmt: skip

    def match_stored(part: range, tokens: Artifact) -> Blocks:
        return match(part, match_tokens.StoredTokens(tokens, layers, plan.device, session.progress.advance))

    def match_as_extracted(part: range, put: Along, latents: Artifact) -> Blocks:
        source = extract_tokens.SourcePass(plan.extract.spec, latents, plan.timesteps, session.backbone, put)
        return match(part, Extracted(source, put))

    def control(node: Node) -> Step:
        def see(part: range, frames: Artifact) -> Blocks:
            annotator = plan.controls.annotators.get(node.key.hex)
            return counted(control_frames.run(node.spec, part, frames=frames, annotator=annotator), session.progress)

        def take(part: range) -> Blocks:
            place, spec = plan.controls.videos[node.key.hex], plan.decode.spec
            if place.is_dir():
                files = pictures_in(place)
                taken = (read_rgb(files[position], "--control-video") for position in plan.taken)
                read = (decode_frames.fitted(spec, rgb) for rgb in taken)
                pictures = control_frames.in_blocks(read, len(plan.taken))
            else:
                pictures = decode_frames.run(spec, part, video=place)
            given = control_frames.run_given(node.spec, part, pictures=pictures, frames=plan.frames)
            return counted(given, session.progress)

        return session.stage(node, take) if node.spec.detector == "given" else session.stage(node, see, frames=frames)

    frames = session.stage(plan.decode, decode)
    latents = session.stage(plan.invert, invert, prompts=(plan.config.source_prompt,), frames=frames)
    tokens = session.stage(plan.extract, extract, latents=latents)
    if keep_tokens:
        field = session.stage(plan.match, match_stored, tokens=tokens)
    else:  # all tokens would not fit the budget: they are matched one timestep at a time, and never touch the disk
        field = session.fused(plan.match, plan.extract, match_as_extracted, latents=latents)
    controls = {node.key.hex: control(node) for node in plan.controls.nodes}
    shown = [controls[node.key.hex] for node in plan.controls.shown]
    mask = None if plan.mask is None else _mask(session, plan.mask, plan.config.mask, frames, latents)
    known = {} if mask is None else {mask.node.key.hex: mask}
    for node in plan.regions.nodes:
        known[node.key.hex] = _mask(session, node, plan.regions.drawn.get(node.key.hex), frames, latents)
    regions = [known[node.key.hex] for node in plan.regions.masks]
    return Prepared(frames, latents, tokens, field, shown, mask, regions, _noise(session, latents))


def _mask(session: Session, node: Node, place: Path | None, frames: Step, latents: Step) -> Step:
    """A mask's artifact, drawn in `place` or found."""
    plan = session.plan

    def read(part: range, frames: Artifact) -> Blocks:
        assert place is not None, "a mask is read from somewhere"
        aspect = plan.video.width / plan.video.height
        count = frames["rgb"].shape[0]
        masks = read_masks.run(node.spec, part, frames=count, mask=place, aspect=aspect)
        return counted(plan.regions.named(node, masks), session.progress)

    def find(part: range, frames: Artifact, latents: Artifact) -> Blocks:
        masks = find_masks.run(
            node.spec, part, frames=frames, latents=latents, timesteps=plan.timesteps,
            trained=plan.layout.schedule.num_train_timesteps, backbone=session.backbone,
        )  # fmt: skip
        return plan.regions.named(node, masks)

    def segment(part: range, frames: Artifact) -> Blocks:
        assert plan.config.mask_model is not None, "a model finds it"
        masks = segment_masks.run(node.spec, part, frames=frames, folder=plan.config.mask_model, device=plan.device)
        return counted(masks, session.progress)

    if node.stage == "segment_masks":
        return session.stage(node, segment, frames=frames)
    if node.stage == "read_masks":
        return session.stage(node, read, frames=frames)
    return session.stage(node, find, prompts=(node.spec.prompt,), frames=frames, latents=latents)


def _noise(session: Session, latents: Step) -> Step | None:
    """The latents of an editor that has an inversion of its own; None for all others."""
    plan, node = session.plan, session.plan.noise
    if node is None:
        return None

    def invert(part: range, latents: Artifact) -> Blocks:
        return invert_ddpm.run(node.spec, part, latents=latents, timesteps=plan.timesteps, backbone=session.backbone)

    return session.stage(node, invert, prompts=(node.spec.prompt,), latents=latents)


def prepare_all(session: Session) -> list[Artifact]:
    """The four stages that an edit stands on, computed or found: nothing of the prompts."""
    prepared = prepare(session)
    return [prepared.frames(), prepared.latents(), prepared.field(), prepared.tokens()]
