"""Small real diffusers models with random weights, of the structure of each family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def make_unet(**changes: Any) -> Any:
    """UNet2DConditionModel with four levels, cross-attention on three, and depth-dependent widths.

    Queries and keys of self-attention are enlarged: as drawn, attention is so even that where it looks hardly shows.
    """
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(
        **{
            "sample_size": 8,
            "block_out_channels": (16, 32, 32, 32),
            "layers_per_block": 2,
            "attention_head_dim": 8,
            "cross_attention_dim": 24,
            "norm_num_groups": 8,
            "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        }
        | changes
    ).eval()
    with torch.no_grad():
        for name, weights in unet.named_parameters():
            if name.endswith(("attn1.to_q.weight", "attn1.to_k.weight")):
                weights *= 4
    return unet


def make_pipeline(seed: int = 0, vae: str = "kl", **unet: Any) -> Any:
    """A StableDiffusionPipeline with random weights: 8× AutoencoderKL or 4× AutoencoderTiny, and a byte tokenizer.

    unet   changes of its config; the text encoder is as wide as its cross-attention expects
    """
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTextModel

    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    text = text_config(tokenizer, hidden_size=unet.get("cross_attention_dim", 24))
    pipeline = StableDiffusionPipeline(
        vae=make_vae(vae), text_encoder=CLIPTextModel(text).eval(), tokenizer=tokenizer, unet=make_unet(**unet),
        scheduler=make_scheduler(), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


LCM = {
    "_class_name": "LCMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000, "original_inference_steps": 50, "set_alpha_to_one": True, "steps_offset": 0,
    "timestep_spacing": "leading", "prediction_type": "epsilon", "clip_sample": False,
}  # fmt: skip
"""The scheduler's config of a latent consistency model."""


def make_lcm(seed: int = 0, vae: str = "tiny", **unet: Any) -> Any:
    """A LatentConsistencyModelPipeline with random weights, whose UNet takes the guidance scale as an input."""
    from diffusers import LatentConsistencyModelPipeline, LCMScheduler

    parts = make_pipeline(seed, vae, **{"time_cond_proj_dim": 32, **unet}).components
    scheduler = LCMScheduler.from_config(LCM)
    return LatentConsistencyModelPipeline(**parts | {"scheduler": scheduler}, requires_safety_checker=False)


def make_sdxl(seed: int = 0, layers: int = 2, **unet: Any) -> Any:
    """A StableDiffusionXLPipeline with random weights: three levels, one to three layers a transformer, two encoders.

    Fewer levels, attention only below the first, and another width of each text encoder, as in SDXL. The autoencoder's
    scaling factor makes latents of random weights as large as those of trained ones.

    layers   of the second text encoder
    """
    from diffusers import StableDiffusionXLPipeline
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    changes = {
        "block_out_channels": (16, 32, 32),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 3),
        "attention_head_dim": (2, 4, 4),
        "cross_attention_dim": 40,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 16 + 6 * 8,
    }
    pipeline = StableDiffusionXLPipeline(
        vae=make_vae("kl", force_upcast=True, scaling_factor=2.0), unet=make_unet(**(changes | unet)),
        text_encoder=CLIPTextModel(text_config(tokenizer)).eval(), tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(
            text_config(tokenizer, hidden_size=16, projection_dim=16, num_hidden_layers=layers)
        ).eval(),
        tokenizer_2=make_tokenizer(), scheduler=make_scheduler(), force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def text_config(tokenizer: Any, **changes: Any) -> Any:
    """A CLIPTextConfig of two layers for this tokenizer."""
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        **{
            "vocab_size": len(tokenizer), "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "max_position_embeddings": tokenizer.model_max_length,
            "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        } | changes
    )  # fmt: skip


def make_vae(kind: str, **changes: Any) -> Any:
    """An 8× AutoencoderKL ("kl"), or a 4× AutoencoderTiny."""
    from diffusers import AutoencoderKL, AutoencoderTiny

    if kind == "kl":
        autoencoder = AutoencoderKL(
            block_out_channels=(8, 8, 8, 16), norm_num_groups=4, latent_channels=4, layers_per_block=1, **changes,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        )  # fmt: skip
    else:
        autoencoder = AutoencoderTiny(
            encoder_block_out_channels=(8, 8, 8), decoder_block_out_channels=(8, 8, 8),
            num_encoder_blocks=(1, 1, 1), num_decoder_blocks=(1, 1, 1), scaling_factor=8.0,
        )  # fmt: skip
    return autoencoder.eval()


def make_temporal_decoder(**changes: Any) -> Any:
    """An AutoencoderKLTemporalDecoder with the latents of the 4× AutoencoderTiny, in which neighbours show.

    As drawn, half of what a frame becomes is its own, and the other half hardly depends on its neighbours.
    """
    from diffusers import AutoencoderKLTemporalDecoder

    torch.manual_seed(0)
    autoencoder = AutoencoderKLTemporalDecoder(
        **{
            "block_out_channels": (32, 32, 32), "down_block_types": ("DownEncoderBlock2D",) * 3, "latent_channels": 4,
            "scaling_factor": 8.0,
        } | changes
    ).eval()  # fmt: skip
    with torch.no_grad():
        autoencoder.decoder.time_conv_out.weight *= 2
    return autoencoder


def make_scheduler() -> Any:
    """SD 1.5's noise, as a DDIMScheduler."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip


def make_control(pipeline: Any, seed: int = 0) -> Any:
    """A ControlNetModel for the pipeline's UNet and autoencoder with random weights, where new ones would be zero."""
    from diffusers import ControlNetModel

    torch.manual_seed(seed)
    halvings = 2 if type(pipeline.vae).__name__ == "AutoencoderTiny" else 3
    control = ControlNetModel.from_unet(
        pipeline.unet, conditioning_embedding_out_channels=(8,) * halvings + (16,), load_weights_from_unet=False
    ).eval()
    with torch.no_grad():
        for name, weights in control.named_parameters():
            if name.startswith(("controlnet_down", "controlnet_mid", "controlnet_cond_embedding.conv_out")):
                weights.normal_(std=0.2)
    return control.requires_grad_(False)


def make_tokenizer() -> Any:
    """A valid CLIPTokenizer whose words are bytes, 16 tokens long."""
    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={word: place for place, word in enumerate(words)}, merges=[], model_max_length=16,
        bos_token="<|startoftext|>", eos_token="<|endoftext|>", unk_token="<|endoftext|>", pad_token="<|endoftext|>",
    )  # fmt: skip


def save_model(folder: Path, make: Callable[..., Any] = make_pipeline, **options: Any) -> Path:
    """Write a random pipeline to `folder` as diffusers does; returns the folder."""
    make(**options).save_pretrained(folder, safe_serialization=True)
    return folder
