"""A loaded Stable Diffusion of any family: text, autoencoder and noise prediction, in passes of a few frames.

Source: Rombach et al., arXiv 2112.10752; loaded by diffusers, never changed.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from torch import Tensor

from store.errors import InputError

from ..diffusion.attention import injected_attention_layers, injected_feature, self_attention_layers
from ..diffusion.checks import FullDeviceError, check_pictures
from ..diffusion.ddim import NoiseLevels
from . import Residuals
from .adapters import NO_ADAPTERS, Adapters, adapt
from .families import family_of_unet
from .folders import check_filled, missing_weights, pickled_weights, variant_of, without_bars
from .layout import forward_flops, native_side, noise_schedule

UNUSED = {"safety_checker": None, "feature_extractor": None, "image_encoder": None}  # components of a pipeline
FRAMES_AT_ONCE = 16  # on a CPU: fewer are slower (4: a tenth), more are no faster
FRAMES_AT_ONCE_ON_GPU = 64
SMALL_PASS = 8e9  # floating-point operations: on a CPU, threads take longer to wake than such a pass gains by them


@dataclass(frozen=True)
class Runtime:
    """Where and how a model runs: never part of a key, never a reason for another picture."""

    device: str = "cpu"
    frames_per_pass: int | None = None  # none: 16 on a CPU, as many as fit on a GPU
    precision: str = "auto"  # of the UNet and the text encoder: float32, float16 or bfloat16
    allow_pickle: bool = False  # open weights that are no .safetensors, where there are no others

    @property
    def dtype(self) -> torch.dtype:
        """What was asked for; otherwise half precision on a GPU and float32 on a CPU."""
        if self.precision != "auto":
            return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[self.precision]
        return torch.float32 if self.device == "cpu" else torch.float16


@dataclass
class StableDiffusion:
    """A loaded model that batches itself: whatever is asked of it is done `frames_per_pass` frames at a time."""

    pipeline: Any
    runtime: Runtime = field(default_factory=Runtime)
    prompt_weighting: bool = False
    on_pass: Callable[[int], None] = lambda frames: None  # told how many frames each UNet pass had
    on_note: Callable[[str], None] = lambda sentence: None  # told what a user should hear
    controls: Sequence[Any] = ()  # ControlNets, on the model's device

    def __post_init__(self) -> None:
        self.unet: Any = self.pipeline.unet
        self.vae: Any = self.pipeline.vae
        names = [name for name, _ in self.unet.named_modules()]
        self.layers = self_attention_layers(names)
        self.injected_layers = injected_attention_layers(self.layers)
        self.injected_feature = injected_feature(names)
        self.family = family_of_unet(self.unet.config)
        self.levels = noise_levels(self.pipeline.scheduler.config)
        self._flops: dict[tuple[int, int], int] = {}  # latent size → floating-point operations of a pass over one frame
        self.at_once = self.runtime.frames_per_pass or FRAMES_AT_ONCE  # halved where memory does not hold so many

    def each_pass(self, frames: int, do: Callable[[slice], None]) -> None:
        """Call `do` for consecutive slices that cover `frames` frames, none longer than fits at once.

        Where the GPU's memory does not hold a slice, it is done again in slices half as long, and so are all others
        from then on.

        raises   FullDeviceError where one frame does not fit
        """
        first = 0
        while first < frames:
            some = slice(first, min(first + self.at_once, frames))
            try:
                do(some)
            except torch.OutOfMemoryError:
                full = True  # memory is given back once this block, and with it the traceback, is left
            else:
                full, first = False, some.stop
            if full:
                self._halve(some.stop - some.start)

    def _halve(self, tried: int) -> None:
        if tried == 1:
            raise FullDeviceError(
                "the GPU's memory does not hold one frame of this size; choose a smaller --size or --device cpu, or "
                "close what else uses the GPU"
            )
        self.make_room(tried)
        self.on_note(f"the GPU's memory does not hold {tried} frames per pass: going on with {self.at_once}")

    def make_room(self, tried: int | None = None) -> None:
        """Have half as many frames per pass, and give back what is kept of the GPU's memory for later.

        tried   the frames that did not fit; as many as are done at once without it, since something else took the room
        """
        self.at_once = max(1, (tried or self.at_once) // 2)
        if self.runtime.device != "cpu":
            torch.cuda.empty_cache()

    def to_device(self, values: np.ndarray[Any, Any]) -> Tensor:
        """A numpy array as a tensor on the model's device, in its own dtype; to a GPU without waiting for the copy."""
        tensor = torch.from_numpy(np.ascontiguousarray(values))
        if self.runtime.device == "cpu":
            return tensor
        return tensor.pin_memory().to(self.runtime.device, non_blocking=True)

    def encode(self, rgb: np.ndarray[Any, Any]) -> Tensor:
        """rgb (frame, height, width, channel) uint8 → latents (frame, channel, height, width) float32, scaled."""
        latents = []

        def do(some: slice) -> None:
            pixels = self.to_device(rgb[some]).permute(0, 3, 1, 2).to(self.vae.dtype) / 127.5 - 1
            encoded = self.vae.encode(pixels)
            mean = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mean
            latents.append(mean.float() * self.vae.config.scaling_factor)

        self.each_pass(len(rgb), do)
        return torch.cat(latents)

    def decode(self, latents: Tensor) -> np.ndarray[Any, Any]:
        """Latents (frame, channel, height, width), scaled → rgb (frame, height, width, channel) uint8."""
        rgb = []

        def do(some: slice) -> None:
            scaled = latents[some].to(self.runtime.device, self.vae.dtype) / self.vae.config.scaling_factor
            pixels = self.vae.decode(scaled).sample.float()
            check_pictures(pixels, scaled, "the model's autoencoder")
            rgb.append(((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu())

        self.each_pass(len(latents), do)
        return torch.cat(rgb).numpy()

    def tile(self, wanted: bool) -> None:
        """Have the autoencoder work on tiles that overlap, frame by frame, or on whole frames.

        Memory is then that of a tile. Pixels differ: each tile is normalised on its own, and their borders are blended.
        """
        if wanted:
            if hasattr(self.vae, "spatial_scale_factor"):  # AutoencoderTiny takes it for 8 whatever its levels are
                self.vae.spatial_scale_factor = self.pipeline.vae_scale_factor
                self.vae.tile_latent_min_size = self.vae.tile_sample_min_size // self.pipeline.vae_scale_factor
            self.vae.enable_tiling()
            self.vae.enable_slicing()
        else:
            self.vae.disable_tiling()
            self.vae.disable_slicing()

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Text (prompt, row, channel), opaque but for its first axis; what has no room is cut, see `cut_from`."""
        logger = logging.getLogger(type(self.pipeline).__module__)
        level = logger.level
        logger.setLevel(logging.ERROR)  # the cut is reported by `cut_from`, in our own words
        try:
            encode = self.family.encode_weighted if self.prompt_weighting else self.family.encode_text
            return encode(self.pipeline, list(prompts), self.runtime.device)
        finally:
            logger.setLevel(level)

    def cut_from(self, prompt: str) -> str:
        """The end of `prompt` that the tokenizer has no room for; empty when all of it fits."""
        if self.prompt_weighting:
            return ""  # prompts of any length are read
        tokenizer = self.pipeline.tokenizer
        prompt = self.pipeline.maybe_convert_prompt(prompt, tokenizer)  # a learnt word may take several tokens
        ids = tokenizer(prompt, truncation=False, add_special_tokens=False, verbose=False).input_ids
        return str(tokenizer.decode(ids[tokenizer.model_max_length - 2 :])).strip()

    def word_places(self, prompt: str, words: str) -> list[int]:
        """Where `words`, one or several that follow each other, stand among the tokens of `prompt`."""
        if self.prompt_weighting:
            raise InputError(
                "words cannot be found where prompts are weighted: leave out --prompt-weighting, or give a --mask"
            )
        tokenizer = self.pipeline.tokenizer
        prompt, words = (self.pipeline.maybe_convert_prompt(text, tokenizer) for text in (prompt, words))
        ids = tokenizer(prompt, truncation=True, verbose=False).input_ids
        wanted = tokenizer(words, add_special_tokens=False, verbose=False).input_ids
        found = [n for n in range(len(ids) - len(wanted) + 1) if ids[n : n + len(wanted)] == wanted]
        return [place for first in found for place in range(first, first + len(wanted))] if wanted else []

    def control(
        self, number: int, latents: Tensor, timestep: int, text: Tensor, pictures: np.ndarray[Any, Any], strength: float
    ) -> Residuals:
        """One pass of ControlNet `number` over (branch · frame, …): its residuals times `strength`, the middle's last.

        pictures   control images (frame, height, width, channel) uint8
        """
        dtype = self.runtime.dtype
        shown = (self.to_device(pictures).permute(0, 3, 1, 2) / 255).repeat(len(latents) // len(pictures), 1, 1, 1)
        batch, shown = (x.to(dtype, memory_format=torch.channels_last) for x in (latents, shown))
        given = self._given(latents, text)
        with one_thread(self._is_small(latents)):
            down, mid = self.controls[number](
                batch, timestep, **given, controlnet_cond=shown, conditioning_scale=strength, return_dict=False
            )
        return [*down, mid]

    def predict_noise(
        self, latents: Tensor, timestep: int, text: Tensor, residuals: Residuals | None = None,
        guidance_scale: float = 1.0,
    ) -> Tensor:  # fmt: skip
        """One UNet pass over latents (batch, channel, height, width), text (batch, token, channel) → float32."""
        dtype = self.runtime.dtype
        batch = latents.to(dtype, memory_format=torch.channels_last)  # as the weights are: a tenth faster on a CPU
        given = self._given(latents, text) | self._guidance(guidance_scale, len(latents))
        with one_thread(self._is_small(latents)):
            out: Tensor = self.unet(
                batch, timestep, **given, return_dict=False,
                down_block_additional_residuals=residuals and residuals[:-1],
                mid_block_additional_residual=residuals and residuals[-1],
            )[0]  # fmt: skip
        self.on_pass(len(latents))
        return out.float()

    def _given(self, latents: Tensor, text: Tensor) -> dict[str, Any]:
        """What the UNet and its ControlNets are told, by the names of their arguments."""
        factor = self.pipeline.vae_scale_factor
        pixels = (latents.shape[-2] * factor, latents.shape[-1] * factor)
        return self.family.unet_inputs(self.unet.config, text.to(self.runtime.dtype), pixels)

    def _guidance(self, scale: float, rows: int) -> dict[str, Tensor]:
        """The scale as a UNet is told that was distilled with it: w = scale − 1 (arXiv 2310.04378, section 4.1)."""
        channels = self.unet.config.time_cond_proj_dim
        if channels is None:
            return {}
        embedded: Tensor = self.pipeline.get_guidance_scale_embedding(torch.tensor([scale - 1.0]), channels)
        return {"timestep_cond": embedded.to(self.runtime.device, self.runtime.dtype).expand(rows, -1)}

    def _is_small(self, latents: Tensor) -> bool:
        """Whether a pass over `latents` is better done on one thread. Never asked of the clock: bits depend on it."""
        if self.runtime.device != "cpu" or torch.get_num_threads() == 1:
            return False
        size = (latents.shape[2], latents.shape[3])
        if size not in self._flops:
            self._flops[size] = forward_flops(dict(self.unet.config), size)
        return len(latents) * self._flops[size] < SMALL_PASS


@contextmanager
def one_thread(wanted: bool) -> Iterator[None]:
    """Have torch's operators use one thread until the block ends, where that is wanted."""
    threads = torch.get_num_threads()
    if wanted:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if wanted:
            torch.set_num_threads(threads)


def noise_levels(config: Any) -> NoiseLevels:
    """ᾱ from a scheduler's config, computed by diffusers' own DDIMScheduler in float32."""
    from diffusers import DDIMScheduler

    schedule = noise_schedule(dict(config))
    scheduler = DDIMScheduler.from_config(
        dict(config) | schedule.model_dump(exclude_none=True), clip_sample=False, thresholding=False
    )
    alphas = scheduler.alphas_cumprod.double()
    return NoiseLevels(alphas, float(scheduler.final_alpha_cumprod), schedule.prediction_type)


def load(model: str, runtime: Runtime, adapters: Adapters = NO_ADAPTERS) -> StableDiffusion:
    """Load a diffusers folder or a hub id, and what is put on top; InputError, one sentence, where that fails."""
    from diffusers import DiffusionPipeline
    from safetensors import SafetensorError

    without_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of scheduler files as older versions wrote them
            pipeline = DiffusionPipeline.from_pretrained(
                model,
                dtype={"vae": torch.float32, "default": runtime.dtype},
                use_safetensors=None if runtime.allow_pickle else True,
                variant=variant_of(Path(model)) if Path(model).is_dir() else None,
                **UNUSED,
            )
    except SafetensorError as error:
        raise InputError(f"a weight file of model {model} is damaged ({error}); download the model again") from None
    except UnpicklingError:
        raise InputError(
            f"model {model} cannot be loaded: a pickled weight file holds more than numbers; convert it to .safetensors"
        ) from None
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:240]
        raise InputError(f"model {model} cannot be loaded: {reason}") from None
    pipeline.set_progress_bar_config(disable=True)
    _check_whole(pipeline, model)
    adapt(pipeline, adapters)
    pipeline.unet.eval().requires_grad_(False).to(runtime.device, memory_format=torch.channels_last)
    for name, has_weights in family_of_unet(pipeline.unet.config).COMPONENTS.items():
        if has_weights and name.startswith("text_encoder"):
            getattr(pipeline, name).eval().requires_grad_(False).to(runtime.device)
    # SD 1.5's autoencoder overflows in float16 on bright frames; it is a small share of the time.
    pipeline.vae.eval().requires_grad_(False).to(runtime.device, torch.float32, memory_format=torch.channels_last)
    if runtime.device != "cpu" and runtime.frames_per_pass is None:
        runtime = replace(runtime, frames_per_pass=frames_that_fit(pipeline, torch.cuda.mem_get_info()[0]))
    return StableDiffusion(pipeline, runtime, prompt_weighting=adapters.prompt_weighting)


def _check_whole(pipeline: Any, model: str) -> None:
    """InputError where a part has weights that its files do not hold: what is there then would be anything."""
    for name, has_weights in family_of_unet(pipeline.unet.config).COMPONENTS.items():
        if not has_weights:
            continue
        part, folder = getattr(pipeline, name), Path(model)
        missing: list[str] = []
        if name.startswith("text_encoder") and folder.is_dir() and name not in pickled_weights(folder):
            missing = missing_weights(folder, name, part.state_dict())
        check_filled(part, f"{name} of model {model}", missing)


def frames_that_fit(pipeline: Any, free_bytes: int) -> int:
    """Frames per pass, guardedly: a power of two up to 64 whose activations take less than half of `free_bytes`.

    Counted for frames of the size that the model was trained on: in the UNet, 64 tensors of the finest level in two
    branches and two bytes; in the autoencoder, 4 of the picture's size at its decoder's last but one width, in four.
    A guess that is too high is halved when memory runs out.
    """
    unet, vae = pipeline.unet.config, pipeline.vae.config
    side = native_side(unet)
    widths: Any = getattr(vae, "block_out_channels", None) or getattr(vae, "decoder_block_out_channels", (64, 64))
    picture = (side * 2 ** (len(widths) - 1)) ** 2
    needed = max(
        64 * 2 * 2 * side * side * unet.block_out_channels[0], 4 * 4 * picture * widths[min(1, len(widths) - 1)]
    )
    fitting = max(1, min(FRAMES_AT_ONCE_ON_GPU, free_bytes // 2 // needed))
    return int(1 << (fitting.bit_length() - 1))
