"""One contract for loaded models, what is known of them without their weights, and what is said of broken ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from stages import invert_frames
from stages.backbones import stable_diffusion
from stages.backbones.adapters import Adapters
from stages.backbones.families import family_of_unet
from stages.backbones.folders import _family_of_file, check_folder, identity_files, unpack_single_file
from stages.backbones.layout import forward_flops, geometry, layout, noise_schedule, read_configs
from stages.backbones.stable_diffusion import Runtime, StableDiffusion, frames_that_fit, load
from stages.diffusion.checks import NonFiniteLatents, finite
from stages.diffusion.ddim import timesteps
from store.errors import InputError
from tests.tiny.method import Prepared, edit_of_keyframes, edit_spec, moving_clip, prepare, propagate

FAMILIES = ("tiny_folder", "kl_folder", "sd2_folder", "sdxl_folder")


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="module")
def model(folder: Path) -> StableDiffusion:
    return load(str(folder), Runtime(frames_per_pass=2))


class TestContract:
    @torch.inference_mode()
    def test_pictures_to_latents_and_back(self, model: StableDiffusion, folder: Path) -> None:
        rgb, shapes = moving_clip(3, width=40, height=32), geometry(read_configs(folder))
        latents = model.encode(rgb)
        assert latents.dtype == torch.float32
        assert latents.shape == (3, 4, 32 // shapes.multiple, 40 // shapes.multiple)
        assert torch.equal(latents, model.encode(rgb)), "nothing is sampled"
        decoded = model.decode(latents)
        assert decoded.shape == rgb.shape
        assert decoded.dtype == np.uint8

    @torch.inference_mode()
    def test_latents_are_in_the_autoencoders_scaled_units(self, model: StableDiffusion) -> None:
        rgb = moving_clip(1)
        pixels = torch.from_numpy(rgb).permute(0, 3, 1, 2).float() / 255 * 2 - 1
        encoded = model.vae.encode(pixels)
        raw = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
        assert model.vae.config.scaling_factor != 1
        torch.testing.assert_close(model.encode(rgb), raw * model.vae.config.scaling_factor, rtol=1e-4, atol=1e-5)
        expected = ((model.vae.decode(raw).sample / 2 + 0.5).clamp(0, 1) * 255).round().permute(0, 2, 3, 1).numpy()
        decoded = model.decode(raw * model.vae.config.scaling_factor)
        assert np.abs(decoded - expected).max() <= 1

    @torch.inference_mode()
    def test_black_and_white_are_clamped_not_wrapped(self, model: StableDiffusion) -> None:
        extreme = model.decode(torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0)) * 500)
        raw = model.vae.decode(torch.zeros(1, 4, 4, 4)).sample
        assert raw.abs().max() < 50
        assert extreme.dtype == np.uint8
        assert extreme.min() == 0 or extreme.max() == 255

    @torch.inference_mode()
    def test_text_is_what_the_pipeline_embeds(self, model: StableDiffusion) -> None:
        prompts = ["a red ball", "", "a very long prompt that the tokenizer has no room for"]
        made = [model.pipeline.encode_prompt(p, device="cpu", do_classifier_free_guidance=False,
                                             num_images_per_prompt=1) for p in prompts]  # fmt: skip
        expected, text = torch.cat([embeddings[0] for embeddings in made]), model.encode_text(prompts)
        if model.family.ADDED == "text_time":
            pooled, width = torch.cat([embeddings[2] for embeddings in made]), made[0][2].shape[-1]
            torch.testing.assert_close(text[[0, 2], -1, :width], pooled[[0, 2]], rtol=1e-4, atol=1e-5)
            assert not text[:, -1, width:].any() and not text[1].any(), "padding is zero, and so is an empty prompt"
            text, expected = text[[0, 2], :-1], expected[[0, 2]]
        torch.testing.assert_close(text, expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(expected[0], expected[1], atol=1e-3)

    def test_what_is_cut_from_a_prompt_is_said(self, model: StableDiffusion) -> None:
        room = model.pipeline.tokenizer.model_max_length - 2  # the byte tokenizer: one letter, one token
        assert model.cut_from("x" * room) == ""
        assert model.cut_from("x" * room + "yz") == "yz"
        assert model.cut_from("") == ""

    def test_passes_cover_all_frames_once(self, model: StableDiffusion) -> None:
        slices: list[slice] = []
        model.each_pass(7, slices.append)
        assert slices == [slice(0, 2), slice(2, 4), slice(4, 6), slice(6, 7)]
        slices.clear()
        model.each_pass(0, slices.append)
        assert slices == []

    def test_passes_that_do_not_fit_are_halved_and_said(self, model: StableDiffusion) -> None:
        done: list[int] = []
        said: list[str] = []
        small = StableDiffusion(model.pipeline, Runtime(frames_per_pass=16), on_note=said.append)

        def do(some: slice) -> None:
            if some.stop - some.start > 5:
                raise torch.OutOfMemoryError("CUDA out of memory")
            done.extend(range(some.start, some.stop))

        small.each_pass(23, do)
        assert done == list(range(23)), "each frame once, in order"
        assert [sentence.rsplit(" ", 1)[-1] for sentence in said] == ["8", "4"]
        small.each_pass(9, do)
        assert len(said) == 2, "shorter from then on"

    def test_one_frame_that_does_not_fit_is_the_end(self, model: StableDiffusion) -> None:
        def never(some: slice) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory")

        small = StableDiffusion(model.pipeline, Runtime(frames_per_pass=4))
        with pytest.raises(InputError, match="does not hold one frame of this size; choose a smaller --size"):
            small.each_pass(3, never)

    @torch.inference_mode()
    def test_running_out_of_memory_changes_no_result(
        self, model: StableDiffusion, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        predict, latents, text = StableDiffusion.predict_noise, torch.randn(5, 4, 8, 10), model.encode_text([""])

        def inverted(frames_per_pass: int) -> torch.Tensor:
            own = StableDiffusion(model.pipeline, Runtime(frames_per_pass=frames_per_pass))
            return invert_frames.inverted(latents, None, 401, 2, text, own)

        expected = inverted(1)

        def small(backbone: StableDiffusion, batch: torch.Tensor, timestep: int, words: torch.Tensor) -> torch.Tensor:
            if len(batch) > 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return predict(backbone, batch, timestep, words)

        monkeypatch.setattr(StableDiffusion, "predict_noise", small)
        assert torch.equal(inverted(8), expected)

    @torch.inference_mode()
    def test_the_prediction_is_the_unets(self, model: StableDiffusion) -> None:
        latents = torch.randn(2, 4, 8, 10, generator=torch.Generator().manual_seed(0))
        text = model.encode_text(["", "a thing"])
        ours = model.predict_noise(latents, 301, text)
        given: dict[str, Any] = {"encoder_hidden_states": text}
        if model.family.ADDED == "text_time":
            pooled, sizes = model.pipeline.text_encoder_2.config.projection_dim, torch.tensor([64, 80, 0, 0, 64, 80.0])
            added = {"text_embeds": text[:, -1, :pooled], "time_ids": torch.stack([sizes, sizes])}
            given = {"encoder_hidden_states": text[:, :-1], "added_cond_kwargs": added}
        theirs = model.unet(latents, torch.tensor(301), **given).sample
        assert torch.equal(ours, theirs)
        assert ours.dtype == torch.float32

    @pytest.mark.parametrize("size", [(48, 40), (64, 64), (104, 56)])  # latents that three halvings do not divide, too
    @torch.inference_mode()
    def test_the_layout_is_what_a_real_pass_shows(
        self, model: StableDiffusion, folder: Path, size: tuple[int, int]
    ) -> None:
        known = layout(read_configs(folder), *size)
        seen: dict[str, tuple[int, ...]] = {}

        def noting(name: str) -> Any:
            return lambda module, inputs, output: seen.__setitem__(name, tuple(output.shape[1:]))

        modules = dict(model.unet.named_modules())
        hooks = [modules[name].register_forward_hook(noting(name)) for name in [*model.layers, model.injected_feature]]
        latents = model.encode(moving_clip(1, width=size[0], height=size[1]))
        model.predict_noise(latents, 1, model.encode_text([""]))
        for hook in hooks:
            hook.remove()
        assert latents.shape[1:] == (known.latent_channels, known.latent_height, known.latent_width)
        assert seen.pop(model.injected_feature) == known.feature
        assert {layer.name: (layer.tokens, layer.channels) for layer in known.layers} == seen
        assert [layer.name for layer in known.layers] == list(seen) == model.layers
        assert list(known.injected_layers) == model.injected_layers

    def test_a_model_of_another_size_runs_the_whole_method(self, model: StableDiffusion, folder: Path) -> None:
        known = prepare(model, folder, moving_clip(3, width=56, height=40), steps=2, keyframe_interval=2)
        edited, other = (
            propagate(known, spec, edit_of_keyframes(known, spec))
            for spec in (edit_spec("a ball", guidance_scale=3), edit_spec("a cube", guidance_scale=3))
        )
        assert edited["rgb"].shape == (3, 40, 56, 3)
        assert np.isfinite(edited["latents"]).all()
        assert not np.array_equal(edited["latents"], other["latents"]), "the prompt is heard"


# Where models come from


def test_a_hub_id_goes_through_from_pretrained(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hub cache as the client lays it out, and no network."""
    repository, revision = tmp_path / "models--someone--tiny", "0123456789" * 4
    shutil.copytree(tiny_folder, repository / "snapshots" / revision)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    from_hub, from_folder = load("someone/tiny", Runtime()), load(str(tiny_folder), Runtime())
    for name, values in from_folder.unet.state_dict().items():
        assert torch.equal(from_hub.unet.state_dict()[name], values)
    with pytest.raises(InputError, match="someone/other"):
        load("someone/other", Runtime())


