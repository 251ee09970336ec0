"""What tiles do to a *trained* autoencoder whose norms are taken per tile: how near they come, and whether seams show.

    python -m benchmarks.seams --run /tmp/seams [-o benchmarks/results/seams.json]

No weights of Stable Diffusion's autoencoder are to be had here, so an AutoencoderKL with what its structure has of the
whole frame (group norms, attention in the middle), small and of factor 4, is trained on the pocket world at the size of
its tiles; training goes on where `--run` was. Norms of a tile of 64 pixels are taken over less than those of one of
512, so this errs on the side of too much difference. Then pictures of several tiles a side, which differ from tile to
tile in ground and object, are encoded and decoded whole and in tiles.

psnr     of the tiled picture to the whole one, and of each to the true one, in dB
seams    mean step of tiled - whole from one pixel to the next where a tile begins or its blending ends, over the mean
         step everywhere else: above 1 where borders show
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from diffusers import AutoencoderKL
from torch import Tensor

from pocket.train import Recipe, Worker, _picture_loss, fit, painted, psnr, seeded
from pocket.world import GROUNDS, Scene, render, sample_scenes

WIDTHS = (16, 32, 64)  # Stable Diffusion's are 128, 256, 512, 512
OVERLAP = 0.25  # of a tile, as diffusers has it


@dataclass(frozen=True)
class SeamsRecipe:
    """Everything that decides which weights come out; `tile` is the size trained on, in pixels."""

    seed: int = 0
    tile: int = 64
    images: int = 2048
    steps: int = 800
    batch: int = 4
    rate: float = 1.5e-3
    save_every: int = 100


def new_autoencoder(recipe: SeamsRecipe) -> AutoencoderKL:
    """One with random weights, whose tiles are as large as what it is trained on."""
    return AutoencoderKL(
        block_out_channels=WIDTHS, norm_num_groups=8, latent_channels=4, layers_per_block=1, sample_size=recipe.tile,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
    )  # fmt: skip


def train(recipe: SeamsRecipe, run: Path) -> AutoencoderKL:
    """Train for `recipe.steps`, going on where `run` was; the running average of the weights."""
    run.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    vae: Any = new_autoencoder(recipe).train()

    @cache
    def images() -> Tensor:
        scenes = sample_scenes(recipe.images, seeded(recipe.seed, "seams-scenes"))
        return torch.cat(
            [(x * 127.5 + 127.5).round().byte() for x in painted(scenes, recipe.tile, torch.device("cpu"))]
        )

    def loss_of(generator: torch.Generator) -> Tensor:
        pick = torch.randint(len(images()), (recipe.batch,), generator=generator)
        x = images()[pick].float() / 127.5 - 1
        posterior = vae.encode(x).latent_dist
        z = posterior.sample(generator=generator)
        loss: Tensor = _picture_loss(vae.decode(z).sample, x) + 1e-6 * posterior.kl().mean()
        return loss

    fit(
        "seams", vae, loss_of, Recipe(seed=recipe.seed, save_every=recipe.save_every),
        Worker(0, 1, torch.device("cpu"), run), steps=recipe.steps, rate=recipe.rate, samples_per_step=recipe.batch,
        stop_at=None,
    )  # fmt: skip
    vae.load_state_dict(torch.load(run / "seams.pt"))
    frozen: AutoencoderKL = vae.eval().requires_grad_(False)
    return frozen


def wide_picture(recipe: SeamsRecipe, tiles: int, number: int) -> Tensor:
    """A picture (1, 3, side, side) in [-1, 1], `tiles` times the training size a side, textures as fine as in training.

    Its left and right halves have different grounds, and each place of a tile's size an object of its own.
    """
    side, generator = recipe.tile * tiles, seeded(recipe.seed, "seams-picture", tiles, number)
    left, right = GROUNDS[number % 6], GROUNDS[(number + 2) % 6]
    halves = [_shrunk(sample_scenes(1, generator, ground=ground), tiles, None) for ground in (left, right)]
    rgb, other = (render(half, side).rgb[0] for half in halves)
    rgb[:, side // 2 :] = other[:, side // 2 :]
    for row in range(tiles):
        for column in range(tiles):
            scene = _shrunk(sample_scenes(1, generator), tiles, (column, row))
            drawn = render(scene, side)
            rgb = torch.lerp(rgb, drawn.rgb[0], drawn.coverage[0][..., None])
    return rgb.permute(2, 0, 1)[None] * 2 - 1


def _shrunk(scene: Scene, tiles: int, place: tuple[int, int] | None) -> Scene:
    """A scene whose object and ground have in a picture of `tiles` a side the pixels they would have in one."""
    corner = torch.tensor([[-1.0 + (2 * each + 1) / tiles for each in (place or (0, 0))]])
    centre = torch.full((1, 2), 9.0) if place is None else corner + scene.centre / tiles
    return replace(
        scene, centre=centre, scale=scene.scale / tiles, zoom=scene.zoom / tiles, offset=scene.offset / tiles
    )


def borders(tile: int, side: int) -> list[int]:
    """Columns (or rows) of a decoded picture at which a tile begins, or its blending with the one before ends."""
    step, blended = int(tile * (1 - OVERLAP)), int(tile * OVERLAP)
    begins = range(step, side, step)
    return sorted(place for first in begins for place in (first, first + blended) if place < side)


def seams(whole: Tensor, tiled: Tensor, tile: int) -> float:
    """How much more the difference of two pictures (1, 3, side, side) steps at borders of tiles than elsewhere."""
    difference = tiled - whole
    places = [place - 1 for place in borders(tile, whole.shape[-1])]
    ratios = []
    for axis in (-1, -2):
        steps = difference.diff(dim=axis).abs().mean(dim=(0, 1, -1 if axis == -2 else -2))
        elsewhere = torch.ones(len(steps), dtype=torch.bool)
        elsewhere[places] = False
        ratios.append(float(steps[places].mean() / steps[elsewhere].mean()))
    return sum(ratios) / 2


def compared(vae: AutoencoderKL, picture: Tensor, tile: int) -> tuple[dict[str, float], np.ndarray[Any, Any]]:
    """Whole and tiled, both ways; and the pictures beside each other, with their difference eight times as strong."""
    out = {}
    for way in ("whole", "tiled"):
        (vae.enable_tiling if way == "tiled" else vae.disable_tiling)()
        z = vae.encode(picture).latent_dist.mode()
        out[way] = z, vae.decode(z).sample.clamp(-1, 1)
    (z, whole), (z_tiled, tiled) = out["whole"], out["tiled"]
    error = (z_tiled - z).square().mean().sqrt() / z.std()
    row = {
        "psnr_tiled_to_whole": round(psnr(tiled, whole), 1), "psnr_whole": round(psnr(whole, picture), 2),
        "psnr_tiled": round(psnr(tiled, picture), 2), "latents_relative_error": round(float(error), 4),
        "seams": round(seams(whole, tiled, tile), 2),
    }  # fmt: skip
    shown = torch.cat([picture, whole, tiled, ((tiled - whole) * 8).clamp(-1, 1)], dim=-1)[0]
    return row, (shown.permute(1, 2, 0) * 127.5 + 127.5).round().byte().numpy()


@torch.no_grad()
def measure(vae: AutoencoderKL, recipe: SeamsRecipe, sides: tuple[int, ...], pictures: int, run: Path) -> list[Any]:
    """A row per size: means over some pictures; the first of each is kept as `run`/seams-N.png."""
    from PIL import Image

    rows = []
    for tiles in sides:
        found = []
        for number in range(pictures):
            row, shown = compared(vae, wide_picture(recipe, tiles, number), recipe.tile)
            found.append(row)
            if not number:
                Image.fromarray(shown).save(run / f"seams-{tiles}.png")
        mean = {name: round(float(np.mean([row[name] for row in found])), 4) for name in found[0]}
        rows.append({"side": tiles * recipe.tile, "tiles_a_side": tiles, "pictures": pictures, **mean})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def main(
    run: Annotated[Path, typer.Option(help="folder for checkpoints and pictures")],
    steps: Annotated[int, typer.Option(help="of training")] = SeamsRecipe.steps,
    pictures: Annotated[int, typer.Option(help="per size")] = 6,
    output: Annotated[Path | None, typer.Option("-o", "--output")] = None,
) -> None:
    """Train, measure, print, write JSON."""
    torch.set_num_threads(1)
    recipe = replace(SeamsRecipe(), steps=steps)
    vae = train(recipe, run)
    answer = {
        "command": f"python -m benchmarks.seams --run RUN --steps {steps} --pictures {pictures} -o {output}",
        "tile": recipe.tile, "widths": WIDTHS,
        "rows": measure(vae, recipe, (2, 4), pictures, run),
    }  # fmt: skip
    if output:
        output.write_text(json.dumps(answer, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
