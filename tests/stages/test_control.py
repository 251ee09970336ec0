"""ControlNet: what it adds is what diffusers' own pipeline adds, when and as strongly as was asked."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionControlNetPipeline
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from pocket.edges import THRESHOLDS, edges
from stages import control_frames
from stages.backbones.controlnet import check_folder, identity_files, load_controlnet
from stages.backbones.stable_diffusion import StableDiffusion
from stages.control_frames import canny
from stages.editors.controlnet import Share
from store.errors import InputError
from store.schemas import Block
from tests.tiny.memory import collect
from tests.tiny.method import Prepared, edit, edit_at_once, edit_spec, frames_schema, moving_clip
from tests.tiny.models import make_control


def controlled_edit(prepared: Prepared, *shares: dict[str, float], **fields: Any) -> np.ndarray[Any, Any]:
    settings: dict[str, Any] = {"controls": list(shares)}
    return edit(prepared, edit_spec(editor="controlnet", settings=settings, **fields))["latents"]


def test_control_images_are_opencvs_edges_of_every_frame() -> None:
    rgb = moving_clip(19)
    spec = control_frames.Spec(low=40, high=120)
    schema = control_frames.outputs(spec, frames=frames_schema(rgb))
    found = collect(schema, lambda part: control_frames.run(spec, part, frames={"rgb": rgb}))["rgb"]
    for picture, control in zip(rgb, found, strict=True):
        assert (control == cv2.Canny(picture, 40, 120)[..., None]).all()
    assert 0 < found.mean() < 255


def test_the_pocket_control_was_trained_on_the_edges_that_are_the_default() -> None:
    rgb, spec = moving_clip(2), control_frames.Spec()
    assert (spec.low, spec.high) == THRESHOLDS
    assert (edges(rgb)[1] == canny(rgb[1], spec.low, spec.high)[..., 0]).all()


@pytest.mark.parametrize("detector", ["softedge", "depth", "openpose"])
def test_a_detector_whose_library_is_missing_is_one_sentence(detector: Any) -> None:
    try:
        import controlnet_aux  # noqa: F401
    except ImportError:
        with pytest.raises(InputError, match=r"controlnet_aux.*--control-video"):
            control_frames.check_installed(detector)
    else:
        control_frames.check_installed(detector)


class Seen:
    """Stands for a detector of controlnet_aux: such as it rounds a picture's sides to whole 64s."""

    @classmethod
    def from_pretrained(cls, folder: str) -> Seen:
        assert folder == "weights"
        return cls()

    def __call__(self, picture: Any, detect_resolution: int, image_resolution: int) -> Image.Image:
        assert round(detect_resolution / 64) == round(image_resolution / 64) == 1, "no side is rounded to none"
        return Image.new("RGB", (64, 64), tuple(int(value) for value in picture[0, 0]))


