"""One page about a run, which needs no network: its clips side by side, how steady they are, keys, times, settings."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from store.artifact import Artifact
from store.errors import InputError, TokenflowError
from store.layout import human_bytes, write_whole
from store.records import Record
from store.store import Store

from . import charts
from .command_line import run_command
from .config import EditConfig, RuntimeConfig
from .export import Unpadded
from .report_measures import Confidence, confidence, scenes_of, steadiness
from .report_pictures import MOST_THUMBNAILS, Shown, clip_pictures, evenly, thumbnails
from .sidecar import read_sidecar, sidecar_file

METHODS = ("auto", "raft", "dis")
RUNS_NAMED = 5
SERIES = 6  # colours that the page has for edits
Row = dict[str, Any]


@dataclass(frozen=True)
class Edit:
    """One edit of a run: what it shows, its clip, and the record of its keyframes."""

    prompt: str
    clip: Artifact
    keyframes: Record


def write_report(store: Store, name: str, output: Path | None = None, method: str = "auto") -> dict[str, Any]:
    """Write the page about a run of `store`; returns its file, size, run and how motion was known.

    name     the run's id, 'latest', or a clip that it wrote (or the sidecar of one)
    method   of estimating motion where the true one is unknown: auto, raft or dis
    raises   InputError where there is no such run, its clips were removed, or the page cannot be written
    """
    if method not in METHODS:
        raise InputError(f"--flow {method!r}: have {', '.join(METHODS)}")
    run = find_run(store, name)
    file = output or Path(f"report-{run['id']}.html")
    check_page(file)
    with store.lease(row["key"] for row in run["stages"]):
        context = contents(store, run, method)
    try:
        write_whole(file, render(context))
    except OSError as error:
        raise InputError(f"{file} cannot be written ({error.strerror}); choose another folder") from None
    return {"file": str(file), "run": run["id"], "bytes": file.stat().st_size, "motion": context["motion"]}


def find_run(store: Store, name: str) -> Row:
    """The run called `name`, as the store remembers it; InputError, naming the newest ones, where there is none."""
    file = Path(name)
    if file.suffix == ".json" or sidecar_file(file).is_file():
        sidecar = read_sidecar(file if file.suffix == ".json" else sidecar_file(file))
        if sidecar.run is None:
            raise InputError(f"the store kept no run for {name}; give the id of one, or latest")
        return _edit_run(store, sidecar.run)
    if name != "latest":
        return _edit_run(store, name)
    newest = next(_edit_runs(store), None)
    if newest is None:
        raise InputError(f"there is no run in {store.place} yet; tf run VIDEO --prompt TEXT makes one")
    return newest


def check_page(file: Path) -> None:
    """InputError, before anything is measured, if a page cannot be written to `file`."""
    if file.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"{file} does not say what to write; end its name in .html")
    if file.is_dir():
        raise InputError(f"{file} is a folder; name a file in it")
    if not file.absolute().parent.is_dir():
        raise InputError(f"{file} cannot be written: there is no folder {file.parent}; make it first")
    if not os.access(file.absolute().parent, os.W_OK):
        raise InputError(f"{file} cannot be written (permission denied); choose another folder")


def render(context: Row) -> str:
    """The page as HTML."""
    import jinja2

    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return templates.get_template("report.html").render(context)


def contents(store: Store, run: Row, method: str) -> Row:
    """Everything that the page says."""
    frames, edits = clips_of(store, run)
    clips = [Unpadded(clip, frames) for clip in (frames, *(edit.clip for edit in edits))]
    shown = Shown.of(clips[0], len(clips))
    scenes = scenes_of(store, frames, Path(run["config"]["video"]), run["video"])
    steady = steadiness(clips, scenes, method, cuts_of(store, run))
    prompts = [edit.prompt for edit in edits]
    names = ["source", *prompts]
    lines = [(name, css(place), steady.errors[place].tolist()) for place, name in enumerate(names)]
    return {
        "run": run,
        "made": made_on(run["id"]),
        "video": Path(run["config"]["video"]).name,
        "prompts": prompts,
        "names": names,
        "css": css,
        "shown": shown,
        "player": {
            "frames": shown.frames, "milliseconds": shown.milliseconds, "width": shown.width, "height": shown.height,
            "clips": [clip_pictures(clip, shown) for clip in clips],
        },
        "seconds": float(frames["pts"][:][-1] + frames["duration"][:][-1] - frames["pts"][0]),
        "keyframes": keyframe_strip(frames, edits),
        "motion": steady.motion,
        "errors": charts.line_chart(lines, 1) if shown.of_frames > 1 else None,
        "confidence": confidence_charts(store, run),
        **stage_rows(store, run),
        "settings": settings(run, edits, shown),
        "commands": commands(run),
    }  # fmt: skip


def cuts_of(store: Store, run: Row) -> tuple[int, ...]:
    """Frames at which a new shot begins, as the run's field has them; none where its record is not there."""
    key = next((row["key"] for row in run["stages"] if row["stage"] == "match_tokens"), None)
    with suppress(TokenflowError):
        spec: Any = store.resolve(key).recipe.spec if key else {}
        return tuple(spec.get("cuts", ()))
    return ()


