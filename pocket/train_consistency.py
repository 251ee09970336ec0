"""Distil the pocket model into a latent consistency model, or into a LoRA of one: one core, resumable.

    python -m pocket.train_consistency --run /tmp/pocket-lcm --out /tmp/pocket-lcm/model           # a whole model
    python -m pocket.train_consistency --run /tmp/pocket-lora --out /tmp/pocket-lora/lora --rank 8   # a LoRA on pocket

Source: Luo et al., arXiv 2310.04378, algorithm 1: the student at t answers as its own running average does one DDIM
step of the guided teacher nearer to the data, and is told the guidance scale w; arXiv 2311.05556 for the LoRA, which is
told nothing and has learnt one scale.
"""

import argparse
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import LatentConsistencyModelPipeline, LCMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn

from pocket import judge_file, model_folder
from pocket.score import load_pipeline
from pocket.train import Recipe, Worker, encode_latents, fit, sentence_of, start_from, text_reader

__all__ = ["ConsistencyRecipe", "Distillation", "export", "new_student", "train_consistency"]

GUIDANCE_CHANNELS = 256  # of the embedded guidance scale, as of every published model
DECAY = 0.95  # of the student's running average, which sets its aim
SKIPPED = 50  # timesteps between the two that have to agree: k of the paper, which has 20; DDIM in 20 steps does here
HUBER = 1e-3  # from squared to absolute error
ADAPTED = (
    "to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv2",
    "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj",
)  # fmt: skip
"""Modules that a LoRA adapts: those of the published ones."""


@dataclass(frozen=True)
class ConsistencyRecipe:
    """Everything that decides which weights come out.

    guidance   scales are drawn from this range; as in the published models 1, no guidance, is not in it
    rank       of a LoRA; None for a model of its own
    """

    seed: int = 0
    size: int = 64
    images: int = 4096
    steps: int = 208
    batch: int = 8
    rate: float = 5e-4
    guidance: tuple[float, float] = (2.0, 7.0)
    rank: int | None = None
    save_every: int = 50


TINY = ConsistencyRecipe(size=32, images=16, steps=16, batch=2, save_every=8)
"""A recipe of seconds, which learns nothing: for trying the machinery."""


def new_student(teacher: UNet2DConditionModel, rank: int | None) -> UNet2DConditionModel:
    """The teacher's copy, told the guidance scale by weights that start at zero; or with a LoRA that alone learns."""
    if rank is not None:
        student = deepcopy(teacher)
        student.requires_grad_(False)
        student.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=[*ADAPTED]))
        return student
    told = dict(teacher.config) | {"time_cond_proj_dim": GUIDANCE_CHANNELS}
    student = UNet2DConditionModel.from_config(told)
    missing = student.load_state_dict(teacher.state_dict(), strict=False).missing_keys
    assert missing == ["time_embedding.cond_proj.weight"], "nothing else is new"
    nn.init.zeros_(student.time_embedding.cond_proj.weight)
    return student.requires_grad_(True)


class Distillation(nn.Module):
    """A student and its running average, which is called on too."""

    def __init__(self, student: UNet2DConditionModel) -> None:
        super().__init__()
        self.student: Any = student.train()
        self.target: Any = deepcopy(student).requires_grad_(False)

    @torch.no_grad()
    def follow(self) -> None:
        """One step of the running average."""
        for kept, own in zip(self.target.parameters(), self.student.parameters(), strict=True):
            if own.requires_grad:
                kept.lerp_(own, 1 - DECAY)


