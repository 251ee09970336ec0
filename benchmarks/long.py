"""What a long clip costs, and whether windows show: clips of the pocket world, each edited in a process of its own.

    python -m benchmarks.long --frames 250 --frames 500 --frames 1000 --frames 2000 -o benchmarks/results/long.json
    python -m benchmarks.long --frames 250 --frames 2000 --way "features every 2 steps"

Memory is the process's peak, in which the clip is not rendered; seconds and CPU seconds are those of the whole run but
the loading of libraries. Warp error (exact flow) is told apart by what meets between two frames: windows, or the blocks
of keyframes that attend to each other. The clips go to and fro on a path of 30 frames, a length that falls on all
places of a window.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from flows.config import make_config, make_runtime
from flows.plan import Plan
from flows.run import run_edit
from flows.suite import changed_caption
from pocket.clips import write_video
from pocket.world import caption, flow, sample_clip
from stages.diffusion.attention import keyframe_groups
from stages.editing.passes import window_of
from stages.measures.frames import Motion, warp_errors
from stages.measures.statistics import interval
from store.store import Store

PATH_FRAMES = 30
BLOCK = 50  # pairs that are measured at a time
OPTIONS: dict[str, Any] = {"steps": 3, "inversion_evaluations": 1, "guidance_scale": 3.0, "cuts": "none"}
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "features every 2 steps": {"feature_reuse": 2},
}
Values = np.ndarray[Any, Any]


def scenes_of(frames: int, seed: int = 0) -> Any:
    """A clip of so many frames, to and fro on one path."""
    there = np.arange(PATH_FRAMES)
    round_trip = np.concatenate([there, there[-2:0:-1]])
    path = sample_clip(PATH_FRAMES, torch.Generator().manual_seed(seed))
    return path[torch.from_numpy(np.resize(round_trip, frames))]


def edited(frames: int, way: str, video: Path) -> dict[str, Any]:
    """Edit the clip of so many frames in `video` in one of the `WAYS`, in a store beside it, and measure."""
    scenes, store = scenes_of(frames), Store(video.parent / way.replace(" ", "-"))
    prompt = changed_caption(scenes[:1], "colour", 0)
    options = OPTIONS | WAYS[way]
    config = make_config(video=video, source_prompt=caption(scenes[:1]), prompts=(prompt,), **options)
    plan = Plan(config, make_runtime(), store)
    before, began = cpu_seconds(), time.perf_counter()
    result = run_edit(plan, video.with_name("edit.mp4"), "direct")
    taken = time.perf_counter() - began
    costs = {
        "way": way,
        "frames": frames,
        "peak_mb": peak_mb(),
        "seconds_per_frame": round(taken / frames, 4),
        "cpu_seconds_per_frame": round((cpu_seconds() - before) / frames, 4),
        "stage_seconds_per_frame": {use.node.stage: round(use.seconds / frames, 4) for use in result.uses},
        "store_mb_per_frame": round(sum(use.artifact.nbytes for use in result.uses) / frames / 2**20, 3),
    }
    edit, field = plan.find(plan.edits[0][1]), plan.find(plan.match)
    assert edit is not None and field is not None
    errors = 1000 * warp_errors_of(scenes, edit["rgb"])
    return costs | {"warp_error": seams(errors, field, plan.edits[0][0].spec.attended_keyframes)}


def peak_mb() -> int:
    """Resident memory of this process at its highest; `ru_maxrss` would count what its parent had when it forked."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return round(int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / 1024)


