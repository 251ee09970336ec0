"""Stable Diffusion 1.x and 2.x: one text encoder, and a UNet that is given nothing but text.

Source: Rombach et al., arXiv 2112.10752.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

PIPELINE = "StableDiffusionPipeline"
VARIANTS = ("LatentConsistencyModelPipeline",)
COMPONENTS = {"unet": True, "vae": True, "text_encoder": True, "tokenizer": False, "scheduler": False}
SINGLE_FILES = ("v1", "v2")
SETTINGS: tuple[str, ...] = ()
ADDED = None


def encode_text(pipeline: Any, prompts: list[str], device: str) -> Tensor:
    """Text embeddings (prompt, token, channel)."""
    embeddings: Tensor = pipeline.encode_prompt(prompts, device, 1, False)[0]
    return embeddings


def encode_weighted(pipeline: Any, prompts: list[str], device: str) -> Tensor:
    """Text embeddings (prompt, token, channel), all as long as the longest."""
    from compel import CompelForSD

    converted = [pipeline.maybe_convert_prompt(prompt, pipeline.tokenizer) for prompt in prompts]
    embeddings: Tensor = CompelForSD(pipeline, device=device)(converted).embeds
    return embeddings.to(pipeline.text_encoder.dtype)


def unet_inputs(config: Any, text: Tensor, pixels: tuple[int, int]) -> dict[str, Any]:
    """The text alone."""
    return {"encoder_hidden_states": text}
