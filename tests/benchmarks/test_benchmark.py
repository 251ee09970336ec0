"""The benchmark measures what it says: the same work, counted in frames that go through the UNet."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import baseline, floor
from benchmarks.bench import compared, faster, lines_of, ratios, run_bench
from benchmarks.field_rate import field_rate
from stages.backbones.stable_diffusion import StableDiffusion
from store.errors import InputError
from tests.tiny.method import Prepared, edit_at_once, edit_spec, moving_clip, prepare, rematched

PNP = {"attention": 0.5, "feature": 0.5}


@pytest.fixture(scope="module")
def known(backbone: StableDiffusion, tiny_folder: Path) -> Prepared:
    return prepare(backbone, tiny_folder, moving_clip(7), steps=2)


@contextmanager
def passed(backbone: StableDiffusion) -> Iterator[list[int]]:
    """How many frames and branches go through the UNet."""
    seen: list[int] = []
    hook = backbone.unet.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    try:
        yield seen
    finally:
        hook.remove()


def published(known: Prepared, head_by_head: bool = False, **changed: Any) -> np.ndarray[Any, Any]:
    options = {"guidance_scale": 7.5, "keyframe_interval": 4, "pnp_attention": 0.5, "pnp_feature": 0.5} | changed
    rgb: np.ndarray[Any, Any] = baseline.edit(
        known.backbone, torch.from_numpy(known.latents["latents"]).float(), known.timesteps, "an edit",
        head_by_head=head_by_head, **options,
    )  # fmt: skip
    return rgb


def test_an_edit_goes_through_the_unet_as_often_as_its_floor(known: Prepared) -> None:
    with passed(known.backbone) as least:
        floor.edit(known.backbone, torch.randn(7, 4, 8, 10), keyframes=2, steps=2)
    with passed(known.backbone) as ours:
        edit_at_once(known, edit_spec(settings=PNP))
    assert sum(ours) == sum(least) == 2 * 2 * 7


def test_the_published_method_runs_three_branches_over_keyframes_and_all_frames(known: Prepared) -> None:
    with passed(known.backbone) as seen:
        published(known)
    assert sum(seen) == 3 * (2 + 7) * 2


def test_written_out_scores_are_the_same_attention(known: Prepared) -> None:
    assert np.abs(published(known).astype(int) - published(known, head_by_head=True)).max() <= 1


def test_the_published_method_is_ours_where_nothing_can_differ(known: Prepared) -> None:
    """Every frame its own keyframe: no field, no blend, no schedule; what is left is the joint edit."""
    joint = rematched(known, keyframe_interval=1, keyframe_offsets=1)
    _, ours = edit_at_once(joint, edit_spec(settings=PNP))
    # The baseline takes tokens of the keyframes by matching each with itself, and injects the source of the batch.
    theirs = published(known, keyframe_interval=1)
    assert np.abs(ours["rgb"].astype(int) - theirs).mean() < 1.0


def test_the_rate_of_the_field_is_measured_beside_a_bare_product() -> None:
    rate = field_rate("cpu", frames=4, keyframes=2, tokens=64, channels=16)
    assert not rate["fused"]
    assert rate["field_over_matmul"] == pytest.approx(rate["field_tflops"] / rate["matmul_tflops"])


def test_ratios_are_of_what_they_name() -> None:
    seconds = {
        "floor-prepare": 10.0, "floor-edit": 5.0, "prepare": 11.0, "first-edit": 9.0, "second-edit": 6.0,
        "fast-edit": 3.0, "baseline": 12.0, "baseline-heads": 24.0,
    }  # fmt: skip
    assert ratios(seconds) == {
        "prepare / floor": 1.1, "second prompt / floor": 1.2, "second prompt / first run": 0.3,
        "fast / second prompt": 0.5, "second prompt / B": 0.5, "fast / B": 0.25, "second prompt / B′": 0.25,
        "fast / B′": 0.125,
    }  # fmt: skip
    kept = ratios({**seconds, "prepare-drop-tokens": 10.5})
    assert (kept["prepare / floor"], kept["prepare, tokens kept / floor"]) == (1.05, 1.1)


def test_a_piece_counts_as_in_its_faster_round() -> None:
    rounds = [
        {"floor": {"wall_seconds": 3.0}, "ours": {"wall_seconds": 4.0}},
        {"floor": {"wall_seconds": 2.0}, "ours": {"wall_seconds": 5.0}},
    ]
    assert {name: taken["wall_seconds"] for name, taken in faster(rounds).items()} == {"floor": 2.0, "ours": 4.0}


def test_a_long_clip_is_compared_frame_by_frame() -> None:
    def piece(seconds: float, peak: int) -> dict[str, Any]:
        return {"wall_seconds": seconds, "peak_rss_bytes": peak, "stage_seconds": {"invert_frames": seconds}}

    found = compared({"prepare 64": piece(6.4, 100), "prepare 512": piece(102.4, 120)})
    assert found["peak_memory_ratio"] == {"prepare": 1.2}
    assert found["seconds_per_frame_ratio"]["invert_frames"] == pytest.approx(2)


@pytest.mark.parametrize(("name", "says"), [("tiny", "have pocket, mini, full"), ("full", "needs a GPU")])
def test_what_cannot_be_measured_is_refused(name: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        run_bench([name], scale=False, device="cpu", precision="auto", profile=False, say=lambda sentence: None)


def test_kept_results_can_be_read_and_shown() -> None:
    for file in (Path(__file__).parents[2] / "benchmarks" / "results").glob("bench-*.json"):
        assert len(lines_of(json.loads(file.read_text()))) > 10
