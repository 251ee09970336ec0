"""Train the pocket model's ControlNet on edges: pictures of the world, their Canny edges, one core, resumable.

    python -m pocket.train_control --run /tmp/pocket-control              # trains, and exports to pocket/control
    python -m pocket.train_control --run /tmp/pocket-control --steps 2400 # the same run, ended earlier

Source: Zhang et al., arXiv 2302.05543: a trainable copy of the denoiser's encoder whose outputs are added to the frozen
denoiser's through convolutions that start at zero; half of the captions are empty, so that edges alone must do.
"""

import argparse
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel, StableDiffusionPipeline
from torch import Tensor, nn

from pocket import control_folder, model_folder
from pocket.edges import edges
from pocket.score import load_pipeline
from pocket.train import Recipe, Worker, attributes_of, fit, painted, seeded, sentence_of, text_reader
from pocket.world import sample_scenes

__all__ = ["ControlRecipe", "export", "new_control", "train_control"]


@dataclass(frozen=True)
class ControlRecipe:
    """Everything that decides which weights come out."""

    seed: int = 0
    size: int = 64
    images: int = 10240
    steps: int = 2500
    batch: int = 16
    rate: float = 1e-3
    empty_captions: float = 0.5
    save_every: int = 100


TINY = ControlRecipe(size=32, images=16, steps=16, batch=2, save_every=8)
"""A recipe of seconds, which learns nothing: for trying the machinery."""


def new_control(pipeline: StableDiffusionPipeline) -> ControlNetModel:
    """A copy of the pipeline's encoder that changes nothing yet.

    The edges are halved once per halving of the autoencoder, so that they meet the latents at their own size.
    """
    halvings = len(pipeline.vae.config.encoder_block_out_channels) - 1
    return ControlNetModel.from_unet(
        pipeline.unet, conditioning_embedding_out_channels=(16, *(32 for _ in range(halvings - 1)), 64)
    )


def _data(pipeline: StableDiffusionPipeline, recipe: ControlRecipe, run: Path) -> dict[str, Tensor]:
    """Latents (n, 4, h, w) float16, unscaled; edges (n, height, width) uint8; attributes (n, 4). Painted once a run."""
    path = run / "control-data.pt"
    if not path.exists():
        scenes = sample_scenes(recipe.images, seeded(recipe.seed, "control-scenes"))
        latents, drawn = [], []
        with torch.no_grad():
            for pictures in painted(scenes, recipe.size, torch.device("cpu")):
                latents.append(pipeline.vae.encode(pictures).latents.half())
                rgb = (pictures.permute(0, 2, 3, 1) * 127.5 + 127.5).round().byte().numpy()
                drawn.append(torch.from_numpy(edges(rgb)))
        held = {"latents": torch.cat(latents), "edges": torch.cat(drawn), "attributes": attributes_of(scenes)}
        torch.save(held, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)
    data: dict[str, Tensor] = torch.load(path)
    return data


class _Loss:
    """The denoiser's own loss, the control's weights alone being free."""

    def __init__(
        self, control: nn.Module, pipeline: StableDiffusionPipeline, data: dict[str, Tensor], recipe: ControlRecipe
    ) -> None:
        self.control, self.pipeline, self.data, self.recipe = control, pipeline, data, recipe
        self.alphas = pipeline.scheduler.alphas_cumprod
        self.text_of = text_reader(pipeline.tokenizer, pipeline.text_encoder)

    def _texts(self, pick: Tensor, chances: Tensor) -> Tensor:
        chances[:, 0] *= 0.1 / self.recipe.empty_captions  # `sentence_of` leaves one in ten empty
        said = [sentence_of(self.data["attributes"][i], c) for i, c in zip(pick, chances, strict=True)]
        return torch.stack([self.text_of(sentence) for sentence in said])

    def __call__(self, generator: torch.Generator) -> Tensor:
        """Mean weighted squared error of the predicted noise, over one batch drawn by `generator`.

        Timesteps are drawn cubically towards noise, where the layout is decided (Mou et al., arXiv 2302.08453);
        min-SNR weights as for the denoiser (Hang et al., arXiv 2303.09556).
        """
        batch = self.recipe.batch
        pick = torch.randint(len(self.data["latents"]), (batch,), generator=generator)
        text = self._texts(pick, torch.rand((batch, 5), generator=generator))
        strata = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
        t = ((1 - strata**3) * 1000).long().clamp(max=999)
        x0 = self.data["latents"][pick].float() * self.pipeline.vae.config.scaling_factor
        noise = torch.randn(x0.shape, generator=generator)
        a = self.alphas[t][:, None, None, None]
        noisy = (a.sqrt() * x0 + (1 - a).sqrt() * noise).contiguous(memory_format=torch.channels_last)
        lines = (self.data["edges"][pick].float() / 255)[:, None].expand(-1, 3, -1, -1)
        down, mid = self.control(noisy, t, text, lines.contiguous(), return_dict=False)
        predicted = self.pipeline.unet(
            noisy, t, text, down_block_additional_residuals=down, mid_block_additional_residual=mid
        ).sample
        snr = self.alphas[t] / (1 - self.alphas[t])
        loss: Tensor = ((predicted - noise).square().mean(dim=(1, 2, 3)) * snr.clamp(max=5) / snr).mean()
        return loss


def train_control(
    recipe: ControlRecipe, run: Path, *, model: Path | None = None, stop_at: int | None = None
) -> ControlNetModel | None:
    """Train for `recipe.steps`, going on where `run` was; the running average of the weights, or None if paused."""
    run.mkdir(parents=True, exist_ok=True)
    pipeline = load_pipeline(model)
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        part.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    torch.manual_seed(recipe.seed)
    control: Any = new_control(pipeline).train().requires_grad_(True).to(memory_format=torch.channels_last)
    loss = _Loss(control, pipeline, _data(pipeline, recipe, run), recipe)
    finished = fit(
        "control", control, loss, Recipe(seed=recipe.seed, save_every=recipe.save_every),
        Worker(0, 1, torch.device("cpu"), run), steps=recipe.steps, rate=recipe.rate, samples_per_step=recipe.batch,
        stop_at=stop_at,
    )  # fmt: skip
    if not finished:
        return None
    control.load_state_dict(torch.load(run / "control.pt"))
    return control


def export(control: ControlNetModel, out: Path) -> None:
    """Write float16 weights and their config to `out`; what was written there by hand stays."""
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    control.half().save_pretrained(part)
    out.mkdir(parents=True, exist_ok=True)
    for file in part.iterdir():
        file.replace(out / file.name)
    part.rmdir()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder for checkpoints")
    parser.add_argument("--model", type=Path, default=model_folder(), help="the model that is controlled")
    parser.add_argument("--out", type=Path, default=control_folder(), help="folder to write")
    parser.add_argument("--steps", type=int, help="where the run ends")
    parser.add_argument("--tiny", action="store_true", help="a recipe of seconds, which learns nothing")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    recipe = TINY if args.tiny else ControlRecipe()
    control = train_control(replace(recipe, steps=args.steps or recipe.steps), args.run, model=args.model)
    if control is not None:
        export(control, args.out)
        print(f"exported to {args.out}", flush=True)


if __name__ == "__main__":
    main()
