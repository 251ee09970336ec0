"""The measures of one edit and of one field, and what has to be known of a clip to take them.

`MEASURES` is what is printed with every table: each measure's definition, unit and direction.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from stages.measures.optical_flow import Estimator, estimated_motion
from stages.measures.optical_flow import displacement as estimated_displacement
from torch import Tensor

from pocket.judge import Judge, load_judge
from pocket.truth import ForeignTruthError, read_truth
from pocket.world import COLOURS, GROUNDS, SHAPES, SURFACES, Scene, displacement, flow, render
from stages.backbones.layout import ModelLayout
from stages.decode_frames import Spec as DecodeSpec
from stages.measures.correspondence import WITHIN, grid_of, pooled, token_errors
from stages.measures.frames import Motion, gradient_energy, overlap, psnr, warp_errors
from store.artifact import Artifact
from store.errors import InputError
from store.tables import Column

from .suite import Clip

WORDS = {"colour": COLOURS, "surface": SURFACES, "ground": GROUNDS, "shape": SHAPES}
Rgb = np.ndarray[Any, Any]

MEASURES: dict[str, Column] = {
    "warp_error": Column(
        "mean squared difference of frame t+1 and frame t warped onto it by the flow, over visible pixels, RGB in "
        "[0, 1], × 1000; lower is steadier, the autoencoder alone is the floor", units="1e-3", ge=0,
    ),
    "sharpness": Column(
        "mean squared difference of neighbouring pixels, over that of the autoencoder alone; below 1 is blurred", ge=0
    ),
    "object_overlap": Column(
        "intersection over union of the object's mask: a classifier's on the edit against the world's truth; higher is "
        "better, about 0.87 on true frames", ge=0, le=1,
    ),
    "background_psnr": Column(
        "PSNR against the source outside the object's true mask; higher keeps more; meaningless where the prompt "
        "changes the ground", units="dB",
    ),
    "edit_success": Column(
        "share of frames in which a classifier reads every attribute that the prompt changes as asked; higher is "
        "better", ge=0, le=1,
    ),
    "kept": Column(
        "share of the attributes that the prompt does not change which are still read as in the source; higher is "
        "better", ge=0, le=1,
    ),
    "inversion_psnr": Column(
        "PSNR of frames sampled back from their inverted latents, unedited, against the autoencoder's pictures; higher "
        "is better", units="dB",
    ),
    "reconstruction_psnr": Column("the same against the source frames", units="dB"),
    "text_alignment": Column(
        "mean over frames of 100 · cosine of CLIP's picture and prompt embeddings; higher is better"
    ),
    "frame_consistency": Column(
        "mean over neighbouring frames of 100 · cosine of their CLIP embeddings; higher is steadier, blur raises it too"
    ),
    "seconds": Column("of computing the inversion, when it was computed", units="s", ge=0),
}  # fmt: skip

NAMES = {
    "clip": Column("the video's name", text=True),
    "setting": Column("the way of editing; 'autoencoder' is encoding and decoding alone", text=True),
    "prompt": Column("what the edit was asked to show", text=True),
    "source_prompt": Column("what the clip shows", text=True),
}
TABLE = {**NAMES, **MEASURES}
FIELD_TABLE = {
    "clip": NAMES["clip"],
    "setting": Column("the first setting with this field", text=True),
    "layer": Column("self-attention layer", text=True),
    "timestep": Column("diffusion timestep, 0 to 999", ge=0),
    "tokens": Column("tokens of the layer per frame", ge=1),
    "accuracy": Column(
        f"share of visible tokens of frames that are no keyframe whose match lies within {WITHIN:g} token of where the "
        "flow says, both keyframes; higher is better", ge=0, le=1,
    ),
    "error": Column("mean distance of those matches from where the flow says; lower is better", units="tokens", ge=0),
    "object_accuracy": Column("accuracy over tokens of the object alone", ge=0, le=1),
    "object_error": Column("error over tokens of the object alone", units="tokens", ge=0),
    "hidden": Column("share of tokens that cannot be seen in the keyframe, and are not counted", ge=0, le=1),
}  # fmt: skip


@dataclass(frozen=True)
class Known:
    """What is known of a clip: its frames, what the autoencoder makes of them, its motion, and the world's truth.

    source, floor   rgb (frame, height, width, 3) uint8
    scenes          a scene per frame where the clip was rendered by the world, else None
    """

    source: Rgb
    floor: Rgb
    scenes: Scene | None
    estimator: Estimator

    @classmethod
    def of(cls, clip: Clip, spec: DecodeSpec, source: Rgb, floor: Rgb, estimator: Estimator) -> Known:
        """Reads the truth beside the clip; InputError where the note there is not this clip's."""
        return cls(source, floor, true_scenes(clip, spec, source), estimator)

    @cached_property
    def motion(self) -> Motion:
        """Of neighbouring frames, exact where the scenes are known."""
        if self.scenes is None:
            return estimated_motion(self.source, self.estimator)
        truth = flow(self.scenes, self.source.shape[1])
        return Motion(truth.backward, ~truth.occluded_backward)

    @cached_property
    def object_mask(self) -> Tensor:
        """(frame, height, width) bool; only of rendered clips."""
        assert self.scenes is not None
        return render(self.scenes, self.source.shape[1]).mask

    def travel(self, frame: int, target: int, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Where the tokens of `frame` are in frame `target`: displacement (height, width, 2) in tokens, and hidden."""
        if self.scenes is not None and height == width:
            moved, hidden = displacement(self.scenes[frame : frame + 1], self.scenes[target : target + 1], height)
            return moved[0], hidden[0]
        moved, hidden = (torch.from_numpy(part) for part in self._estimated(frame, target))
        return pooled(moved, hidden, height, width)

    def object_tokens(self, frame: int, height: int, width: int) -> Tensor:
        """(height, width) bool: tokens whose centre is the object's; nowhere where that is not known."""
        if self.scenes is None or height != width:
            return torch.zeros(height, width, dtype=torch.bool)
        return render(self.scenes[frame : frame + 1], height).mask[0]

    @cached_property
    def _flows(self) -> dict[tuple[int, int], tuple[Rgb, Rgb]]:
        return {}

    def _estimated(self, frame: int, target: int) -> tuple[Rgb, Rgb]:
        if (frame, target) not in self._flows:
            pair = self.source[frame], self.source[target]
            self._flows[frame, target] = estimated_displacement(*pair, self.estimator)
        return self._flows[frame, target]


def true_scenes(clip: Clip, spec: DecodeSpec, source: Rgb) -> Scene | None:
    """The scenes of the decoded frames; None where nobody knows them, or the frames are no squares any more."""
    try:
        scenes = read_truth(clip.video)
    except ForeignTruthError as error:
        raise InputError(str(error)) from None
    if scenes is None or source.shape[1] != source.shape[2]:
        return None
    chosen = scenes[slice(spec.start, spec.stop, spec.step)]
    return chosen if len(chosen) == len(source) else None


def edit_row(known: Known, edited: Rgb, prompt: str | None) -> dict[str, float]:
    """The measures of an edit; without a prompt, of frames that are to look like the source."""
    row = {
        "warp_error": 1000 * float(torch.nanmean(warp_errors(edited, known.motion))),
        "sharpness": gradient_energy(edited) / gradient_energy(known.floor),
    }
    return row if known.scenes is None else row | _truth_row(known, known.scenes, edited, prompt)


def _truth_row(known: Known, scenes: Scene, edited: Rgb, prompt: str | None) -> dict[str, float]:
    verdict = _judge().read(torch.from_numpy(edited))
    outside = ~known.object_mask
    asked = asked_attributes(prompt, scenes) if prompt is not None else {}
    right = {
        name: getattr(verdict, name).argmax(1) == asked.get(name, int(getattr(scenes, name)[0])) for name in WORDS
    }  # fmt: skip
    changed = [right[name] for name in asked]
    kept = [right[name] for name in WORDS if name not in asked]
    row = {
        "object_overlap": float(overlap(verdict.mask > 0.5, known.object_mask).mean()),
        "background_psnr": float(psnr(edited, known.source, outside).mean()),
        "kept": float(torch.stack(kept).float().mean()) if kept else float("nan"),
    }
    return row | ({"edit_success": float(torch.stack(changed).all(0).float().mean())} if changed else {})


def asked_attributes(prompt: str, scenes: Scene) -> dict[str, int]:
    """Attributes that a prompt names otherwise than the source shows them: name → position in the world's list.

    A prompt in the world's words that names no surface asks for a plain one, as captions do.
    """
    words = prompt.lower().split()
    found = {name: next((known.index(word) for word in words if word in known), None) for name, known in WORDS.items()}
    if found["surface"] is None and found["shape"] is not None:
        found["surface"] = SURFACES.index("plain")
    return {
        name: place for name, place in found.items() if place is not None and place != int(getattr(scenes, name)[0])
    }  # fmt: skip


def field_rows(known: Known, field: Artifact, layout: ModelLayout) -> Iterator[dict[str, Any]]:
    """Accuracy and end-point error of a field, a row per layer and timestep."""
    keyframes, neighbour, timesteps = field["keyframes"][:], field["neighbour"][:], field["timestep"][:]
    for layer in layout.layers:
        height, width = grid_of(layer.tokens, layout.latent_height, layout.latent_width)
        if height * width < 4:
            continue
        targets = sorted({int(frame) for frame in keyframes.ravel()})
        frames = range(neighbour.shape[1])
        travels = {(f, k): known.travel(f, k, height, width) for f in frames for k in targets if f != k}
        own = torch.stack([known.object_tokens(frame, height, width) for frame in frames])
        index = torch.from_numpy(field[f"index.{layer.name}"][:].astype(np.int64))
        for step, timestep in enumerate(timesteps):
            row = _field_row(index[step], keyframes[step][neighbour[step]], travels, own)
            yield {"layer": layer.name, "tokens": layer.tokens, "timestep": int(timestep), **row}


def _field_row(
    index: Tensor, targets: np.ndarray[Any, Any], travels: dict[tuple[int, int], tuple[Tensor, Tensor]], own: Tensor
) -> dict[str, float]:  # fmt: skip
    """One layer at one step: index (frame, side, token), targets (frame, side): the keyframes' frame numbers."""
    chosen = [
        (frame, side)
        for frame, sides in enumerate(targets)
        for side, target in enumerate(sides)
        if target != frame and not (side == 1 and sides[0] == sides[1])
    ]
    if not chosen:
        return {}
    moved, hidden = (
        torch.stack([travels[frame, int(targets[frame, side])][part] for frame, side in chosen]) for part in (0, 1)
    )
    errors = token_errors(torch.stack([index[frame, side] for frame, side in chosen]), moved)
    seen, on_object = ~hidden, torch.stack([own[frame] for frame, _ in chosen]) & ~hidden
    return {
        "accuracy": _mean(errors <= WITHIN, seen),
        "error": _mean(errors, seen),
        "object_accuracy": _mean(errors <= WITHIN, on_object),
        "object_error": _mean(errors, on_object),
        "hidden": float(hidden.float().mean()),
    }


def _mean(values: Tensor, where: Tensor) -> float:
    chosen = values[where].float()
    return float(chosen.mean()) if len(chosen) else float("nan")


@lru_cache(maxsize=1)
def _judge() -> Judge:
    return load_judge()
