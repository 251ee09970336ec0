"""Tokens as colours over time, and one image row over time: the pictures in which consistency is seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from stages.backbones.layout import Layer
from stages.measures.tokens import colours, principal_components
from stages.media.sheets import Row, tile_sheet, tile_size
from store.errors import InputError

from ..edit import edit
from ..plan import Plan
from ..suite import PER_FRAME
from ..tasks import Session
from .pictures import Inspection, spaced
from .source import Rgb, Source

SLICE_HEIGHT = 320  # px: about how high an x-t slice is drawn


def token_colours(source: Source, layer: Layer, step: int) -> tuple[Rgb, Any]:
    """The first three principal components of a layer's tokens, over all frames, as rgb (frame, row, column, 3).

    Beside it the share of the variance that each of them has.
    """
    rows, columns = source.grid(layer)
    own = [tokens.cpu() for tokens in source.tokens(layer, step)]
    components = principal_components(lambda: own)
    values = torch.cat([components.of(tokens) for tokens in own])
    return colours(values).reshape(-1, rows, columns, 3), components.share.numpy()


def edited(source: Source, plan: Plan) -> Rgb:
    """The clip edited as the plan's first prompt says, from the store where it is there."""
    missing = plan.to_compute()
    if missing:
        source.say(f"computing {', '.join(node.stage for node in missing)}, which the store keeps")
    session = Session(plan, progress=source.session.progress, backbone=lambda: source.session.backbone)
    return np.asarray(edit(session)[0]["rgb"][:])


def inspect_components(
    source: Source, folder: Path, row: int | None, layer_name: str | None, timestep: int | None, with_edits: bool
) -> Inspection:
    """Draw tokens as colours over time, and an x-t slice of source, tokens and edits: two pictures and a clip."""
    layer, step = source.layer(layer_name), source.step(timestep)
    height = source.plan.decode.spec.height
    row = height // 2 if row is None else row
    if not 0 <= row < height:
        raise InputError(f"--row {row}: the frames have rows 0 to {height - 1}")
    tokens, share = token_colours(source, layer, step)
    clips = {"source": source.rgb, "tokens": tokens} | (_edits(source) if with_edits else {})
    facts = {"layer": layer.name, "timestep": source.plan.timesteps[step], "row": row}
    done = Inspection("pca", facts | {"variance": [float(each) for each in share]})
    shown = spaced(source.count)
    title = (
        f"tokens of {layer.name} at timestep {facts['timestep']}: "
        f"first three components, {share.sum():.0%} of the variance"
    )
    size = tile_size(*source.rgb.shape[1:3])
    rows = [Row(label, frames[shown]) for label, frames in clips.items()]
    sheet = tile_sheet(rows, size, title, [f"frame {frame}" for frame in shown])
    done.save_picture(sheet, folder / "pca.png")
    done.save_picture(_slices(clips, row, height), folder / "slice.png")
    captions = [[f"frame {f}"] for f in range(source.count)]
    done.save_clip(source, list(clips.items()), captions, folder / "pca.mp4")
    return done


def _edits(source: Source) -> dict[str, Rgb]:
    """The same prompt edited frame by frame, without joint attention or propagation, and as the plan says."""
    plan = source.plan
    alone = Plan(plan.config.model_copy(update=PER_FRAME), plan.runtime, plan.store)
    prompt = plan.config.prompts[0]
    return {f"per frame: {prompt}": edited(source, alone), f"edit: {prompt}": edited(source, plan)}


def _slices(clips: dict[str, Rgb], row: int, height: int) -> Any:
    """One image row of each clip, time running down."""
    frames = len(next(iter(clips.values())))
    width = tile_size(*next(iter(clips.values())).shape[1:3])[0]
    size = (2 * width, frames * max(1, SLICE_HEIGHT // frames))
    lines = [clip[:, row * clip.shape[1] // height] for clip in clips.values()]
    return tile_sheet(
        [Row("", lines)], size, f"image row {row}; time runs down, frames 0 to {frames - 1}", headings=list(clips)
    )