def test_identity_is_the_files_that_may_change_a_result(tiny_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    files = {str(path.relative_to(folder)) for path in identity_files(folder)}
    weights = {f"{part}/{file}" for part, file in [
        ("unet", "diffusion_pytorch_model.safetensors"), ("vae", "diffusion_pytorch_model.safetensors"),
        ("text_encoder", "model.safetensors"), ("scheduler", "scheduler_config.json"), ("unet", "config.json"),
    ]}  # fmt: skip
    assert weights <= files
    assert any(name.startswith("tokenizer/") for name in files)
    (folder / "README.md").write_text("a model")
    (folder / "unet" / "notes.md").write_text("a note")
    assert {str(path.relative_to(folder)) for path in identity_files(folder)} == files


# What is wrong with a model is one sentence


def without_unet(folder: Path) -> None:
    shutil.rmtree(folder / "unet")


def without_index(folder: Path) -> None:
    (folder / "model_index.json").unlink()


def garbled_index(folder: Path) -> None:
    (folder / "model_index.json").write_text("{")


def other_pipeline(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "FluxPipeline"}))


def pickled_weights(folder: Path) -> None:
    (folder / "vae" / "diffusion_pytorch_model.safetensors").rename(folder / "vae" / "diffusion_pytorch_model.bin")


