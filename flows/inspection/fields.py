"""The field of a clip: where each token's match lies, how alike the two are, and how far from the truth."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pocket.world import Scene, displacement
from stages.backbones.layout import Layer
from stages.measures.correspondence import WITHIN, match_displacement
from stages.media.flow_image import flow_colours, heat, scale, wheel
from stages.media.sheets import Row, tile_sheet, tile_size
from store.errors import InputError

from .pictures import Inspection, spaced
from .source import Source

SIDES = {"previous": 0, "next": 1}
WORST = 4.0  # tokens: end-point errors from here on have the scale's last colour
Values = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Field:
    """One layer's field at one step, from each frame to its keyframe on one side.

    keyframes    (frame,) the keyframe that each frame is matched with
    found        (frame, height, width, 2) where its tokens' matches lie, in tokens, (x, y)
    similarity   (frame, height, width) the cosines
    """

    keyframes: Values
    found: Values
    similarity: Values


@dataclass(frozen=True)
class Truth:
    """The exact motion on the same grid.

    moved    (frame, height, width, 2) in tokens
    errors   (frame, height, width) end-point errors of the field in tokens, NaN where the keyframe hides the point
    """

    moved: Values
    errors: Values


def read_field(source: Source, layer: Layer, step: int, side: int) -> Field:
    """The field as it is kept for an edit."""
    field, grid = source.field, source.grid(layer)
    keyframes = field["keyframes"][step][field["neighbour"][step][:, side]]
    index = torch.from_numpy(field[f"index.{layer.name}"][step][:, side].astype(np.int64))
    found = match_displacement(index, *grid).unflatten(1, grid).numpy()
    similarity = field[f"similarity.{layer.name}"][step][:, side].astype(np.float32).reshape(-1, *grid)
    return Field(keyframes, found, similarity)


def true_field(scenes: Scene, field: Field) -> Truth:
    """The exact motion of a rendered clip, and the field's distance from it."""
    height, width = field.similarity.shape[1:]
    assert height == width, "the world renders squares"
    moved, hidden = displacement(scenes, scenes[torch.from_numpy(field.keyframes).long()], height, border=1)
    errors = (torch.from_numpy(field.found) - moved).norm(dim=-1)
    return Truth(moved.numpy(), torch.where(hidden, torch.nan, errors).numpy())


def inspect_field(source: Source, folder: Path, side: str, layer_name: str | None, timestep: int | None) -> Inspection:
    """Draw the field as a flow, its similarities, and where the truth is known its errors: a picture and a clip."""
    if side not in SIDES:
        raise InputError(f"--side {side!r}: have {', '.join(SIDES)}")
    layer, step = source.layer(layer_name), source.step(timestep)
    field = read_field(source, layer, step, SIDES[side])
    truth = true_field(source.scenes, field) if source.scenes is not None else None
    facts = {"layer": layer.name, "timestep": source.plan.timesteps[step], "side": side}
    done = Inspection("field", facts | (_score(field, truth) if truth is not None else {}), _rows(field, truth))
    height, width = source.grid(layer)
    title = f"the field to the {side} keyframe: {layer.name}, {width}x{height} tokens, timestep {facts['timestep']}"
    pictures, legends, captions = _drawn(source, field, truth)
    shown = spaced(source.count)
    rows = [
        Row(label, frames[shown], [captions[label][frame] for frame in shown], legends.get(label))
        for label, frames in pictures.items()
    ]
    done.save_picture(tile_sheet(rows, tile_size(*source.rgb.shape[1:3]), title), folder / "field.png")
    words = list(zip(*(captions[label] for label in pictures), strict=True))
    done.save_clip(source, list(pictures.items()), words, folder / "field.mp4")
    return done


def _drawn(
    source: Source, field: Field, truth: Truth | None
) -> tuple[dict[str, Values], dict[str, Any], dict[str, list[str]]]:
    """Pictures, legends and captions of a frame, by the row's label."""
    full = _full_colour(field, truth)
    low = min(0.9, float(np.floor(10 * np.percentile(field.similarity, 1)) / 10))
    pictures = {
        "source": source.rgb, "keyframe": source.rgb[field.keyframes],
        "match": flow_colours(field.found, full), "similarity": heat(field.similarity, low, 1.0),
    }  # fmt: skip
    side = max(64, min(120, tile_size(*source.rgb.shape[1:3])[1] - 44))
    legends = {"match": wheel(side, f"rim: {full:g} tokens\nor more"), "similarity": scale(side, low, 1.0, "cosine")}
    captions = {
        "source": [f"frame {frame}" for frame in range(source.count)],
        "keyframe": [f"keyframe {keyframe}" for keyframe in field.keyframes],
        "match": [""] * source.count,
        "similarity": [f"mean {value:.2f}" for value in field.similarity.mean((1, 2))],
    }
    if truth is not None:
        pictures |= {"true motion": flow_colours(truth.moved, full), "error": heat(truth.errors, 0.0, WORST)}
        legends["error"] = scale(side, 0.0, WORST, "tokens", unknown="hidden")
        captions["true motion"] = [""] * source.count
        shares = [_scored(errors)[0] for errors in truth.errors]
        captions["error"] = ["hidden" if each is None else f"{each:.0%} within {WITHIN:g}" for each in shares]
    return pictures, legends, captions


def _full_colour(field: Field, truth: Truth | None) -> float:
    """Tokens that have full colour: the longest true motion; where that is not known, what a quarter of all exceed.

    Matches that went astray are the longest, and would leave the others white.
    """
    if truth is not None:
        return max(1.0, float(np.ceil(np.linalg.norm(truth.moved, axis=-1).max())))
    return max(1.0, float(np.ceil(np.percentile(np.linalg.norm(field.found, axis=-1), 75))))


def _rows(field: Field, truth: Truth | None) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {"frame": frame, "keyframe": int(keyframe), "similarity": float(field.similarity[frame].mean())}
        for frame, keyframe in enumerate(field.keyframes)
    ]
    if truth is None:
        return rows
    scores = [dict(zip(("within_one_token", "error"), _scored(errors), strict=True)) for errors in truth.errors]
    return [row | score for row, score in zip(rows, scores, strict=True)]


def _score(field: Field, truth: Truth) -> dict[str, float | None]:
    """Over all frames that are no keyframe themselves: those are right by construction."""
    accuracy, error = _scored(truth.errors[field.keyframes != np.arange(len(field.keyframes))])
    return {"accuracy": accuracy, "error": error}


def _scored(errors: Values) -> tuple[float | None, float | None]:
    """(share of visible tokens whose match lies within `WITHIN` of the truth, mean error); None where none is."""
    seen = errors[~np.isnan(errors)]
    return (float((seen <= WITHIN).mean()), float(seen.mean())) if seen.size else (None, None)
