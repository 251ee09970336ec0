"""What a user should hear of the artifacts a run stood on, whether they were computed now or found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from stages import find_masks
from stages.invert_frames import checked_frames
from store.artifact import Artifact
from store.store import Store

from .config import shortened
from .tasks import Use

LOW_PSNR = 25.0  # dB: below it, what comes back is visibly another picture (docs/decisions.md, "Inversion")
FUNCTION_WORDS = frozenset(
    ["a", "an", "the", "and", "or", "of", "in", "on", "at", "to", "by", "for", "from", "with", "under", "over"]
)


def remarks(store: Store, uses: Sequence[Use]) -> list[str]:
    """Prompts that were cut, inversions that do not lead back, and words for a mask that name nothing."""
    found = [*_cut_prompts(uses)]
    for use in uses:
        if use.node.stage == "invert_frames":
            found += _bad_inversion(store, use.artifact, bool(use.node.spec.prompt))
        if isinstance(use.node.spec, find_masks.Spec):
            found += _nothing_named(store, use.node.spec, use.artifact)
    return found


def _cut_prompts(uses: Sequence[Use]) -> list[str]:
    """What the model did not read of the prompts, as its artifacts remember it."""
    said: dict[str, str] = {}
    for use in uses:
        note = use.artifact.record.note
        cut = note.get("cut") if isinstance(note, dict) else None
        said |= {str(k): str(v) for k, v in cut.items()} if isinstance(cut, dict) else {}
    return [
        f"the prompt {shortened(prompt)} is longer than the model reads: {shortened(rest)} was cut"
        for prompt, rest in said.items()
    ]


def _bad_inversion(store: Store, latents: Artifact, described: bool) -> Iterator[str]:
    """A sentence when the worst of the frames that were sampled back is too far from the source.

    described   there is a source prompt already
    """
    # Remembered as a note: a run that finds everything has no need to open Zarr.
    measured: Any = store.remembered(
        f"inversion_psnr {latents.digest}", lambda: [float(value) for value in latents["inversion_psnr"][:]]
    )
    worst = int(np.argmin(measured))
    if measured[worst] < LOW_PSNR:
        frame = checked_frames(latents.schema.size("frame") or 0)[worst]
        yield (
            f"the inversion leads back to frame {frame} with {measured[worst]:.1f} dB only, and an edit cannot be "
            f"better than that: {'' if described else 'say what the video shows with --source-prompt, or '}raise "
            "--inversion-steps"
        )


def _nothing_named(store: Store, spec: find_masks.Spec, mask: Artifact) -> Iterator[str]:
    """A sentence when the words of a mask name no thing, or none that the frames attend to in one place."""
    way_out = (
        f"look at it (tf show {mask.record.hex[:12]}), name a thing that --source-prompt says is in the video, or "
        "draw a --mask"
    )
    if FUNCTION_WORDS.issuperset(spec.words.lower().split()):
        yield f"{spec.words!r} names no thing, so its mask is of whatever the model has beside it: {way_out}"
        return
    known: Any = store.remembered(f"mask_variation {mask.digest}", lambda: float(mask["variation"][:].mean()))
    if known < find_masks.NAMES_NOTHING:
        yield (
            f"{spec.words!r} may name nothing in the video, and its mask be of something else: attention to it is "
            f"nearly the same all over the frames (it varies by {known:.2f} of its mean; {find_masks.NAMES_NOTHING} "
            f"and more where a thing is found): {way_out}"
        )