def without_tokenizer(folder: Path) -> None:
    (folder / "tokenizer" / "tokenizer.json").unlink()


def without_tokenizer_config(folder: Path) -> None:
    (folder / "tokenizer" / "tokenizer_config.json").unlink()


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (without_unet, "no unet"),
        (without_index, "no model_index.json"),
        (garbled_index, "not valid JSON"),
        (
            other_pipeline,
            "FluxPipeline, which is not supported; have StableDiffusionPipeline, StableDiffusionXLPipeline",
        ),
        (pickled_weights, "no .safetensors file in vae"),
        (without_tokenizer, "no tokenizer/vocab.json"),
        (without_tokenizer_config, "no tokenizer/tokenizer_config.json"),
    ],
)
def test_a_folder_that_is_no_model(
    tiny_folder: Path, tmp_path: Path, break_it: Callable[[Path], None], said: str
) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    check_folder(folder)
    break_it(folder)
    with pytest.raises(InputError) as raised:
        check_folder(folder)
    assert said in str(raised.value)
    assert str(folder) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kept", [0, 5, 1000, 100_000])
@pytest.mark.parametrize("part", ["unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"])
def test_a_truncated_weight_file(tiny_folder: Path, tmp_path: Path, part: str, kept: int) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    file = folder / f"{part}.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: min(kept, len(whole) - 1)])
    with pytest.raises(InputError) as raised:
        load(str(folder), Runtime())
    assert str(folder) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("part", ["unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"])
