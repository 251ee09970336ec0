"""ControlNets for Stable Diffusion 1.x: their files, their fit to a model, and loading.

Source: Zhang et al., arXiv 2302.05543; loaded by diffusers, never changed.
"""

from __future__ import annotations

import json
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from store.errors import InputError

from .folders import check_filled, save_whole, weights_of
from .layout import geometry, read_configs

WEIGHTS = "diffusion_pytorch_model"
FITTING = ("in_channels", "down_block_types", "block_out_channels", "layers_per_block", "cross_attention_dim")
"""What a ControlNet's config must have in common with that of the UNet it is added to."""


def check_folder(folder: Path, model: Path, allow_pickle: bool = False) -> None:
    """InputError, one sentence, unless `folder` holds a ControlNet whose residuals fit the model in folder `model`."""
    config, configs = _config(folder), read_configs(model)
    for name in FITTING:
        if config.get(name) != configs["unet"].get(name):
            raise InputError(
                f"ControlNet {folder} was made for another model: its {name} is {config.get(name)}, and the model's is "
                f"{configs['unet'].get(name)}; choose one for this model"
            )
    if (channels := config.get("conditioning_channels", 3)) != 3:
        raise InputError(
            f"ControlNet {folder} reads control images of {channels} channels, and a picture has 3; choose one for "
            "pictures"
        )
    halvings = len(config.get("conditioning_embedding_out_channels") or (0,) * 4) - 1
    if 2**halvings != geometry(configs).multiple:
        raise InputError(
            f"ControlNet {folder} reads control images at {2**halvings} times the latents' size, and this model's "
            f"frames are {geometry(configs).multiple} times as large; choose one for this model"
        )
    pickled = list(folder.glob("*.bin"))
    if not weights_of(folder)[1] and not (pickled and allow_pickle):
        way_out = "say --allow-pickle if you trust its .bin file" if pickled else "download it again"
        raise InputError(f"ControlNet folder {folder} has no {WEIGHTS}.safetensors; {way_out}")


def identity_files(folder: Path) -> list[Path]:
    """Files of a ControlNet's folder that may change a result: its config, and the weights that are loaded."""
    return [folder / "config.json", *(weights_of(folder)[1] or sorted(folder.glob("*.bin")))]


def load_controlnet(folder: Path, device: str, dtype: torch.dtype) -> Any:
    """A ControlNet on `device`; InputError, one sentence, where that fails."""
    from diffusers import ControlNetModel
    from safetensors import SafetensorError

    variant, files = weights_of(folder)
    try:
        control = ControlNetModel.from_pretrained(
            folder, use_safetensors=bool(files), variant=variant, torch_dtype=dtype
        )
    except SafetensorError as error:
        raise InputError(f"the weights of ControlNet {folder} are damaged ({error}); download it again") from None
    except UnpicklingError:
        raise InputError(f"ControlNet {folder} cannot be loaded: its pickle holds more than numbers") from None
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise InputError(f"ControlNet {folder} cannot be loaded: {' '.join(str(error).split())[:240]}") from None
    check_filled(control, f"ControlNet {folder}")
    return control.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)


def unpack_single_file(file: Path, model: Path, folder: Path) -> None:
    """Write a single .safetensors file, under diffusers' names or those of the first ControlNets, as a folder.

    model    folder of the model it is for, which the file's own names do not tell all of
    raises   InputError where its tensors are not those of a ControlNet for that model
    """
    from diffusers import ControlNetModel, UNet2DConditionModel
    from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(file)
        embedding = sorted(name for name in tensors if "cond_embedding.blocks" in name and name.endswith("weight"))
        widths = [tensors["controlnet_cond_embedding.conv_in.weight"].shape[0]] if embedding else [16]
        widths += [tensors[name].shape[0] for name in embedding[1::2]] or [32, 96, 256]
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(model / "unet"))
        control = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=tuple(widths))
        if not embedding:
            tensors = convert_controlnet_checkpoint(tensors, dict(control.config))
        control.load_state_dict(tensors)
    except (SafetensorError, OSError, RuntimeError, KeyError, ValueError, IndexError) as error:
        reason = " ".join(str(error).split())[:240]
        raise InputError(
            f"{file} cannot be read as a ControlNet for this model ({reason}); give it as a diffusers folder"
        ) from None
    save_whole(control, folder)


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        config = None
    if not isinstance(config, dict) or config.get("_class_name") != "ControlNetModel":
        raise InputError(
            f"{folder} is no folder of a ControlNetModel with its config.json; give a diffusers ControlNet"
        )
    return config
