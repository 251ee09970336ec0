"""What a report measures: how steady each clip is over time, and how sure the field is of its matches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from store.artifact import Artifact
from store.errors import InputError
from store.schemas import Arrays
from store.store import Store

from .report_pictures import evenly

FRAMES_AT_A_TIME = 16
MOST_TIMESTEPS = 50
MOST_SIMILARITY = 512 << 20  # bytes of similarities that are read
Values = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Steadiness:
    """Warp errors of clips that share one motion.

    motion   how the motion is known, for a sentence
    errors   per clip (pair,) float, mean squared RGB difference × 1000; NaN where nothing is visible in both
    """

    motion: str
    errors: list[Values]


@dataclass(frozen=True)
class Confidence:
    """Cosine between a token and the keyframe tokens it follows, weighted as they are blended.

    by_frame   (layer, frame), mean over tokens and timesteps
    by_step    (layer, timestep), mean over tokens and frames that are no keyframe then
    """

    layers: list[str]
    tokens: list[int]
    timesteps: list[int]
    of_timesteps: int
    by_frame: Values
    by_step: Values


def steadiness(clips: Sequence[Arrays], scenes: Any, method: str, cuts: Sequence[int] = ()) -> Steadiness:
    """Warp errors of `clips`, the source first, along its motion: exact where its `scenes` are known, else estimated.

    method   of estimating: auto, raft or dis
    cuts     frames at which a new shot begins, whose errors are NaN
    """
    count, height = clips[0]["rgb"].shape[:2]
    estimator = None
    if scenes is None:
        from stages.measures.optical_flow import choose

        estimator = choose(method)
    errors: list[list[Values]] = [[np.zeros(0)] for _ in clips]
    for start in range(0, count - 1, FRAMES_AT_A_TIME):
        block = slice(start, min(count, start + FRAMES_AT_A_TIME + 1))
        for mine, values in zip(errors, _warp_errors(clips, block, scenes, estimator, height), strict=True):
            mine.append(values)
    joined = [np.concatenate(mine) for mine in errors]
    for values in joined:
        values[[cut - 1 for cut in cuts]] = np.nan
    motion = f"estimated with {estimator.name}" if estimator else "known exactly, since the clip was rendered"
    return Steadiness(motion, joined)


def _warp_errors(clips: Sequence[Arrays], block: slice, scenes: Any, estimator: Any, height: int) -> list[Values]:
    from stages.measures.frames import Motion, warp_errors

    if scenes is None:
        from stages.measures.optical_flow import estimated_motion

        motion = estimated_motion(clips[0]["rgb"][block], estimator)
    else:
        from pocket.world import flow

        truth = flow(scenes[block], height)
        motion = Motion(truth.backward, ~truth.occluded_backward)
    return [1000 * warp_errors(clip["rgb"][block], motion).double().numpy() for clip in clips]


def scenes_of(store: Store, frames: Artifact, video: Path, video_key: str) -> Any:
    """The rendered world's scene per decoded frame; None where nobody knows it.

    video_key   the hash of the bytes that were decoded: another file may lie at `video` by now
    """
    from .truth import true_scenes

    if not video.is_file() or f"blake3:{store.file_hash(video)}" != video_key:
        return None
    try:
        return true_scenes(video, frames.record.recipe.spec, frames["rgb"].shape)
    except InputError:
        return None


def confidence(field: Artifact) -> Confidence:
    """How sure a field is, read at as many timesteps as can be read quickly."""
    names = [name.removeprefix("similarity.") for name in field if name.startswith("similarity.")]
    variables = [field.schema.variables[f"similarity.{name}"] for name in names]
    timesteps = field["timestep"][:]
    steps = _steps(len(timesteps), sum(variable.nbytes() for variable in variables))
    frames = np.zeros((len(names), variables[0].shape[1] or 0))
    by_step = np.ones((len(names), len(steps)))
    for column, step in enumerate(steps):
        weights = field["weights"][step][..., None]
        moved = np.setdiff1d(np.arange(frames.shape[1]), field["keyframes"][step])
        for row, name in enumerate(names):
            followed = (weights * field[f"similarity.{name}"][step].astype(np.float32)).sum(1).mean(-1)
            frames[row] += followed / len(steps)
            by_step[row, column] = followed[moved].mean() if len(moved) else 1.0
    return Confidence(
        names, [int(variable.shape[-1] or 0) for variable in variables], [int(timesteps[step]) for step in steps],
        len(timesteps), frames, by_step,
    )  # fmt: skip


def _steps(count: int, nbytes: int) -> list[int]:
    """Which of `count` timesteps are read, where all of them take `nbytes`."""
    return evenly(count, max(1, min(MOST_TIMESTEPS, count * MOST_SIMILARITY // max(1, nbytes))))
