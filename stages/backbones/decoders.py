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

from ..diffusion.checks import FullDeviceError, check_pictures
from . import temporal_tiny
from .folders import check_filled, weights_of
from .layout import geometry, read_configs

VERSION = 2  # raise it when equal latents should give other pictures
OF_STABLE_VIDEO = "AutoencoderKLTemporalDecoder"
TEMPORAL = (OF_STABLE_VIDEO, temporal_tiny.NAME)
CLASSES = (OF_STABLE_VIDEO, "AutoencoderKL", "AutoencoderTiny")  # and temporal_tiny's, of which there are no others
WEIGHTS = "diffusion_pytorch_model.safetensors"
GROUP = 8  # frames that a temporal decoder sees at once; part of the result, so that nothing may make it smaller
OVERLAP = 2  # frames in which one group is faded into the next


@dataclass(frozen=True)
class Decoder:
    """A loaded autoencoder of which the decoder alone is used.

    kind   its class, one of `CLASSES` or temporal_tiny's
    """

    vae: Any
    kind: str
    device: str

    @property
    def temporal(self) -> bool:
        """Whether what a frame looks like depends on its neighbours."""
        return self.kind in TEMPORAL

    @property
    def border(self) -> int:
        """How many frames on either side of a part it may have to be given, see `seen`."""
        return border_of(self.kind)

    @torch.inference_mode()
    def pictures(
        self, latents: Tensor, first: int, part: range, shots: Sequence[range]
    ) -> Iterator[np.ndarray[Any, Any]]:
        """Decode the frames of `part`, picture by picture: (height, width, channel) uint8.

        A temporal decoder goes over each shot in groups of `GROUP` frames, each faded into the next over `OVERLAP`.
        They lie where they lie, whatever `part` is, which begins at a multiple of `GROUP`.

        latents  (frame, c, h, w), scaled, of the frames from `first` on: of all that are `seen`, if it is temporal
        shots    the clip in pieces that follow each other: nothing is seen from one in another
        raises   FullDeviceError where the GPU's memory does not hold one group
        """
        overlap = OVERLAP if self.temporal else 0
        for shot in shots if self.temporal else [range(part.stop)]:
            held: Tensor | None = None  # the end of the group before, which the next one goes on from
            for group in groups(shot, overlap):
                if not _meet(group, part):
                    continue
                rgb = self._decoded(latents[group.start - first : group.stop - first])
                if held is not None:
                    weight = (torch.arange(1, overlap + 1) / (overlap + 1))[:, None, None, None]
                    rgb = torch.cat([torch.lerp(held, rgb[:overlap], weight), rgb[overlap:]])
                done = len(rgb) if group.stop == shot.stop else len(rgb) - overlap
                held = rgb[done:] if overlap else None
                own = range(max(group.start, part.start), min(group.start + done, part.stop))
                chosen = rgb[own.start - group.start : max(0, own.stop - group.start)]
                yield from chosen.round().to(torch.uint8).numpy()

    def _decoded(self, latents: Tensor) -> Tensor:
        """One group: rgb (frame, height, width, channel) float32 in 0 … 255."""
        scaled = latents.to(self.device, torch.float32) / self.vae.config.scaling_factor
        try:
            given = {"num_frames": len(scaled)} if self.kind == OF_STABLE_VIDEO else {}
            pixels = self.vae.decode(scaled, **given).sample
        except torch.OutOfMemoryError:
            raise FullDeviceError(
                f"the GPU's memory does not hold {len(latents)} frames in the decoder of --decoder; choose a smaller "
                "--size, or leave out --decoder"
            ) from None
        check_pictures(pixels, scaled, "the autoencoder of --decoder")
        return ((pixels.float().clamp(-1, 1) + 1) * 127.5).permute(0, 2, 3, 1).cpu()


def groups(shot: range, overlap: int) -> list[range]:
    """A shot in groups of `GROUP` frames, each of which begins `overlap` frames before the one before it ends."""
    starts = range(shot.start, max(shot.start + 1, shot.stop - overlap), GROUP - overlap)
    return [range(start, min(start + GROUP, shot.stop)) for start in starts]


