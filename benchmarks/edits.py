"""How good edits of the example clips are: asked attributes by the judge, warp error with the exact flow, sharpness.

    python -m benchmarks.edits -o out/edits [--model DIR] [--clip ball] [--steps 50] [--set attention=0.5] …

Prints one row per prompt and writes a contact sheet per clip. Beside each edit stands the autoencoder alone: the floor.

    colour, surface, ground   share of frames in which the judge reads what the prompt asks (what it does not name: as in the source)
    shape                     share of frames in which the judge still reads the source's shape
    overlap                   intersection over union of the object mask: judge on the edit against the world's truth
    warp                      mean squared difference of frame t+1 and frame t warped by the exact flow, where it is visible in both, RGB in
                              [0, 1], × 10³; lower is steadier
    sharp                     mean gradient energy over that of the autoencoder's own frames; 1 is as sharp as it can be
"""  # noqa: E501

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from flows.config import make_config, make_runtime, parse_settings
from flows.plan import Plan
from flows.run import run_edit
from pocket.clips import CLIPS
from pocket.judge import load_judge
from pocket.world import COLOURS, GROUNDS, SURFACES, Flow, Scene, flow, render, sample_clip
from stages.backbones.stable_diffusion import Runtime, load
from stages.media.sheets import contact_sheet, save_png
from store.store import Store

ROOT = Path(__file__).parents[1]
PROMPTS = {
    "ball": (
        "a red ball on grass",
        ["a purple ball on grass", "a blue ball on grass", "a red ball on snow",
         "a yellow ball on sand", "a red striped ball on grass"],
    ),
    "ring": (
        "a blue striped ring on sand",
        ["a pink striped ring on sand", "a blue striped ring on grass", "a red striped ring on snow",
         "a blue ring on sand"],
    ),
    "star": (
        "a yellow star on water",
        ["a red star on water", "a yellow star on brick", "a green star on sand", "a yellow dotted star on water"],
    ),
    "square": (
        "a purple checkered square on snow",
        ["an orange checkered square on snow", "a purple checkered square on grass", "a blue checkered square on sand",
         "a purple dotted square on snow"],
    ),
}  # fmt: skip


def main() -> None:
    """Edit, measure, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for videos and sheets")
    parser.add_argument("--store", type=Path, help="default: OUTPUT/store")
    parser.add_argument("--clip", choices=sorted(PROMPTS), action="append")
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--editor", default="pnp")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--guidance-scale", type=float, default=None)
    parser.add_argument("--keyframe-offsets", type=int, default=2)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    print(f"{'prompt':36}{'colour':>8}{'surface':>8}{'ground':>8}{'shape':>8}{'overlap':>8}{'warp':>8}{'sharp':>8}")
    for name in options.clip or PROMPTS:
        measure_clip(name, options)


def measure_clip(name: str, options: argparse.Namespace) -> None:
    """All prompts of one clip, a row each, and its sheet."""
    source_prompt, prompts = PROMPTS[name]
    config = make_config(
        video=ROOT / "examples" / f"{name}.mp4", prompts=tuple(prompts), source_prompt=source_prompt,
        model=options.model, steps=options.steps, editor=options.editor, editor_settings=parse_settings(options.set),
        guidance_scale=options.guidance_scale, keyframe_offsets=options.keyframe_offsets,
    )  # fmt: skip
    plan = Plan(config, make_runtime(), Store(options.store or options.output / "store"))
    result = run_edit(plan, options.output / f"{name}.mp4", "direct")
    uses = {use.node.key.hex: use.artifact for use in result.uses}
    frames = uses[plan.decode.key.hex]["rgb"][:]
    backbone = load(plan.model.load_from, Runtime())
    with torch.inference_mode():
        floor = backbone.decode(backbone.encode(frames))
    clip = next(clip for clip in CLIPS if clip.name == name)
    scene = sample_clip(
        len(frames), torch.Generator().manual_seed(clip.seed), shape=clip.shape, colour=clip.colour,
        surface=clip.surface, ground=clip.ground,
    )  # fmt: skip
    rows = [("source", frames), (f"{source_prompt} (autoencoder alone)", floor)]
    rows += [(prompt, uses[edit.key.hex]["rgb"][:]) for prompt, (_, edit) in zip(prompts, plan.edits, strict=True)]
    for label, rgb in rows[1:]:
        asked = source_prompt if "autoencoder" in label else label
        print(f"{label[:35]:36}" + "".join(f"{value:8.2f}" for value in measures(rgb, floor, scene, asked).values()))
    save_png(contact_sheet(rows, columns=8), options.output / f"{name}.png")


def measures(rgb: np.ndarray[Any, Any], floor: np.ndarray[Any, Any], scene: Scene, asked: str) -> dict[str, float]:
    """The columns of one row; frames rgb (frame, height, width, 3) uint8."""
    verdict = load_judge().read(torch.from_numpy(rgb))
    words = set(asked.split())
    surface = next(iter(words & set(SURFACES)), "plain")
    wanted = {
        "colour": next(iter(words & set(COLOURS))),
        "surface": surface,
        "ground": next(iter(words & set(GROUNDS))),
    }
    found = {head: float(np.mean([name == word for name in verdict.names(head)])) for head, word in wanted.items()}
    kept = float((verdict.shape.argmax(1) == scene.shape).float().mean())
    truth, seen = render(scene, rgb.shape[1]).mask, verdict.mask > 0.5
    overlap = float(((truth & seen).sum((1, 2)) / (truth | seen).sum((1, 2)).clamp(min=1)).mean())
    frames = torch.from_numpy(rgb).float() / 255
    return {
        **found, "shape": kept, "overlap": overlap, "warp": 1000 * warp_error(frames, flow(scene, rgb.shape[1])),
        "sharp": gradient_energy(frames) / gradient_energy(torch.from_numpy(floor).float() / 255),
    }  # fmt: skip


def warp_error(frames: Tensor, truth: Flow) -> float:
    """Mean squared difference of each frame and its predecessor warped onto it; frames (frame, height, width, 3)."""
    size = frames.shape[1]
    place = (torch.arange(size) + 0.5) * 2 / size - 1
    grid = torch.stack(torch.meshgrid(place, place, indexing="xy"), -1) + truth.backward * (2 / size)
    earlier = frames[:-1].permute(0, 3, 1, 2)
    warped = F.grid_sample(earlier, grid, mode="bilinear", padding_mode="border", align_corners=False)
    visible = ~truth.occluded_backward
    return float(((warped.permute(0, 2, 3, 1) - frames[1:]) ** 2).mean(-1)[visible].mean())


def gradient_energy(frames: Tensor) -> float:
    """Mean squared difference of neighbouring pixels, across and down."""
    return float((frames.diff(dim=1) ** 2).mean() + (frames.diff(dim=2) ** 2).mean())


if __name__ == "__main__":
    main()
