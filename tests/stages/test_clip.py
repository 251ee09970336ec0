"""CLIP's measures, on a small real model with random weights."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from stages.measures.clip import FRAMES_PER_PASS, Clip, load_clip
from store.errors import InputError
from tests.tiny.clip import save_clip
from tests.tiny.models import save_model

FRAMES = np.random.default_rng(0).integers(0, 256, (FRAMES_PER_PASS + 3, 40, 56, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def clip(folder: Path) -> Clip:
    return load_clip(str(folder))


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "clip"))


def transformers_own(folder: Path, prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines of frames and text, and image embeddings, by one call of transformers' own model over all frames."""
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

    model = CLIPModel.from_pretrained(folder)
    words = AutoTokenizer.from_pretrained(folder)(prompt, return_tensors="pt")
    pixels = AutoImageProcessor.from_pretrained(folder)(list(FRAMES), return_tensors="pt")
    with torch.no_grad():
        out = model(**words, **pixels)
        return out.logits_per_image[:, 0] / model.logit_scale.exp(), out.image_embeds


def test_text_alignment_is_the_mean_cosine_of_transformers(clip: Clip, folder: Path) -> None:
    cosines, _ = transformers_own(folder, "a red ball")
    assert clip.text_alignment(FRAMES, "a red ball") == pytest.approx(100 * float(cosines.mean()), abs=1e-3)


def test_frame_consistency_is_the_mean_cosine_of_neighbours(clip: Clip, folder: Path) -> None:
    _, embeddings = transformers_own(folder, "a red ball")
    cosines = torch.nn.functional.cosine_similarity(embeddings[1:], embeddings[:-1])
    assert clip.frame_consistency(FRAMES) == pytest.approx(100 * float(cosines.mean()), abs=1e-3)
    assert clip.frame_consistency(FRAMES) < 99.99


def test_a_still_is_consistent_and_one_frame_says_nothing(clip: Clip) -> None:
    assert clip.frame_consistency(FRAMES[:1].repeat(3, 0)) == pytest.approx(100, abs=1e-3)
    assert np.isnan(clip.frame_consistency(FRAMES[:1]))


def test_prompts_are_told_apart(clip: Clip) -> None:
    assert abs(clip.text_alignment(FRAMES, "a red ball") - clip.text_alignment(FRAMES, "snow")) > 0.01


def test_what_does_not_fit_is_named_and_not_judged(clip: Clip, caplog: pytest.LogCaptureFixture) -> None:
    fits, longer = "redballongrass", "redballongrass and snow"  # the tokenizer's words are bytes: 14 of 16 tokens
    with caplog.at_level(logging.WARNING):
        expected = clip.text_alignment(FRAMES, fits)
    assert clip.cut_from(fits) == "" and not caplog.records
    assert clip.cut_from(longer) == "and snow"
    assert clip.text_alignment(FRAMES, longer) == pytest.approx(expected, abs=1e-3)
    assert "'and snow' is not judged" in caplog.text


def test_a_folder_that_is_no_clip_model(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "diffusion")
    with pytest.raises(InputError, match=r"text_encoder is no CLIP model .its config.json says clip_text_model"):
        load_clip(str(folder / "text_encoder"))
    with pytest.raises(InputError, match=r"diffusion .*; give"):
        load_clip(str(folder))


@pytest.mark.parametrize(
    ("lost", "says"),
    [
        ("config.json", r"no CLIP model .it has no config.json"),
        ("preprocessor_config.json", "the preprocessor_config.json of CLIP model"),
        ("model.safetensors", "model.safetensors"),
        ("tokenizer.json", "no tokenizer files"),
    ],
)
def test_a_missing_file(copied: Path, lost: str, says: str) -> None:
    (copied / lost).unlink()
    with pytest.raises(InputError, match=says) as raised:
        load_clip(str(copied))
    assert str(copied) in str(raised.value) and "\n" not in str(raised.value)


def test_a_damaged_weight_file(copied: Path) -> None:
    os.truncate(copied / "model.safetensors", 1000)
    with pytest.raises(InputError, match="is damaged"):
        load_clip(str(copied))


def test_weights_are_never_made_up(copied: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(copied / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lacks 1 weights \(visual_projection.weight"):
        load_clip(str(copied))


def test_a_config_that_is_no_json(copied: Path) -> None:
    (copied / "config.json").write_text("{")
    with pytest.raises(InputError, match="not a valid JSON"):
        load_clip(str(copied))


def test_a_config_of_another_type(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"model_type": "siglip"}))
    with pytest.raises(InputError, match="says siglip"):
        load_clip(str(copied))


def test_an_unknown_hub_id() -> None:
    with pytest.raises(InputError, match="nobody/no-such-clip cannot be loaded"):
        load_clip("nobody/no-such-clip")
