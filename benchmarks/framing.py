"""Sizes that are no multiple of the model's: padded and cut back, or resampled and resampled back.

    python -m benchmarks.framing [-o benchmarks/results/framing.json]

The pocket clips, a few pixels cut off at right and bottom so that their size suits no more, are encoded and decoded by
the pocket model's autoencoder in each way. PSNR in dB is to the source, of the whole picture and of its outermost 4
pixels at right and bottom; sharpness is the mean step from pixel to pixel, over the source's.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image

from pocket import model_folder
from stages.backbones.stable_diffusion import Runtime, load
from stages.media.video import read_pictures, survey

Rgb = np.ndarray[Any, Any]
CLIPS = ("ball", "ring", "square", "star")
SIZES = ((61, 59), (63, 62), (57, 63))
FRAMES = 6
BORDER = 4


def sharpness(rgb: Rgb) -> float:
    """Mean absolute step between neighbours, of rgb (frame, height, width, channel)."""
    levels = rgb.astype(np.float32)
    return float(np.abs(np.diff(levels, axis=1)).mean() + np.abs(np.diff(levels, axis=2)).mean())


def psnr(rgb: Rgb, truth: Rgb) -> float:
    """Decibels, over all frames together."""
    return float(10 * np.log10(255**2 / np.mean((rgb.astype(np.float32) - truth) ** 2)))


def resized(rgb: Rgb, width: int, height: int) -> Rgb:
    """Each frame as `stages.decode_frames` resizes it."""
    kernel = Image.Resampling.LANCZOS if width * height < rgb.shape[1] * rgb.shape[2] else Image.Resampling.BICUBIC
    return np.stack([np.asarray(Image.fromarray(frame).resize((width, height), kernel)) for frame in rgb])


def padded(mode: Any) -> Callable[[Rgb, Callable[[Rgb], Rgb], int], Rgb]:
    """Made larger to the multiple by numpy's `mode`, and cut back."""

    def way(rgb: Rgb, there_and_back: Callable[[Rgb], Rgb], multiple: int) -> Rgb:
        height, width = rgb.shape[1:3]
        larger = np.pad(rgb, ((0, 0), (0, -height % multiple), (0, -width % multiple), (0, 0)), mode=mode)
        return there_and_back(larger)[:, :height, :width]

    return way


def resampled(rgb: Rgb, there_and_back: Callable[[Rgb], Rgb], multiple: int) -> Rgb:
    """Made smaller to the multiple, and as large as it was again."""
    height, width = rgb.shape[1:3]
    return resized(
        there_and_back(resized(rgb, width // multiple * multiple, height // multiple * multiple)), width, height
    )


WAYS = {
    "mirrored (reflect)": padded("reflect"), "mirrored (symmetric)": padded("symmetric"), "edge": padded("edge"),
    "black": padded("constant"), "resampled": resampled,
}  # fmt: skip


def main(output: Annotated[Path | None, typer.Option("-o", "--output")] = None) -> None:
    """Measure every way on every clip and size, print means, write JSON."""
    torch.set_num_threads(1)
    backbone = load(str(model_folder()), Runtime(frames_per_pass=4))
    multiple = backbone.pipeline.vae_scale_factor
    examples = Path(__file__).parents[1] / "examples"
    clips = [
        np.stack([p.rgb for p in read_pictures(survey(examples / f"{name}.mp4"), FRAMES)]) for name in CLIPS
    ]  # fmt: skip
    answer: dict[str, Any] = {"command": f"python -m benchmarks.framing -o {output}", "multiple": multiple, "rows": []}
    for name, way in WAYS.items():
        found = []
        for clip in clips:
            for width, height in SIZES:
                truth = clip[:, :height, :width]
                rgb = way(truth, lambda each: backbone.decode(backbone.encode(each)), multiple)
                rim = np.ones((height, width), bool)
                rim[: height - BORDER, : width - BORDER] = False
                found.append([psnr(rgb, truth), psnr(rgb[:, rim], truth[:, rim]), sharpness(rgb) / sharpness(truth)])
        mean = np.mean(found, axis=0)
        row = {"way": name, "psnr": round(mean[0], 2), "psnr_border": round(mean[1], 2), "sharpness": round(mean[2], 3)}
        print(json.dumps(row), flush=True)
        answer["rows"].append(row)
    if output:
        output.write_text(json.dumps(answer, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
