"""How far edits keep to the edges of their source, editor by editor, on the example clips.

    python -m benchmarks.edges --store DIR        # some six minutes on one core; a store that has them: seconds

Edge agreement is the F1 of Canny edges of source and edit, where a pixel off is no miss (`pocket.edges`); the judge
reads colour and ground of every frame.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flows.config import make_config, make_runtime
from flows.edit import edit
from flows.plan import Plan
from flows.tasks import Session
from pocket.edges import agreement, edges
from pocket.judge import load_judge
from store.store import Store

EXAMPLES = Path(__file__).parent.parent / "examples"
CLIPS = {  # name → what it shows, what it is to show
    "ball": ("a red ball on grass", "a blue ball on sand"),
    "ring": ("a blue striped ring on sand", "a yellow ring on snow"),
    "star": ("a yellow star on water", "a pink star on lava"),
    "square": ("a purple checkered square on snow", "an orange square on water"),
}
CONTROL: dict[str, Any] = {"editor": "controlnet", "controls": ({"kind": "canny"},)}
WAYS: dict[str, dict[str, Any]] = {
    "controlnet": CONTROL,
    "controlnet, begin=noise": CONTROL | {"editor_settings": {"begin": "noise"}},
    "controlnet, first half": CONTROL | {"controls": ({"kind": "canny", "stop": 0.5},)},
    "pnp": {"editor": "pnp"},
    "pnp, nothing injected": {"editor": "pnp", "editor_settings": {"attention": 0, "feature": 0}},
    "sdedit, strength 0.75": {"editor": "sdedit"},
    "sdedit, strength 1": {"editor": "sdedit", "editor_settings": {"strength": 1.0}},
}


def measured(store: Store, clip: str, way: dict[str, Any]) -> tuple[float, float, float]:
    """Edge agreement, and the shares of frames of the right colour and on the right ground."""
    source, prompt = CLIPS[clip]
    config = make_config(
        video=EXAMPLES / f"{clip}.mp4", prompts=(prompt,), source_prompt=source, steps=20, frames="0:16", **way
    )
    session = Session(Plan(config, make_runtime(device="cpu"), store))
    [edited] = edit(session)
    frames = session.find(session.plan.decode)
    assert frames is not None
    rgb = edited["rgb"][:]
    verdict = load_judge().read(torch.from_numpy(rgb).float() / 255)
    words = prompt.split()
    colour = np.mean([name == words[1] for name in verdict.names("colour")])
    ground = np.mean([name == words[-1] for name in verdict.names("ground")])
    return agreement(edges(frames["rgb"][:]), edges(rgb)), float(colour), float(ground)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print("| way | edges | colour | ground |\n|---|---|---|---|")
    for name, way in WAYS.items():
        rows = [measured(Store(args.store), clip, way) for clip in CLIPS]
        print(f"| {name} | {' | '.join(f'{mean:.2f}' for mean in np.mean(rows, axis=0))} |", flush=True)


if __name__ == "__main__":
    main()
