"""On a trained model and a real clip: the way back returns the source, and an edit into itself changes little."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

import pocket
from stages import decode_frames
from stages.backbones.stable_diffusion import Runtime, StableDiffusion, load
from stages.media.video import probe
from tests.tiny.method import Prepared, edit, edit_spec, prepare, rematched

pytestmark = pytest.mark.slow

CLIP = Path(__file__).parents[2] / "examples" / "ball.mp4"
SOURCE, OTHER = "a red ball on grass", "a blue star on snow"
FRAMES, STEPS = 8, 25


def psnr(ours: np.ndarray[Any, Any], theirs: np.ndarray[Any, Any]) -> float:
    """Peak signal-to-noise ratio of 8-bit pictures, dB."""
    error = np.square(ours.astype(np.float64) - theirs).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


@pytest.fixture(scope="module")
def known() -> Prepared:
    """Eight frames of an example, inverted with its caption; at each step one keyframe of two places in four."""
    spec = decode_frames.Spec(stop=FRAMES, width=64, height=64)
    assert (probe(CLIP).width, probe(CLIP).height) == (64, 64)
    rgb = np.concatenate([b.values for b in decode_frames.run(spec, range(1), video=CLIP) if b.variable == "rgb"])
    folder = pocket.model_folder()
    model = load(str(folder), Runtime())
    return prepare(model, folder, rgb, prompt=SOURCE, steps=STEPS, keyframe_interval=4, keyframe_offsets=2)


@torch.inference_mode()
def sampled(backbone: StableDiffusion, latents: Tensor, prompt: str) -> np.ndarray[Any, Any]:
    """Frames by plain DDIM sampling, each on its own, guidance 1, with diffusers' scheduler."""
    scheduler = DDIMScheduler.from_config(dict(backbone.pipeline.scheduler.config) | {"clip_sample": False})
    scheduler.set_timesteps(STEPS)
    text = backbone.encode_text([prompt]).expand(len(latents), -1, -1)
    for t in scheduler.timesteps.tolist():
        latents = scheduler.step(backbone.predict_noise(latents, t, text), t, latents).prev_sample
    return backbone.decode(latents)


@pytest.fixture(scope="module")
def plain(known: Prepared) -> dict[str, np.ndarray[Any, Any]]:
    """Prompt → frames sampled plainly from the inverted latents."""
    noisiest = torch.from_numpy(known.latents["latents"][0]).float()
    return {prompt: sampled(known.backbone, noisiest, prompt) for prompt in (SOURCE, OTHER)}


@torch.inference_mode()
def test_reconstruction_is_as_good_as_the_autoencoder(known: Prepared, plain: dict[str, np.ndarray[Any, Any]]) -> None:
    encoded = known.backbone.decode(torch.from_numpy(known.latents["clean_latents"]).float())
    assert psnr(plain[SOURCE], encoded) >= 28  # 35.0 measured on a model in training
    assert psnr(plain[OTHER], encoded) < 20, "another prompt fails by far"  # 12.1 measured


@pytest.mark.parametrize("interval", [1, 4])
def test_an_edit_into_the_source_is_its_reconstruction(
    known: Prepared, plain: dict[str, np.ndarray[Any, Any]], interval: int
) -> None:
    """Source prompt, guidance 1, everything injected."""
    spec = edit_spec(SOURCE, settings={"attention": 1, "feature": 1}, guidance_scale=1)
    edited = edit(rematched(known, keyframe_interval=interval), spec)["rgb"]
    assert psnr(edited, plain[SOURCE]) >= 28  # 46.6 with every frame a keyframe, 36.9 with one in four
    assert psnr(plain[OTHER], plain[SOURCE]) < 20  # 11.8