def clips_of(store: Store, run: Row) -> tuple[Artifact, list[Edit]]:
    """The source's frames and the edits of a run; InputError, naming them, where some were removed."""
    rows = [row for row in run["stages"] if row["stage"] in ("decode_frames", "propagate_tokens")]
    found, lost = [], []
    for row in rows:
        artifact = store.find(row["key"])
        lost += [] if artifact else [f"{row['stage']}/{row['key'][:12]}"]
        found += [artifact] if artifact else []
    if lost:
        again = " or ".join(commands(run))
        raise InputError(
            f"{' and '.join(lost)} of run {run['id']} were removed from the store; make them again: {again}"
        )
    frames, *clips = found  # in the order of the method
    return frames, [_edit(store, clip) for clip in clips]


def keyframe_strip(frames: Artifact, edits: list[Edit]) -> Row:
    """The keyframes' numbers, and a row of thumbnails for the source and for each edit."""
    support = [int(frame) for frame in edits[0].keyframes.promised.coordinates["frame"]]
    chosen = [support[place] for place in evenly(len(support), MOST_THUMBNAILS)]
    rows = [thumbnails(Unpadded(clip, frames), chosen) for clip in (frames, *(edit.clip for edit in edits))]
    return {"numbers": chosen, "of": len(support), "rows": rows}


def confidence_charts(store: Store, run: Row) -> Row | None:
    """A line per frame and a map of layers by timesteps; None where the field is not there."""
    key = next((row["key"] for row in run["stages"] if row["stage"] == "match_tokens"), None)
    field = store.find(key) if key else None
    if field is None:
        return None
    sure = confidence(field)
    weakest = int(sure.by_frame.mean(1).argmin())
    lines = [
        ("all layers", css(3), sure.by_frame.mean(0).tolist()),
        (f"least sure layer, {short(sure.layers[weakest])}", css(4), sure.by_frame[weakest].tolist()),
    ]
    return {"lines": charts.line_chart(lines, 0, from_zero=False, digits=3), "map": heat_map(sure)}


def heat_map(sure: Confidence) -> Row:
    """Cells of layers (rows) by timesteps (columns, noisiest first), coloured between the lowest and the highest."""
    low, high = float(sure.by_step.min()), float(sure.by_step.max())
    rows = [
        {
            "layer": short(layer),
            "name": layer,
            "tokens": tokens,
            "cells": [
                {
                    "timestep": step,
                    "value": f"{value:.3f}",
                    "colour": charts.colour((value - low) / ((high - low) or 1)),
                }
                for step, value in zip(sure.timesteps, values.tolist(), strict=True)
            ],
        }
        for layer, tokens, values in zip(sure.layers, sure.tokens, sure.by_step, strict=True)
    ]
    scale = [charts.colour(share / 8) for share in range(9)]
    return {
        "rows": rows, "low": f"{low:.2f}", "high": f"{high:.2f}", "scale": scale, "steps": sure.timesteps,
        "of_steps": sure.of_timesteps,
    }  # fmt: skip


def stage_rows(store: Store, run: Row) -> Row:
    """The table of stages with their records, what reuse spared, and the software behind them."""
    rows: list[Row] = []
    software: dict[str, list[Any]] = {}
    for row, record in _with_records(store, run):
        took = record.seconds if row["hit"] and record else row["seconds"]
        rows.append(
            row
            | {
                "took": took,
                "size": human_bytes(row["bytes"]),
                "there": bool(record and store.find(record.recipe)),
                "version": record.recipe.version if record else None,
                "digest": record.digest if record else None,
                "prompt": _prompt(record),
            }
        )
        for name, value in (record.provenance if record else {}).items():
            known = software.setdefault(name, [])
            known += [] if value in known else [value]
    longest = max([row["took"] for row in rows], default=0) or 1
    return {
        "stages": [row | {"share": 100 * row["took"] / longest} for row in rows],
        "computed_seconds": sum(row["seconds"] for row in rows if not row["hit"]),
        "spared_seconds": sum(row["took"] for row in rows if row["hit"]),
        "software": {name: " · ".join(map(str, values)) for name, values in software.items()},
    }


