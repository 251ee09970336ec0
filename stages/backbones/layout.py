"""What a model looks like for one frame size, known from its config files alone: no weights, no memory.

A plan needs to know which layers hold how many tokens before any model is loaded. The UNet is built on torch's meta
device, one forward pass is traced, and the shapes that pass through its self-attention layers are written down.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from store.errors import InputError
from store.schemas import Frozen

from ..diffusion.ddim import NoiseSchedule
from .families import family_of_unet

OTHER_NOISE = ("FlowMatch", "EDM", "Cosine")  # beginnings of diffusers' schedulers that have no betas
TRAINED = "use a model trained with linear or scaled-linear noise and epsilon or v-prediction"


class Layer(Frozen):
    """A self-attention layer: its module name and the shape of its tokens for one frame."""

    name: str
    tokens: int
    channels: int


class ModelLayout(Frozen):
    """Shapes of one model at one frame size, in tokens and latent pixels."""

    multiple: int  # frame width and height must be multiples of this: the autoencoder's factor
    native_size: int  # pixels: side of the square frames that the model was trained on
    latent_channels: int
    latent_height: int
    latent_width: int
    layers: tuple[Layer, ...]  # self-attention, in order of execution
    injected_layers: tuple[str, ...]  # those that PnP injects q and k into
    injected_feature: str | None  # the module whose output PnP injects; None: too few blocks
    feature: tuple[int, int, int] | None  # (channel, height, width) of that output
    schedule: NoiseSchedule
    embeds_guidance: bool = False  # the guidance scale is an input of the UNet: there is no unconditional branch


class ModelGeometry(Frozen):
    """The two numbers that choosing a frame size needs."""

    multiple: int
    native_size: int


def geometry(configs: dict[str, dict[str, Any]]) -> ModelGeometry:
    """The autoencoder's factor, by tracing it, and the native frame side; InputError for no text-to-image model."""
    check_variant(configs["unet"], configs["vae"])
    multiple = _latent_pixel(json.dumps(configs["vae"]))
    return ModelGeometry(multiple=multiple, native_size=native_side(configs["unet"]) * multiple)


