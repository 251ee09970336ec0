"""Make the reference arrays: `python -m tests.golden.make` writes tests/golden/<stage>.npz, one per model stage.

Each holds up to 256 evenly spaced values of every variable that the stage yields on the seeded tiny model, and the
stage's VERSION. Every stage is given inputs drawn from a seed, not another stage's output: a rounding or a near tie
upstream moves nothing downstream. A stage whose numbers moved at an unchanged VERSION is refused.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from stages import edit_keyframes, extract_tokens, invert_frames, match_tokens, propagate_tokens
from store.schemas import Schema

HERE = Path(__file__).parent
STAGES: tuple[ModuleType, ...] = (invert_frames, extract_tokens, match_tokens, edit_keyframes, propagate_tokens)
VALUES = 256

Sampled = dict[str, np.ndarray[Any, Any]]


def name_of(stage: ModuleType) -> str:
    """The stage's file name."""
    return stage.__name__.rsplit(".", 1)[-1]


def sampled(held: Sampled) -> Sampled:
    """Up to VALUES evenly spaced values of each array, in float64 (exact for every dtype that stages yield)."""
    places = {
        name: np.linspace(0, values.size - 1, min(VALUES, values.size)).astype(int) for name, values in held.items()
    }
    return {name: values.ravel()[places[name]].astype(np.float64) for name, values in held.items()}


def drawn(schema: Schema, seed: int) -> Sampled:
    """An artifact that keeps its schema, of normal floats and uniform integers."""
    rng, held = np.random.default_rng(seed), {}
    for name, variable in schema.variables.items():
        if np.dtype(variable.dtype).kind == "f":
            held[name] = rng.standard_normal(variable.shape).astype(variable.dtype)
        else:
            highest = 255 if variable.le is None else int(variable.le)
            held[name] = rng.integers(0, highest + 1, variable.shape).astype(variable.dtype)
    return held | {name: np.array(labels) for name, labels in schema.coordinates.items()}


def compute() -> dict[str, Sampled]:
    """Stage → its sampled output, computed now."""
    from stages.backbones.layout import layout, read_configs
    from stages.backbones.stable_diffusion import Runtime, load
    from tests.tiny import method
    from tests.tiny.models import save_model

    rgb = method.moving_clip(5)
    with tempfile.TemporaryDirectory() as scratch:
        folder = save_model(Path(scratch) / "tiny", vae="tiny")
        backbone, shapes = load(str(folder), Runtime()), layout(read_configs(folder), rgb.shape[2], rgb.shape[1])
    inversion = invert_frames.Spec(prompt="a source", num_steps=3, num_inversion_steps=4)
    latents = invert_frames.outputs(inversion, frames=method.frames_schema(rgb), layout=shapes)
    tokens = extract_tokens.outputs(extract_tokens.Spec(), latents=latents, layout=shapes, keep_tokens=True)
    known = method.Prepared(
        backbone, shapes, rgb, latents.coordinates["timestep"], {"latents": latents, "tokens": tokens},
        drawn(latents, 1), drawn(tokens, 2), {},
    )  # fmt: skip
    known = method.rematched(known, keyframe_interval=3)
    scheduled = {name: known.field[name] for name in ("keyframes", "neighbour", "weights")}
    spec = method.edit_spec(settings={"attention": 0.4, "feature": 0.7}, guidance_scale=4)
    keyframe_edit = drawn(edit_keyframes.outputs(spec, field=known.schemas["field"], layout=shapes), 4)
    following = replace(known, field=drawn(known.schemas["field"], 3) | scheduled)
    held = [
        method.invert(known, inversion),
        method.extract(known),
        known.field,
        method.edit_of_keyframes(following, spec),
        method.propagate(following, spec, keyframe_edit),
    ]
    return {name_of(stage): sampled(arrays) for stage, arrays in zip(STAGES, held, strict=True)}


def stored(stage: ModuleType) -> tuple[int, Sampled]:
    """The VERSION that the reference of a stage was made at, and its values."""
    with np.load(HERE / f"{name_of(stage)}.npz") as file:
        return int(file["VERSION"]), {name: file[name] for name in file.files if name != "VERSION"}


def difference(found: Sampled, reference: Sampled) -> str:
    """What moved, in a few words; nothing where all is within what another machine's arithmetic may change.

    Floats by 1e-3 of the array's largest value, 8-bit colours by two levels, one matched token in fifty.
    """
    if found.keys() != reference.keys():
        return f"variables: {', '.join(sorted(found.keys() ^ reference.keys()))}"
    for name, expected in reference.items():
        values = found[name]
        if values.shape != expected.shape:
            return f"{name}: {values.size} values for {expected.size}"
        if name.startswith("index."):
            if (values != expected).mean() > 0.02:
                return f"{name}: {(values != expected).mean():.0%} of the matches"
            continue
        allowed = 2.0 if name == "rgb" else 1e-3 * np.abs(expected).max()
        if not np.abs(values - expected).max() <= allowed:
            return f"{name}: by {np.abs(values - expected).max():.2g}, {allowed:.2g} allowed"
    return ""


def main() -> None:
    """Write all references; refused where a stage gives other numbers at the VERSION that it had."""
    computed = compute()
    for stage in STAGES:
        name = name_of(stage)
        if (HERE / f"{name}.npz").exists():
            version, reference = stored(stage)
            moved = difference(computed[name], reference)
            if moved and version == stage.VERSION:
                sys.exit(f"{name} gives other numbers ({moved}) at VERSION {version}; raise it first")
    for stage in STAGES:
        values: dict[str, Any] = {"VERSION": np.array(stage.VERSION), **computed[name_of(stage)]}
        np.savez_compressed(HERE / f"{name_of(stage)}.npz", **values)


if __name__ == "__main__":
    main()
