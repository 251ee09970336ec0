"""Train the pocket model: autoencoder → latents → decoder → denoiser → judge → export. One script for CPU and GPU.

    python -m pocket.train --run /tmp/pocket-run --workers 2          # everything, or whatever is still missing
    python -m pocket.train --run /tmp/pocket-run --stage export       # ship the newest average, at any time
    python -m pocket.train --run /tmp/pocket-run --start pocket/model --stage decoder export    # go on from a model

Every stage is counted in steps and leaves checkpoints: started again, a run continues where it was, and ends at the
same weights as one that was never stopped. Randomness is a function of (seed, stage, step, worker) alone.

Workers are processes with one thread each. They train on their own batches and average their weights every few steps
(local SGD, Stich, arXiv 1805.09767): on two CPU cores that is far quicker than threads or averaging each gradient.
"""

import argparse
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from pocket import judge_file, model_folder
from pocket.judge import Judge, judge_loss
from pocket.world import COLOURS, GROUNDS, SHAPES, SURFACES, Scene, caption, render, sample_scenes

STAGES = ("autoencoder", "latents", "decoder", "denoiser", "judge", "export")
CONTEXT = 16  # tokens per caption, with its start and end


@dataclass(frozen=True)
class Recipe:
    """Everything that decides which weights come out. ``batch`` sizes are per worker."""

    seed: int = 0
    size: int = 64
    autoencoder_images: int = 6144
    autoencoder_steps: int = 1400
    autoencoder_batch: int = 8
    autoencoder_rate: float = 2e-3
    autoencoder_channels: int = 32
    latent_images: int = 20480
    decoder_images: int = 12288
    decoder_steps: int = 3000
    decoder_batch: int = 8
    decoder_rate: float = 1.5e-3
    denoiser_channels: tuple[int, int, int, int] = (48, 96, 128, 128)
    denoiser_steps: int = 2350
    denoiser_batch: int = 16
    denoiser_rate: float = 1.5e-3
    text_width: int = 96
    judge_images: int = 5120
    judge_steps: int = 600
    judge_batch: int = 32
    judge_rate: float = 3e-3
    average_every: int = 8
    save_every: int = 400


TINY = Recipe(
    size=32,
    autoencoder_images=16,
    autoencoder_steps=16,
    autoencoder_batch=2,
    autoencoder_channels=8,
    latent_images=16,
    decoder_images=16,
    decoder_steps=8,
    decoder_batch=2,
    denoiser_channels=(16, 16, 16, 16),
    denoiser_steps=16,
    denoiser_batch=2,
    text_width=32,
    judge_images=16,
    judge_steps=8,
    judge_batch=4,
    average_every=4,
    save_every=8,
)
"""A recipe that runs in seconds and learns nothing: for trying the machinery."""


# ---------------------------------------------------------------------------------------------------- workers


@dataclass(frozen=True)
class Worker:
    """One of the processes that train together; rank 0 also logs and keeps the running average."""

    rank: int
    count: int
    device: torch.device
    run: Path

    def log(self, stage: str, **values: object) -> None:
        if self.rank == 0:
            words = " ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in values.items())
            print(f"{time.strftime('%H:%M:%S')} {stage} {words}", flush=True)

    def barrier(self) -> None:
        if self.count > 1:
            dist.barrier()

    def average(self, parameters: list[nn.Parameter]) -> None:
        """Replace every parameter by its mean over the workers."""
        if self.count == 1:
            return
        flat = torch.cat([p.detach().reshape(-1) for p in parameters])
        dist.all_reduce(flat)
        flat /= self.count
        for p, mean in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            p.data.copy_(mean.view_as(p))


