"""Edit keyframes → propagate and decode, once per prompt, over one prepared video."""

from __future__ import annotations

from typing import Any

from stages import edit_keyframes, propagate_tokens
from store.artifact import Artifact
from store.schemas import Blocks

from .plan import Node
from .prepare import Prepared, prepare
from .tasks import Along, Kept, Session, Step


def edit(session: Session) -> list[Artifact]:
    """The edited clips, one per prompt, and the source's frames beside them: everything a run was asked for."""
    prepared = prepare(session)
    _read_drawn(session, prepared)
    edits = [edit_one(session, prepared, *nodes) for nodes in session.plan.edits]
    prepared.frames()
    return [propagated() for _, propagated in edits]


def preview(session: Session) -> list[Artifact]:
    """The edited keyframes alone, one artifact per prompt: to look at before the video is paid for."""
    prepared = prepare(session)
    _read_drawn(session, prepared, preview=True)
    edits = [edit_one(session, prepared, *nodes) for nodes in session.plan.edits]
    prepared.frames()
    return [keyframes() for keyframes, _ in edits]


def edit_one(session: Session, prepared: Prepared, keyframe_node: Node, edit_node: Node) -> tuple[Step, Step]:
    """The two stages that see one prompt: its keyframes, and the whole clip; together where neither is there."""
    plan = session.plan
    # The field is asked for before the tokens: where they are not kept, matching writes the tokens' artifact as well.
    source: dict[str, Any] = {"field": prepared.field, "tokens": prepared.tokens}
    source["latents"] = prepared.noise or prepared.latents
    if prepared.mask is not None:
        source["mask"] = prepared.mask
    source |= {f"region_{number}": step for number, step in enumerate(prepared.regions)}
    source |= {f"control_{number}": step for number, step in enumerate(prepared.controls)}

    def keyframes(part: range, scratch: Kept, **inputs: Artifact) -> Blocks:
        return edit_keyframes.run(
            keyframe_node.spec, part, timesteps=plan.timesteps, backbone=session.backbone, scratch=scratch,
            **_gathered(inputs),
        )  # fmt: skip

    def propagate(part: range, scratch: Kept, **inputs: Artifact) -> Blocks:
        return propagate_tokens.run(
            edit_node.spec, part, edit=keyframe_node.spec, timesteps=plan.timesteps, backbone=session.backbone,
            scratch=scratch, decoder=session.decoder, cuts=plan.match.spec.cuts, **_gathered(inputs),
        )  # fmt: skip

    def together(part: range, put: Along, scratch: Kept, **inputs: Artifact) -> Blocks:
        return propagate_tokens.run_whole(
            edit_node.spec, part, edit=keyframe_node.spec, timesteps=plan.timesteps, backbone=session.backbone,
            put_keyframes=put, editing_keyframes=put.working, scratch=scratch, decoder=session.decoder,
            cuts=plan.match.spec.cuts, **_gathered(inputs),
        )  # fmt: skip

    prompts = (keyframe_node.spec.prompt, keyframe_node.spec.negative_prompt, *keyframe_node.spec.regions)
    keyframe_edit = session.stage(keyframe_node, keyframes, prompts=prompts, scratch=True, **source)
    # Where a preview has made the keyframes they are continued; else all frames are denoised at once, which runs every
    # joint pass once instead of twice.
    colours: dict[str, Any] = {"frames": prepared.frames} if edit_node.spec.match_colours else {}
    continued = session.stage(edit_node, propagate, scratch=True, keyframe_edit=keyframe_edit, **source, **colours)
    at_once = session.fused(edit_node, keyframe_node, together, prompts=prompts, scratch=True, **source)

    def propagated() -> Artifact:
        if session.engine.apart or edit_node.spec.finishes:
            keyframe_edit()  # its windows are done side by side, each from the keyframes or their pictures
        return continued() if session.find(keyframe_node) else at_once()

    return keyframe_edit, Step(session, edit_node, propagated)


def _read_drawn(session: Session, prepared: Prepared, *, preview: bool = False) -> None:
    """Read the drawn masks that are wanted, before the model does anything: one that cannot be used is refused now."""
    wanted = {node.key.hex for node in session.plan.to_compute(preview=preview)}
    for step in prepared.regions:
        if step.node.stage == "read_masks" and step.node.key.hex in wanted:
            step()


def _gathered(inputs: dict[str, Artifact]) -> dict[str, Any]:
    """The inputs of an edit by role, the control images of its ControlNets and the masks of its regions as lists."""
    gathered: dict[str, Any] = {"controls": [], "regions": []}
    for role, held in inputs.items():
        kind, _, number = role.rpartition("_")
        if number.isdigit():
            gathered[f"{kind}s"].append(held)
        else:
            gathered[role] = held
    return gathered
