"""The shipped pocket model: it loads, it speaks the world's words, and its pictures show what they are asked for."""

import pytest
import torch
from diffusers import StableDiffusionPipeline

from pocket import judge_file, model_folder
from pocket.judge import HEADS, Judge, load_judge
from pocket.score import autoencoder_psnr, captions_to_try, judge_accuracy, load_pipeline, sample
from pocket.world import COLOURS, GROUNDS, SHAPES, SURFACES, render


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionPipeline:
    return load_pipeline()


@pytest.fixture(scope="module")
def judge() -> Judge:
    return load_judge()


def test_folder_is_small_and_whole() -> None:
    files = [path for path in model_folder().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 25e6
    assert judge_file().stat().st_size <= 1e6
    assert not [path for path in files if path.suffix in {".bin", ".pt", ".ckpt"}]


def test_shaped_like_stable_diffusion(pipeline: StableDiffusionPipeline) -> None:
    assert pipeline.vae_scale_factor == 4
    assert pipeline.unet.config.sample_size == 16
    assert [type(block).__name__ for block in pipeline.unet.up_blocks] == ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3
    assert pipeline.scheduler.config.prediction_type == "epsilon"
    assert not pipeline.scheduler.config.set_alpha_to_one


def test_every_world_word_is_one_token(pipeline: StableDiffusionPipeline) -> None:
    for word in ("a", "an", "on", *SHAPES, *COLOURS, *SURFACES, *GROUNDS):
        assert len(pipeline.tokenizer(word).input_ids) == 3


def test_autoencoder_sees_held_out_frames(pipeline: StableDiffusionPipeline) -> None:
    assert autoencoder_psnr(pipeline) >= 30


def test_latents_have_unit_variance_after_scaling(pipeline: StableDiffusionPipeline) -> None:
    rgb = render(captions_to_try(64)[0], 64).rgb.permute(0, 3, 1, 2) * 2 - 1
    with torch.no_grad():
        spread = (pipeline.vae.encode(rgb).latents * pipeline.vae.config.scaling_factor).std()
    assert 0.9 < float(spread) < 1.1


def test_judge_reads_held_out_frames(pipeline: StableDiffusionPipeline, judge: Judge) -> None:
    accuracy = judge_accuracy(judge, pipeline, 192)
    assert all(accuracy["rendered"][head] >= 0.93 for head in HEADS)
    assert all(accuracy["decoded"][head] >= 0.9 for head in HEADS)
    assert accuracy["rendered"]["mask_iou"] >= 0.8


def test_samples_show_the_colour_and_ground_they_are_asked_for(pipeline: StableDiffusionPipeline, judge: Judge) -> None:
    colours = [COLOURS[i % 8] for i in range(12)]
    grounds = [GROUNDS[i % 6] for i in range(12)]
    captions = [f"a {c} ball on {g}" for c, g in zip(colours, grounds, strict=True)]
    verdict = judge.read(sample(pipeline, captions, guidance_scale=5.0, steps=20))
    right = {
        head: sum(a == b for a, b in zip(verdict.names(head), asked, strict=True))
        for head, asked in (("colour", colours), ("ground", grounds))
    }
    assert right["colour"] >= 9
    assert right["ground"] >= 9