def test_weights_that_are_not_in_the_files_are_not_drawn_at_random(
    tiny_folder: Path, tmp_path: Path, part: str
) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    file = folder / f"{part}.safetensors"
    weights = load_file(file)
    gone = sorted(weights)[-1]
    save_file({name: values for name, values in weights.items() if name != gone}, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=f"{part.partition('/')[0]} of model .* lack 1 of its {len(weights)} weights"):
        load(str(folder), Runtime())


def test_weights_of_a_variant_are_taken_where_there_are_no_others(tiny_folder: Path, tmp_path: Path) -> None:
    """As `hf download --include '*.fp16.safetensors'` leaves a folder."""
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    for file in folder.glob("*/*.safetensors"):
        file.rename(file.with_name(f"{file.stem}.fp16.safetensors"))
    check_folder(folder)
    loaded, plain = load(str(folder), Runtime()), load(str(tiny_folder), Runtime())
    for name, values in plain.unet.state_dict().items():
        assert torch.equal(loaded.unet.state_dict()[name], values)


@pytest.mark.parametrize("file", ["unet/config.json", "vae/config.json", "scheduler/scheduler_config.json"])
def test_a_config_that_is_missing_or_garbled(tiny_folder: Path, tmp_path: Path, file: str) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    (folder / file).write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        read_configs(folder)
    (folder / file).unlink()
    with pytest.raises(InputError, match=file):
        read_configs(folder)


@pytest.mark.parametrize(("component", "name"), [("unet", "UNet3DConditionModel"), ("vae", "VQModel"), ("unet", None)])
def test_a_component_of_an_unsupported_class(tiny_folder: Path, component: str, name: str | None) -> None:
    configs = read_configs(tiny_folder)
    configs[component] = configs[component] | {"_class_name": name}
    with pytest.raises(InputError, match=f"{name}, which is not supported; have UNet2DConditionModel"):
        layout(configs, 32, 32)


def test_a_config_that_cannot_be_built_is_one_sentence(tiny_folder: Path) -> None:
    configs = read_configs(tiny_folder)
    configs["unet"] = configs["unet"] | {"down_block_types": ["NoSuchBlock"] * 4}
    with pytest.raises(InputError, match="UNet2DConditionModel config cannot be built") as raised:
        layout(configs, 32, 32)
    assert "\n" not in str(raised.value)


