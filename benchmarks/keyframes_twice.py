"""What it costs that a run with `--decoder` decodes its keyframes by the model's own decoder too.

    python -m benchmarks.keyframes_twice --store DIR [-o benchmarks/results/keyframes-twice.json]

A clip of `benchmarks.placement` is prepared, then edited in ten steps with the pocket model's own autoencoder as
another decoder; afterwards the keyframes of that edit are decoded once more, with a clock. CPU seconds, in one thread;
fewer steps make the share larger, and so does a larger autoencoder.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.placement import OPTIONS, SETTINGS, clip_of
from flows.config import make_runtime
from flows.edit import edit
from flows.plan import Plan
from flows.prepare import prepare
from flows.suite import Suite
from flows.tasks import Session
from pocket import model_folder
from store.store import Store


def measured(store: Path) -> dict[str, Any]:
    """Keyframes of how many frames, and the CPU seconds of the edit and of decoding its keyframes."""
    folder = store / "clips"
    opened = Store(store)
    folder.mkdir(exist_ok=True)
    clip = clip_of(0, folder)
    suite = Suite(name="twice", options=OPTIONS | {"decoder": str(model_folder())}, clips=(clip,))
    plan = Plan(suite.config(clip, SETTINGS[0]), make_runtime(device="cpu"), opened)
    session = Session(plan)
    prepare(session).field()
    if not {node.stage for node in plan.to_compute()} == {"edit_keyframes", "propagate_tokens"}:
        raise typer.BadParameter(f"{store} has this edit already; name another folder with --store")
    began = time.process_time()
    edit(session)
    took = time.process_time() - began
    keyframes = plan.find(plan.edits[0][0])
    assert keyframes is not None, "it was just made"
    latents = torch.from_numpy(keyframes["clean_latents"][:])
    began = time.process_time()
    session.backbone.decode(latents)
    again = time.process_time() - began
    return {
        "keyframes": len(latents), "frames": plan.frames, "edit_seconds": round(took, 2),
        "keyframes_seconds": round(again, 3), "share": round(again / took, 4),
    }  # fmt: skip


def main(
    store: Annotated[Path, typer.Option()], output: Annotated[Path | None, typer.Option("-o", "--output")] = None
) -> None:
    """Edit and decode, print what it took, write JSON."""
    torch.set_num_threads(1)
    answer = {"command": f"python -m benchmarks.keyframes_twice --store DIR -o {output}", **measured(store)}
    print(json.dumps(answer, indent=1))
    if output:
        output.write_text(json.dumps(answer, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