def settings(run: Row, edits: list[Edit], shown: Shown) -> list[tuple[str, str]]:
    """Every setting by its title, with what the model advised and the editor's defaults written out."""
    spec: Any = edits[0].keyframes.recipe.spec
    config = run["config"]
    steps = config["steps"]
    used = config | {
        "guidance_scale": spec["guidance_scale"],
        "editor_settings": ", ".join(f"{name} {value}" for name, value in spec["editor"]["settings"].items()),
        "frames": config["frames"] or f"all {shown.of_frames}",
        "size": f"{shown.of_size[0]}×{shown.of_size[1]}",
        "inversion_steps": config["inversion_steps"] or steps,
    }
    asked = [
        (field.title or name, str(used.get(name, field.default)) or "–")
        for name, field in EditConfig.model_fields.items()
        if name not in ("video", "prompts")
    ]
    runtime = [
        (field.title or name, str(run["runtime"][name]))
        for name, field in RuntimeConfig.model_fields.items()
        if name in run.get("runtime", {})
    ]
    return [("Video", config["video"]), *asked, *runtime]


def commands(run: Row) -> list[str]:
    """What makes the run again: its own command, and one per clip that still has its sidecar."""
    outputs = run["outputs"]
    store = ["--store", run["store"]]
    own = run_command(_config(run), run["store"], outputs[0]["file"] if len(outputs) == 1 else None)
    sidecars = [file for output in outputs if (file := sidecar_file(Path(output["file"]))).is_file()]
    return [own, *(shlex.join(["tf", "reproduce", str(sidecar), *store]) for sidecar in sidecars)]


def short(layer: str) -> str:
    """A layer's name without what all of them share: up_blocks.1.attentions.2.transformer… → up 1.2."""
    parts = layer.split(".")
    numbers = [part for part in parts if part.isdigit()]
    if not parts[0].endswith(("_block", "_blocks")) or not numbers:
        return layer
    return f"{parts[0].split('_')[0]} {'.'.join(numbers[: 1 if parts[0] == 'mid_block' else 2])}"


def made_on(run: str) -> str:
    """When a run was made, from its id: 3 May 2026, 14:05 UTC."""
    time = datetime.strptime(run[:15], "%Y%m%d-%H%M%S").replace(tzinfo=UTC)
    return f"{time.day} {time:%B %Y, %H:%M} UTC"


def css(place: int) -> str:
    """The class of a series: the source, or one of the edits' colours in turn."""
    return "source" if place == 0 else f"edit-{(place - 1) % SERIES + 1}"


def _config(run: Row) -> EditConfig:
    try:
        return EditConfig.model_validate(run["config"])
    except ValidationError as error:
        setting = ".".join(map(str, error.errors()[0]["loc"]))
        raise InputError(
            f"run {run['id']} was made by another version of tokenflow, with another {setting}; report it with that one"
        ) from None


def _edit(store: Store, clip: Artifact) -> Edit:
    keyframes = store.resolve(f"edit_keyframes/{clip.record.recipe.inputs['keyframe_edit']}")
    return Edit(str(keyframes.recipe.spec["prompt"]), clip, keyframes)


def _edit_runs(store: Store) -> Iterator[Row]:
    """Runs that made clips, the newest first."""
    return (run for run in store.runs() if run.get("command") == "run")


def _edit_run(store: Store, name: str) -> Row:
    known = {run["id"]: run for run in _edit_runs(store)}
    if name not in known:
        newest = ", ".join(list(known)[:RUNS_NAMED])
        have = f"the newest are {newest}; or say latest" if known else "there is none yet; tf run makes one"
        raise InputError(f"no run {name!r} that made clips in {store.place}: {have}")
    return known[name]


def _with_records(store: Store, run: Row) -> Iterator[tuple[Row, Record | None]]:
    """Each stage of a run with its record; none where that was deleted."""
    for row in run["stages"]:
        try:
            yield row, store.resolve(f"{row['stage']}/{row['key']}")
        except InputError:
            yield row, None


def _prompt(record: Record | None) -> str | None:
    note = record.note if record else None
    return str(note["prompt"]) if isinstance(note, dict) and note.get("prompt") else None
