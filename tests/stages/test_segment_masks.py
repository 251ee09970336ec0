"""Masks from points by models of the SAM family: small random ones of the true structure."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from stages import segment_masks
from store.errors import InputError
from tests.tiny.method import moving_clip
from tests.tiny.segmenters import save_sam, save_sam2

RGB = moving_clip(5, 48, 32)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("sams")
    return {"sam": save_sam(place / "sam"), "sam2": save_sam2(place / "sam2")}


def masks(folder: Path, *points: tuple[float, float]) -> np.ndarray[Any, Any]:
    spec = segment_masks.Spec(points=points, width=48, height=32, feather=0)
    blocks = segment_masks.run(spec, range(1), frames={"rgb": RGB}, folder=folder, device="cpu")
    return np.concatenate([block.values for block in blocks])


@pytest.mark.parametrize("kind", ["sam", "sam2"])
def test_masks_have_the_frames_size_are_the_same_again_and_others_at_other_points(
    folders: dict[str, Path], kind: str
) -> None:
    found = masks(folders[kind], (0.5, 0.5))
    assert found.shape == (5, 32, 48)
    assert set(np.unique(found)) == {0, 255}
    assert np.array_equal(found, masks(folders[kind], (0.5, 0.5)))
    assert not np.array_equal(found, masks(folders[kind], (0.1, 0.9), (0.9, 0.1)))


@torch.inference_mode()
def test_sam2_is_walked_through_as_the_library_walks(folders: dict[str, Path]) -> None:
    from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

    model = segment_masks._loaded(folders["sam2"], "cpu")
    ours = segment_masks._by_memory(model, segment_masks.Spec(points=((0.25, 0.5),), width=48, height=32), RGB)
    video = torch.cat([segment_masks._normal(picture, 64, 64, "cpu") for picture in RGB])
    session = Sam2VideoInferenceSession(video=video, video_height=32, video_width=48, dtype=torch.float32)
    point = {"point_coords": torch.tensor([[[[16.0, 32.0]]]]), "point_labels": torch.ones(1, 1, 1, dtype=torch.int32)}
    session.add_point_inputs(session.obj_id_to_idx(1), 0, point)
    session.obj_with_new_inputs = [1]
    model(session, frame_idx=0)
    theirs = model.propagate_in_video_iterator(session, start_frame_idx=0)
    for own, other in zip(ours, theirs, strict=True):
        assert torch.allclose(own, other.pred_masks[0, 0], atol=1e-6)


def test_points_are_carried_with_what_they_lie_on() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 80), dtype=np.uint8)
    texture = cv2.GaussianBlur(noise, (0, 0), 2)
    points = np.array([[30, 30], [40, 20]], np.float32)
    moved = segment_masks.carried(points, texture[:, 8:72], texture[:, 6:70])
    assert np.abs(moved - points - [2, 0]).max() < 0.2


def spoiled(folder: Path, **config: Any) -> None:
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: spoiled(folder, model_type="bert"), "of type bert; have sam"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no .safetensors file"),
    ],
)
def test_a_folder_that_is_no_sam_is_one_sentence(tmp_path: Path, spoil: Callable[[Path], Any], said: str) -> None:
    folder = save_sam(tmp_path / "sam")
    spoil(folder)
    with pytest.raises(InputError, match=said) as raised:
        segment_masks.identity_files(folder)
    assert "\n" not in str(raised.value)


def test_weights_that_are_damaged_are_one_sentence(tmp_path: Path) -> None:
    folder = save_sam(tmp_path / "sam")
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(InputError, match="cannot be loaded") as raised:
        masks(folder, (0.5, 0.5))
    assert "\n" not in str(raised.value)
