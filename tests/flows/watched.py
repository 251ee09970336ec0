"""What a run asks of the model and of stored tokens, event by event; also a process in which runs are killed at one.

python -m tests.flows.watched    for each line {"plan": {…}, "preview": …, "event": N} on stdin: make that run in a
                                 child process that kills itself at event N, and say how it ended
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flows.config import make_config, make_runtime
from flows.plan import STAGES, Plan
from flows.run import Result, run_edit, run_preview
from flows.tasks import Progress
from stages import match_tokens, propagate_tokens
from stages.backbones.stable_diffusion import StableDiffusion
from store.store import Store
from tests.faults.kill_loop import import_all


@dataclass(frozen=True)
class Event:
    """A UNet pass, or a reading of stored tokens.

    part   where the stage's part in hand begins     at   the timestep of a pass, the step of a reading
    """

    stage: str
    part: int
    at: int
    frames: int


def watch(patch: pytest.MonkeyPatch, told: Callable[[Event], None]) -> None:
    """Have `told` hear of every event, when it is done and before its result is used."""
    now = ("", 0)

    def stage(name: str, run: Callable[..., Any]) -> Callable[..., Iterator[Any]]:
        def runs(spec: Any, part: range, **given: Any) -> Iterator[Any]:
            nonlocal now
            now = name, part.start
            yield from run(spec, part, **given)

        return runs

    predict, read = StableDiffusion.predict_noise, match_tokens.StoredTokens.read

    def predicts(backbone: Any, latents: Any, timestep: int, text: Any, residuals: Any = None) -> Any:
        noise = predict(backbone, latents, timestep, text, residuals)
        told(Event(*now, timestep, len(latents)))
        return noise

    def reads(tokens: Any, step: int, frames: range) -> Any:
        found = read(tokens, step, frames)
        told(Event(*now, step, len(frames)))
        return found

    for name, module in STAGES.items():
        patch.setattr(module, "run", stage(name, module.run))
    patch.setattr(propagate_tokens, "run_whole", stage("propagate_tokens", propagate_tokens.run_whole))
    patch.setattr(StableDiffusion, "predict_noise", predicts)
    patch.setattr(match_tokens.StoredTokens, "read", reads)


def plan_of(plan: dict[str, Any]) -> Plan:
    """The plan that JSON says: options of a config, `runtime`, and `store`."""
    config = make_config(**{**plan["config"], "video": Path(plan["config"]["video"])})
    return Plan(config, make_runtime(**plan["runtime"]), Store(plan["store"]))


def run(plan: dict[str, Any], preview: bool = False, progress: Progress | None = None) -> Result:
    """Make the run that `plan` says, its outputs beside the store."""
    made, folder = plan_of(plan), Path(plan["store"]).parent
    if preview:
        return run_preview(made, folder / "edit.png", "direct", progress)
    return run_edit(made, folder / "edit.mp4", "direct", progress)


def killed_run(plan: dict[str, Any], preview: bool, event: int) -> None:
    """Make a run that is killed at its event number `event`, counted from 1."""
    seen = 0

    def told(_: Event) -> None:
        nonlocal seen
        seen += 1
        if seen == event:
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.MonkeyPatch.context() as patch:
        watch(patch, told)
        run(plan, preview)


def main() -> None:
    """Children are forked before any model is loaded; what is slow to import is imported once."""
    import_all()
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if child == 0:
            killed_run(asked["plan"], asked["preview"], asked["event"])
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
