"""Few steps: a latent consistency model, or a LoRA of one, against the model that it was distilled from.

    python -m pocket.train_consistency --run RUN --out RUN/model                     # distils pocket; some five minutes
    python -m pocket.train_consistency --run RUN2 --out RUN2/lora --rank 8 --guidance 3 3
    python -m benchmarks.few_steps --lcm RUN/model --lora RUN2/lora/pytorch_lora_weights.safetensors --store DIR \\
        -o benchmarks/results/few-steps.csv --sheet PICTURE.png

Clips are rendered from the world: edit success, kept ground, warp error and background PSNR as `tf eval` has them;
back: of frames sampled back with no edit; passes: of the UNet, per frame; seconds: of the CPU, per frame, from the
decoded clip to the edited one, where nothing of it was there. Rows that the output has already are not measured again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer
from PIL import Image

from flows.config import make_config, make_runtime
from flows.edit import edit_one
from flows.measure import Known, edit_row
from flows.plan import Plan
from flows.prepare import prepare
from flows.runtime import load_backbone
from flows.suite import PocketClips, pocket_clips
from flows.tasks import Session
from stages.measures.optical_flow import choose
from store.store import Store

from .regions import labelled

FRAMES = 8
CLIPS = PocketClips(clips=4, seed=11, frames=FRAMES, change=("colour", "surface", "ground"))
MEASURED = (
    "edit_success",
    "kept",
    "background_psnr",
    "object_overlap",
    "warp_error",
    "sharpness",
    "back",
    "passes",
    "seconds",
)
PNP = {"attention": 0.8}  # as pocket advises


def ways(lcm: str | None, lora: str | None) -> dict[str, dict[str, Any]]:
    """Name → options. Inversion takes 20 steps where the edit takes fewer."""
    base = {"guidance_scale": 3.0, "editor_settings": PNP}
    few = {"inversion_steps": 20}
    found: dict[str, dict[str, Any]] = {"20 steps": base | {"steps": 20}}
    for steps in (8, 4):
        found[f"{steps} steps"] = base | few | {"steps": steps}
        found[f"{steps} steps, trailing"] = base | few | {"steps": steps, "timestep_spacing": "trailing"}
    for steps in (8, 4, 2):
        if lcm is not None:
            found[f"lcm, {steps} steps"] = base | few | {"steps": steps, "model": lcm}
        if lora is not None:
            merged = few | {"steps": steps, "loras": (lora,), "guidance_scale": 1.0, "editor_settings": PNP}
            found[f"lora, {steps} steps"] = merged | {"timestep_spacing": "lcm"}
    if lcm is not None:
        for steps in (8, 4):
            found[f"lcm, {steps} steps, {steps} of inversion"] = found[f"lcm, {steps} steps"] | {
                "inversion_steps": steps
            }
        found["lcm, 4 steps, 4 of inversion, 5 evaluations"] = {
            **found["lcm, 4 steps, 4 of inversion"], "inversion_evaluations": 5,
        }  # fmt: skip
        for editor in ("ddpm", "sdedit"):
            found[f"lcm, 4 steps, {editor}"] = {
                **few, "steps": 4, "model": lcm, "guidance_scale": 3.0, "editor": editor,
            }  # fmt: skip
    if lora is not None:
        found["lora, 4 steps, own spacing"] = found["lora, 4 steps"] | {"timestep_spacing": "auto"}
    return found


def measured(
    store: Store, asked: dict[str, dict[str, Any]], clips: int, there: set[tuple[str, str]]
) -> Iterator[tuple[dict[str, Any], np.ndarray[Any, Any]]]:
    """A row per clip and way of editing, and the edit; of every clip the source first, in a row without measures."""
    backbones: dict[str, Any] = {}
    for clip in pocket_clips(CLIPS, store.root / "clips")[:clips]:
        known: Known | None = None
        for name, options in asked.items():
            config = make_config(
                video=clip.video, source_prompt=clip.source_prompt, prompts=clip.prompts, cuts="none", **options
            )
            plan = Plan(config, make_runtime(device="cpu"), store)
            model = backbones.get(plan.model.key) or load_backbone(plan)
            backbones[plan.model.key] = model
            session = Session(plan, backbone=partial(_same, model))
            prepared = prepare(session)
            frames = prepared.frames()["rgb"][:]
            if known is None:
                known = Known.of(clip, plan.decode.spec, frames, model.decode(model.encode(frames)), choose())
                yield {"clip": clip.name, "way": f"{clip.source_prompt}: {clip.prompts[0]}"}, frames
            nodes = [plan.invert, *([plan.noise] if plan.noise else []), plan.extract, plan.edits[0][1]]
            passes = sum(plan.units(node) for node in nodes)
            whole = {node.stage for node in plan.to_compute()} >= {"invert_frames", "extract_tokens", "edit_keyframes"}
            began = time.process_time()
            edited = edit_one(session, prepared, *plan.edits[0])[1]()["rgb"][:]
            if (clip.name, name) in there:
                yield {"clip": clip.name, "way": name}, edited
                continue
            row = edit_row(known, edited, clip.prompts[0]) | {
                "back": float(prepared.latents()["inversion_psnr"][:].mean()),
                "passes": passes / FRAMES,
                "seconds": (time.process_time() - began) / FRAMES if whole else float("nan"),
            }
            yield {"clip": clip.name, "way": name, **{m: row[m] for m in MEASURED if m in row}}, edited


def _same(model: Any) -> Any:
    return model


def main(
    store: Annotated[Path, typer.Option()],
    lcm: Annotated[Path | None, typer.Option()] = None,
    lora: Annotated[Path | None, typer.Option()] = None,
    clips: Annotated[int, typer.Option(min=1)] = CLIPS.clips,
    only: Annotated[str, typer.Option(help="ways whose name holds this")] = "",
    output: Annotated[Path | None, typer.Option("-o", "--output")] = None,
    sheet: Annotated[Path | None, typer.Option()] = None,
) -> None:
    """Edit and measure; print every row and the means, write the rows and a contact sheet."""
    torch.set_num_threads(1)
    asked = ways(str(lcm.absolute()) if lcm else None, str(lora.absolute()) if lora else None)
    table = pd.read_csv(output) if output and output.exists() else pd.DataFrame()
    there = {(str(row["clip"]), str(row["way"])) for _, row in table.iterrows()}
    pictures = list[np.ndarray[Any, Any]]()
    for row, rgb in measured(Store(store), {name: way for name, way in asked.items() if only in name}, clips, there):
        pictures.append(labelled(rgb, row["way"]))
        if len(row) > 2:
            table = pd.concat([table, pd.DataFrame([row])])
            print(
                " ".join(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()),
                flush=True,
            )
            if output:
                table.round(4).to_csv(output, index=False)
    means = table.groupby("way", sort=False)[[name for name in MEASURED if name in table]].mean()
    print(means.round(2).to_string())
    if sheet:
        Image.fromarray(np.concatenate(pictures)).save(sheet)


if __name__ == "__main__":
    typer.run(main)
