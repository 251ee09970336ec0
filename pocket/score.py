"""Measure the pocket model: does a sample show what its caption says, and how well does the autoencoder see?

    python -m pocket.score                          # the shipped model
    python -m pocket.score --model DIR --sheet samples.png --json

Captions name all four attributes and are drawn uniformly with a fixed seed; samples go through the real
``StableDiffusionPipeline``; the shipped judge reads them. The judge's own accuracy on frames it never saw, straight
from the renderer and after the autoencoder, is measured beside it: it bounds what the other numbers can mean.
"""

import argparse
import json
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import Tensor

from pocket import judge_file, model_folder
from pocket.judge import HEADS, Judge, load_judge
from pocket.world import Scene, caption, render, sample_scenes

__all__ = [
    "advised_guidance", "autoencoder_psnr", "captions_to_try", "judge_accuracy", "load_pipeline", "sample", "score",
    "sheet",
]  # fmt: skip

HELD_OUT_SEED = 20231010  # no training stage uses it


def load_pipeline(folder: Path | None = None) -> StableDiffusionPipeline:
    """The pocket pipeline in float32 with its progress bar off."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder or model_folder(), dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def advised_guidance(folder: Path) -> float:
    """The guidance that the model's own ``tokenflow.json`` advises, 7.5 without one: what edits use by default."""
    advice = folder / "tokenflow.json"
    return float(json.loads(advice.read_text())["guidance_scale"]) if advice.exists() else 7.5


def captions_to_try(count: int) -> tuple[Scene, list[str]]:
    """Held-out scenes and their whole captions ("plain" unsaid)."""
    scenes = sample_scenes(count, torch.Generator().manual_seed(HELD_OUT_SEED))
    return scenes, [caption(scenes, i) for i in range(count)]


def sample(
    pipeline: StableDiffusionPipeline, captions: list[str], *, guidance_scale: float, steps: int, seed: int = 0
) -> Tensor:
    """One sample per caption, rgb (caption, height, width, 3) float32 in [0, 1]; each has its own seeded noise."""
    parts = []
    for start in range(0, len(captions), 16):
        chunk = captions[start : start + 16]
        generators = [torch.Generator().manual_seed(seed + start + i) for i in range(len(chunk))]
        out = pipeline(
            chunk, num_inference_steps=steps, guidance_scale=guidance_scale, generator=generators, output_type="pt"
        )
        parts.append(out.images.float().permute(0, 2, 3, 1))
    return torch.cat(parts)


@torch.no_grad()
def _decoded(pipeline: StableDiffusionPipeline, rgb: Tensor) -> Tensor:
    latents = pipeline.vae.encode(rgb.permute(0, 3, 1, 2) * 2 - 1).latents
    image: Tensor = pipeline.vae.decode(latents).sample.permute(0, 2, 3, 1)
    return (image / 2 + 0.5).clamp(0, 1)


def autoencoder_psnr(pipeline: StableDiffusionPipeline, count: int = 64) -> float:
    """Mean PSNR (dB) of encode → decode over held-out frames at 64 × 64."""
    rgb = render(captions_to_try(count)[0], 64).rgb
    error = (_decoded(pipeline, rgb) - rgb).square().mean(dim=(1, 2, 3))
    return float((-10 * torch.log10(error)).mean())


def _agreement(judge: Judge, rgb: Tensor, scenes: Scene) -> dict[str, float]:
    verdict = judge.read(rgb)
    return {h: float((getattr(verdict, h).argmax(dim=1) == getattr(scenes, h)).float().mean()) for h in HEADS}


def judge_accuracy(judge: Judge, pipeline: StableDiffusionPipeline, count: int = 512) -> dict[str, dict[str, float]]:
    """The judge's accuracy per head on held-out frames, rendered and decoded, and its mask's overlap (IoU)."""
    scenes = captions_to_try(count)[0]
    frames = render(scenes, 64)
    seen = judge.read(frames.rgb).mask > 0.5
    overlap = (seen & frames.mask).sum(dim=(1, 2)) / (seen | frames.mask).sum(dim=(1, 2))
    rendered = _agreement(judge, frames.rgb, scenes) | {"mask_iou": float(overlap.mean())}
    return {"rendered": rendered, "decoded": _agreement(judge, _decoded(pipeline, frames.rgb), scenes)}


def sheet(rgb: Tensor, columns: int = 8, enlarge: int = 2) -> Image.Image:
    """A contact sheet of frames rgb (frame, height, width, 3) in [0, 1]."""
    count, height, width, _ = rgb.shape
    rows = -(-count // columns)
    canvas = Image.new("RGB", (columns * (width * enlarge + 4), rows * (height * enlarge + 4)), "white")
    for i, frame in enumerate((rgb * 255).round().byte()):
        tile = Image.fromarray(frame.numpy()).resize((width * enlarge, height * enlarge), Image.Resampling.NEAREST)
        canvas.paste(tile, (i % columns * (width * enlarge + 4) + 2, i // columns * (height * enlarge + 4) + 2))
    return canvas


def score(
    folder: Path, judge_path: Path | None, *, samples: int, guidance_scale: float, steps: int, sheet_path: Path | None
) -> dict[str, object]:
    """All measurements as one plain dictionary (see the module's docstring)."""
    pipeline = load_pipeline(folder)
    result: dict[str, object] = {
        "autoencoder_psnr_db": autoencoder_psnr(pipeline),
        "samples": samples,
        "guidance_scale": guidance_scale,
        "steps": steps,
    }
    scenes, captions = captions_to_try(samples)
    rgb = sample(pipeline, captions, guidance_scale=guidance_scale, steps=steps)
    if sheet_path is not None:
        sheet(rgb).save(sheet_path)
    if judge_path is not None:
        judge = load_judge(judge_path)
        result["sample_accuracy"] = _agreement(judge, rgb, scenes)
        result["judge_accuracy"] = judge_accuracy(judge, pipeline)
    return result


def _rounded(value: object) -> object:
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    return round(value, 3) if isinstance(value, float) else value


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=model_folder())
    parser.add_argument("--judge", type=Path, default=judge_file())
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--guidance-scale", type=float, help="what the model advises without it")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--sheet", type=Path, help="also save the samples as one picture")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    result = score(
        args.model,
        args.judge if args.judge.exists() else None,
        samples=args.samples,
        guidance_scale=advised_guidance(args.model) if args.guidance_scale is None else args.guidance_scale,
        steps=args.steps,
        sheet_path=args.sheet,
    )
    print(json.dumps(_rounded(result), indent=2))


if __name__ == "__main__":
    main()