def seeded(*key: object) -> torch.Generator:
    """A CPU generator seeded by the key's words alone, the same on every machine."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


class Average:
    """Exponential moving average of weights, updated once per averaging of the workers."""

    def __init__(self, parameters: list[nn.Parameter], decay: float) -> None:
        self.decay, self.count = decay, 0
        self.values = [p.detach().clone() for p in parameters]

    def update(self, parameters: list[nn.Parameter]) -> None:
        self.count += 1
        keep = min(self.decay, self.count / (self.count + 10))
        for value, p in zip(self.values, parameters, strict=True):
            value.lerp_(p.detach(), 1 - keep)

    def copy_to(self, parameters: list[nn.Parameter]) -> None:
        for value, p in zip(self.values, parameters, strict=True):
            p.data.copy_(value)


def _cosine(step: int, steps: int, warmup: int) -> float:
    """Learning rate factor: linear warm-up, then a cosine down to 2 %. Of steps, not of time: it must be resumable."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return 0.02 + 0.98 * 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * min(1.0, done)))))


def _newest(run: Path, stage: str, workers: int) -> int | None:
    """The last step of which every worker has left its checkpoint."""
    found: dict[int, int] = {}
    for path in run.glob(f"{stage}-*-of-{workers}.pt"):
        step = int(path.stem.split("-")[1])
        found[step] = found.get(step, 0) + 1
    whole = [step for step, files in found.items() if files == workers]
    return max(whole) if whole else None


def _checkpoint(run: Path, stage: str, step: int, rank: int, workers: int) -> Path:
    return run / f"{stage}-{step:06d}-{rank}-of-{workers}.pt"


def fit(
    stage: str,
    module: nn.Module,
    loss_of: Callable[[torch.Generator], Tensor],
    recipe: Recipe,
    worker: Worker,
    *,
    steps: int,
    rate: float,
    samples_per_step: int,
    stop_at: int | None,
) -> bool:
    """Train ``module`` to ``steps`` steps, resuming if it can; True when finished and ``<stage>.pt`` is written."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01, betas=(0.9, 0.99), fused=True)
    average = Average(parameters, decay=0.99)
    first = _newest(worker.run, stage, worker.count) or 0
    if first:
        saved = torch.load(_checkpoint(worker.run, stage, first, worker.rank, worker.count), map_location=worker.device)
        module.load_state_dict(saved["module"])
        optimizer.load_state_dict(saved["optimizer"])
        average.values, average.count = saved["average"], saved["average_count"]
        worker.log(stage, resumed_at=first)
    warmup = max(1, min(200, steps // 10))
    started, losses = time.time(), 0.0
    last = steps if stop_at is None else min(steps, stop_at)
    for step in range(first, last):
        for group in optimizer.param_groups:
            group["lr"] = rate * _cosine(step, steps, warmup)
        loss = loss_of(seeded(recipe.seed, stage, step, worker.rank))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        losses += float(loss.detach())
        done = step + 1
        if done % recipe.average_every == 0 or done == last:
            worker.average(parameters)
            average.update(parameters)
        if done % 100 == 0 or done == last:
            seconds = time.time() - started
            pace = samples_per_step * worker.count * (done - first) / seconds
            shown = losses / (100 if done % 100 == 0 and done - first >= 100 else max(1, (done - first) % 100))
            worker.log(stage, step=f"{done}/{steps}", loss=shown, samples_per_s=pace, seconds=seconds)
            losses = 0.0
        if done % recipe.save_every == 0 or done == last:
            _save(stage, done, module, optimizer, average, worker)
    if last < steps:
        return False
    if worker.rank == 0:
        average.copy_to(parameters)
        torch.save(module.state_dict(), worker.run / f"{stage}.part")
        (worker.run / f"{stage}.part").replace(worker.run / f"{stage}.pt")
    worker.barrier()
    return True


def _save(stage: str, step: int, module: nn.Module, optimizer: Any, average: Average, worker: Worker) -> None:
    """Write this worker's checkpoint, then drop the older ones once every worker has written."""
    path = _checkpoint(worker.run, stage, step, worker.rank, worker.count)
    state = {
        "module": module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "average": average.values,
        "average_count": average.count,
    }
    torch.save(state, path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)
    worker.barrier()
    for old in worker.run.glob(f"{stage}-*-{worker.rank}-of-{worker.count}.pt"):
        if old != path:
            old.unlink()