@lru_cache(maxsize=8)
def _latent_pixel(vae: str) -> int:
    """Pixels along one side of a latent pixel of the autoencoder with this config, as JSON."""
    import torch

    config = json.loads(vae)
    probe = 64
    with torch.no_grad():
        frame = torch.zeros(1, int(config.get("in_channels", 3)), probe, probe, device="meta")
        encoded = _on_meta(config).encode(frame)
    latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mean
    return int(probe // latents.shape[-1])


def native_side(unet: Mapping[str, Any]) -> int:
    """Latent pixels: side of what a UNet of this config was trained on, the longer one where there are two."""
    side = unet.get("sample_size") or 64
    return int(max(side)) if isinstance(side, list | tuple) else int(side)


def check_variant(unet: dict[str, Any], vae: dict[str, Any]) -> None:
    """InputError where a UNet is given more than the latents (inpainting, depth), or its latents are scaled otherwise.

    unet, vae   the components' configs
    """
    taken, made = int(unet.get("in_channels", 4)), int(vae.get("latent_channels", 4))
    if taken != made:
        variant = {made + 1: "a depth", 2 * made: "an instruction", 2 * made + 1: "an inpainting"}.get(taken, "another")
        raise InputError(
            f"this model's UNet takes {taken} channels and its autoencoder makes {made}: it is {variant} variant, "
            "which needs more than text; use the text-to-image model that it was made from"
        )
    for name in ("latents_mean", "latents_std", "shift_factor"):
        if vae.get(name):
            raise InputError(f"this model's autoencoder has a {name}, which is not supported; use SD 1.x, 2.x or SDXL")


def layout(configs: dict[str, dict[str, Any]], width: int, height: int) -> ModelLayout:
    """Trace the model described by `configs` (component → its config) on frames of `width` × `height` pixels."""
    return _layout(json.dumps(configs), width, height)


@lru_cache(maxsize=8)
def _layout(configs_json: str, width: int, height: int) -> ModelLayout:
    from ..diffusion.attention import injected_attention_layers, injected_feature, self_attention_layers

    configs = json.loads(configs_json)
    shapes = geometry(configs)
    unet = _on_meta(configs["unet"])
    modules = dict(unet.named_modules())
    seen: dict[str, tuple[int, ...]] = {}

    def noting(name: str) -> Any:
        return lambda module, inputs, output: seen.__setitem__(name, tuple(output.shape))

    names, injected = self_attention_layers(list(modules)), injected_feature(list(modules))
    for name in [*names, *([injected] if injected else [])]:
        modules[name].register_forward_hook(noting(name))
    size = (height // shapes.multiple, width // shapes.multiple)
    _trace(unet, size)
    feature = seen[injected] if injected else None
    return ModelLayout(
        multiple=shapes.multiple,
        native_size=shapes.native_size,
        latent_channels=unet.config.in_channels,
        latent_height=size[0],
        latent_width=size[1],
        layers=tuple(Layer(name=name, tokens=seen[name][1], channels=seen[name][2]) for name in names),
        injected_layers=tuple(injected_attention_layers(names)),
        injected_feature=injected,
        feature=None if feature is None else (feature[1], feature[2], feature[3]),
        schedule=noise_schedule(configs["scheduler"]),
        embeds_guidance=unet.config.time_cond_proj_dim is not None,
    )


def forward_flops(config: Any, size: tuple[int, int]) -> int:
    """Floating-point operations of one UNet pass over one frame of `size` latent pixels (height, width)."""
    return _forward_flops(json.dumps(config), size)


@lru_cache(maxsize=8)
def _forward_flops(config: str, size: tuple[int, int]) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        _trace(_on_meta(json.loads(config)), size)
    return int(counter.get_total_flops())


def noise_schedule(config: dict[str, Any]) -> NoiseSchedule:
    """The fields of a scheduler file that DDIM needs; the file may have been written for another scheduler."""
    name = config.get("_class_name")
    if str(name).startswith(OTHER_NOISE):
        raise InputError(f"this model's scheduler is a {name}, whose noise is another than that of DDIM; {TRAINED}")
    known = {name: config[name] for name in NoiseSchedule.model_fields if config.get(name) is not None}
    if name != "LCMScheduler":
        known.pop("original_inference_steps", None)
    try:
        schedule = NoiseSchedule.model_validate(known)
    except ValueError as error:
        first = error.errors()[0]  # type: ignore[attr-defined]
        raise InputError(
            f"this model's scheduler has {first['loc'][0]} = {first['input']!r}, which DDIM here does not know; "
            f"{TRAINED}"
        ) from None
    betas = config.get("trained_betas")
    if betas is not None and (not isinstance(betas, list) or len(betas) != schedule.num_train_timesteps):
        raise InputError(
            f"this model's scheduler has trained_betas that are no list of {schedule.num_train_timesteps} numbers, one "
            "per timestep; download the model again"
        )
    return schedule


def read_configs(folder: Path) -> dict[str, dict[str, Any]]:
    """Config files of the components of a diffusers folder; InputError where one is missing or not JSON."""
    files = {
        "unet": "unet/config.json",
        "vae": "vae/config.json",
        "scheduler": "scheduler/scheduler_config.json",
    }
    configs = {}
    for component, file in files.items():
        try:
            configs[component] = json.loads((folder / file).read_text(encoding="utf-8"))
        except OSError:
            raise InputError(f"model folder {folder} has no {file}; give a complete diffusers folder") from None
        except ValueError:
            raise InputError(f"{folder / file} is not valid JSON; download the model again") from None
    return configs


def _trace(unet: Any, size: tuple[int, int]) -> None:
    """One pass of a UNet on the meta device: its hooks are called, and nothing is computed."""
    import torch

    text = torch.zeros(1, 8, unet.config.cross_attention_dim, device="meta")
    given = family_of_unet(unet.config).unet_inputs(unet.config, text, size)
    with torch.no_grad():
        unet(torch.zeros(1, unet.config.in_channels, *size, device="meta"), torch.zeros(1, device="meta"), **given)


def _on_meta(config: dict[str, Any]) -> Any:
    import diffusers
    import torch

    supported = ("UNet2DConditionModel", "AutoencoderKL", "AutoencoderTiny")
    name = config.get("_class_name")
    if name not in supported:
        raise InputError(f"this model has a {name}, which is not supported; have {', '.join(supported)}")
    component = getattr(diffusers, name)
    with torch.device("meta"):
        try:
            return component.from_config(config).eval()
        except (TypeError, ValueError, KeyError, IndexError) as error:
            raise InputError(f"the model's {name} config cannot be built: {error}") from None
