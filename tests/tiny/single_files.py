"""A diffusers folder of SD 1.x's structure as one file, under the names of the code that it was first trained with."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

LEVELS = 4
IN_UNET = [
    ("time_embedding.linear_1.", "time_embed.0."), ("time_embedding.linear_2.", "time_embed.2."),
    ("conv_in.", "input_blocks.0.0."), ("conv_norm_out.", "out.0."), ("conv_out.", "out.2."),
    ("mid_block.resnets.0.", "middle_block.0."), ("mid_block.attentions.0.", "middle_block.1."),
    ("mid_block.resnets.1.", "middle_block.2."),
    *((f"down_blocks.{i}.{kind}.{j}.", f"input_blocks.{3 * i + j + 1}.{place}.")
      for i in range(LEVELS) for j in range(2) for place, kind in enumerate(("resnets", "attentions"))),
    *((f"up_blocks.{i}.{kind}.{j}.", f"output_blocks.{3 * i + j}.{place}.")
      for i in range(LEVELS) for j in range(3) for place, kind in enumerate(("resnets", "attentions"))),
    *((f"down_blocks.{i}.downsamplers.0.conv.", f"input_blocks.{3 * i + 3}.0.op.") for i in range(LEVELS)),
    *((f"up_blocks.{i}.upsamplers.0.", f"output_blocks.{3 * i + 2}.{2 if i else 1}.") for i in range(LEVELS)),
]  # fmt: skip
IN_RESNET = [
    (".norm1.", ".in_layers.0."), (".conv1.", ".in_layers.2."), (".time_emb_proj.", ".emb_layers.1."),
    (".norm2.", ".out_layers.0."), (".conv2.", ".out_layers.3."), (".conv_shortcut.", ".skip_connection."),
]  # fmt: skip
IN_VAE = [
    ("conv_norm_out.", "norm_out."), ("conv_shortcut.", "nin_shortcut."), ("mid_block.attentions.0.", "mid.attn_1."),
    ("mid_block.resnets.0.", "mid.block_1."), ("mid_block.resnets.1.", "mid.block_2."),
    *((f"down_blocks.{i}.downsamplers.0.", f"down.{i}.downsample.") for i in range(LEVELS)),
    *((f"up_blocks.{i}.upsamplers.0.", f"up.{LEVELS - 1 - i}.upsample.") for i in range(LEVELS)),
    *((f"down_blocks.{i}.resnets.", f"down.{i}.block.") for i in range(LEVELS)),
    *((f"up_blocks.{i}.resnets.", f"up.{LEVELS - 1 - i}.block.") for i in range(LEVELS)),
]  # fmt: skip
IN_ATTENTION = [("group_norm.", "norm."), ("to_q.", "q."), ("to_k.", "k."), ("to_v.", "v."), ("to_out.0.", "proj_out.")]


def save_single_file(folder: Path, file: Path) -> Path:
    """Write the UNet, autoencoder and text encoder of `folder` to `file`; returns it."""
    tensors = {f"model.diffusion_model.{_in_unet(name)}": value for name, value in _weights(folder / "unet").items()}
    for name, value in _weights(folder / "vae").items():
        tensors |= {f"first_stage_model.{_renamed(_in_attention(name), IN_VAE)}": _as_convolution(name, value)}
    for name, value in _weights(folder / "text_encoder").items():
        tensors |= {f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}": value}
    save_file({name: value.contiguous() for name, value in tensors.items()}, file)
    return file


def _weights(folder: Path) -> dict[str, Tensor]:
    (file,) = folder.glob("*.safetensors")
    return load_file(file)


def _renamed(name: str, pairs: list[tuple[str, str]]) -> str:
    for here, there in pairs:
        name = name.replace(here, there)
    return name


def _in_unet(name: str) -> str:
    here, there = next(pair for pair in IN_UNET if name.startswith(pair[0]))
    rest = name.removeprefix(here)
    return there + (_renamed(f".{rest}", IN_RESNET)[1:] if ".resnets." in name else rest)


def _in_attention(name: str) -> str:
    return _renamed(name, IN_ATTENTION) if ".attentions." in name else name


def _as_convolution(name: str, value: Tensor) -> Tensor:
    return value[:, :, None, None] if ".attentions." in name and value.ndim == 2 else value
