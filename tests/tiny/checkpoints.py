"""Single-file checkpoints as the first Stable Diffusions had them, made from diffusers pipelines.

Their names are those of the CompVis and Stability AI releases; OpenCLIP's text encoders have queries, keys and values
in one matrix. It is the way back of what diffusers converts, written apart from it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

UNET = "model.diffusion_model"
VAE = "first_stage_model"
RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
OPEN_CLIP = {
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}  # fmt: skip
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def write_checkpoint(file: Path, pipeline: Any) -> Path:
    """The pipeline's weights in one .safetensors file under their first names."""
    save_file({name: weights.contiguous() for name, weights in named(pipeline)}, file)
    return file


def named(pipeline: Any) -> Iterator[tuple[str, Tensor]]:
    """(name, weights) of all parts of a pipeline of SD 1.x, 2.x or XL."""
    yield from unet(pipeline.unet.state_dict(), len(pipeline.unet.config.block_out_channels), 2)
    yield from vae(pipeline.vae.state_dict(), len(pipeline.vae.config.block_out_channels))
    if hasattr(pipeline, "text_encoder_2"):
        yield from clip(pipeline.text_encoder, "conditioner.embedders.0.transformer")
        yield from open_clip(pipeline.text_encoder_2, "conditioner.embedders.1.model")
    elif pipeline.unet.config.use_linear_projection:
        yield from open_clip(pipeline.text_encoder, "cond_stage_model.model")
    else:
        yield from clip(pipeline.text_encoder, "cond_stage_model.transformer")


def unet(weights: dict[str, Tensor], levels: int, resnets: int) -> Iterator[tuple[str, Tensor]]:
    """Its blocks, numbered through: each residual block with its transformer, and each change of size."""
    attended = {match[1] for name in weights if (match := re.match(r"(up_blocks\.\d+)\.attentions", name))}
    places = {
        "conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2", "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2", "conv_norm_out": "out.0", "conv_out": "out.2",
        "mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
    }  # fmt: skip
    for level in range(levels):
        down, up = f"down_blocks.{level}", f"up_blocks.{level}"
        first = 1 + level * (resnets + 1)
        for n in range(resnets):
            places |= {f"{down}.resnets.{n}": f"input_blocks.{first + n}.0"}
            places |= {f"{down}.attentions.{n}": f"input_blocks.{first + n}.1"}
        places |= {f"{down}.downsamplers.0.conv": f"input_blocks.{first + resnets}.0.op"}
        first = level * (resnets + 1)
        for n in range(resnets + 1):
            places |= {f"{up}.resnets.{n}": f"output_blocks.{first + n}.0"}
            places |= {f"{up}.attentions.{n}": f"output_blocks.{first + n}.1"}
        places |= {f"{up}.upsamplers.0.conv": f"output_blocks.{first + resnets}.{1 + (up in attended)}.conv"}
    for name, tensor in weights.items():
        place, rest = _placed(name, places)
        yield f"{UNET}.{place}{_renamed(rest, RESNET) if '.resnets.' in name else rest}", tensor


def vae(weights: dict[str, Tensor], levels: int) -> Iterator[tuple[str, Tensor]]:
    """An AutoencoderKL; its decoder's levels are counted from the finest, its attention is of 1×1 convolutions."""
    places = {}
    for part in ("encoder", "decoder"):
        places |= {f"{part}.mid_block.resnets.{n}": f"{part}.mid.block_{n + 1}" for n in (0, 1)}
        places |= {f"{part}.mid_block.attentions.0": f"{part}.mid.attn_1", f"{part}.conv_norm_out": f"{part}.norm_out"}
    for level in range(levels):
        down, up = f"encoder.down_blocks.{level}", f"decoder.up_blocks.{level}"
        their_down, their_up = f"encoder.down.{level}", f"decoder.up.{levels - 1 - level}"
        places |= {f"{down}.resnets.{n}": f"{their_down}.block.{n}" for n in range(3)}
        places |= {f"{up}.resnets.{n}": f"{their_up}.block.{n}" for n in range(4)}
        places |= {f"{down}.downsamplers.0": f"{their_down}.downsample", f"{up}.upsamplers.0": f"{their_up}.upsample"}
    for name, tensor in weights.items():
        place, rest = _placed(name, places)
        if ".attentions." in name:
            rest = _renamed(rest, VAE_ATTENTION)
            tensor = tensor[:, :, None, None] if tensor.ndim == 2 else tensor
        yield f"{VAE}.{place}{rest.replace('.conv_shortcut', '.nin_shortcut')}", tensor


def clip(encoder: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """A CLIPTextModel, under the names that transformers gave it then."""
    for name, tensor in _text_weights(encoder):
        yield f"{prefix}.text_model.{name}", tensor


def open_clip(encoder: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """A text encoder of OpenCLIP; one without a projection has one all the same, and a last layer that is not used."""
    weights = dict(_text_weights(encoder))
    width = encoder.config.hidden_size
    layers = encoder.config.num_hidden_layers
    yield f"{prefix}.token_embedding.weight", weights.pop("embeddings.token_embedding.weight")
    yield f"{prefix}.positional_embedding", weights.pop("embeddings.position_embedding.weight")
    yield f"{prefix}.text_projection", weights.pop("text_projection.weight", torch.eye(width)).T
    for kind in ("weight", "bias"):
        yield f"{prefix}.ln_final.{kind}", weights.pop(f"final_layer_norm.{kind}")
        for layer in range(layers):
            three = [weights.pop(f"encoder.layers.{layer}.self_attn.{each}_proj.{kind}") for each in "qkv"]
            yield f"{prefix}.transformer.resblocks.{layer}.attn.in_proj_{kind}", torch.cat(three)
    for name, tensor in weights.items():
        match = re.fullmatch(r"encoder\.layers\.(\d+)(\..+)", name)
        assert match is not None, name
        yield f"{prefix}.transformer.resblocks.{match[1]}{_renamed(match[2], OPEN_CLIP)}", tensor


def _text_weights(encoder: Any) -> Iterable[tuple[str, Tensor]]:
    return ((name.removeprefix("text_model."), tensor) for name, tensor in encoder.state_dict().items())


def _placed(name: str, places: dict[str, str]) -> tuple[str, str]:
    """The place of the longest beginning of `name` that has one, and the rest of the name."""
    for end in (match.start() for match in reversed(list(re.finditer(r"\.", name)))):
        if name[:end] in places:
            return places[name[:end]], name[end:]
    return name, ""


def _renamed(rest: str, names: dict[str, str]) -> str:
    """`.part.weight` with the part under its other name."""
    for ours, theirs in names.items():
        if rest.startswith(f".{ours}."):
            return f".{theirs}{rest[len(ours) + 1 :]}"
    return rest