# ---------------------------------------------------------------------------------------------------- models


def new_autoencoder(recipe: Recipe) -> AutoencoderTiny:
    """A factor-4 autoencoder that starts as box-down-, nearest-upsampling of RGB.

    From a random start this size of network needs hours to learn to carry colour at all; carrying RGB through the first
    three channels (delta and averaging kernels, damped residual branches) it starts near 20 dB and learns only detail.
    """
    width = recipe.autoencoder_channels
    model = AutoencoderTiny(
        encoder_block_out_channels=(width,) * 3,
        decoder_block_out_channels=(width,) * 3,
        num_encoder_blocks=(1, 1, 2),
        num_decoder_blocks=(3, 2, 1),
        latent_channels=4,
    )
    for block in (m for m in model.modules() if type(m).__name__ == "AutoencoderTinyBlock"):
        block.conv[-1].weight.data *= 0.1
        block.conv[-1].bias.data.zero_()
    convolutions = [m for part in (model.encoder, model.decoder) for m in part.layers if isinstance(m, nn.Conv2d)]
    for conv in convolutions:
        for channel in range(3):
            conv.weight.data[channel] = 0
            if conv.stride == (2, 2):
                conv.weight.data[channel, channel, 1:, 1:] = 0.25
            else:
                conv.weight.data[channel, channel, 1, 1] = 1.0
            if conv.bias is not None:
                conv.bias.data[channel] = 0
    to_latent, from_latent = model.encoder.layers[-1], model.decoder.layers[0]
    to_latent.weight.data[:3] *= 3.0  # brightness [0, 1] → latent [-1.5, 1.5] and back
    to_latent.bias.data[:3] = -1.5
    from_latent.weight.data[:3] /= 3.0
    from_latent.bias.data[:3] = 0.5
    return model


def _words() -> list[str]:
    return sorted({"a", "an", "on", *SHAPES, *COLOURS, *SURFACES, *GROUNDS})


def _byte_symbols() -> list[str]:
    """One printable character per byte, in the order byte-level BPE (GPT-2, CLIP) gives them."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    table = {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}
    return [table[b] for b in (*printable, *others)]


def new_tokenizer() -> tuple[CLIPTokenizer, dict[str, int], list[tuple[str, str]]]:
    """A CLIP tokenizer in which each of the world's words is one token, and any other text is spelled in bytes.

    Merges are learned greedily (Sennrich et al., arXiv 1508.07909) until every word is whole, so that applying them in
    order ends at the same tokens.
    """
    spelled = {word: [*word[:-1], word[-1] + "</w>"] for word in _words()}
    merges: list[tuple[str, str]] = []
    while any(len(parts) > 1 for parts in spelled.values()):
        pairs: dict[tuple[str, str], int] = {}
        for parts in spelled.values():
            for pair in pairwise(parts):
                pairs[pair] = pairs.get(pair, 0) + 1
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        spelled = {word: list(_merged(parts, best)) for word, parts in spelled.items()}
    symbols = _byte_symbols()
    tokens = [*symbols, *(s + "</w>" for s in symbols), *dict.fromkeys(a + b for a, b in merges)]
    vocab = {token: i for i, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=CONTEXT), vocab, merges


def _merged(parts: list[str], pair: tuple[str, str]) -> Iterator[str]:
    i = 0
    while i < len(parts):
        if tuple(parts[i : i + 2]) == pair:
            yield parts[i] + parts[i + 1]
            i += 2
        else:
            yield parts[i]
            i += 1


def new_text_encoder(recipe: Recipe, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=recipe.text_width,
            intermediate_size=4 * recipe.text_width,
            projection_dim=recipe.text_width,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=CONTEXT,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def new_unet(recipe: Recipe) -> UNet2DConditionModel:
    """Stable Diffusion 1's UNet, block for block, at a fraction of the width."""
    model = UNet2DConditionModel(
        sample_size=recipe.size // 4,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        block_out_channels=recipe.denoiser_channels,
        layers_per_block=2,
        norm_num_groups=16,
        attention_head_dim=4,  # as in SD 1, diffusers reads this as the number of heads
        cross_attention_dim=recipe.text_width,
    )
    nn.init.zeros_(model.conv_out.weight)
    for module in model.modules():
        if type(module).__name__ == "ResnetBlock2D":
            nn.init.zeros_(module.conv2.weight)
        if type(module).__name__ == "Transformer2DModel":
            nn.init.zeros_(module.proj_out.weight)
    return model


