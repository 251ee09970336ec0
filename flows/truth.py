"""The scenes behind a clip's decoded frames, where the pocket world rendered it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pocket.truth import ForeignTruthError, read_truth
from pocket.world import Scene
from store.errors import InputError


def true_scenes(video: Path, spec: dict[str, Any], shape: tuple[int, ...]) -> Scene | None:
    """A scene per decoded frame; None where nobody knows them, or the frames are no squares any more,
    or are not every so many of the whole picture.

    spec     of decode_frames: start, stop and step of the frames
    shape    (frame, height, width, …) of the decoded frames
    raises   InputError where the note beside the video is damaged or another video's
    """
    try:
        scenes = read_truth(video)
    except ForeignTruthError as error:
        raise InputError(str(error)) from None
    if scenes is None or shape[1] != shape[2]:
        return None
    if spec.get("fps") or spec.get("bars") or any(spec.get("padding", ())):
        return None
    chosen = scenes[slice(spec["start"], spec["stop"], spec["step"])]
    return chosen if len(chosen) == shape[0] else None