class _Loss:
    """How far the student is from agreeing with its running average, one step of the teacher nearer to the data."""

    def __init__(
        self, module: Distillation, pipeline: StableDiffusionPipeline, data: dict[str, Tensor],
        recipe: ConsistencyRecipe,
    ) -> None:  # fmt: skip
        self.module, self.pipeline, self.data, self.recipe = module, pipeline, data, recipe
        self.alphas = pipeline.scheduler.alphas_cumprod
        self.scheduler = LCMScheduler.from_config(pipeline.scheduler.config)
        self.text_of = text_reader(pipeline.tokenizer, pipeline.text_encoder)

    def _guess(self, noisy: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """x_0 by predicted noise, (picture, channel, height, width) each; timesteps (picture)."""
        a = self.alphas[timestep][:, None, None, None]
        guess: Tensor = (noisy - (1 - a).sqrt() * noise) / a.sqrt()
        return guess

    def _clean(self, unet: Any, noisy: Tensor, timestep: Tensor, text: Tensor, w: Tensor) -> Tensor:
        """x_0 as a consistency model answers: what it was given itself at the clean end (eq. 9)."""
        told = None
        if unet.config.time_cond_proj_dim is not None:
            told = self.pipeline.get_guidance_scale_embedding(w, unet.config.time_cond_proj_dim)
        noise = unet(noisy, timestep, text, timestep_cond=told).sample
        scalings = [self.scheduler.get_scalings_for_boundary_condition_discrete(int(t)) for t in timestep]
        skip, out = (torch.tensor(values).float()[:, None, None, None] for values in zip(*scalings, strict=True))
        return skip * noisy + out * self._guess(noisy, noise, timestep)

    @torch.no_grad()
    def _stepped(self, noisy: Tensor, timestep: Tensor, nearer: Tensor, text: Tensor, w: Tensor) -> Tensor:
        """`noisy` taken from `timestep` to `nearer` by one DDIM step of the guided teacher (eq. 14)."""
        both = torch.cat([text, self.text_of("").expand_as(text)])
        cond, uncond = self.pipeline.unet(noisy.repeat(2, 1, 1, 1), timestep.repeat(2), both).sample.chunk(2)
        noise = cond + w[:, None, None, None] * (cond - uncond)
        clean = self._guess(noisy, noise, timestep)
        a = self.alphas[nearer][:, None, None, None]
        return a.sqrt() * clean + (1 - a).sqrt() * noise

    def __call__(self, generator: torch.Generator) -> Tensor:
        """Mean pseudo-Huber distance over one batch drawn by `generator`; timesteps are stratified."""
        self.module.follow()
        batch, (least, most) = self.recipe.batch, self.recipe.guidance
        pick = torch.randint(len(self.data["latents"]), (batch,), generator=generator)
        chances = torch.rand((batch, 5), generator=generator)
        said = [sentence_of(self.data["attributes"][i], c) for i, c in zip(pick, chances, strict=True)]
        text = torch.stack([self.text_of(sentence) for sentence in said])
        strata = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
        timestep = (strata * (1000 // SKIPPED)).long().add(1) * SKIPPED - 1
        nearer = (timestep - SKIPPED).clamp(min=0)
        w = least - 1 + (most - least) * torch.rand(batch, generator=generator)
        x0 = self.data["latents"][pick].float() * self.pipeline.vae.config.scaling_factor
        a = self.alphas[timestep][:, None, None, None]
        noise = torch.randn(x0.shape, generator=generator)
        noisy = (a.sqrt() * x0 + (1 - a).sqrt() * noise).contiguous(memory_format=torch.channels_last)
        stepped = self._stepped(noisy, timestep, nearer, text, w)
        with torch.no_grad():
            wanted = self._clean(self.module.target, stepped, nearer, text, w)
        apart = self._clean(self.module.student, noisy, timestep, text, w) - wanted
        loss: Tensor = ((apart.square() + HUBER**2).sqrt() - HUBER).mean()
        return loss


def _data(recipe: ConsistencyRecipe, run: Path, worker: Worker, model: Path) -> dict[str, Tensor]:
    """Latents (n, 4, h, w) float16, unscaled; attributes (n, 4). Painted once a run."""
    if not (run / "autoencoder.pt").exists():
        start_from(model, judge_file(), run)
    encode_latents(Recipe(seed=recipe.seed, size=recipe.size, latent_images=recipe.images), worker, None)
    data: dict[str, Tensor] = torch.load(run / "latents-0-of-1.pt")
    return data


def train_consistency(
    recipe: ConsistencyRecipe, run: Path, *, model: Path | None = None, stop_at: int | None = None
) -> UNet2DConditionModel | None:
    """Train for `recipe.steps`, going on where `run` was; the running average of the weights, or None if paused."""
    run.mkdir(parents=True, exist_ok=True)
    pipeline = load_pipeline(model)
    for part in (pipeline.unet, pipeline.text_encoder):
        part.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    torch.manual_seed(recipe.seed)
    module: Any = Distillation(new_student(pipeline.unet, recipe.rank))
    module.to(memory_format=torch.channels_last)
    worker = Worker(0, 1, torch.device("cpu"), run)
    loss = _Loss(module, pipeline, _data(recipe, run, worker, model or model_folder()), recipe)
    finished = fit(
        "consistency", module, loss, Recipe(seed=recipe.seed, save_every=recipe.save_every), worker,
        steps=recipe.steps, rate=recipe.rate, samples_per_step=recipe.batch, stop_at=stop_at,
    )  # fmt: skip
    if not finished:
        return None
    module.load_state_dict(torch.load(run / "consistency.pt"))
    student: UNet2DConditionModel = module.student
    return student


def export(student: UNet2DConditionModel, out: Path, *, model: Path | None = None) -> None:
    """Write a float16 `LatentConsistencyModelPipeline` to `out`, or of a student with a LoRA that alone."""
    if getattr(student, "peft_config", None):
        layers = {name: weights.half().contiguous() for name, weights in get_peft_model_state_dict(student).items()}
        StableDiffusionPipeline.save_lora_weights(out, unet_lora_layers=layers)
        return
    pipeline = load_pipeline(model)
    scheduler = LCMScheduler.from_config(
        pipeline.scheduler.config, original_inference_steps=1000 // SKIPPED, set_alpha_to_one=True
    )
    parts = pipeline.components | {"unet": student, "scheduler": scheduler}
    LatentConsistencyModelPipeline(**parts, requires_safety_checker=False).to(dtype=torch.float16).save_pretrained(out)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder for checkpoints")
    parser.add_argument("--model", type=Path, default=model_folder(), help="the teacher")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--rank", type=int, help="of a LoRA; a model of its own without it")
    parser.add_argument("--guidance", type=float, nargs=2, metavar=("LEAST", "MOST"), help="range of guidance scales")
    parser.add_argument("--steps", type=int, help="where the run ends")
    parser.add_argument("--tiny", action="store_true", help="a recipe of seconds, which learns nothing")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    recipe = TINY if args.tiny else ConsistencyRecipe()
    chosen: dict[str, Any] = {name: value for name in ("steps", "rank") if (value := getattr(args, name)) is not None}
    if args.guidance:
        chosen["guidance"] = tuple(args.guidance)
    student = train_consistency(replace(recipe, **chosen), args.run, model=args.model)
    if student is not None:
        export(student, args.out, model=args.model)
        print(f"exported to {args.out}", flush=True)


if __name__ == "__main__":
    main()
