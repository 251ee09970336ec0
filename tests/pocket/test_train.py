"""The training script, with a recipe of seconds: what it leaves can be resumed, exported and loaded."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from pocket.judge import load_judge
from pocket.train import TINY, new_tokenizer, start_from, train
from pocket.world import COLOURS, GROUNDS, SHAPES, SURFACES

QUICK = replace(TINY, denoiser_steps=8, autoencoder_steps=8, judge_steps=4, average_every=2, save_every=4)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    train(QUICK, folder / "run", out=folder / "model", judge_out=folder / "judge.safetensors")
    return folder


def test_paused_run_ends_at_the_same_weights(undisturbed: Path, tmp_path: Path) -> None:
    stages = ("autoencoder", "latents", "denoiser")
    for stop_at in (4, 6, None):
        train(QUICK, tmp_path, stages=stages, stop_at=stop_at)
    for stage in ("autoencoder", "denoiser"):
        expected = torch.load(undisturbed / "run" / f"{stage}.pt")
        resumed = torch.load(tmp_path / f"{stage}.pt")
        assert all(torch.equal(resumed[name], value) for name, value in expected.items())


def test_a_run_goes_on_from_a_shipped_model_and_changes_its_decoder_alone(undisturbed: Path, tmp_path: Path) -> None:
    start_from(undisturbed / "model", undisturbed / "judge.safetensors", tmp_path)
    train(QUICK, tmp_path, stages=("decoder", "export"), out=tmp_path / "model")
    old, new = (
        StableDiffusionPipeline.from_pretrained(f / "model", dtype=torch.float32) for f in (undisturbed, tmp_path)
    )
    assert old.vae.config.scaling_factor == new.vae.config.scaling_factor
    for part in ("unet", "text_encoder"):
        weights = getattr(old, part).state_dict()
        assert all(torch.equal(value, weights[name]) for name, value in getattr(new, part).state_dict().items())
    weights = old.vae.state_dict()
    moved = {name for name, value in new.vae.state_dict().items() if not torch.equal(value, weights[name])}
    assert moved
    assert all(name.startswith("decoder.") for name in moved), "no latent changes"


def test_exported_folder_is_a_stable_diffusion_pipeline(undisturbed: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(undisturbed / "model", dtype=torch.float32)
    assert pipeline.vae_scale_factor == 4
    assert pipeline.vae.config.scaling_factor != 1.0
    assert pipeline.safety_checker is None
    assert (undisturbed / "model" / "tokenizer" / "vocab.json").exists()
    assert (undisturbed / "model" / "tokenizer" / "merges.txt").exists()
    image = pipeline("a red ball on snow", num_inference_steps=2, output_type="pt").images
    assert image.shape == (1, 3, 32, 32)
    assert torch.isfinite(image).all()


def test_judge_is_written_and_read_back(undisturbed: Path) -> None:
    verdict = load_judge(undisturbed / "judge.safetensors").read(torch.rand(2, 48, 48, 3))
    assert verdict.mask.shape == (2, 48, 48)
    assert torch.allclose(verdict.colour.sum(dim=1), torch.ones(2))


def test_every_world_word_is_one_token() -> None:
    tokenizer = new_tokenizer()[0]
    for word in ("a", "an", "on", *SHAPES, *COLOURS, *SURFACES, *GROUNDS):
        assert len(tokenizer(word).input_ids) == 3


def test_any_text_can_be_spelled() -> None:
    tokenizer, vocab, _ = new_tokenizer()
    ids = tokenizer("a giraffe, 東京 ≠ naïve 🙂!").input_ids
    assert tokenizer.unk_token_id not in ids[1:-1]
    assert len(vocab) == len(set(vocab.values()))
