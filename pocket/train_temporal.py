"""Train layers along time into the decoder of the pocket model's autoencoder: clips of the world, one core, resumable.

    python -m pocket.train_temporal --run /tmp/pocket-temporal --out /tmp/pocket-temporal/vae   # trains, and exports
    python -m pocket.train_temporal --run /tmp/pocket-temporal --out … --steps 600              # ended earlier

As Stable Video Diffusion's decoder is made of SD's (Blattmann et al., arXiv 2311.15127, appendix D): the latents and
all layers of pictures are the model's own and stay as they are, so that what it gains or loses is due to looking along
time.
"""

import argparse
import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from pocket import model_folder
from pocket.score import load_pipeline
from pocket.train import Recipe, Worker, fit, painted, seeded
from pocket.world import sample_clip
from stages.backbones import temporal_tiny

__all__ = ["TemporalRecipe", "export", "new_temporal", "train_temporal"]


@dataclass(frozen=True)
class TemporalRecipe:
    """Everything that decides which weights come out."""

    seed: int = 0
    size: int = 64
    clips: int = 384
    frames: int = 16
    window: int = 8
    steps: int = 1500
    batch: int = 2
    rate: float = 1e-3
    save_every: int = 100


TINY = TemporalRecipe(size=32, clips=2, frames=4, window=2, steps=16, batch=1, save_every=8)
"""A recipe of seconds, which learns nothing: for trying the machinery."""


def new_temporal(model: Path | None = None) -> Any:
    """The model's autoencoder with layers along time that change nothing yet and are all that learns."""
    vae: Any = temporal_tiny.with_time(load_pipeline(model).vae).requires_grad_(False)
    for layer in vae.decoder.layers:
        if isinstance(layer, temporal_tiny.AlongTime):
            layer.first.requires_grad_(True)
            layer.second.requires_grad_(True)
    return vae


def _data(vae: Any, recipe: TemporalRecipe) -> tuple[Tensor, Tensor]:
    """Pictures (clip, frame, 3, h, w) uint8 and their latents (clip, frame, c, h, w), unscaled."""
    generator = seeded(recipe.seed, "temporal-clips")
    pictures, latents = [], []
    for _ in range(recipe.clips):
        clip = sample_clip(recipe.frames, generator)
        [rgb] = painted(clip, recipe.size, torch.device("cpu"))
        pictures.append((rgb * 127.5 + 127.5).round().byte())
        with torch.no_grad():
            latents.append(vae.encode(rgb).latents)
    return torch.stack(pictures), torch.stack(latents)


def _loss(picture: Tensor, truth: Tensor) -> Tensor:
    """L1 and squared error, and L1 of what changes from frame to frame; (frame, c, h, w) in [-1, 1]."""
    change = picture.diff(dim=0) - truth.diff(dim=0)
    return F.l1_loss(picture, truth) + 4 * F.mse_loss(picture / 2, truth / 2) + 0.5 * change.abs().mean()


def train_temporal(
    recipe: TemporalRecipe, run: Path, *, model: Path | None = None, stop_at: int | None = None
) -> Any | None:
    """Train for `recipe.steps`, going on where `run` was; the running average of the weights, or None if paused."""
    run.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    temporal = new_temporal(model).train()
    data = cache(lambda: _data(temporal, recipe))  # a run that has come to its end needs none

    def loss_of(generator: torch.Generator) -> Tensor:
        """Quarters of the frames of several clips; at one step in four whole frames of one, as they are decoded."""
        pictures, latents = data()
        factor = recipe.size // latents.shape[-1]
        whole = float(torch.rand(1, generator=generator)) < 0.25
        side = latents.shape[-1] if whole else latents.shape[-1] // 2
        losses = []
        for _ in range(1 if whole else recipe.batch):
            high = torch.tensor([len(latents), recipe.frames - recipe.window + 1, *[latents.shape[-1] - side + 1] * 2])
            clip, first, y, x = (torch.rand(4, generator=generator) * high).long().tolist()
            some = slice(first, first + recipe.window)
            decoded = temporal.decode(latents[clip, some, :, y : y + side, x : x + side]).sample
            y, x, wide = y * factor, x * factor, side * factor
            losses.append(_loss(decoded, pictures[clip, some, :, y : y + wide, x : x + wide].float() / 127.5 - 1))
        return torch.stack(losses).mean()

    finished = fit(
        "temporal", temporal, loss_of, Recipe(seed=recipe.seed, save_every=recipe.save_every),
        Worker(0, 1, torch.device("cpu"), run), steps=recipe.steps, rate=recipe.rate,
        samples_per_step=recipe.batch * recipe.window, stop_at=stop_at,
    )  # fmt: skip
    if not finished:
        return None
    temporal.load_state_dict(torch.load(run / "temporal.pt"))
    return temporal


def export(vae: Any, out: Path) -> None:
    """Write a folder for --decoder: float16 weights and their config."""
    out.mkdir(parents=True, exist_ok=True)
    weights = {name: value.half().contiguous() for name, value in vae.state_dict().items()}
    save_file(weights, out / "diffusion_pytorch_model.safetensors")
    config = {name: value for name, value in vae.config.items() if not name.startswith("_")}
    config = {"_class_name": temporal_tiny.NAME, **config}
    (out / "config.json").write_text(json.dumps(config, indent=2, default=list) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder for checkpoints")
    parser.add_argument("--model", type=Path, default=model_folder(), help="the model whose latents are decoded")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--steps", type=int, help="where the run ends")
    parser.add_argument("--tiny", action="store_true", help="a recipe of seconds, which learns nothing")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    recipe = TINY if args.tiny else TemporalRecipe()
    temporal = train_temporal(replace(recipe, steps=args.steps or recipe.steps), args.run, model=args.model)
    if temporal is not None:
        export(temporal, args.out)
        print(f"exported to {args.out}", flush=True)


if __name__ == "__main__":
    main()
