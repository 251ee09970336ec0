"""What another decoder makes of a model's latents: clips of the pocket world, encoded, and decoded in both ways.

    python -m benchmarks.decoding --decoder DIR [--clips 4] [-o benchmarks/results/decoding.json] [--sheet sheet.png]

Nothing is edited, so that what differs is the decoders' own. Per clip PSNR against the frames, sharpness (gradient
energy over theirs), and warp error (×1000) along the exact motion; where windows of the stage meet, over that inside.
Means and differences clip by clip with their 95 % interval.
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

from pocket import model_folder
from pocket.world import flow, render, sample_clip
from stages.backbones.decoders import autoencoder_folder, check_folder, load_decoder
from stages.backbones.stable_diffusion import Runtime, load
from stages.editing.passes import WINDOW_FRAMES
from stages.measures.frames import Motion, gradient_energy, psnr, warp_errors
from stages.measures.statistics import interval, paired_difference

FRAMES, SIZE = 80, 64


def measured(rgb: np.ndarray[Any, Any], source: np.ndarray[Any, Any], motion: Motion) -> dict[str, float]:
    """Of one clip decoded in one way; both rgb (frame, height, width, 3) uint8."""
    errors = 1000 * warp_errors(rgb, motion)
    inside = torch.cat([errors[: WINDOW_FRAMES - 1], errors[WINDOW_FRAMES:]])
    return {
        "psnr": float(psnr(rgb, source).mean()),
        "sharpness": gradient_energy(rgb) / gradient_energy(source),
        "warp_error": float(errors.mean()),
        "where_windows_meet": float(errors[WINDOW_FRAMES - 1] / inside.mean()),
    }


def main(
    decoder: Annotated[Path, typer.Option()],
    clips: int = 4,
    output: Annotated[Path | None, typer.Option("-o", "--output")] = None,
    sheet: Path | None = None,
) -> None:
    """Decode every clip in both ways, print the comparison, write JSON and a picture."""
    folder = autoencoder_folder(decoder)
    check_folder(folder, model_folder())
    other, backbone = load_decoder(folder, "cpu"), load(str(model_folder()), Runtime())
    rows: dict[str, list[dict[str, float]]] = {"source": [], "own": [], "other": []}
    shown: list[np.ndarray[Any, Any]] = []
    for number in range(clips):
        scenes = sample_clip(FRAMES, torch.Generator().manual_seed(9000 + number))
        source = (render(scenes, SIZE).rgb * 255).round().byte().numpy()
        moved = flow(scenes, SIZE)
        motion = Motion(moved.backward, ~moved.occluded_backward)
        with torch.inference_mode():
            latents = backbone.encode(source)
            own = backbone.decode(latents)
        runs = [range(at, min(at + WINDOW_FRAMES, FRAMES)) for at in range(0, FRAMES, WINDOW_FRAMES)]
        ways = {"source": source, "own": own, "other": np.stack([*other.pictures(latents, runs)])}
        for name, rgb in ways.items():
            rows[name].append(measured(rgb, source, motion))
        shown += [np.concatenate([*rgb[::10]], axis=1) for rgb in ways.values()]
    command = f"python -m benchmarks.decoding --decoder DIR --clips {clips} -o {output}"
    answer: dict[str, Any] = {"command": command, "machine": platform.processor() or platform.machine()}
    answer |= {"clips": clips, "frames": FRAMES, "measures": {}}
    for name in rows["own"][0]:
        values = {way: np.array([row[name] for row in own_rows]) for way, own_rows in rows.items()}
        answer["measures"][name] = {way: round(interval(each)[0], 4) for way, each in values.items()} | {
            "other_minus_own": [round(value, 4) for value in paired_difference(values["other"], values["own"])]
        }
    print(json.dumps(answer, indent=1))
    if output:
        output.write_text(json.dumps(answer, indent=1) + "\n", encoding="utf-8")
    if sheet:
        picture = Image.fromarray(np.concatenate(shown))
        picture.resize((2 * picture.width, 2 * picture.height), Image.Resampling.NEAREST).save(sheet)


if __name__ == "__main__":
    typer.run(main)
