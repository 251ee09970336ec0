"""How well a word's mask fits its object, on clips that nothing was tuned on.

    python -m benchmarks.masks --store DIR [-o FILE.json] [--sheet PICTURE.png]

Clips of the pocket world from seeds of their own, and the same with the object smaller than any that the model has been
trained on. Against the exact mask, over 8 frames: intersection over union; the share of the object that is found; the
share of what is found that is object.
"""

from __future__ import annotations

import json
import platform
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image

from flows.config import make_config, make_runtime
from flows.plan import Plan
from flows.prepare import prepare
from flows.tasks import Session
from pocket.clips import write_video
from pocket.world import SHAPES, Scene, caption, render, sample_clip
from stages.backbones import Backbone
from store.store import Store

FIRST_SEED, FRAMES, SHOWN = 9000, 8, [0, 4, 7]
SIZES = {1.0: 8, 0.6: 4}  # of the object, as a share of what the model was trained on → how many clips
Picture = np.ndarray[Any, Any]


def scenes_of(seed: int, size: float) -> Scene:
    """Every other frame of a short clip."""
    scenes = sample_clip(2 * FRAMES, torch.Generator().manual_seed(seed))[torch.arange(0, 2 * FRAMES, 2)]
    return replace(scenes, scale=scenes.scale * size)


def found(store: Store, scenes: Scene, video: Path, backbone: Backbone | None) -> tuple[Picture, Backbone]:
    """The object's mask (frame, height, width) bool by its name, and the model, to be used again."""
    write_video(video, scenes)
    word = SHAPES[int(scenes.shape[0])]
    config = make_config(
        video=video, source_prompt=caption(scenes), prompts=("anything",), steps=20, cuts="none", mask_feather=0,
        mask_from=f"cross-attention:{word}",
    )  # fmt: skip
    session = Session(
        Plan(config, make_runtime(device="cpu"), store), backbone=(lambda: backbone) if backbone else None
    )
    mask = prepare(session).mask
    assert mask is not None, "a mask was asked for"
    return mask()["mask"][:] > 127, session.backbone


def coloured(shown: Picture, own: Picture, true: Picture) -> Picture:
    """Some frames beside their masks: white where both are, red where too much, green where too little."""
    marks = np.zeros((*own.shape, 3), np.uint8)
    marks[own & true], marks[own & ~true], marks[~own & true] = 255, (255, 0, 0), (0, 255, 0)
    return np.concatenate([part[frame] for frame in SHOWN for part in (shown, marks)], axis=1)


def main(
    store: Annotated[Path, typer.Option()],
    output: Annotated[Path | None, typer.Option("-o", "--output")] = None,
    sheet: Annotated[Path | None, typer.Option()] = None,
) -> None:
    """Find each clip's object by its name, print how well it fits, write JSON and a contact sheet."""
    torch.set_num_threads(1)
    opened, backbone = Store(store), None
    rows, pictures = list[dict[str, Any]](), list[Picture]()
    print("| clip | size | overlap | found of the object | object of the found |\n|---|---|---|---|---|")
    for size, count in SIZES.items():
        for seed in range(FIRST_SEED, FIRST_SEED + count):
            scenes = scenes_of(seed, size)
            own, backbone = found(opened, scenes, store / f"{seed}-{size}.mp4", backbone)
            exact = render(scenes, 64)
            true = exact.mask.numpy()
            both = float((own & true).sum())
            row = {"overlap": both / (own | true).sum(), "of_object": both / true.sum(), "of_found": both / own.sum()}
            rows.append({"seed": seed, "size": size, "clip": caption(scenes), **row})
            print(
                f"| {caption(scenes)} | {size} | {' | '.join(f'{value:.2f}' for value in row.values())} |", flush=True
            )
            pictures.append(coloured((exact.rgb * 255).round().byte().numpy(), own, true))
    means = {
        str(size): {
            kind: float(np.mean([row[kind] for row in rows if row["size"] == size]))
            for kind in ("overlap", "of_object", "of_found")
        }
        for size in SIZES
    }
    for share, mean in means.items():
        print(f"| mean | {share} | {' | '.join(f'{value:.2f}' for value in mean.values())} |")
    if output:
        answer = {
            "command": "python -m benchmarks.masks --store DIR",
            "machine": f"{platform.machine()}, CPU, one thread, torch {torch.__version__}", "means": means,
            "clips": rows,
        }  # fmt: skip
        output.write_text(json.dumps(answer, indent=1) + "\n", encoding="utf-8")
    if sheet:
        Image.fromarray(np.concatenate(pictures)).save(sheet)


if __name__ == "__main__":
    typer.run(main)
