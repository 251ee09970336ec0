"""The measures of one edit and of one field, and what has to be known of a clip to take them.

`MEASURES` is what is printed with every table: each measure's definition, unit and direction.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pocket.judge import Judge, load_judge
from pocket.world import COLOURS, GROUNDS, SHAPES, SURFACES, Scene, displacement, flow, render
from stages.backbones.layout import ModelLayout
from stages.decode_frames import Spec as DecodeSpec
from stages.measures.correspondence import WITHIN, grid_of, pooled, token_errors
from stages.measures.frames import Motion, gradient_energy, overlap, psnr, warp_errors
from stages.measures.optical_flow import Estimator, estimated_motion
from stages.measures.optical_flow import displacement as estimated_displacement
from stages.media.letterbox import padded
from store.tables import Column

from .export import picture_of
from .suite import Clip
from .truth import true_scenes

WORDS = {"colour": COLOURS, "surface": SURFACES, "ground": GROUNDS, "shape": SHAPES}
Rgb = np.ndarray[Any, Any]
Pair = tuple[int, int]

MEASURES: dict[str, Column] = {
    "warp_error": Column(
        "mean squared difference of frame t+1 and frame t warped onto it by the flow, over visible pixels, RGB in "
        "[0, 1], × 1000, pairs across a cut left out; lower is steadier, the autoencoder alone is the floor",
        units="1e-3", ge=0,
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
    "hidden": Column(
        "share of tokens that cannot be seen in the keyframe, or lie in the clip's padding, and are not counted", ge=0,
        le=1,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Known:
    """What is known of a clip: its frames, what the autoencoder makes of them, its motion, and the world's truth.

    source, floor   rgb (frame, height, width, 3) uint8
    scenes          a scene per frame where the clip was rendered by the world, else None
    cuts            frames at which a new shot begins: no point of them is looked for in the frame before
    padding         pixels at right and bottom that the model saw beside these pictures: hidden, where tokens are
    """

    source: Rgb
    floor: Rgb
    scenes: Scene | None
    estimator: Estimator
    cuts: tuple[int, ...] = ()
    padding: Pair = (0, 0)

    @classmethod
    def of(
        cls, clip: Clip, spec: DecodeSpec, source: Rgb, floor: Rgb, estimator: Estimator, cuts: tuple[int, ...] = ()
    ) -> Known:  # fmt: skip
        """Of frames as `spec` decodes them, with their padding; InputError where the truth beside is another clip's."""
        scenes = true_scenes(clip.video, spec.model_dump(), source.shape)
        return cls(picture_of(source, spec), picture_of(floor, spec), scenes, estimator, cuts, spec.padding)

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

    def travels(self, pairs: Sequence[Pair], height: int, width: int) -> tuple[Tensor, Tensor]:
        """Where the tokens of each pair's frame are in its target: displacement in tokens, and hidden.

        pairs     (frame, target) numbers
        returns   (pair, height, width, 2) float32 and (pair, height, width) bool
        """
        if self.scenes is not None and height == width:
            frames, targets = (torch.tensor([pair[end] for pair in pairs]) for end in (0, 1))
            return displacement(self.scenes[frames], self.scenes[targets], height, border=1)
        moved, hidden = zip(*(self._estimated(pair) for pair in pairs), strict=True)
        return pooled(torch.from_numpy(np.stack(moved)), torch.from_numpy(np.stack(hidden)), height, width)

    def object_tokens(self, frame: int, height: int, width: int) -> Tensor:
        """(height, width) bool: tokens whose centre is the object's; nowhere where that is not known."""
        if self.scenes is None or height != width:
            return torch.zeros(height, width, dtype=torch.bool)
        return render(self.scenes[frame : frame + 1], height).mask[0]

    @cached_property
    def _flows(self) -> dict[Pair, tuple[Rgb, Rgb]]:
        return {}

    def _estimated(self, pair: Pair) -> tuple[Rgb, Rgb]:
        if pair not in self._flows:
            frame, target = pair
            moved, hidden = estimated_displacement(self.source[frame], self.source[target], self.estimator)
            right, bottom = self.padding
            outside = np.pad(hidden, ((0, bottom), (0, right)), constant_values=True)
            self._flows[pair] = padded(moved, self.padding), outside
        return self._flows[pair]


def edit_row(known: Known, edited: Rgb, prompt: str | None) -> dict[str, float]:
    """The measures of an edit; without a prompt, of frames that are to look like the source."""
    row = {
        "warp_error": 1000 * float(torch.nanmean(warp_errors(edited, known.motion, known.cuts))),
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


def field_rows(known: Known, field: Mapping[str, Any], layout: ModelLayout) -> Iterator[dict[str, Any]]:
    """Accuracy and end-point error of a field, a row per layer and timestep; layers of under four tokens have none."""
    neighbours, timesteps = field["neighbour"][:], field["timestep"][:]
    targets = np.stack([keyframes[sides] for keyframes, sides in zip(field["keyframes"][:], neighbours, strict=True)])
    grids = {layer.tokens: grid_of(layer.tokens, layout.latent_height, layout.latent_width) for layer in layout.layers}
    truths = {tokens: _Truth(known, targets, *grid) for tokens, grid in grids.items() if tokens >= 4}
    for layer in layout.layers:
        if layer.tokens in truths:
            index = torch.from_numpy(field[f"index.{layer.name}"][:].astype(np.int64))
            for step, timestep in enumerate(timesteps):
                row = truths[layer.tokens].row(index[step], targets[step])
                yield {"layer": layer.name, "tokens": layer.tokens, "timestep": int(timestep), **row}


class _Truth:
    """What is true of the matches of one token grid, whatever the layer: found once for all of its pairs of frames."""

    def __init__(self, known: Known, targets: np.ndarray[Any, Any], height: int, width: int) -> None:
        """targets (timestep, frame, side): the keyframes' frame numbers."""
        pairs = sorted({pair for sides in targets for pair, _ in _followed(sides)})
        self.place = {pair: place for place, pair in enumerate(pairs)}
        if pairs:
            self.moved, self.hidden = known.travels(pairs, height, width)
        self.own = torch.stack([known.object_tokens(frame, height, width) for frame in range(targets.shape[1])])

    def row(self, index: Tensor, targets: np.ndarray[Any, Any]) -> dict[str, float]:
        """The measures of one layer at one step: index (frame, side, token), targets (frame, side)."""
        followed = list(_followed(targets))
        if not followed:
            return {}
        places = [self.place[pair] for pair, _ in followed]
        matches = torch.stack([index[frame, side] for (frame, _), side in followed])
        errors, seen = token_errors(matches, self.moved[places]), ~self.hidden[places]
        on_object = self.own[[frame for (frame, _), _ in followed]] & seen
        return {
            "accuracy": _mean(errors <= WITHIN, seen),
            "error": _mean(errors, seen),
            "object_accuracy": _mean(errors <= WITHIN, on_object),
            "object_error": _mean(errors, on_object),
            "hidden": float((~seen).float().mean()),
        }


def _followed(targets: np.ndarray[Any, Any]) -> Iterator[tuple[Pair, int]]:
    """(frame, keyframe) and side of every match that was looked for: not of keyframes, and a sole neighbour once."""
    for frame, sides in enumerate(targets):
        for side, target in enumerate(sides):
            if target != frame and not (side == 1 and sides[0] == sides[1]):
                yield (frame, int(target)), side


def _mean(values: Tensor, where: Tensor) -> float:
    chosen = values[where].float()
    return float(chosen.mean()) if len(chosen) else float("nan")


@lru_cache(maxsize=1)
def _judge() -> Judge:
    return load_judge()
