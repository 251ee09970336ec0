"""Measure the shipped ControlNet: do pictures keep to the edges that were shown, and still show what was said?

    python -m pocket.score_control                                     # some two minutes on one core
    python -m pocket.score_control --sheet pocket/control/samples.png

Scenes are held out of all training. Each is drawn from its edges with its own caption, with another scene's, and with
its own caption and no ControlNet; pictures start at the same noise.
"""

import argparse
import json
from pathlib import Path

import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline, StableDiffusionPipeline
from torch import Tensor

from pocket import control_folder, model_folder
from pocket.edges import agreement, edges
from pocket.judge import HEADS, load_judge
from pocket.score import advised_guidance, captions_to_try, load_pipeline, sheet
from pocket.world import COLOURS, GROUNDS, Scene, render

__all__ = ["drawn", "score_control"]

STEPS = 20


def drawn(pipeline: StableDiffusionPipeline, captions: list[str], shown: Tensor, strength: float) -> Tensor:
    """One picture per caption, rgb (caption, height, width, 3) in [0, 1], from edges shown (caption, height, width)."""
    control = ControlNetModel.from_pretrained(control_folder(), torch_dtype=torch.float32)
    controlled = StableDiffusionControlNetPipeline(
        **pipeline.components, controlnet=control, requires_safety_checker=False
    )
    controlled.set_progress_bar_config(disable=True)
    image = (shown.float() / 255)[:, None].expand(-1, 3, -1, -1).contiguous()
    pictures: Tensor = controlled(
        captions, image=image, num_inference_steps=STEPS, guidance_scale=advised_guidance(model_folder()),
        controlnet_conditioning_scale=strength, output_type="pt",
        generator=[torch.Generator().manual_seed(seed) for seed in range(len(captions))],
    ).images  # fmt: skip
    return pictures.float().permute(0, 2, 3, 1)


def _eight_bits(rgb: Tensor) -> Tensor:
    return (rgb * 255).round().byte()


def _said(rgb: Tensor, scenes: Scene) -> dict[str, float]:
    verdict = load_judge().read(rgb)
    return {h: float((getattr(verdict, h).argmax(dim=1) == getattr(scenes, h)).float().mean()) for h in HEADS}


def score_control(samples: int, sheet_path: Path | None) -> dict[str, object]:
    """Edge agreement (F1, a pixel off is no miss) and the judge's accuracy, per way of drawing."""
    pipeline = load_pipeline()
    scenes, captions = captions_to_try(samples)
    rgb = render(scenes, 64).rgb
    wanted = edges(_eight_bits(rgb).numpy())
    order = torch.arange(samples).roll(1)
    foreign, recoloured = scenes[order], [_recoloured(captions, scenes, i, int(order[i])) for i in range(samples)]
    ways = {
        "own caption": (captions, 1.0, scenes),
        "colour and ground of another scene": (recoloured, 1.0, foreign),
        "own caption, no ControlNet": (captions, 0.0, scenes),
    }
    result: dict[str, object] = {"samples": samples, "steps": STEPS}
    rows = [rgb[:8], torch.from_numpy(wanted[:8])[..., None].expand(-1, -1, -1, 3) / 255]
    for name, (texts, strength, judged) in ways.items():
        pictures = drawn(pipeline, texts, torch.from_numpy(wanted), strength)
        rows.append(pictures[:8])
        said = _said(pictures, judged)
        own = agreement(wanted, edges(_eight_bits(pictures).numpy()))
        result[name] = {"edges": own, "colour": said["colour"], "ground": said["ground"]}
    if sheet_path is not None:
        sheet(torch.cat(rows)).save(sheet_path)
    return result


def _recoloured(captions: list[str], scenes: Scene, index: int, other: int) -> str:
    """The caption of one scene with the colour and the ground of another."""
    own = captions[index].replace(COLOURS[int(scenes.colour[index])], COLOURS[int(scenes.colour[other])])
    return own.replace(GROUNDS[int(scenes.ground[index])], GROUNDS[int(scenes.ground[other])])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--sheet", type=Path, help="also save the first eight of each as one picture")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print(json.dumps(score_control(args.samples, args.sheet), indent=2))


if __name__ == "__main__":
    main()
