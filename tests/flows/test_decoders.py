"""A decoder in the place of the model's own: whose key it moves, what is done again, and what is refused beforehand."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from flows.command_line import run_command
from flows.config import make_config
from flows.plan import Plan
from flows.reproduce import plan_again
from store.errors import InputError
from store.store import Store
from tests.flows.runs import Executed, computed, digests, edit

Plans = Callable[..., Plan]
WEIGHTS = "diffusion_pytorch_model.safetensors"


def test_the_clip_is_decoded_anew_and_can_be_reproduced(
    plan: Plans, store: Store, executed: Executed, temporal_folder: Path, tmp_path: Path, edited: Any
) -> None:
    asked = plan(decoder=temporal_folder)
    assert any("decoded by the AutoencoderKLTemporalDecoder of --decoder; keyframes" in note for note in asked.notes)
    result = edit(asked, tmp_path)
    assert executed.names == computed(result) == ["propagate_tokens"]
    assert digests(result)["propagate_tokens", "a red ball"] != edited[1]["propagate_tokens", "a red ball"]
    again, _ = plan_again(tmp_path / "edit.mp4.json", store, plan().runtime)
    assert again.decoder is not None
    assert again.to_compute() == []


def test_it_is_named_by_its_bytes(plan: Plans, temporal_folder: Path, tmp_path: Path) -> None:
    def keys(**changed: Any) -> list[str]:
        return [node.key.hex for node in plan(**changed).nodes]

    elsewhere = shutil.copytree(temporal_folder, tmp_path / "elsewhere")
    there = keys(decoder=temporal_folder)
    assert keys(decoder=elsewhere) == there
    assert there[:-1] == keys()[:-1]
    assert there[-1] != keys()[-1]
    weights = load_file(elsewhere / WEIGHTS)
    weights["decoder.conv_in.bias"] += 1
    save_file(weights, elsewhere / WEIGHTS)
    other = keys(decoder=elsewhere)
    assert (other[:-1], other[-1] == there[-1]) == (there[:-1], False)


def test_what_cannot_be_is_one_sentence(plan: Plans, clip: Path, temporal_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere is no folder; give a diffusers folder"):
        plan(decoder=tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"of other latents: its scaling factor is 8, and the model's 1\.4089"):
        plan(model="pocket", decoder=temporal_folder)
    with pytest.raises(InputError, match="--deflicker and --match-colours go by keyframes"):
        make_config(video=clip, prompts=("a",), decoder=temporal_folder, deflicker=0.5)
    config = make_config(video=clip, prompts=("a",), decoder=temporal_folder)
    assert f"--decoder {temporal_folder}" in run_command(config, "store")