def new_scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon",
    )


# ---------------------------------------------------------------------------------------------------- stages


def painted(scene: Scene, size: int, device: torch.device) -> Iterator[Tensor]:
    """Images (n, 3, size, size) in [-1, 1], 64 scenes at a time."""
    for start in range(0, len(scene), 64):
        rgb = render(scene[start : start + 64].to(device), size).rgb
        yield rgb.permute(0, 3, 1, 2) * 2 - 1


def _share(scene: Scene, worker: Worker) -> Scene:
    return scene[worker.rank :: worker.count]


def psnr(image: Tensor, truth: Tensor) -> float:
    """Mean over images (n, c, h, w) in [-1, 1] of the peak signal-to-noise ratio, dB."""
    error = (image.clamp(-1, 1) - truth).square().mean(dim=(1, 2, 3))
    return float((10 * torch.log10(4 / error)).mean())


def held_out(recipe: Recipe, count: int) -> Scene:
    """Scenes that no stage trains on."""
    return sample_scenes(count, seeded(recipe.seed, "held-out"))


def _picture_loss(picture: Tensor, truth: Tensor) -> Tensor:
    """L1, squared error, and L1 of the gradients, of images (n, c, h, w) in [-1, 1]."""
    across = picture.diff(dim=-1) - truth.diff(dim=-1)
    down = picture.diff(dim=-2) - truth.diff(dim=-2)
    edges = across.abs().mean() + down.abs().mean()
    return F.l1_loss(picture, truth) + 4 * F.mse_loss(picture / 2, truth / 2) + 0.3 * edges


def train_autoencoder(recipe: Recipe, worker: Worker, stop_at: int | None) -> bool:
    torch.manual_seed(recipe.seed)
    model = new_autoencoder(recipe).to(worker.device)
    scenes = _share(sample_scenes(recipe.autoencoder_images, seeded(recipe.seed, "autoencoder-scenes")), worker)
    images = torch.cat([(x * 127.5 + 127.5).round().byte() for x in painted(scenes, recipe.size, worker.device)])
    worker.log("autoencoder", images=len(images), parameters=sum(p.numel() for p in model.parameters()))

    def loss_of(generator: torch.Generator) -> Tensor:
        pick = torch.randint(len(images), (recipe.autoencoder_batch,), generator=generator)
        x = images[pick.to(images.device)].float() / 127.5 - 1
        z = model.encode(x).latents
        z = z + 0.03 * torch.randn(z.shape, generator=generator).to(z.device)
        return _picture_loss(model.decode(z).sample, x)

    finished = fit(
        "autoencoder", model, loss_of, recipe, worker, steps=recipe.autoencoder_steps, rate=recipe.autoencoder_rate,
        samples_per_step=recipe.autoencoder_batch, stop_at=stop_at,
    )  # fmt: skip
    if finished:
        _log_held_out("autoencoder", recipe, worker)
    return finished


def _autoencoder_file(run: Path) -> Path:
    """The autoencoder with its decoder trained on, or the first one. Their encoders are the same."""
    return run / "decoder.pt" if (run / "decoder.pt").exists() else run / "autoencoder.pt"


def _load_autoencoder(recipe: Recipe, worker: Worker) -> AutoencoderTiny:
    model = new_autoencoder(recipe).to(worker.device)
    model.load_state_dict(torch.load(_autoencoder_file(worker.run), map_location=worker.device))
    return model.eval().requires_grad_(False)


