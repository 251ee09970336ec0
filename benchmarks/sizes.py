"""The three pieces of work that are measured: which model, which clip, which settings.

pocket   the embedded model on a clip of its own world, with the command line's defaults
mini     SD 1.x's structure at channels 64/128/256/256 with random weights, 256×256 frames: 32×32 latents
full     SD 1.5's own configuration with random weights, 512×512 frames; for a GPU

Random weights make a meaningless picture and exactly the work of trained ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import JsonValue

ROOT = Path(__file__).parents[1]
PROMPTS = ("a purple ball on grass", "a red ball on snow")


@dataclass(frozen=True)
class Size:
    """One piece of work; `options` are those of `tf run` by name."""

    name: str
    frames: int
    pixels: int
    options: Mapping[str, JsonValue]
    model: Callable[[Path], str] = field(default=lambda folder: "pocket")
    token_budget: int = 0
    needs_gpu: bool = False

    def clip(self, folder: Path) -> Path:
        """The clip, written losslessly into `folder` where it is not there yet."""
        file = folder / f"{self.name}-{self.frames}.mp4"
        return file if file.exists() else write_clip(file, self.frames, self.pixels)


def random_model(
    folder: Path, widths: tuple[int, ...], autoencoder: tuple[int, ...], depth: int, text_width: int
) -> str:
    """A StableDiffusionPipeline of SD 1.x's structure with seeded random weights; returns its folder.

    widths        of the UNet's four levels; two residual blocks each, 8 heads, attention on the upper three
    autoencoder   widths of its four levels: factor 8; `depth` residual blocks each
    text_width    of the text embeddings, 77 tokens long
    """
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from pocket import model_folder

    place = folder / f"model-{widths[0]}"
    if (place / "model_index.json").exists():
        return str(place)
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(model_folder(), subfolder="tokenizer", model_max_length=77)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=text_width, intermediate_size=4 * text_width, num_hidden_layers=2,
        num_attention_heads=text_width // 64, max_position_embeddings=77, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL(
            block_out_channels=autoencoder, latent_channels=4, layers_per_block=depth,
            norm_num_groups=min(32, autoencoder[0]),
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        ),
        text_encoder=CLIPTextModel(text), tokenizer=tokenizer,
        unet=UNet2DConditionModel(
            sample_size=64, block_out_channels=widths, layers_per_block=2, attention_head_dim=8,
            cross_attention_dim=text_width, down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        ),
        scheduler=DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
            set_alpha_to_one=False, steps_offset=1,
        ),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(place, safe_serialization=True)
    return str(place)


def write_clip(file: Path, frames: int, pixels: int) -> Path:
    """A square clip of a blocky texture that slides two pixels a frame, written losslessly."""
    import av

    side = pixels // 8
    coarse = np.random.default_rng(0).integers(0, 256, (side, side + frames, 3), dtype=np.uint8)
    texture = coarse.repeat(8, axis=0).repeat(8, axis=1)
    with av.open(str(file), "w") as container:
        stream: Any = container.add_stream("libx264rgb", rate=12, options={"qp": "0"})
        stream.width = stream.height = pixels
        stream.pix_fmt = "rgb24"
        for frame in range(frames):
            rgb = np.ascontiguousarray(texture[:, 2 * frame : 2 * frame + pixels])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(stream.encode())
    return file


SIZES = {
    size.name: size
    for size in (
        Size("pocket", 24, 64, {}, token_budget=8 << 30),
        Size(
            "mini", 16, 256,
            {"keyframe_interval": 4, "steps": 10, "inversion_steps": 20, "inversion_evaluations": 1},
            model=lambda folder: random_model(folder, (64, 128, 256, 256), (32, 64, 128, 128), 1, 256),
        ),
        Size(
            "full", 40, 512,
            {"keyframe_interval": 8, "steps": 50, "inversion_steps": 50, "inversion_evaluations": 1},
            model=lambda folder: random_model(folder, (320, 640, 1280, 1280), (128, 256, 512, 512), 2, 768),
            needs_gpu=True,
        ),
    )
}  # fmt: skip


def scaled(size: Size, frames: int, steps: int) -> Size:
    """The same work on a longer or shorter clip, in so many steps."""
    return Size(
        size.name, frames, size.pixels, {**size.options, "steps": steps}, model=size.model, token_budget=0,
        needs_gpu=size.needs_gpu,
    )  # fmt: skip


def described(size: Size) -> dict[str, Any]:
    """The size as JSON."""
    return {
        "name": size.name,
        "frames": size.frames,
        "pixels": size.pixels,
        "options": json.loads(json.dumps(size.options)),
    }