def test_the_schedule_of_a_scheduler_written_for_another_sampler() -> None:
    """SD 1.5 ships a PNDM file: what DDIM needs is read, the rest is left."""
    file = {"_class_name": "PNDMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
            "skip_prk_steps": True, "steps_offset": 1, "trained_betas": None, "set_alpha_to_one": False}  # fmt: skip
    schedule = noise_schedule(file)
    assert (schedule.steps_offset, schedule.set_alpha_to_one, schedule.prediction_type) == (1, False, "epsilon")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "FlowMatchEulerDiscreteScheduler, whose noise is another"),
        ({"steps_offset": -1}, "steps_offset = -1"),
        ({"num_train_timesteps": 0}, "num_train_timesteps = 0"),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas that are no list of 1000"),
        ({"trained_betas": "many"}, "trained_betas that are no list of 1000"),
    ],
)
def test_a_scheduler_that_cannot_be_followed_is_one_sentence(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        noise_schedule({"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear"} | change)


def test_a_model_of_two_sides_has_the_longer_one(tiny_folder: Path) -> None:
    configs = read_configs(tiny_folder)
    configs["unet"] = configs["unet"] | {"sample_size": [6, 8]}
    assert geometry(configs).native_size == geometry(read_configs(tiny_folder)).native_size


# Numbers that stop being numbers


def test_the_first_bad_frame_is_named() -> None:
    latents = torch.zeros(4, 2, 3, 3)
    finite(latents, "a_stage", 401, [5, 6, 8, 9])
    latents[2, 1, 0, 0], latents[3, 0, 0, 0] = float("inf"), float("nan")
    with pytest.raises(NonFiniteLatents, match="a_stage: latents are not finite at timestep 401, frame 8"):
        finite(latents, "a_stage", 401, [5, 6, 8, 9])


@pytest.fixture
def broken(tiny_folder: Path, tmp_path: Path) -> StableDiffusion:
    """A model whose weights hold a NaN."""
    model = load(str(tiny_folder), Runtime())
    model.unet.conv_out.weight[0, 0, 0, 0] = float("nan")
    return model


def test_nan_weights_stop_the_inversion(broken: StableDiffusion, tiny_folder: Path) -> None:
    with pytest.raises(NonFiniteLatents, match=r"invert_frames: .* timestep 1, frame 0"):
        prepare(broken, tiny_folder, moving_clip(2), steps=2)


def test_nan_in_the_autoencoder_stops_the_inversion(tiny_folder: Path) -> None:
    model = load(str(tiny_folder), Runtime())
    next(model.vae.encoder.parameters()).data.fill_(float("nan"))
    with pytest.raises(NonFiniteLatents, match=r"invert_frames: .* autoencoder's output, frame 0"):
        prepare(model, tiny_folder, moving_clip(2), steps=2)


def test_pictures_that_are_no_numbers_are_not_black(tiny_folder: Path) -> None:
    model = load(str(tiny_folder), Runtime())
    next(model.vae.decoder.parameters()).data.fill_(float("nan"))
    with pytest.raises(InputError, match="the model's autoencoder makes pictures that are not finite"):
        model.decode(torch.zeros(1, 4, 8, 8))


def test_nan_weights_stop_the_edit(broken: StableDiffusion, prepared: Prepared) -> None:
    from dataclasses import replace

    spec, bad = edit_spec(guidance_scale=1), replace(prepared, backbone=broken)
    support, first = prepared.field["support"].tolist(), prepared.timesteps[0]
    with pytest.raises(NonFiniteLatents, match=f"edit_keyframes: .* timestep {first}, frame {support[0]};"):
        edit_of_keyframes(bad, spec)
    keyframe_edit = edit_of_keyframes(prepared, spec)
    rest = min(set(range(prepared.frames)) - set(support))
    with pytest.raises(NonFiniteLatents, match=f"propagate_tokens: .* timestep {first}, frame {rest};"):
        propagate(bad, spec, keyframe_edit)


@torch.inference_mode()
def test_bfloat16_is_close_and_leaves_the_autoencoder_alone(tiny_folder: Path) -> None:
    exact, half = load(str(tiny_folder), Runtime()), load(str(tiny_folder), Runtime(precision="bfloat16"))
    assert half.unet.dtype == torch.bfloat16
    for mine, theirs in zip(half.vae.parameters(), exact.vae.parameters(), strict=True):
        assert torch.equal(mine, theirs), "not even rounded"
    latents = torch.randn(2, 4, 8, 10, generator=torch.Generator().manual_seed(0))
    noise = [m.predict_noise(latents, 401, m.encode_text(["", "a thing"])) for m in (exact, half)]
    assert 0 < float((noise[1] - noise[0]).norm() / noise[0].norm()) < 0.05


def test_as_many_frames_as_fit_are_a_power_of_two(tiny_folder: Path) -> None:
    pipeline = load(str(tiny_folder), Runtime()).pipeline
    fitting = [frames_that_fit(pipeline, 1 << bits) for bits in range(10, 40)]
    assert fitting[0] == 1 and fitting[-1] == 64 and fitting == sorted(fitting)
    assert all(frames & (frames - 1) == 0 for frames in fitting)


@torch.inference_mode()
def test_a_small_pass_is_done_on_one_thread(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(str(tiny_folder), Runtime())
    per_frame = forward_flops(dict(model.unet.config), (8, 10))
    assert forward_flops(dict(model.unet.config), (16, 20)) > 4 * per_frame, "attention grows faster than the picture"
    monkeypatch.setattr(stable_diffusion, "SMALL_PASS", 2.5 * per_frame)
    text, seen = model.encode_text([""]), []
    model.unet.register_forward_pre_hook(lambda module, inputs: seen.append(torch.get_num_threads()))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for frames in (2, 3):
            model.predict_noise(torch.randn(frames, 4, 8, 10), 401, text.expand(frames, -1, -1))
        with pytest.raises(RuntimeError):
            model.predict_noise(torch.randn(1, 9, 8, 10), 401, text)
        assert torch.get_num_threads() == 2, "put back, after an error too"
    finally:
        torch.set_num_threads(before)
    assert seen == [1, 2, 1]


# Prompts that compel reads


@pytest.fixture(scope="module", params=["tiny_folder", "sdxl_folder"])
def weighting(request: pytest.FixtureRequest) -> StableDiffusion:
    pytest.importorskip("compel")
    return load(str(request.getfixturevalue(request.param)), Runtime(), Adapters(prompt_weighting=True))


@torch.inference_mode()
def test_a_plain_short_prompt_means_what_it_meant(weighting: StableDiffusion) -> None:
    plain = StableDiffusion(weighting.pipeline)
    prompts = ["a red ball", ""]
    torch.testing.assert_close(weighting.encode_text(prompts), plain.encode_text(prompts), rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_weights_in_a_prompt_move_it_away_from_the_plain_one(weighting: StableDiffusion) -> None:
    plain, little, much = weighting.encode_text(["a red ball", "a (red)1.1 ball", "a (red)1.5 ball"])
    assert 0 < float((little - plain).norm()) < float((much - plain).norm())
    torch.testing.assert_close(weighting.encode_text(["a red+ ball"])[0], little, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_long_prompts_are_read_to_their_end_and_all_branches_are_as_long(weighting: StableDiffusion) -> None:
    long = "x" * 30
    text = weighting.encode_text(["", long + "y"])
    other = weighting.encode_text(["", long + "z"])
    assert text.shape[1] > weighting.encode_text(["", "short"]).shape[1]
    assert not torch.allclose(text[1], other[1], atol=1e-3), "its last letter counts"
    assert weighting.cut_from(long) == ""
    noise = weighting.predict_noise(torch.randn(2, 4, 8, 8), 401, text)
    assert noise.isfinite().all()


def test_words_are_not_looked_for_where_prompts_are_weighted(weighting: StableDiffusion) -> None:
    with pytest.raises(InputError, match="leave out --prompt-weighting"):
        weighting.word_places("a (red)1.5 ball", "red")


@pytest.mark.parametrize(
    ("component", "channels", "said"), [("unet", 9, "an inpainting"), ("unet", 5, "a depth"), ("unet", 8, "an instr")]
)
def test_variants_that_need_more_than_text_are_refused(
    tiny_folder: Path, component: str, channels: int, said: str
) -> None:
    configs = read_configs(tiny_folder)
    configs[component] = configs[component] | {"in_channels": channels}
    with pytest.raises(InputError, match=f"takes {channels} channels and its autoencoder makes 4: it is {said}"):
        geometry(configs)


BLOCK = "model.diffusion_model.input_blocks"
SINGLE = {
    "inpainting": {f"{BLOCK}.0.0.weight": (320, 9, 3, 3)},
    "xl_refiner": {"conditioner.embedders.0.model.transformer.resblocks.9.mlp.c_proj.bias": (1280,)},
    "upscale": {f"{BLOCK}.10.0.skip_connection.bias": (1,)},
    "playground-v2-5": {"edm_mean": (1,)},
}


@pytest.mark.parametrize("kind", SINGLE)
def test_a_single_file_of_another_kind_is_refused_by_its_name(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "one.safetensors"
    save_file({name: torch.zeros(shape) for name, shape in SINGLE[kind].items()}, file)
    with pytest.raises(InputError, match=f"is of the kind {kind}, which is not supported"):
        unpack_single_file(file, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize(
    ("tensors", "pipeline"),
    [
        ({f"{BLOCK}.0.0.weight": (320, 4, 3, 3)}, "StableDiffusionPipeline"),
        ({f"{BLOCK}.2.1.transformer_blocks.0.attn2.to_k.weight": (320, 1024)}, "StableDiffusionPipeline"),
        ({"conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias": (1,)}, "StableDiffusionXLPipeline"),
    ],
)
def test_the_family_of_a_single_file_is_read_from_its_tensors(
    tmp_path: Path, tensors: dict[str, tuple[int, ...]], pipeline: str
) -> None:
    file = tmp_path / "one.safetensors"
    save_file({name: torch.zeros(shape) for name, shape in tensors.items()}, file)
    family, described = _family_of_file(file)
    assert pipeline == family.PIPELINE and "/" in described


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["lora_unet_mid_block.lora_down.weight"], "a LoRA; give it with --lora"),
        (["controlnet_mid_block.weight"], "a ControlNet; give it with --control"),
        (["emb_params"], "a learnt word; give it with --embedding"),
        (["conv_in.weight", "conv_in.bias", "conv_out.weight"], "one part, such as the unet of a diffusers folder"),
    ],
)
def test_a_part_of_a_model_is_refused_by_what_it_is(tmp_path: Path, names: list[str], says: str) -> None:
    file = tmp_path / "one.safetensors"
    save_file({name: torch.zeros(1) for name in names}, file)
    with pytest.raises(InputError, match=f"is no whole model but {says}"):
        unpack_single_file(file, tmp_path / "folder")


TURBO = {"_class_name": "EulerAncestralDiscreteScheduler", "beta_start": 0.00085, "beta_end": 0.012,
         "beta_schedule": "scaled_linear", "timestep_spacing": "trailing", "steps_offset": 1,
         "prediction_type": "epsilon", "interpolation_type": "linear", "use_karras_sigmas": False}  # fmt: skip


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_few_step_model_visits_the_timesteps_of_its_own_scheduler(steps: int) -> None:
    """SD Turbo and SDXL Turbo ship an Euler scheduler spaced from the noisy end: never "leading", as SD 1.5's is."""
    from diffusers import EulerAncestralDiscreteScheduler

    theirs = EulerAncestralDiscreteScheduler.from_config(TURBO)
    theirs.set_timesteps(steps)
    assert list(timesteps(noise_schedule(TURBO), steps)) == [int(t) for t in theirs.timesteps]


@pytest.mark.parametrize("change", [{"addition_embed_type": "image"}, {"class_embed_type": "projection"}])
def test_a_unet_that_is_given_what_no_family_gives_is_refused(tiny_folder: Path, change: dict[str, str]) -> None:
    configs = read_configs(tiny_folder)
    with pytest.raises(InputError, match="conditioned on more than text") as raised:
        family_of_unet(configs["unet"] | change)
    assert "\n" not in str(raised.value)


def test_decoder_layers_of_a_first_transformer_with_several_are_not_injected(sdxl_folder: Path) -> None:
    model = load(str(sdxl_folder), Runtime())
    first = [name for name in model.layers if name.startswith("up_blocks.0.attentions.0.")]
    assert len(first) == 3
    assert not set(first) & set(model.injected_layers)
    assert len(model.injected_layers) == len([n for n in model.layers if n.startswith("up_blocks.")]) - 3
    assert model.injected_feature == "up_blocks.0.resnets.1.conv2"
