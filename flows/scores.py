"""Scores to choose an edit by: what `tf eval` measures, and how far the edit went from the source; taken once and kept.

Where nobody knows the true motion it is estimated; what cannot be known of a clip is not among its scores.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pocket.truth import truth_file
from store.artifact import Artifact
from store.store import Store
from store.tables import Column

from .export import picture_of
from .measure import MEASURES, Known, edit_row
from .plan import Plan
from .runtime import load_backbone
from .suite import Clip, Metrics

VERSION = 1  # raise it when equal frames should give other scores
FEWEST_FRAMES = 2  # that have a motion between them

Scores = dict[str, float]

CHANGE = Column(
    "mean absolute difference from what the autoencoder alone makes of the source, in per cent of the range of RGB; 0 "
    "is no edit, and there steadiness and sharpness are cheap", units="%", ge=0, le=100,
)  # fmt: skip
NO_SCORES = ("inversion_psnr", "reconstruction_psnr", "seconds")  # of the inversion, whatever the edit
SCORES: dict[str, Column] = {"change": CHANGE, **{n: c for n, c in MEASURES.items() if n not in NO_SCORES}}
LOWER_FIRST = ("warp_error",)  # less is better; of the others more is, or neither


class Scorer:
    """Takes the scores of edits, each pair of source and edit once per store.

    raises   InputError, before any edit is made, where the CLIP model or the optical flow is not to be had
    """

    def __init__(self, store: Store, metrics: Metrics) -> None:
        from stages.measures.clip import load_clip
        from stages.measures.optical_flow import choose

        self.store, self.metrics, self.estimator = store, metrics, choose(metrics.flow)
        self.clip_model: Any = load_clip(metrics.clip_model) if metrics.clip_model else None
        self._known: tuple[str, Known] | None = None

    def __call__(self, plan: Plan, edit: Artifact, frames: Artifact) -> Scores:
        """The scores of the one edit of `plan`, by name; those that cannot be known are left out."""
        prompt = str(plan.config.prompts[0])
        what = " ".join([
            f"scores {VERSION}", edit.digest, frames.digest, plan.model.key, self.estimator.name,
            self._truth(plan.config.video), self._clip_identity, prompt, *_named(plan.match.spec.cuts),
            *(["unpadded"] if any(plan.decode.spec.padding) else []),  # once they were of padded frames
        ])  # fmt: skip
        kept: Any = self.store.remembered(what, lambda: self._measured(plan, edit, frames, prompt))
        return dict(kept)

    def _measured(self, plan: Plan, edit: Artifact, frames: Artifact, prompt: str) -> dict[str, Any]:
        known, edited = self._known_of(plan, frames), picture_of(edit["rgb"][:], plan.decode.spec)
        moved = np.abs(edited.astype(np.int16) - known.floor.astype(np.int16)).mean()
        row = {"change": 100 * float(moved) / 255}
        if len(edited) >= FEWEST_FRAMES:
            row |= edit_row(known, edited, prompt)
        if self.clip_model is not None:
            row["text_alignment"] = self.clip_model.text_alignment(edited, prompt)
            row["frame_consistency"] = self.clip_model.frame_consistency(edited)
        return {name: value for name, value in row.items() if not math.isnan(value)}

    def _known_of(self, plan: Plan, frames: Artifact) -> Known:
        """What is known of the source: kept for the edits that follow, which mostly have the same."""
        cuts: tuple[int, ...] = plan.match.spec.cuts
        name = " ".join([frames.digest, plan.model.key, *_named(cuts)])
        if self._known is None or self._known[0] != name:
            source, backbone = frames["rgb"][:], load_backbone(plan)
            floor = backbone.decode(backbone.encode(source))
            spec: Any = plan.decode.spec
            self._known = name, Known.of(Clip(video=plan.config.video), spec, source, floor, self.estimator, cuts)
        return self._known[1]

    def _truth(self, video: Path) -> str:
        file = truth_file(video)
        return self.store.file_hash(file) if file.is_file() else "unknown"

    @cached_property
    def _clip_identity(self) -> str:
        """A CLIP model by its files where it is a folder, else by its hub id."""
        name = self.metrics.clip_model
        if not name or not Path(name).is_dir():
            return name or "without"
        return self.store.folder_hash(name, sorted(path.name for path in Path(name).iterdir() if path.is_file()))


def _named(cuts: tuple[int, ...]) -> list[str]:
    """Cuts in the name of what is remembered: none of a clip without, whose scores were taken before there were any."""
    return [f"cuts {','.join(map(str, cuts))}"] if cuts else []


def columns(rows: list[Mapping[str, Any]]) -> list[str]:
    """The scores that any of the rows has, in the order of their definition."""
    return [name for name in SCORES if any(name in row for row in rows)]
