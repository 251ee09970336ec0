"""Another decoder of a model's latents: above all a temporal one, which sees several frames and makes them agree.

Source: Blattmann et al., arXiv 2311.15127, appendix D: the decoder of Stable Diffusion's autoencoder with layers that
look along time, finetuned, its encoder kept; loaded by diffusers, never changed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from store.errors import InputError

from ..diffusion.checks import FullDeviceError
from .layout import geometry, read_configs

TEMPORAL = "AutoencoderKLTemporalDecoder"
CLASSES = (TEMPORAL, "AutoencoderKL", "AutoencoderTiny")
WEIGHTS = "diffusion_pytorch_model.safetensors"
WINDOW = 8  # frames that a temporal decoder sees at once; part of the result, so that nothing may make it smaller
OVERLAP = 2  # frames in which one window is faded into the next


@dataclass(frozen=True)
class Decoder:
    """A loaded autoencoder of which the decoder alone is used."""

    vae: Any
    device: str

    @property
    def temporal(self) -> bool:
        """Whether what a frame looks like depends on its neighbours."""
        return type(self.vae).__name__ == TEMPORAL

    @torch.inference_mode()
    def pictures(self, latents: Tensor, runs: Sequence[range]) -> Iterator[np.ndarray[Any, Any]]:
        """Decode latents (frame, c, h, w), scaled, picture by picture: (height, width, channel) uint8.

        A temporal decoder goes over each run in windows of `WINDOW` frames, each faded into the next over `OVERLAP`.

        runs     rows of the latents that follow each other and together are all: nothing is seen from one in another
        raises   FullDeviceError where the GPU's memory does not hold one window
        """
        overlap = OVERLAP if self.temporal else 0
        for run in runs:
            held: Tensor | None = None  # the end of the window before, which the next one goes on from
            for window in windows(len(run), overlap):
                rgb = self._decoded(latents[run.start + window.start : run.start + window.stop])
                if held is not None:
                    weight = (torch.arange(1, overlap + 1) / (overlap + 1))[:, None, None, None]
                    rgb = torch.cat([torch.lerp(held, rgb[:overlap], weight), rgb[overlap:]])
                done = len(rgb) if window.stop == len(run) else len(rgb) - overlap
                held = rgb[done:] if overlap else None
                yield from rgb[:done].round().to(torch.uint8).numpy()

    def _decoded(self, latents: Tensor) -> Tensor:
        """One window: rgb (frame, height, width, channel) float32 in 0 … 255."""
        scaled = latents.to(self.device, torch.float32) / self.vae.config.scaling_factor
        try:
            given = {"num_frames": len(scaled)} if self.temporal else {}
            pixels = self.vae.decode(scaled, **given).sample
        except torch.OutOfMemoryError:
            raise FullDeviceError(
                f"the GPU's memory does not hold {len(latents)} frames in the decoder of --decoder; choose a smaller "
                "--size, or leave out --decoder"
            ) from None
        return ((pixels.float().clamp(-1, 1) + 1) * 127.5).permute(0, 2, 3, 1).cpu()


def windows(frames: int, overlap: int) -> list[range]:
    """`frames` frames in windows of `WINDOW`, each of which begins `overlap` frames before the one before it ends."""
    starts = range(0, max(1, frames - overlap), WINDOW - overlap)
    return [range(start, min(start + WINDOW, frames)) for start in starts]


def autoencoder_folder(folder: Path) -> Path:
    """Where the autoencoder lies: `folder` itself, or `vae` in it where it is a whole pipeline."""
    return folder / "vae" if (folder / "model_index.json").is_file() else folder


def check_folder(folder: Path, model: Path) -> None:
    """InputError, one sentence, unless `folder` is an autoencoder of the latents that the model in folder `model` has.

    Channels, scale and size are compared; whether equal ones mean the same picture no file says.
    """
    configs, config = read_configs(model), _config(folder)
    kind, own = config.get("_class_name"), configs["vae"]
    if kind not in CLASSES:
        raise InputError(f"--decoder {folder} holds a {kind}, which is not supported; have {', '.join(CLASSES)}")
    if not (folder / WEIGHTS).is_file():
        raise InputError(f"--decoder {folder} has no {WEIGHTS}; download it again, or convert its weights to it")
    try:
        with safe_open(folder / WEIGHTS, "pt"):
            pass
    except SafetensorError as error:
        raise InputError(f"the weights of --decoder {folder} are damaged ({error}); download it again") from None
    ours, its = (int(each.get("latent_channels", 4)) for each in (own, config))
    if ours != its:
        raise _foreign(folder, f"it decodes {its} channels, and the model's latents have {ours}")
    ours, its = geometry(configs).multiple, _factor(folder, config)
    if ours != its:
        raise _foreign(folder, f"its pictures are {its} times as large as latents, and the model's {ours} times")
    scale, its_scale = (float(each.get("scaling_factor", 0.18215)) for each in (own, config))
    # Those of an AutoencoderTiny are scaled as they are shown to the denoiser, whatever its teacher's were.
    if kind != "AutoencoderTiny" and not math.isclose(scale, its_scale, rel_tol=1e-3):
        raise _foreign(folder, f"its scaling factor is {its_scale:g}, and the model's {scale:g}")
    if config.get("shift_factor") or config.get("latents_mean"):
        raise _foreign(folder, "it shifts latents, which the model does not")


def identity_files(folder: Path) -> list[Path]:
    """Files of an autoencoder's folder that may change a result."""
    return [folder / "config.json", folder / WEIGHTS]


def load_decoder(folder: Path, device: str) -> Decoder:
    """The decoder in a folder that `check_folder` accepts, in float32; InputError, one sentence, where that fails."""
    import diffusers

    try:
        vae = getattr(diffusers, _config(folder)["_class_name"]).from_pretrained(
            folder, use_safetensors=True, torch_dtype=torch.float32
        )
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        raise InputError(f"--decoder {folder} cannot be loaded: {' '.join(str(error).split())[:240]}") from None
    return Decoder(vae.eval().requires_grad_(False).to(device), device)


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except OSError:
        raise InputError(
            f"--decoder {folder} has no config.json; give a diffusers folder of an autoencoder, or of a pipeline"
        ) from None
    except ValueError:
        raise InputError(f"{folder / 'config.json'} is not valid JSON; download it again") from None
    return config if isinstance(config, dict) else {}


def _factor(folder: Path, config: dict[str, Any]) -> int:
    """How much larger pictures are than latents, by tracing the decoder without its weights."""
    import diffusers

    channels, side = int(config.get("latent_channels", 4)), 8
    given = {"num_frames": 1} if config["_class_name"] == TEMPORAL else {}
    try:
        with torch.device("meta"), torch.no_grad():
            vae = getattr(diffusers, config["_class_name"]).from_config(config).eval().to("meta")
            return int(vae.decode(torch.zeros(1, channels, side, side), **given).sample.shape[-1]) // side
    except (TypeError, ValueError, KeyError, IndexError, RuntimeError) as error:
        raise InputError(f"the config of --decoder {folder} cannot be built: {error}") from None


def _foreign(folder: Path, differs: str) -> InputError:
    return InputError(f"--decoder {folder} is of other latents: {differs}; choose one that was made for this model")