def test_what_a_detector_draws_comes_back_at_the_frames_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not controlnet_aux itself, which needs a torchvision that this torch has not (docs/editors.md)."""
    monkeypatch.setitem(sys.modules, "controlnet_aux", SimpleNamespace(HEDdetector=Seen))
    rgb = moving_clip(3, 40, 32)
    spec = control_frames.Spec(detector="softedge")
    schema = control_frames.outputs(spec, frames=frames_schema(rgb))
    run = control_frames.run
    found = collect(schema, lambda part: run(spec, part, frames={"rgb": rgb}, annotator="weights"))["rgb"]
    assert (found == rgb[:, :1, :1]).all()


def test_a_controlnet_whose_files_lack_weights_is_refused(control: Any, tmp_path: Path) -> None:
    control.save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights.pop("conv_in.weight")
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lack 1 of its \d+ weights \(conv_in.weight"):
        load_controlnet(tmp_path, "cpu", torch.float32)


def test_a_controlnet_of_half_precision_alone_is_taken(control: Any, tiny_folder: Path, tmp_path: Path) -> None:
    control.save_pretrained(tmp_path, variant="fp16")
    check_folder(tmp_path, tiny_folder)
    assert [file.name for file in identity_files(tmp_path)][1:] == ["diffusion_pytorch_model.fp16.safetensors"]
    taken = load_controlnet(tmp_path, "cpu", torch.float32).state_dict()
    assert all(torch.equal(values, taken[name]) for name, values in control.state_dict().items())


def test_given_images_must_be_as_many_as_the_frames() -> None:
    rgb = moving_clip(3)
    blocks = [Block("rgb", (0, 0, 0, 0), rgb), Block("pts", (0,), np.zeros(3))]
    spec = control_frames.Spec(detector="given")
    [taken] = control_frames.run_given(spec, range(1), pictures=iter(blocks), frames=3)
    assert (taken.values == rgb).all()
    with pytest.raises(InputError, match="3 control images for 4 frames"):
        list(control_frames.run_given(spec, range(1), pictures=iter(blocks), frames=4))


@torch.inference_mode()
@pytest.mark.parametrize("strengths", [[1.0], [0.4], [0.7, 1.3]])
def test_a_prediction_is_that_of_diffusers_own_pipeline(backbone: StableDiffusion, strengths: list[float]) -> None:
    controls = [make_control(backbone.pipeline, seed) for seed in range(len(strengths))]
    pipeline = StableDiffusionControlNetPipeline(
        **backbone.pipeline.components, controlnet=controls if len(controls) > 1 else controls[0],
        requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    shown = moving_clip(len(strengths), 32, 32)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    seen: list[torch.Tensor] = []
    hook = backbone.unet.register_forward_hook(lambda module, given, out: seen.append(out[0]))
    images = [torch.from_numpy(picture).permute(2, 0, 1)[None] / 255 for picture in shown]
    pipeline(
        "an edit", negative_prompt="not this", image=images if len(images) > 1 else images[0], latents=latents,
        controlnet_conditioning_scale=strengths if len(strengths) > 1 else strengths[0], num_inference_steps=1,
        guidance_scale=7.5, output_type="latent",
    )  # fmt: skip
    hook.remove()
    timestep = int(pipeline.scheduler.timesteps[0])
    ours = StableDiffusion(backbone.pipeline, backbone.runtime, controls=controls)
    text, batch = backbone.encode_text(["not this", "an edit"]), latents.repeat(2, 1, 1, 1)
    residuals = [
        ours.control(number, batch, timestep, text, shown[number : number + 1], strength)
        for number, strength in enumerate(strengths)
    ]
    total = [sum(each) for each in zip(*residuals, strict=True)]
    plain = ours.predict_noise(batch, timestep, text)
    torch.testing.assert_close(ours.predict_noise(batch, timestep, text, total), seen[0], rtol=1e-4, atol=1e-5)
    assert (plain - seen[0]).abs().max() > 1e-2, "and a prediction without it is another"


def test_without_strength_there_is_no_control_bit_for_bit(short: Prepared, control: Any) -> None:
    none = controlled_edit(short)
    assert (controlled_edit(short.controlled(control), {"strength": 0}) == none).all()
    assert (controlled_edit(short.controlled(control), {"start": 0.5, "stop": 0.5}) == none).all()
    plain = edit(short, edit_spec(editor="pnp", settings={"attention": 0, "feature": 0}))["latents"]
    assert (plain == none).all(), "PnP that injects nothing starts at the inverted latents as well"


def test_it_acts_more_with_more_strength_and_only_in_its_share_of_the_steps(short: Prepared, control: Any) -> None:
    with_one = short.controlled(control)
    none, weak, full, half = (
        controlled_edit(with_one, share)
        for share in ({"strength": 0.0}, {"strength": 0.2}, {"strength": 1.0}, {"strength": 1.0, "stop": 0.5})
    )
    assert 1e-3 < np.abs(weak - none).max() < np.abs(full - none).max()
    assert np.abs(half - none).max() > 1e-3
    assert np.abs(half - full).max() > 1e-3


def test_several_are_summed(short: Prepared, control: Any) -> None:
    twice = short.controlled(control, control)
    twice.controls[1]["rgb"] = twice.controls[0]["rgb"]
    one = controlled_edit(short.controlled(control), {"strength": 1.0})
    np.testing.assert_allclose(controlled_edit(twice, {"strength": 0.5}, {"strength": 0.5}), one, atol=2e-3)


def test_each_frame_is_shown_its_own_image(prepared: Prepared, control: Any) -> None:
    """Another image of the first frame moves that one, and the last one only through keyframes."""
    spec = edit_spec(editor="controlnet", settings={"controls": [{}]})
    with_one = prepared.controlled(control)
    before = edit_at_once(with_one, spec)[1]["latents"]
    with_one.controls[0]["rgb"][0] = 255 - with_one.controls[0]["rgb"][0]
    moved = np.abs(edit_at_once(with_one, spec)[1]["latents"] - before).max(axis=(1, 2, 3))
    assert moved[0] > 10 * moved[-1]


@pytest.mark.parametrize("frames_per_pass", [1, 3])
def test_frames_per_pass_change_nothing_beyond_rounding(short: Prepared, control: Any, frames_per_pass: int) -> None:
    with_one = short.controlled(control)
    whole = controlled_edit(with_one, {})
    np.testing.assert_allclose(controlled_edit(with_one.in_passes_of(frames_per_pass), {}), whole, atol=2e-3)


class Watched(StableDiffusion):
    """Writes down which timesteps a ControlNet is run at, and what the UNet is given."""

    def control(self, number: int, latents: Any, timestep: int, *given: Any) -> Any:
        self.__dict__.setdefault("controlled", []).append(timestep)
        return super().control(number, latents, timestep, *given)

    def predict_noise(self, latents: Any, timestep: int, text: Any, residuals: Any = None) -> Any:
        self.__dict__.setdefault("given", []).append((timestep, residuals))
        return super().predict_noise(latents, timestep, text, residuals)


def watched(prepared: Prepared, control: Any, **fields: Any) -> tuple[Watched, np.ndarray[Any, Any]]:
    from dataclasses import replace

    shown = prepared.controlled(control)
    backbone = Watched(prepared.backbone.pipeline, prepared.backbone.runtime, controls=[control])
    shares = fields.pop("share", {})
    return backbone, controlled_edit(replace(shown, backbone=backbone), shares, **fields)


def test_where_features_are_reused_so_is_what_the_control_gave(prepared: Prepared, control: Any) -> None:
    backbone, latents = watched(prepared, control, feature_reuse=2)
    whole = set(prepared.timesteps[::2])
    assert set(backbone.__dict__["controlled"]) == whole
    read = backbone.unet.config.layers_per_block + 1  # by the last up block
    for timestep, residuals in backbone.__dict__["given"]:
        sized = [residual for residual in residuals if residual.ndim]
        assert len(sized) == (len(residuals) if timestep in whole else read)
    assert np.isfinite(latents).all()
    none = watched(prepared, control, feature_reuse=2, share={"strength": 0})[1]
    assert np.abs(latents - none).max() > 1e-3


def test_a_control_that_begins_or_ends_makes_a_whole_step(prepared: Prepared, control: Any) -> None:
    assert len(prepared.timesteps) == 5
    backbone, _ = watched(prepared, control, feature_reuse=5, share={"start": 0.2, "stop": 0.6})
    assert set(backbone.__dict__["controlled"]) == {prepared.timesteps[1]}
    acted = {timestep for timestep, residuals in backbone.__dict__["given"] if residuals is not None}
    assert acted == set(prepared.timesteps[1:3])


@given(start=st.floats(0, 1), stop=st.floats(0, 1), steps=st.integers(1, 60))
def test_it_acts_between_two_shares_of_the_steps(start: float, stop: float, steps: int) -> None:
    if start > stop:
        with pytest.raises(ValidationError, match="start is after stop"):
            Share(start=start, stop=stop)
        return
    share = Share(strength=0.5, start=start, stop=stop)
    acts = [share.at(step, steps) for step in range(steps)]
    assert set(acts) <= {0.0, 0.5}
    assert abs(sum(map(bool, acts)) - (stop - start) * steps) <= 1


def test_it_may_begin_at_noise_that_all_frames_share(short: Prepared) -> None:
    from stages.editors import build, choose
    from tests.stages.test_editors import source_of

    source = source_of(short)
    noisy = build(choose("controlnet", {"begin": "noise", "seed": 7, "strength": 0.5}), source)
    sdedit = build(choose("sdedit", {"seed": 7, "strength": 0.5}), source)
    assert torch.equal(noisy.first_latents([0, 3]), sdedit.first_latents([0, 3]))
    inverted = build(choose("controlnet", {}), source)
    assert torch.equal(inverted.first_latents([2])[0], torch.from_numpy(short.latents["latents"][0, 2]).float())
