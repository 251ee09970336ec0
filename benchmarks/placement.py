"""Whether keyframes placed by motion are worth it, on clips that move slowly in one half and fast in the other.

    python -m benchmarks.placement --store DIR [--clips 7] [-o benchmarks/results/placement.json]

Each clip of the pocket world follows one path, at 0.15 to 0.2 pixels a frame in one half and six times that in the
other; the same number of keyframes is placed every eight frames, or by motion. Measures are those of `tf eval`, as
differences from equal intervals clip by clip with their 95 % interval.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from flows.config import make_runtime
from flows.evaluate import Evaluator
from flows.suite import Clip, Setting, Suite, changed_caption
from pocket.clips import write_video
from pocket.world import caption, sample_clip
from stages.measures.statistics import interval, paired_difference
from store.store import Store

FRAMES, SLOW, FAST = 32, 1, 6
CHANGES = ("colour", "surface", "ground")
OPTIONS: dict[str, Any] = {"steps": 10, "inversion_evaluations": 1, "guidance_scale": 3.0, "cuts": "none"}
SETTINGS = (Setting(name="interval"), Setting(name="adaptive", options={"keyframe_placement": "adaptive"}))
EDITS = ("warp_error", "sharpness", "object_overlap", "edit_success", "kept", "background_psnr")


def clip_of(number: int, folder: Path) -> Clip:
    """A clip whose speed changes in its middle, every second one from fast to slow."""
    half = FRAMES // 2
    steps = np.repeat((SLOW, FAST) if number % 2 == 0 else (FAST, SLOW), half)
    places = np.cumsum(steps) - steps[0]
    path = sample_clip(int(places[-1]) + 1, torch.Generator().manual_seed(7000 + number))
    scenes, video = path[torch.from_numpy(places)], folder / f"speeds-{number}.mp4"
    if not video.is_file():
        write_video(video, scenes)
    prompt = changed_caption(scenes[:1], CHANGES[number % len(CHANGES)], number)
    return Clip(video=video, source_prompt=caption(scenes[:1]), prompts=(prompt,))


def compared(rows: list[dict[str, Any]], names: tuple[str, ...]) -> dict[str, Any]:
    """Per measure the mean under equal intervals, and by how much the other differs, clip by clip."""
    said: dict[str, Any] = {}
    for name in names:
        by_setting = [[row[name] for row in rows if row["setting"] == setting.name] for setting in SETTINGS]
        plain, other = (np.array(values, float) for values in by_setting)
        difference = [round(value, 4) for value in paired_difference(other, plain)]
        said[name] = {"interval": round(interval(plain)[0], 4), "adaptive_minus_interval": difference}
    return said


def main(
    store: Annotated[Path, typer.Option()],
    clips: int = 7,
    output: Annotated[Path | None, typer.Option("-o", "--output")] = None,
) -> None:
    """Edit every clip both ways, print the comparison, write JSON."""
    opened = Store(store)
    folder = store / "clips"
    folder.mkdir(exist_ok=True)
    made = tuple(clip_of(number, folder) for number in range(clips))
    suite = Suite(name="placement", options=OPTIONS, settings=SETTINGS, clips=made, per_frame=False, field=False)
    evaluation = Evaluator(suite, make_runtime(), opened, print).run()
    answer = {
        "command": f"python -m benchmarks.placement --store DIR --clips {clips} -o {output}", "clips": clips,
        "frames": FRAMES, "options": OPTIONS, "edits": compared(evaluation.rows, EDITS),
    }  # fmt: skip
    print(json.dumps(answer, indent=1))
    if output:
        output.write_text(json.dumps(answer, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
