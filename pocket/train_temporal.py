"""Train a temporal decoder of the pocket model's latents: clips of the world, one core, resumable.

    python -m pocket.train_temporal --run /tmp/pocket-temporal --out /tmp/pocket-temporal/vae   # trains, and exports
    python -m pocket.train_temporal --run /tmp/pocket-temporal --out … --steps 600              # ended earlier

An AutoencoderKLTemporalDecoder (Blattmann et al., arXiv 2311.15127, appendix D) of which only the decoder learns: the
latents are those of the pocket model's own encoder. Pocket's autoencoder is an AutoencoderTiny, whose blocks are
others, so that no weight of it can be taken over.
"""

import argparse
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLTemporalDecoder, StableDiffusionPipeline
from torch import Tensor
from torch.nn import functional as F

from pocket import model_folder
from pocket.score import load_pipeline
from pocket.train import Recipe, Worker, fit, painted, seeded
from pocket.train_control import export
from pocket.world import sample_clip

__all__ = ["TemporalRecipe", "new_temporal", "train_temporal"]


@dataclass(frozen=True)
class TemporalRecipe:
    """Everything that decides which weights come out."""

    seed: int = 0
    size: int = 64
    clips: int = 384
    frames: int = 16
    window: int = 4
    steps: int = 1500
    batch: int = 4
    rate: float = 2e-3
    save_every: int = 100


TINY = TemporalRecipe(size=32, clips=2, frames=4, window=2, steps=16, batch=1, save_every=8)
"""A recipe of seconds, which learns nothing: for trying the machinery."""


def new_temporal(pipeline: StableDiffusionPipeline) -> AutoencoderKLTemporalDecoder:
    """A random one with the latents of the pipeline's autoencoder: their channels, scale and size.

    Two channels to a group of its last normalization: with one, a picture's mean would be lost there.
    """
    config = pipeline.vae.config
    halvings = len(config.encoder_block_out_channels) - 1
    return AutoencoderKLTemporalDecoder(
        down_block_types=("DownEncoderBlock2D",) * (halvings + 1),
        block_out_channels=(64, *(32 for _ in range(halvings))),
        latent_channels=config.latent_channels,
        scaling_factor=config.scaling_factor,
        force_upcast=False,
    )


def _data(pipeline: StableDiffusionPipeline, recipe: TemporalRecipe) -> tuple[Tensor, Tensor]:
    """Pictures (clip, frame, 3, h, w) uint8 and their latents (clip, frame, c, h, w), unscaled."""
    generator = seeded(recipe.seed, "temporal-clips")
    pictures, latents = [], []
    for _ in range(recipe.clips):
        clip = sample_clip(recipe.frames, generator)
        [rgb] = painted(clip, recipe.size, torch.device("cpu"))
        pictures.append((rgb * 127.5 + 127.5).round().byte())
        with torch.no_grad():
            latents.append(pipeline.vae.encode(rgb).latents)
    return torch.stack(pictures), torch.stack(latents)


def _loss(picture: Tensor, truth: Tensor) -> Tensor:
    """L1 and squared error, and L1 of what changes from frame to frame; (clip, frame, c, h, w) in [-1, 1]."""
    change = picture.diff(dim=1) - truth.diff(dim=1)
    return F.l1_loss(picture, truth) + 4 * F.mse_loss(picture / 2, truth / 2) + 0.5 * change.abs().mean()


def train_temporal(
    recipe: TemporalRecipe, run: Path, *, model: Path | None = None, stop_at: int | None = None
) -> AutoencoderKLTemporalDecoder | None:
    """Train for `recipe.steps`, going on where `run` was; the running average of the weights, or None if paused."""
    run.mkdir(parents=True, exist_ok=True)
    pipeline = load_pipeline(model)
    pipeline.vae.eval().requires_grad_(False)
    torch.manual_seed(recipe.seed)
    temporal: Any = new_temporal(pipeline).train().requires_grad_(False)
    temporal.decoder.requires_grad_(True)
    data = cache(lambda: _data(pipeline, recipe))  # a run that has come to its end needs none

    def loss_of(generator: torch.Generator) -> Tensor:
        """Quarters of the frames of several clips; at one step in four whole frames of one, as they are decoded."""
        pictures, latents = data()
        factor = recipe.size // latents.shape[-1]
        whole = float(torch.rand(1, generator=generator)) < 0.25
        side = latents.shape[-1] if whole else latents.shape[-1] // 2
        z, truth = [], []
        for _ in range(1 if whole else recipe.batch):
            high = torch.tensor([len(latents), recipe.frames - recipe.window + 1, *[latents.shape[-1] - side + 1] * 2])
            clip, first, y, x = (torch.rand(4, generator=generator) * high).long().tolist()
            some = slice(first, first + recipe.window)
            z.append(latents[clip, some, :, y : y + side, x : x + side])
            y, x, wide = y * factor, x * factor, side * factor
            truth.append(pictures[clip, some, :, y : y + wide, x : x + wide].float() / 127.5 - 1)
        decoded = temporal.decode(torch.cat(z), num_frames=recipe.window).sample
        return _loss(decoded.unflatten(0, (-1, recipe.window)), torch.stack(truth))

    finished = fit(
        "temporal", temporal, loss_of, Recipe(seed=recipe.seed, save_every=recipe.save_every),
        Worker(0, 1, torch.device("cpu"), run), steps=recipe.steps, rate=recipe.rate,
        samples_per_step=recipe.batch * recipe.window, stop_at=stop_at,
    )  # fmt: skip
    if not finished:
        return None
    temporal.load_state_dict(torch.load(run / "temporal.pt"))
    return temporal


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