def border_of(kind: str) -> int:
    """How many frames on either side of a part a decoder of class `kind` may have to be given."""
    return GROUP if kind in TEMPORAL else 0


def seen(part: range, shots: Sequence[range]) -> range:
    """The frames that a temporal decoder sees for those of `part`: fewer than `GROUP` more on either side."""
    near = [group for shot in shots for group in groups(shot, OVERLAP) if _meet(group, part)]
    return range(near[0].start, near[-1].stop)


def _meet(one: range, other: range) -> bool:
    return one.start < other.stop and other.start < one.stop


def autoencoder_folder(folder: Path) -> Path:
    """Where the autoencoder lies: `folder` itself, or `vae` in it where it is a whole pipeline."""
    return folder / "vae" if (folder / "model_index.json").is_file() else folder


def check_folder(folder: Path, model: Path) -> str:
    """The class of the autoencoder in `folder`.

    InputError, one sentence, unless it is of the latents that the model in folder `model` has.

    Channels, scale and size are compared; whether equal ones mean the same picture no file says.
    """
    configs, config = read_configs(model), _config(folder)
    kind, own = str(config.get("_class_name")), configs["vae"]
    if kind not in (*CLASSES, temporal_tiny.NAME):
        raise InputError(f"--decoder {folder} holds a {kind}, which is not supported; have {', '.join(CLASSES)}")
    files = weights_of(folder)[1]
    if not files:
        raise InputError(f"--decoder {folder} has no {WEIGHTS}; download it again, or convert its weights to it")
    try:
        for file in files:
            with safe_open(file, "pt"):
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
    if kind not in ("AutoencoderTiny", temporal_tiny.NAME) and not math.isclose(scale, its_scale, rel_tol=1e-3):
        raise _foreign(folder, f"its scaling factor is {its_scale:g}, and the model's {scale:g}")
    if config.get("shift_factor") or config.get("latents_mean"):
        raise _foreign(folder, "it shifts latents, which the model does not")
    return kind


def identity_files(folder: Path) -> list[Path]:
    """Files of an autoencoder's folder that may change a result."""
    return [folder / "config.json", *weights_of(folder)[1]]


def load_decoder(folder: Path, device: str) -> Decoder:
    """The decoder in a folder that `check_folder` accepts, in float32; InputError, one sentence, where that fails."""
    import diffusers

    config, (variant, files) = _config(folder), weights_of(folder)
    try:
        if config["_class_name"] == temporal_tiny.NAME:
            vae = temporal_tiny.from_weights(config, files[0])
        else:
            vae = getattr(diffusers, config["_class_name"]).from_pretrained(
                folder, use_safetensors=True, variant=variant, torch_dtype=torch.float32
            )
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        raise InputError(f"--decoder {folder} cannot be loaded: {' '.join(str(error).split())[:240]}") from None
    check_filled(vae, f"--decoder {folder}")
    return Decoder(vae.eval().requires_grad_(False).to(device), config["_class_name"], device)


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

    channels, side, kind = int(config.get("latent_channels", 4)), 8, config["_class_name"]
    given = {"num_frames": 1} if kind == OF_STABLE_VIDEO else {}
    build = temporal_tiny if kind == temporal_tiny.NAME else getattr(diffusers, kind)
    try:
        with torch.device("meta"), torch.no_grad():
            vae = build.from_config(config).eval().to("meta")
            return int(vae.decode(torch.zeros(1, channels, side, side), **given).sample.shape[-1]) // side
    except (TypeError, ValueError, KeyError, IndexError, RuntimeError) as error:
        raise InputError(f"the config of --decoder {folder} cannot be built: {error}") from None


def _foreign(folder: Path, differs: str) -> InputError:
    return InputError(f"--decoder {folder} is of other latents: {differs}; choose one that was made for this model")
