"""Settings that must be in the environment before torch and the hub's client are imported, and small models."""

from __future__ import annotations

import os

# Two-thread OpenMP is ten times slower than one thread as soon as anything else runs on the machine.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"  # it announces that torchvision is missing; it must be
os.environ["DIFFUSERS_VERBOSITY"] = "error"

import signal

# A shell that starts a command in the background has it ignore Ctrl-C, and every process below it too.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from stages.backbones.stable_diffusion import StableDiffusion
    from tests.tiny.method import Prepared

# A busy machine is no failure.
settings.register_profile(
    "tokenflow", deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("tokenflow")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random diffusers folder of SD 1.x's levels with a 4× AutoencoderTiny. Read only: copy it to break it.

    It is run so often that its blocks have one layer each, where `kl_folder` has the two of the true structure.
    """
    from tests.tiny.models import save_model

    return save_model(tmp_path_factory.mktemp("models") / "tiny", vae="tiny", layers_per_block=1)


@pytest.fixture(scope="session")
def kl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SD 1.x's structure with an 8× AutoencoderKL, as SD 1.5 has, and UNet levels of other widths."""
    from tests.tiny.models import save_model

    return save_model(tmp_path_factory.mktemp("models") / "kl", vae="kl", block_out_channels=(16, 24, 32, 40))


@pytest.fixture(scope="session")
def sd2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SD 2.x's structure: linear projections, heads of one depth, v-prediction."""
    from tests.tiny.models import make_pipeline

    folder = tmp_path_factory.mktemp("models") / "sd2"
    pipeline = make_pipeline(vae="kl", use_linear_projection=True, attention_head_dim=(2, 4, 4, 4))
    pipeline.scheduler.register_to_config(prediction_type="v_prediction")
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture(scope="session")
def sdxl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SDXL's structure. Read only: copy it to break it."""
    from tests.tiny.models import make_sdxl, save_model

    return save_model(tmp_path_factory.mktemp("models") / "sdxl", make_sdxl)


@pytest.fixture(scope="session")
def backbone(tiny_folder: Path) -> StableDiffusion:
    """The tiny model, loaded as a user's folder is."""
    from stages.backbones.stable_diffusion import Runtime, load

    return load(str(tiny_folder), Runtime(frames_per_pass=4))


@pytest.fixture(scope="session")
def sdxl_backbone(sdxl_folder: Path) -> StableDiffusion:
    """The tiny SDXL, likewise."""
    from stages.backbones.stable_diffusion import Runtime, load

    return load(str(sdxl_folder), Runtime(frames_per_pass=4))


@pytest.fixture(scope="session")
def prepared(backbone: StableDiffusion, tiny_folder: Path) -> Prepared:
    """A moving clip of 11 frames, inverted, its tokens extracted and matched (interval 4, two places, 5 steps)."""
    from tests.tiny.method import moving_clip, prepare

    return prepare(backbone, tiny_folder, moving_clip(11))


@pytest.fixture(scope="session")
def control(backbone: StableDiffusion) -> Any:
    """A random ControlNet of the tiny model."""
    from tests.tiny.models import make_control

    return make_control(backbone.pipeline)


@pytest.fixture(scope="session")
def control_folder(control: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a diffusers folder. Read only."""
    folder = tmp_path_factory.mktemp("controls") / "tiny"
    control.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def temporal_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random temporal decoder of the tiny model's latents as a diffusers folder. Read only."""
    from tests.tiny.models import make_temporal_decoder

    folder = tmp_path_factory.mktemp("decoders") / "temporal"
    make_temporal_decoder().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def short(backbone: StableDiffusion, tiny_folder: Path) -> Prepared:
    """Seven frames, two steps, in passes of 8: for what needs many edits."""
    from tests.tiny.method import moving_clip, prepare

    return prepare(backbone, tiny_folder, moving_clip(7), steps=2).in_passes_of(8)