def encode_latents(recipe: Recipe, worker: Worker, stop_at: int | None) -> bool:
    """Paint and encode the denoiser's whole data set once: (n, 4, h, w) float16, unit variance after scaling."""
    path = worker.run / f"latents-{worker.rank}-of-{worker.count}.pt"
    if not path.exists():
        model = _load_autoencoder(recipe, worker)
        scenes = _share(sample_scenes(recipe.latent_images, seeded(recipe.seed, "denoiser-scenes")), worker)
        with torch.no_grad():
            parts = [model.encode(x).latents for x in painted(scenes, recipe.size, worker.device)]
        torch.save(
            {"latents": torch.cat(parts).half().cpu(), "attributes": attributes_of(scenes)}, path.with_suffix(".part")
        )
        path.with_suffix(".part").replace(path)
    worker.barrier()
    if worker.rank == 0 and not (worker.run / "scaling.json").exists():
        latents = torch.load(path)["latents"].float()
        per_channel = [round(float(v), 4) for v in latents.std(dim=(0, 2, 3))]
        mean = [round(float(v), 4) for v in latents.mean(dim=(0, 2, 3))]
        factor = round(1.0 / float(latents.std()), 5)
        (worker.run / "scaling.json").write_text(json.dumps({"scaling_factor": factor}))
        worker.log("latents", count=len(latents), scaling_factor=factor, std=per_channel, mean=mean)
    worker.barrier()
    return True


def train_decoder(recipe: Recipe, worker: Worker, stop_at: int | None) -> bool:
    """Train the decoder on alone: its pictures get better, and no latent changes, so no denoiser has to either."""
    torch.manual_seed(recipe.seed + 3)
    model = _load_autoencoder(recipe, worker)
    model.decoder.requires_grad_(True)
    scenes = _share(sample_scenes(recipe.decoder_images, seeded(recipe.seed, "decoder-scenes")), worker)
    images = torch.cat([(x * 127.5 + 127.5).round().byte() for x in painted(scenes, recipe.size, worker.device)])
    with torch.no_grad():
        latents = torch.cat([model.encode(x.float() / 127.5 - 1).latents for x in images.split(64)])

    def loss_of(generator: torch.Generator) -> Tensor:
        pick = torch.randint(len(images), (recipe.decoder_batch,), generator=generator).to(worker.device)
        noise = torch.randn(latents[pick].shape, generator=generator).to(worker.device)
        return _picture_loss(model.decode(latents[pick] + 0.01 * noise).sample, images[pick].float() / 127.5 - 1)

    finished = fit(
        "decoder", model, loss_of, recipe, worker, steps=recipe.decoder_steps, rate=recipe.decoder_rate,
        samples_per_step=recipe.decoder_batch, stop_at=stop_at,
    )  # fmt: skip
    if finished:
        _log_held_out("decoder", recipe, worker)
    return finished


def _log_held_out(stage: str, recipe: Recipe, worker: Worker) -> None:
    model = _load_autoencoder(recipe, worker)
    with torch.no_grad():
        x = torch.cat(list(painted(held_out(recipe, 64), recipe.size, worker.device)))
        worker.log(stage, held_out_psnr_db=psnr(model.decode(model.encode(x).latents).sample, x))


def attributes_of(scene: Scene) -> Tensor:
    return torch.stack([scene.shape, scene.colour, scene.surface, scene.ground], dim=1).cpu()


def sentence_of(attributes: Tensor, chance: Tensor) -> str:
    """A caption to train on: usually whole, sometimes with attributes unsaid, one in ten empty.

    attributes (4,) int64; chance (5,) in [0, 1): empty, without colour, without surface, without ground, say "plain"
    """
    if chance[0] < 0.1:
        return ""
    shape, colour, surface, ground = (attributes[i : i + 1] for i in range(4))
    scene = Scene(shape, colour, surface, ground, *([torch.zeros(1)] * 6))
    say = (bool(chance[1] >= 0.06), bool(chance[2] >= 0.1), bool(chance[3] >= 0.1))
    return caption(scene, say=say, plain=bool(chance[4] < 0.3))


