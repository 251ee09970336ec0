"""Two objects and a prompt for each: with one prompt that says both, and with a region for each.

    python -m benchmarks.regions --store DIR -o benchmarks/results/regions.json --sheet PICTURE.png

Two example clips stand side by side in one. Changed: share of frames in which the judge reads an object's colour as
asked; kept: its ground as it was; both halves are judged apart, as the 64-pixel clips they are.
"""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image

from flows.config import make_config, make_runtime
from flows.edit import edit
from flows.plan import Plan
from flows.tasks import Session
from pocket.judge import load_judge
from stages.backbones import Backbone
from stages.media.encoding import Encoding
from stages.media.export import write_video
from stages.media.video import read_pictures, survey
from store.store import Store

from .local import CLIPS, EXAMPLES, Picture, true_mask

PAIRS = (("ball", "star"), ("ring", "square"))
FRAMES, SIDE = 8, 64
OPTIONS: dict[str, Any] = {"steps": 20, "inversion_evaluations": 1, "frames": f"0:{FRAMES}", "cuts": "none"}


def side_by_side(pair: tuple[str, str], folder: Path) -> Path:
    """A clip of 128 × 64 that shows both, nearly without loss."""
    halves = [
        np.stack([each.rgb for each in read_pictures(survey(EXAMPLES / f"{name}.mp4"), FRAMES)][:FRAMES])
        for name in pair
    ]
    file, rgb = folder / f"{'-'.join(pair)}.mp4", np.concatenate(halves, axis=2)
    best = Encoding(codec="h264", quality=100, pixel_format="yuv444p")
    write_video(file, [rgb], pts=np.arange(FRAMES) / 12, durations=np.full(FRAMES, 1 / 12), fps="12", encoding=best)
    return file


def drawn(pair: tuple[str, str], number: int, folder: Path) -> Path:
    """A folder with the exact mask of one of the two objects, a picture per frame."""
    place = folder / f"{'-'.join(pair)}-{pair[number]}"
    place.mkdir(exist_ok=True)
    for frame, own in enumerate(true_mask(pair[number])[:FRAMES]):
        mask = np.zeros((SIDE, 2 * SIDE), np.uint8)
        mask[:, number * SIDE : (number + 1) * SIDE] = own * 255
        Image.fromarray(mask).save(place / f"{frame:03}.png")
    return place


def ways(pair: tuple[str, str], folder: Path) -> dict[str, dict[str, Any]]:
    """What is asked: both in one prompt; a region for each in its exact mask, and in what its word names."""
    sources, wanted = ([CLIPS[name][place] for name in pair] for place in (0, 1))
    source = " and ".join(sources)
    exact = tuple(f"{drawn(pair, number, folder)}={prompt}" for number, prompt in enumerate(wanted))
    found = tuple(f"cross-attention:{CLIPS[name][2]}={prompt}" for name, prompt in zip(pair, wanted, strict=True))
    return {
        "one prompt": {"prompts": (" and ".join(wanted),), "source_prompt": source},
        "--region, exact masks": {"prompts": (source,), "source_prompt": source, "regions": exact},
        "--region cross-attention:WORD": {"prompts": (source,), "source_prompt": source, "regions": found},
    }


def edited(plan: Plan, backbone: Backbone | None) -> tuple[Picture, Any]:
    """The edit's rgb (frame, height, width, 3), and the model, to be used again."""
    session = Session(plan, backbone=(lambda: backbone) if backbone else None)
    return edit(session)[0]["rgb"][:], session.backbone


def judged(pair: tuple[str, str], rgb: Picture) -> list[list[float]]:
    """Changed and kept of each half of rgb (frame, 64, 128, 3)."""
    rows = []
    for number, name in enumerate(pair):
        half = rgb[:, :, number * SIDE : (number + 1) * SIDE]
        verdict, words = load_judge().read(torch.from_numpy(half.copy()).float() / 255), CLIPS[name][1].split()
        changed = np.mean([colour == words[1] for colour in verdict.names("colour")])
        rows.append([float(changed), float(np.mean([ground == words[-1] for ground in verdict.names("ground")]))])
    return rows


def main(
    store: Annotated[Path, typer.Option()],
    output: Annotated[Path | None, typer.Option("-o", "--output")] = None,
    sheet: Annotated[Path | None, typer.Option()] = None,
) -> None:
    """Edit both clips in every way, print the comparison, write JSON and a contact sheet."""
    torch.set_num_threads(1)
    opened, backbone = Store(store), None
    folder = store / "clips"
    folder.mkdir(exist_ok=True)
    rows, pictures = list[dict[str, Any]](), list[Picture]()
    for pair in PAIRS:
        video = side_by_side(pair, folder)
        for way, asked in ways(pair, folder).items():
            plan = Plan(make_config(video=video, **OPTIONS, **asked), make_runtime(device="cpu"), opened)
            rgb, backbone = edited(plan, backbone)
            if way == "one prompt" and (source := plan.find(plan.decode)):
                pictures.append(np.concatenate([*source["rgb"][[0, 4, 7]]], axis=1))
            pictures.append(np.concatenate([*rgb[[0, 4, 7]]], axis=1))
            for name, (changed, kept) in zip(pair, judged(pair, rgb), strict=True):
                rows.append({"object": CLIPS[name][1], "way": way, "changed": changed, "kept": kept})
                print(f"| {CLIPS[name][1]} | {way} | {changed:.2f} | {kept:.2f} |", flush=True)
    answer = {
        "command": "python -m benchmarks.regions --store DIR -o benchmarks/results/regions.json",
        "machine": f"{platform.machine()}, CPU, one thread, torch {torch.__version__}",
        "frames": FRAMES, "options": OPTIONS, "objects": rows,
    }  # fmt: skip
    if output:
        output.write_text(json.dumps(answer, indent=1) + "\n", encoding="utf-8")
    if sheet:
        picture = Image.fromarray(np.concatenate(pictures))
        picture.resize((2 * picture.width, 2 * picture.height), Image.Resampling.NEAREST).save(sheet)


if __name__ == "__main__":
    typer.run(main)
