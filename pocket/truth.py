"""What a rendered clip truly shows, kept beside it as `<video>.truth.json`: a scene per frame, hence mask and flow.

The note names the video by the hash of its bytes, so a truth can never be taken for another clip's.
"""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import torch
from blake3 import blake3

from pocket.world import Scene

FORMAT = 1


class ForeignTruthError(ValueError):
    """The note beside a video is damaged, or belongs to other bytes."""


def truth_file(video: Path) -> Path:
    """Where the truth about `video` lies, if it is known."""
    return video.with_name(f"{video.name}.truth.json")


def write_truth(video: Path, scenes: Scene) -> Path:
    """Keep what each frame of a rendered video shows; returns the note's path."""
    note = {
        "format": FORMAT,
        "video": f"blake3:{blake3(video.read_bytes()).hexdigest()}",
        "scenes": {f.name: getattr(scenes, f.name).tolist() for f in fields(Scene)},
    }
    truth_file(video).write_text(json.dumps(note) + "\n")
    return truth_file(video)


def read_truth(video: Path) -> Scene | None:
    """What each frame of `video` shows, or None where nobody knows; ForeignTruthError for a note that does not fit."""
    file = truth_file(video)
    if not file.is_file():
        return None
    try:
        note = json.loads(file.read_text("utf-8"))
        known, named = note["format"], note["video"]
        scenes = Scene(**{f.name: torch.tensor(note["scenes"][f.name]) for f in fields(Scene)})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ForeignTruthError(f"{file} cannot be read ({error}); delete it, or render the clip again") from None
    if known != FORMAT or named != f"blake3:{blake3(video.read_bytes()).hexdigest()}":
        raise ForeignTruthError(f"{file} was written for other bytes than {video}; delete it, or render the clip again")
    return scenes