class Denoiser(nn.Module):
    """UNet and text encoder, which are trained together."""

    def __init__(self, recipe: Recipe, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.unet = new_unet(recipe)
        self.text = new_text_encoder(recipe, tokenizer)


def text_reader(tokenizer: CLIPTokenizer, encoder: CLIPTextModel) -> Callable[[str], Tensor]:
    """Caption → what the encoder, which does not learn, makes of it (token, channel); each is read once."""

    @lru_cache(maxsize=4096)
    @torch.no_grad()
    def read(caption: str) -> Tensor:
        ids = tokenizer(caption, padding="max_length", max_length=CONTEXT, truncation=True, return_tensors="pt")
        states: Tensor = encoder(ids.input_ids).last_hidden_state
        return states[0]

    return read


def train_denoiser(recipe: Recipe, worker: Worker, stop_at: int | None) -> bool:
    """Epsilon-prediction with min-SNR weights (Hang et al., arXiv 2303.09556, gamma = 5) and stratified timesteps."""
    torch.manual_seed(recipe.seed + 1)
    tokenizer = new_tokenizer()[0]
    model = Denoiser(recipe, tokenizer).to(worker.device)
    saved = torch.load(worker.run / f"latents-{worker.rank}-of-{worker.count}.pt")
    factor = json.loads((worker.run / "scaling.json").read_text())["scaling_factor"]
    latents, attributes = saved["latents"].to(worker.device), saved["attributes"]
    alphas = new_scheduler().alphas_cumprod.to(worker.device)
    worker.log("denoiser", parameters=sum(p.numel() for p in model.parameters()), latents=len(latents))

    @lru_cache(maxsize=4096)
    def ids_of(sentence: str) -> Tensor:
        padded = tokenizer(sentence, padding="max_length", max_length=CONTEXT, truncation=True, return_tensors="pt")
        ids: Tensor = padded.input_ids[0]
        return ids

    def loss_of(generator: torch.Generator) -> Tensor:
        batch = recipe.denoiser_batch
        pick = torch.randint(len(latents), (batch,), generator=generator)
        chances = torch.rand((batch, 5), generator=generator)
        ids = torch.stack([ids_of(sentence_of(attributes[i], c)) for i, c in zip(pick, chances, strict=True)])
        strata = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
        t = (strata * 1000).long().clamp(max=999).to(worker.device)
        x0 = latents[pick.to(worker.device)].float() * factor
        noise = torch.randn(x0.shape, generator=generator).to(worker.device)
        a = alphas[t][:, None, None, None]
        text = model.text(ids.to(worker.device)).last_hidden_state
        predicted = model.unet(a.sqrt() * x0 + (1 - a).sqrt() * noise, t, encoder_hidden_states=text).sample
        snr = alphas[t] / (1 - alphas[t])
        per_sample = (predicted - noise).square().mean(dim=(1, 2, 3))
        loss: Tensor = (per_sample * snr.clamp(max=5) / snr).mean()
        return loss

    return fit(
        "denoiser", model, loss_of, recipe, worker, steps=recipe.denoiser_steps, rate=recipe.denoiser_rate,
        samples_per_step=recipe.denoiser_batch, stop_at=stop_at,
    )  # fmt: skip


def train_judge(recipe: Recipe, worker: Worker, stop_at: int | None) -> bool:
    """A classifier of all four attributes that has seen clean, decoded, noisy and blurred frames."""
    torch.manual_seed(recipe.seed + 2)
    model = Judge().to(worker.device)
    autoencoder = _load_autoencoder(recipe, worker)
    scenes = _share(sample_scenes(recipe.judge_images, seeded(recipe.seed, "judge-scenes")), worker)
    clean = torch.cat([(x * 127.5 + 127.5).round().byte() for x in painted(scenes, recipe.size, worker.device)])
    chunks = [scenes[i : i + 64].to(worker.device) for i in range(0, len(scenes), 64)]
    masks = torch.cat([render(chunk, recipe.size).mask for chunk in chunks])
    with torch.no_grad():
        decoded = torch.cat(
            [
                (autoencoder.decode(autoencoder.encode(x.float() / 127.5 - 1).latents).sample * 127.5 + 127.5)
                .round()
                .clamp(0, 255)
                .byte()
                for x in clean.split(64)
            ]
        )
    attributes = attributes_of(scenes).to(worker.device)

    def loss_of(generator: torch.Generator) -> Tensor:
        batch = (recipe.judge_batch, 1, 1, 1)
        pick = torch.randint(len(clean), batch[:1], generator=generator).to(worker.device)
        use_clean, strength, use_blur = (torch.rand(batch, generator=generator).to(worker.device) for _ in range(3))
        noise = torch.randn((recipe.judge_batch, 3, recipe.size, recipe.size), generator=generator).to(worker.device)
        noisy = torch.where(use_clean < 0.4, clean[pick], decoded[pick]).float() / 255 + 0.08 * strength * noise
        blurred = F.avg_pool2d(F.pad(noisy, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        return judge_loss(model(torch.where(use_blur < 0.25, blurred, noisy)), attributes[pick], masks[pick])

    finished = fit(
        "judge", model, loss_of, recipe, worker, steps=recipe.judge_steps, rate=recipe.judge_rate,
        samples_per_step=recipe.judge_batch, stop_at=stop_at,
    )  # fmt: skip
    return finished


# ---------------------------------------------------------------------------------------------------- export


def _denoiser_average(recipe: Recipe, run: Path, tokenizer: CLIPTokenizer) -> tuple[Denoiser, int]:
    """The finished denoiser, or the running average of its newest checkpoint."""
    model = Denoiser(recipe, tokenizer)
    if (run / "denoiser.pt").exists():
        model.load_state_dict(torch.load(run / "denoiser.pt", map_location="cpu"))
        return model, recipe.denoiser_steps
    checkpoints = sorted(run.glob("denoiser-*-0-of-*.pt"))
    if not checkpoints:
        raise FileNotFoundError(f"no denoiser checkpoint in {run}; run the stages before 'export' first")
    saved = torch.load(checkpoints[-1], map_location="cpu")
    for p, value in zip(model.parameters(), saved["average"], strict=True):
        p.data.copy_(value)
    return model, int(checkpoints[-1].stem.split("-")[1])


def export(recipe: Recipe, run: Path, out: Path, judge_out: Path | None) -> int:
    """Write a float16 ``StableDiffusionPipeline`` to ``out``, and the judge if trained; → the denoiser's step."""
    tokenizer, vocab, merges = new_tokenizer()
    denoiser, step = _denoiser_average(recipe, run, tokenizer)
    autoencoder = new_autoencoder(recipe)
    autoencoder.load_state_dict(torch.load(_autoencoder_file(run), map_location="cpu"))
    autoencoder.register_to_config(scaling_factor=json.loads((run / "scaling.json").read_text())["scaling_factor"])
    pipeline = StableDiffusionPipeline(
        vae=autoencoder.half(),
        text_encoder=denoiser.text.half(),
        tokenizer=tokenizer,
        unet=denoiser.unet.half(),
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    pipeline.save_pretrained(part)
    (part / "tokenizer" / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (part / "tokenizer" / "merges.txt").write_text("\n".join(lines) + "\n")
    for beside in ("README.md", "tokenflow.json"):  # written by hand: a new export keeps them
        if (out / beside).exists():
            shutil.copy(out / beside, part / beside)
    shutil.rmtree(out, ignore_errors=True)
    part.rename(out)
    if judge_out is not None and (run / "judge.pt").exists():
        weights = torch.load(run / "judge.pt", map_location="cpu")
        save_file({k: v.half() if v.is_floating_point() else v for k, v in weights.items()}, judge_out)
    return step


def start_from(folder: Path, judge: Path, run: Path) -> None:
    """Lay a shipped model out as what a run has finished: autoencoder, denoiser, judge and scaling factor."""
    run.mkdir(parents=True, exist_ok=True)
    pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    torch.save(pipeline.vae.state_dict(), run / "autoencoder.pt")
    denoiser = {f"unet.{name}": value for name, value in pipeline.unet.state_dict().items()}
    denoiser |= {f"text.{name}": value for name, value in pipeline.text_encoder.state_dict().items()}
    torch.save(denoiser, run / "denoiser.pt")
    (run / "scaling.json").write_text(json.dumps({"scaling_factor": pipeline.vae.config.scaling_factor}))
    if judge.exists():
        torch.save({name: value.float() for name, value in load_file(judge).items()}, run / "judge.pt")


# ---------------------------------------------------------------------------------------------------- command


def _work(
    rank: int, recipe: Recipe, stages: tuple[str, ...], run: Path, count: int, device: str, stop_at: int | None
) -> None:
    """What one worker process does."""
    if device == "cpu":
        torch.set_num_threads(1)
    if count > 1:
        rendezvous = f"file://{run.resolve()}/rendezvous"
        dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=count)
    worker = Worker(rank, count, torch.device(device), run)
    work = {
        "autoencoder": train_autoencoder,
        "latents": encode_latents,
        "decoder": train_decoder,
        "denoiser": train_denoiser,
        "judge": train_judge,
    }
    for stage in stages:
        if stage in work and not (run / f"{stage}.pt").exists() and not work[stage](recipe, worker, stop_at):
            break
    if count > 1:
        dist.destroy_process_group()


def train(
    recipe: Recipe,
    run: Path,
    *,
    stages: tuple[str, ...] = STAGES,
    workers: int = 1,
    device: str = "cpu",
    out: Path | None = None,
    judge_out: Path | None = None,
    stop_at: int | None = None,
) -> None:
    """Run ``stages`` in order, skipping what ``run`` already holds; ``stop_at`` pauses a stage after so many steps."""
    run.mkdir(parents=True, exist_ok=True)
    (run / "recipe.json").write_text(json.dumps(asdict(recipe), indent=1))
    if workers == 1:
        _work(0, recipe, stages, run, 1, device, stop_at)
    else:
        (run / "rendezvous").unlink(missing_ok=True)
        spawn(_work, (recipe, stages, run, workers, device, stop_at), nprocs=workers)
    if "export" in stages and out is not None:
        step = export(recipe, run, out, judge_out)
        print(f"exported step {step} to {out}", flush=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder for checkpoints")
    parser.add_argument("--start", type=Path, metavar="DIR", help="a model to go on from, laid out in --run first")
    parser.add_argument("--stage", choices=STAGES, nargs="+", default=STAGES, help="which stages, default all")
    parser.add_argument("--out", type=Path, default=model_folder(), help="pipeline folder to write")
    parser.add_argument("--judge-out", type=Path, default=judge_file(), help="judge weights to write")
    parser.add_argument("--workers", type=int, default=1, help="processes, one thread each on a CPU")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--stop-at", type=int, help="pause after so many steps of a stage")
    parser.add_argument("--tiny", action="store_true", help="a recipe of seconds, which learns nothing")
    for name in ("autoencoder", "decoder", "denoiser", "judge"):
        parser.add_argument(f"--{name}-steps", type=int)
        parser.add_argument(f"--{name}-batch", type=int)
    parser.add_argument("--latent-images", type=int)
    args = parser.parse_args(arguments)
    chosen = {k: v for k, v in vars(args).items() if v is not None and k in Recipe.__dataclass_fields__}
    recipe = replace(TINY if args.tiny else Recipe(), **chosen)
    if args.start:
        start_from(args.start, args.judge_out, args.run)
    train(
        recipe,
        args.run,
        stages=tuple(stage for stage in STAGES if stage in args.stage),
        workers=args.workers,
        device=args.device,
        out=args.out,
        judge_out=args.judge_out,
        stop_at=args.stop_at,
    )


if __name__ == "__main__":
    main()