def cpu_seconds() -> float:
    """Of this process, its threads together."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def warp_errors_of(scenes: Any, rgb: Any) -> Values:
    """Warp error of every pair of neighbours (pair), a few at a time."""
    found = []
    for first in range(0, len(scenes) - 1, BLOCK):
        truth = flow(scenes[first : first + BLOCK + 1], 64)
        motion = Motion(truth.backward, ~truth.occluded_backward)
        found.append(warp_errors(rgb[first : first + BLOCK + 1], motion).numpy())
    return np.concatenate(found)


def seams(errors: Values, field: Any, limit: int) -> dict[str, Any]:
    """Mean warp error of pairs where windows or blocks of keyframes meet, and of all others; the ratios."""
    windows = np.diff([window_of(frame) for frame in range(len(errors) + 1)]) != 0
    # Keyframes are drawn anew at each step: a pair is at a border where it is at the last step, which shows most.
    sides = groups_of(field["keyframes"].shape[1], limit)[field["neighbour"][-1]]
    mixed = sides[:, 0] != sides[:, 1]
    blocks = mixed[:-1] | mixed[1:] | (sides[:-1, 0] != sides[1:, 0])
    return {"windows": at_borders(errors, windows), "blocks": at_borders(errors, blocks)}


def at_borders(errors: Values, borders: Values) -> dict[str, Any]:
    """Warp error (pair) at `borders` (pair) bool and inside, each a mean with its 95 % interval."""
    at, inside = interval(errors[borders]), interval(errors[~borders])
    return {
        "pairs": int(borders.sum()), "at": [round(value, 4) for value in at],
        "inside": [round(value, 4) for value in inside], "ratio": round(at[0] / inside[0], 3),
    }  # fmt: skip


def groups_of(keyframes: int, limit: int) -> Values:
    """Which block each keyframe attends with (keyframe): its number, and -1 for the anchors."""
    _, blocks = keyframe_groups(keyframes, limit)
    number = {place: block for block, places in enumerate(blocks) for place in places}
    return np.array([number.get(place, -1) for place in range(keyframes)])


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    heads = (
        "way",
        "frames",
        "peak MB",
        "s a frame",
        "CPU s a frame",
        "warp error",
        "windows / inside",
        "blocks / inside",
    )
    lines = [f"| {' | '.join(heads)} |", "|---:" * len(heads) + "|"]
    for row in rows:
        warp = row["warp_error"]
        cells = [
            row["way"], row["frames"], row["peak_mb"], f"{row['seconds_per_frame']:.3f}",
            f"{row['cpu_seconds_per_frame']:.3f}",
            warp["windows"]["inside"][0], warp["windows"]["ratio"], warp["blocks"]["ratio"],
        ]  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main(
    frames: Annotated[list[int], typer.Option()],
    way: Annotated[list[str], typer.Option(help=f"One of: {', '.join(WAYS)}.")] = ["plain"],  # noqa: B006
    output: Annotated[Path | None, typer.Option("-o", "--output")] = None,
    here: Annotated[Path | None, typer.Option(hidden=True, help="One clip that is rendered, in this process.")] = None,
) -> None:
    """Edit a clip of every length in every way, print a table, write JSON."""
    if unknown := set(way) - set(WAYS):
        raise typer.BadParameter(f"no way {', '.join(sorted(unknown))}; have {', '.join(WAYS)}")
    if here:
        print(json.dumps(edited(frames[0], way[0], here)))
        return
    settings = {**os.environ, "OMP_NUM_THREADS": "1"}  # what else the machine does then counts least
    asked = [*(f"--frames {count}" for count in frames), *(f'--way "{name}"' for name in way)]
    answer: dict[str, Any] = {
        "command": f"python -m benchmarks.long {' '.join(asked)} -o {output}", "options": OPTIONS, "ways": WAYS,
        "machine": {"cores": os.cpu_count(), "threads": 1, "python": sys.version.split()[0]},
        "clips": [],
    }  # fmt: skip
    for count in frames:
        with tempfile.TemporaryDirectory() as folder:
            video = Path(folder) / "long.mp4"
            write_video(video, scenes_of(count))
            for name in way:
                command = [sys.executable, "-m", "benchmarks.long", "--here", str(video), "--frames", str(count)]
                said = subprocess.run(
                    [*command, "--way", name], check=True, stdout=subprocess.PIPE, text=True, env=settings
                ).stdout
                answer["clips"].append(json.loads(said.splitlines()[-1]))
                if output:  # after every clip: the longest takes most of the time
                    output.write_text(json.dumps(answer, indent=1) + "\n", encoding="utf-8")
    print(table(answer["clips"]))


if __name__ == "__main__":
    typer.run(main)
