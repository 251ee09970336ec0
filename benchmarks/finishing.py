"""What deflickering and matching colours do to edits: each clip is edited once, and its pictures finished in each way.

    python -m benchmarks.finishing --store DIR [--clips 7] [-o benchmarks/results/finishing.json]

Clips and options are those of `benchmarks.placement`, every eight frames a keyframe. Measures are those of `tf eval`,
as differences from the unfinished edit clip by clip with their 95 % interval.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from benchmarks.placement import EDITS, OPTIONS, SETTINGS, clip_of
from flows.config import make_runtime
from flows.edit import edit, preview
from flows.measure import Known, edit_row
from flows.plan import Plan
from flows.suite import Suite
from flows.tasks import Session
from stages import propagate_tokens
from stages.diffusion.chunks import blocks_of
from stages.measures.optical_flow import choose
from stages.measures.statistics import interval, paired_difference
from store.store import Store

WAYS = {
    "plain": propagate_tokens.Spec(),
    "deflicker 0.5": propagate_tokens.Spec(deflicker=0.5),
    "deflicker 1": propagate_tokens.Spec(deflicker=1),
    "match colours 0.5": propagate_tokens.Spec(match_colours=0.5),
    "match colours 1": propagate_tokens.Spec(match_colours=1),
}


def rows_of(known: Known, edited: Any, prompt: str, source: dict[str, Any], layers: list[str]) -> list[dict[str, Any]]:
    """A row of measures for each of `WAYS`.

    edited   rgb (frame, height, width, 3) uint8 of the unfinished edit
    source   field, keyframe_edit, frames and latent_size, as `finish_of` takes them
    """
    found = []
    for name, spec in WAYS.items():
        rgb = edited
        if spec.finishes:
            finish = propagate_tokens.finish_of(spec, layers=layers, **source)
            rgb = np.concatenate([finish(block, edited[block.start : block.stop]) for block in blocks_of(len(edited))])
        found.append({"way": name, **edit_row(known, rgb, prompt)})
    return found


def compared(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Per measure the mean of the unfinished edits, and by how much each way differs, clip by clip."""
    said: dict[str, Any] = {}
    for name in EDITS:
        values = {way: np.array([row[name] for row in rows if row["way"] == way], float) for way in WAYS}
        said[name] = {"plain": round(interval(values["plain"])[0], 4)} | {
            way: [round(value, 4) for value in paired_difference(values[way], values["plain"])] for way in [*WAYS][1:]
        }
    return said


def main(
    store: Annotated[Path, typer.Option()],
    clips: int = 7,
    output: Annotated[Path | None, typer.Option("-o", "--output")] = None,
) -> None:
    """Edit every clip, finish it in every way, print the comparison, write JSON."""
    opened, rows = Store(store), list[dict[str, Any]]()
    folder = store / "clips"
    folder.mkdir(exist_ok=True)
    for number in range(clips):
        clip = clip_of(number, folder)
        suite = Suite(name="finishing", options=OPTIONS, clips=(clip,))
        plan = Plan(suite.config(clip, SETTINGS[0]), make_runtime(), opened)
        session = Session(plan)
        keyframes, edited = preview(session)[0], edit(session)[0]["rgb"][:]
        frames, field, latents = (plan.find(node) for node in (plan.decode, plan.match, plan.invert))
        assert frames is not None and field is not None and latents is not None
        source, clean = frames["rgb"][:], torch.from_numpy(latents["clean_latents"][:]).float()
        known = Known.of(clip, plan.decode.spec, source, session.backbone.decode(clean), choose())
        held = {"field": field, "keyframe_edit": keyframes, "frames": frames}
        size = latents["clean_latents"].shape[-2:]
        rows += rows_of(known, edited, clip.prompts[0], held | {"latent_size": size}, [*session.backbone.layers])
    command = f"python -m benchmarks.finishing --store DIR --clips {clips} -o {output}"
    answer = {"command": command, "clips": clips, "options": OPTIONS, "edits": compared(rows)}
    print(json.dumps(answer, indent=1))
    if output:
        output.write_text(json.dumps(answer, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
