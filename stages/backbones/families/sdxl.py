"""SDXL: two text encoders, and a UNet that is also given a pooled embedding and the sizes of the picture.

Source: Podell et al., arXiv 2307.01952, section 2.2. The pooled embedding travels as the last row of the text, padded
to its width, so that callers repeat and choose it along with the prompt it belongs to.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..weighting import unweighted

PIPELINE = "StableDiffusionXLPipeline"
COMPONENTS = {
    "unet": True,
    "vae": True,
    "text_encoder": True,
    "text_encoder_2": True,
    "tokenizer": False,
    "tokenizer_2": False,
    "scheduler": False,
}
SINGLE_FILES = ("xl_base",)
SETTINGS = ("model_index.json",)  # force_zeros_for_empty_prompt
ADDED = "text_time"
SIZES = 6  # of the original picture, of the corner it was cropped at, and of the target: two numbers each


def encode_text(pipeline: Any, prompts: list[str], device: str) -> Tensor:
    """Text embeddings (prompt, token + 1, channel), the pooled embedding in the last row.

    An empty prompt is zeros where the model was trained so, as it is in diffusers' pipeline where none is given.
    """
    embeddings, _, pooled, _ = pipeline.encode_prompt(prompts, device=device, do_classifier_free_guidance=False)
    return _with_pooled(embeddings, pooled) * _said(pipeline, prompts, embeddings)


def encode_weighted(pipeline: Any, prompts: list[str], device: str) -> Tensor:
    """The same from compel, all as long as the longest; the pooled embedding is that of the words without weights."""
    from compel import CompelForSDXL

    converted = [pipeline.maybe_convert_prompt(prompt, pipeline.tokenizer) for prompt in prompts]
    embeddings = CompelForSDXL(pipeline, device=device)(converted).embeds.to(pipeline.text_encoder.dtype)
    words = [unweighted(prompt) for prompt in prompts]  # compel would pool brackets and numbers, too
    pooled = pipeline.encode_prompt(words, device=device, do_classifier_free_guidance=False)[2]
    return _with_pooled(embeddings, pooled) * _said(pipeline, prompts, embeddings)


def _said(pipeline: Any, prompts: list[str], embeddings: Tensor) -> Tensor:
    """One for each prompt (prompt, 1, 1), and zero for an empty one where that is zeros."""
    zeros = pipeline.config.force_zeros_for_empty_prompt
    return embeddings.new_tensor([not zeros or bool(prompt) for prompt in prompts])[:, None, None]


def _with_pooled(embeddings: Tensor, pooled: Tensor) -> Tensor:
    """Embeddings (prompt, token, channel) with the pooled ones (prompt, channel) as one more row."""
    row = F.pad(pooled, (0, embeddings.shape[-1] - pooled.shape[-1]))
    return torch.cat([embeddings, row[:, None].to(embeddings.dtype)], dim=1)


def unet_inputs(config: Any, text: Tensor, pixels: tuple[int, int]) -> dict[str, Any]:
    """The text without its last row; that row as the pooled embedding; the sizes: pixels, uncropped, pixels."""
    sizes = text.new_tensor([*pixels, 0, 0, *pixels], dtype=torch.float32)
    pooled = config["projection_class_embeddings_input_dim"] - SIZES * config["addition_time_embed_dim"]
    added = {"text_embeds": text[:, -1, :pooled], "time_ids": sizes.expand(len(text), -1)}
    return {"encoder_hidden_states": text[:, :-1], "added_cond_kwargs": added}
