"""Promises of a decoder in the place of the model's own: windows and parts do not show, cuts are not seen across."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from stages import propagate_tokens
from stages.backbones.decoders import (
    CLASSES,
    GROUP,
    OVERLAP,
    Decoder,
    autoencoder_folder,
    check_folder,
    groups,
    identity_files,
    load_decoder,
    seen,
)
from stages.backbones.stable_diffusion import StableDiffusion
from stages.editing import passes
from store.errors import InputError
from tests.stages.test_resume import Memory, Stopped, Watched, equal
from tests.tiny.method import Prepared, edit_at_once, edit_of_keyframes, edit_spec, moving_clip, prepare, propagate
from tests.tiny.models import make_temporal_decoder, make_vae

FRAMES = 21


@pytest.fixture(scope="module")
def decoder(temporal_folder: Path) -> Decoder:
    return load_decoder(temporal_folder, "cpu")


@pytest.fixture(scope="module")
def latents() -> torch.Tensor:
    """(21, 4, 4, 5), about as large as scaled latents are, each frame drawn anew."""
    return torch.randn((FRAMES, 4, 4, 5), generator=torch.Generator().manual_seed(0))


def decoded(decoder: Decoder, latents: torch.Tensor, *shots: range) -> np.ndarray[Any, Any]:
    whole = range(len(latents))
    return np.stack([*decoder.pictures(latents, 0, whole, shots or [whole])])


def test_groups_cover_every_frame_of_a_shot_and_overlap() -> None:
    for frames in range(1, 40):
        found = groups(range(5, 5 + frames), OVERLAP)
        assert sorted({frame for group in found for frame in group}) == [*range(5, 5 + frames)]
        assert all(len(group) <= GROUP for group in found)
        for before, after in pairwise(found):
            assert before.stop - after.start == OVERLAP
            assert len(after) > OVERLAP


def test_a_part_is_seen_as_it_is_in_the_whole_clip(decoder: Decoder, latents: torch.Tensor) -> None:
    shots = [range(5), range(5, FRAMES)]
    whole = decoded(decoder, latents, *shots)
    for start, stop in ((0, 8), (8, 16), (8, FRAMES), (16, FRAMES)):
        around = seen(range(start, stop), shots)
        assert max(start - around.start, around.stop - stop) < decoder.border
        given = latents[around.start : around.stop]
        part = np.stack([*decoder.pictures(given, around.start, range(start, stop), shots)])
        assert np.array_equal(part, whole[start:stop])


def test_one_group_is_what_diffusers_decodes(decoder: Decoder, latents: torch.Tensor) -> None:
    some = latents[:GROUP]
    with torch.no_grad():
        pixels = decoder.vae.decode(some / 8.0, num_frames=GROUP).sample.clamp(-1, 1)
    expected = ((pixels + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(decoded(decoder, some), expected)


def test_a_frame_depends_on_its_neighbours_but_not_across_a_cut(decoder: Decoder, latents: torch.Tensor) -> None:
    other = latents.clone()
    other[7:] = -other[7:]
    cut = range(7), range(7, FRAMES)
    assert not np.array_equal(decoded(decoder, latents)[6], decoded(decoder, other)[6])
    assert np.array_equal(decoded(decoder, latents, *cut)[:7], decoded(decoder, other, *cut)[:7])


def test_a_constant_clip_shows_no_group(decoder: Decoder, latents: torch.Tensor) -> None:
    """Where groups are faded into each other, neighbours differ by no more than beside."""
    rgb = decoded(decoder, latents[:1].repeat(30, 1, 1, 1)).astype(float)
    change = np.abs(np.diff(rgb, axis=0)).mean((1, 2, 3))
    inside = np.abs(np.diff(decoded(decoder, latents[:1].repeat(GROUP, 1, 1, 1)).astype(float), axis=0)).mean((1, 2, 3))
    assert change.max() <= inside.max() + 1


def test_a_decoder_of_pictures_takes_each_by_itself(latents: torch.Tensor) -> None:
    vae = make_vae("tiny")
    with torch.no_grad():
        pixels = vae.decode(latents / vae.config.scaling_factor).sample.clamp(-1, 1)
    expected = ((pixels + 1) * 127.5).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(decoded(Decoder(vae, CLASSES[2], "cpu"), latents), expected, atol=0.51)


@pytest.fixture(scope="module")
def long(backbone: StableDiffusion, tiny_folder: Path, decoder: Decoder) -> Prepared:
    known = prepare(backbone, tiny_folder, moving_clip(FRAMES), steps=2, keyframe_interval=8, cuts=(5,))
    return replace(known.in_passes_of(5), decoder=decoder, cuts=(5,))


@pytest.fixture
def short_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "WINDOW_FRAMES", 16)


def test_an_edit_has_the_same_bytes_however_it_is_divided_or_stopped(
    long: Prepared, decoder: Decoder, short_windows: None
) -> None:
    spec = edit_spec(guidance_scale=1)
    keyframes, at_once = edit_at_once(long, spec)
    assert equal(propagate(long, spec, keyframes), at_once)
    assert equal(propagate(long, spec, keyframes, parts=[range(16, 21), range(16)]), at_once)
    model, watched = Watched.of(long)
    model.limit, scratch = 3, Memory()
    with pytest.raises(Stopped):
        propagate(watched, spec, keyframes, scratch)
    model.limit = None
    assert equal(propagate(watched, spec, keyframes, scratch), at_once)
    edited = torch.from_numpy(at_once["latents"])
    assert np.array_equal(at_once["rgb"], decoded(decoder, edited, range(5), range(5, 21)))
    assert not np.array_equal(at_once["rgb"][:5], decoded(decoder, edited)[:5]), "seen across the cut"
    own = edit_of_keyframes(replace(long, decoder=None), spec)
    assert equal(own, keyframes), "of the model's own decoder"


def test_a_part_denoises_what_is_seen_beside_it_and_progress_is_told_of_it(
    long: Prepared, decoder: Decoder, short_windows: None
) -> None:
    spec = edit_spec(guidance_scale=1)
    keyframe_edit, _ = edit_at_once(long, spec)
    keyframes, support = long.field["keyframes"], long.field["support"].tolist()
    for part in (range(16), range(16, FRAMES)):
        model, watched = Watched.of(long)
        propagate(watched, spec, keyframe_edit, parts=[part])
        passed = [sum(rows for at, rows in model.passes if at == timestep) for timestep in long.timesteps]
        told = [
            propagate_tokens.frames_passed(part, FRAMES, keyframes, support, 8, (5,), border)
            for border in (0, decoder.border)
        ]
        assert passed == told[1]
        assert told[0] < told[1]


def test_borders_of_windows_are_passed_on_their_own(short_windows: None) -> None:
    assert passes.apart(range(14, 34), {15}, 4) == [
        [15],
        [14],
        [16, 17, 18, 19],
        [*range(20, 28)],
        [*range(28, 32)],
        [32, 33],
    ]
    assert passes.widened(range(16, 32), range(13, 33), 4, 40) == range(12, 36)
    assert passes.widened(range(16, 32), range(16, 33), 4, 34) == range(16, 34)


# what fits


def test_a_folder_that_fits_and_a_pipeline_that_holds_it(
    temporal_folder: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    check_folder(temporal_folder, tiny_folder)
    check_folder(autoencoder_folder(tiny_folder), tiny_folder)
    (tmp_path / "model_index.json").write_text("{}")
    shutil.copytree(temporal_folder, tmp_path / "vae")
    assert autoencoder_folder(tmp_path) == tmp_path / "vae"
    check_folder(tmp_path / "vae", tiny_folder)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "channels": ({"latent_channels": 8}, "it decodes 8 channels, and the model's latents have 4"),
    "scale": ({"scaling_factor": 0.18215}, "its scaling factor is 0.18215, and the model's 8"),
    "size": (
        {"block_out_channels": (32, 32), "down_block_types": ("DownEncoderBlock2D",) * 2},
        "its pictures are 2 times as large as latents, and the model's 4 times",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_decoder_of_other_latents_is_refused(name: str, tiny_folder: Path, tmp_path: Path) -> None:
    changes, said = WRONG[name]
    make_temporal_decoder(**changes).save_pretrained(tmp_path / "other")
    refused(tmp_path / "other", tiny_folder, said)


def test_a_decoder_whose_files_lack_weights_is_refused(temporal_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(temporal_folder, tmp_path / "broken")
    file = folder / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights.pop("decoder.time_conv_out.weight")
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lack 1 of its \d+ weights \(decoder.time_conv_out.weight"):
        load_decoder(folder, "cpu")


def test_a_decoder_of_half_precision_alone_is_taken(
    decoder: Decoder, temporal_folder: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(temporal_folder, tmp_path / "half")
    file = folder / "diffusion_pytorch_model.safetensors"
    file = file.rename(folder / "diffusion_pytorch_model.fp16.safetensors")
    check_folder(folder, tiny_folder)
    assert identity_files(folder)[1:] == [file]
    taken = load_decoder(folder, "cpu").vae.state_dict()
    assert all(torch.equal(values, taken[name]) for name, values in decoder.vae.state_dict().items())


def test_pictures_that_are_no_numbers_are_not_black(decoder: Decoder, latents: torch.Tensor) -> None:
    broken = copy.deepcopy(decoder)
    broken.vae.decoder.time_conv_out.weight.fill_(float("nan"))
    with pytest.raises(InputError, match="the autoencoder of --decoder makes pictures that are not finite"):
        list(broken.pictures(latents[:3], 0, range(3), [range(3)]))


def test_what_is_no_decoder_is_refused(temporal_folder: Path, tiny_folder: Path, tmp_path: Path) -> None:
    refused(tmp_path, tiny_folder, "has no config.json")
    refused(tiny_folder / "unet", tiny_folder, "holds a UNet2DConditionModel, which is not supported; have Auto")
    folder = shutil.copytree(temporal_folder, tmp_path / "broken")
    weights = folder / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refused(folder, tiny_folder, "are damaged")
    weights.unlink()
    refused(folder, tiny_folder, "has no diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL"})[:-1])
    refused(folder, tiny_folder, "is not valid JSON")


def refused(folder: Path, model: Path, said: str) -> None:
    with pytest.raises(InputError, match=said) as raised:
        check_folder(folder, model)
    assert "\n" not in str(raised.value)
