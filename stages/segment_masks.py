"""Masks from points on the first frame: a segmentation model of the SAM family finds their object in every frame.

SAM 2 (Ravi et al., arXiv 2408.00714) carries the object through the clip with its own memory. SAM (Kirillov et al.,
arXiv 2304.02643) knows single pictures: there the points are carried from frame to frame by the optical flow of Lucas
and Kanade (1981), in pyramids, and asked anew in each.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from store.errors import InputError
from store.schemas import Array, Arrays, Block, Blocks, Frozen, Schema

from .diffusion.chunks import blocks_of
from .editing.masking import mask_schema, softened

VERSION = 1
KINDS = {"sam": "SamModel", "sam2_video": "Sam2VideoModel"}  # model_type of config.json → class of transformers
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, with which all of them were trained
Picture = NDArray[np.uint8]
Points = tuple[tuple[float, float], ...]


class Spec(Frozen):
    """Points of the object on the first frame, the frames' size, and how wide the soft edge is, in their pixels.

    points   (x, y) from the upper left corner, as shares of width and height, 0 to 1
    """

    points: Points = Field(min_length=1)
    width: int = Field(ge=1)
    height: int = Field(ge=1)
    feather: int = Field(8, ge=0, le=512)


def outputs(spec: Spec, *, frames: Schema) -> Schema:
    """A mask per frame."""
    return mask_schema(frames, spec.height, spec.width)


def identity_files(folder: Path) -> list[Path]:
    """Files of a model's folder that may change a mask; InputError, one sentence, where it is no SAM."""
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(
            f"--mask-from: {folder} holds no config.json of transformers with a model_type; give the folder of a SAM "
            "or SAM 2 model"
        ) from None
    if kind not in KINDS:
        raise InputError(f"--mask-from: {folder} is a model of type {kind}; have {', '.join(KINDS)}")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise InputError(f"--mask-from: {folder} has no .safetensors file; other weight files are not opened")
    return [folder / "config.json", *weights]


@torch.inference_mode()
def run(spec: Spec, part: range, *, frames: Arrays, folder: Path, device: str) -> Blocks:
    """Find the points' object in every frame.

    frames   rgb (frame, height, width, 3) uint8
    folder   one that `identity_files` accepts
    yields   mask (frame, height, width) uint8
    raises   InputError where the weights do not fit, or nothing is found in any frame
    """
    assert part == range(1), "an object is followed from the first frame to the last"
    model = _loaded(folder, device)
    find = _by_memory if model.config.model_type == "sam2_video" else _by_flow
    found, empty = find(model, spec, frames["rgb"]), True
    for block in blocks_of(frames["rgb"].shape[0]):
        masks = [_sized(next(found), spec) for _ in block]
        empty = empty and not any(mask.any() for mask in masks)
        yield Block("mask", (block.start, 0, 0), np.stack([softened(mask, spec.feather) for mask in masks]))
    if empty:
        raise InputError(f"--mask-from: {folder} finds no object at the points in any frame; choose others")


def _loaded(folder: Path, device: str) -> Any:
    import transformers

    kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    try:
        model = getattr(transformers, KINDS[kind]).from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except Exception as error:  # transformers raises whatever a foreign file makes it trip over
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"--mask-from: {folder} cannot be loaded ({reason}); download the model again") from None
    return model.to(device, torch.float32).eval()


def _pictures(rgb: Array) -> Iterator[Picture]:
    """Picture by picture, each stored chunk read once."""
    for block in blocks_of(rgb.shape[0]):
        yield from rgb[block.start : block.stop]


def _normal(picture: Picture, height: int, width: int, device: Any) -> Tensor:
    """A picture as the models take it (1, 3, height, width)."""
    resized = cv2.resize(picture, (width, height), interpolation=cv2.INTER_LINEAR).astype(np.float32) / 255
    plain = torch.from_numpy((resized - _float32(MEAN)) / _float32(DEVIATION))
    return plain.permute(2, 0, 1)[None].float().to(device)


def _by_memory(model: Any, spec: Spec, rgb: Array) -> Iterator[Tensor]:
    """SAM 2: logits (height, width) of each frame, which remember those before."""
    from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

    side = int(model.config.image_size)
    session = Sam2VideoInferenceSession(
        video_height=spec.height, video_width=spec.width, inference_device=model.device,
        inference_state_device=model.device, video_storage_device=model.device, dtype=torch.float32,
    )  # fmt: skip
    points = torch.tensor(spec.points, dtype=torch.float32)[None, None] * side
    labels = torch.ones(points.shape[:-1], dtype=torch.int32)
    session.add_point_inputs(session.obj_id_to_idx(1), 0, {"point_coords": points, "point_labels": labels})
    session.obj_with_new_inputs = [1]
    for number, picture in enumerate(_pictures(rgb)):
        seen = model(session, frame=_normal(picture, side, side, model.device)[0], frame_idx=number)
        session.processed_frames.pop(number)
        yield seen.pred_masks[0, 0]


def _by_flow(model: Any, spec: Spec, rgb: Array) -> Iterator[Tensor]:
    """SAM: logits (height, width) of each frame by itself, at points that are carried along."""
    side, size = int(model.config.vision_config.image_size), _float32((spec.width, spec.height))
    scale = side / max(spec.width, spec.height)
    height, width = round(spec.height * scale), round(spec.width * scale)
    points, before = _float32(spec.points) * size, None
    for picture in _pictures(rgb):
        grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
        if before is not None:
            points = carried(points, before, grey)
        before = grey
        pixels = F.pad(_normal(picture, height, width, model.device), (0, side - width, 0, side - height))
        asked = torch.from_numpy(points / size * _float32((width, height)))[None, None].to(model.device)
        several = len(points) > 1  # one point may mean a part or the whole, and the model's best guess is taken
        seen = model(pixel_values=pixels, input_points=asked, multimask_output=not several)
        logits = seen.pred_masks[0, 0][int(seen.iou_scores[0, 0].argmax())]
        large = F.interpolate(logits[None, None], (side, side), mode="bilinear", align_corners=False)
        yield large[0, 0, :height, :width]


def _float32(numbers: Any) -> NDArray[np.float32]:
    return np.asarray(numbers, np.float32)


def carried(points: NDArray[np.float32], before: Picture, after: Picture) -> NDArray[np.float32]:
    """Points (point, 2) of a grey picture in the next one; those that are lost move as the others do on the median."""
    moved, found, _ = cv2.calcOpticalFlowPyrLK(before, after, np.ascontiguousarray(points[:, None]), None)
    kept = found[:, 0] == 1
    shift = np.median((moved[:, 0] - points)[kept], axis=0) if kept.any() else np.zeros(2, np.float32)
    there = np.where(kept[:, None], moved[:, 0], points + shift)
    inside: NDArray[np.float32] = np.clip(there, 0, _float32(before.shape[::-1]) - 1).astype(np.float32)
    return inside


def _sized(logits: Tensor, spec: Spec) -> Picture:
    """Logits of any size as a mask (height, width) uint8 of 0 and 255."""
    large = F.interpolate(logits[None, None].float(), (spec.height, spec.width), mode="bilinear", align_corners=False)
    return (large[0, 0] > 0).cpu().numpy().astype(np.uint8) * 255
