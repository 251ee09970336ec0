"""What a tiled autoencoder saves and costs: pictures encoded and decoded whole and in tiles, each in its own process.

    python -m benchmarks.tiling [--side 1024 --side 2048] [-o benchmarks/results/tiling.json]

Two autoencoders: the pocket model's (an AutoencoderTiny, trained), and an AutoencoderKL of Stable Diffusion's structure
at an eighth of its widths with random weights, whose activations take an eighth of the memory. Memory is a process's
peak above what it holds once the model is loaded. PSNR is of the tiled picture against the whole one, with the whole
one's own range as the peak, since random weights do not use all of 0 to 255.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image

from benchmarks.long import peak_mb

AUTOENCODERS = ("AutoencoderKL", "AutoencoderTiny")
WIDTHS = (16, 32, 64, 64)  # Stable Diffusion's are 128, 256, 512, 512
TILE = 512


def picture(side: int) -> np.ndarray[Any, Any]:
    """rgb (frame, height, width, 3) uint8 of one frame: noise at every scale, the coarser the stronger."""
    random, total = np.random.default_rng(0), np.zeros((side, side, 3))
    for cells in (4, 16, 64, 256):
        noise = random.normal(size=(cells, cells, 3)).astype(np.float32)
        scaled = [
            np.asarray(Image.fromarray(noise[..., c]).resize((side, side), Image.Resampling.BICUBIC)) for c in range(3)
        ]
        total += np.stack(scaled, axis=-1) / cells**0.5
    return np.clip(128 + 50 * total, 0, 255).astype(np.uint8)[None]


def backbone_with(autoencoder: str) -> Any:
    """A small model with that autoencoder."""
    import torch
    from diffusers import AutoencoderKL

    from stages.backbones.stable_diffusion import Runtime, load

    backbone = load(str(Path(__file__).parents[1] / "pocket" / "model"), Runtime(frames_per_pass=1))
    if autoencoder == "AutoencoderKL":
        torch.manual_seed(0)
        backbone.vae = AutoencoderKL(
            block_out_channels=WIDTHS, norm_num_groups=8, latent_channels=4, layers_per_block=2, sample_size=TILE,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        ).eval().requires_grad_(False)  # fmt: skip
        backbone.pipeline.vae_scale_factor = 8
    return backbone


def there_and_back(autoencoder: str, side: int, tiled: bool, to: Path) -> None:
    """Encode and decode one picture in this process; writes what came out and what it cost."""
    backbone = backbone_with(autoencoder)
    backbone.tile(tiled)
    rgb = picture(side)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew: drawing the picture had one
    before, began = peak_mb(), time.perf_counter()
    latents = backbone.encode(rgb)
    encoding = peak_mb() - before
    decoded = backbone.decode(latents)
    cost = {
        "encode_peak_mb": encoding,
        "peak_mb": peak_mb() - before,
        "seconds": round(time.perf_counter() - began, 1),
    }
    np.savez(to, rgb=decoded, latents=latents.numpy(), cost=json.dumps(cost))


def compared(whole: Path, tiled: Path) -> dict[str, float]:
    """How far the tiled picture and its latents are from the whole ones."""
    one, two = np.load(whole), np.load(tiled)
    rgb, other = one["rgb"].astype(np.float64), two["rgb"].astype(np.float64)
    error, span = ((rgb - other) ** 2).mean(), float(np.ptp(rgb))
    latents = np.abs(one["latents"] - two["latents"]).mean() / np.abs(one["latents"]).mean()
    return {
        "psnr_db": round(10 * float(np.log10(span**2 / max(error, 1e-12))), 1),
        "range": span,
        "largest_difference": float(np.abs(rgb - other).max()),
        "latents_relative_difference": round(float(latents), 4),
    }


def main(
    side: Annotated[list[int] | None, typer.Option()] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output")] = None,
) -> None:
    """Measure every autoencoder at every size, print the comparison, write JSON."""
    import diffusers  # noqa: F401 (once, for all the processes)
    import torch

    torch.set_num_threads(1)
    sides = side or [1024, 1536]
    answer: dict[str, Any] = {
        "command": f"python -m benchmarks.tiling {' '.join(f'--side {each}' for each in sides)} -o {output}",
        "machine": {"cores": os.cpu_count(), "threads": 1, "device": "cpu", "python": sys.version.split()[0]},
        "kl_widths": WIDTHS,
        "tile": TILE,
        "rows": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        for size in sides:
            for name in AUTOENCODERS:
                files = {way: Path(folder, f"{name}-{size}-{way}.npz") for way in ("whole", "tiled")}
                row: dict[str, Any] = {"autoencoder": name, "side": size}
                for way, file in files.items():
                    process = get_context("fork").Process(
                        target=there_and_back, args=(name, size, way == "tiled", file)
                    )
                    process.start()
                    process.join()
                    row[way] = json.loads(str(np.load(file)["cost"]))
                row |= compared(files["whole"], files["tiled"])
                print(json.dumps(row), flush=True)
                answer["rows"].append(row)
                if output:
                    output.write_text(json.dumps(answer, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
