"""`tf sweep` from beginning to end: which edits are meant, what they share, and their page."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from store.errors import InputError
from store.store import Store

from .config import OF_PRESETS
from .engine import Wanted
from .grid import Axis, Combination, Forecast, check_free, combine, forecast, read_axes, read_prompts
from .options import Options, options_of, runtime_of
from .suite import Metrics
from .sweep import Say, Sweep, Swept, unheard
from .tasks import Progress


@dataclass(frozen=True)
class Planned:
    """The edits of a sweep in the order in which they would run, and what that would do."""

    combinations: list[Combination]
    ahead: Forecast
    store: Store

    def to_json(self) -> dict[str, Any]:
        """The one JSON object of `tf sweep --plan --json`."""
        ahead = self.ahead
        edits = [
            {
                "number": each.number, "prompt": each.prompt, "choice": each.choice,
                "keys": {node.stage: node.key.hex for node in each.plan.nodes},
            }
            for each in self.combinations
        ]  # fmt: skip
        stages = [
            {"stage": stage, "artifacts": artifacts, "compute": compute}
            for stage, (artifacts, compute) in ahead.stages.items()
        ]
        return {
            "edits": edits, "stages": stages, "artifacts": ahead.artifacts, "unshared": ahead.unshared,
            "compute": ahead.compute, "bytes": ahead.bytes, "free": self.store.free_bytes(), "store": self.store.place,
        }  # fmt: skip


def plan_sweep(
    given: Mapping[str, Any], said: Collection[str], prompts: Path | None, grid: Sequence[str], store: Store
) -> Planned:
    """Plan every combination; nothing is run.

    given     values of the edit options by name
    said      names of those that were said now: what --config and --like say a grid may vary
    raises    InputError, one sentence, for a prompt, a name or a value that cannot be used
    """
    asked = [*(given["prompt"] or ()), *(read_prompts(prompts) if prompts else ())]
    return planned_sweep(
        options_of(given), options_of({name: given[name] for name in said}), asked, read_axes(grid), store
    )


def planned_sweep(
    options: Options, said: Options, prompts: Sequence[str], axes: Sequence[Axis], store: Store
) -> Planned:
    """The same of options by name, of which `said` are those that were said now."""
    check_free(axes, said)
    if any(axis.name == "preset" for axis in axes):
        options = {name: value for name, value in options.items() if name not in OF_PRESETS or name in said}
    combinations = combine(options, prompts, axes, runtime_of(options), store)
    return Planned(combinations, forecast(combinations), store)


def run_sweep(
    planned: Planned, output: Path | None, metrics: Mapping[str, Any], engine: Wanted,
    say: Say = unheard, progress: Progress | None = None,
) -> Swept:  # fmt: skip
    """Make the edits, and write clips, sheet, page and tables into `output`, `<video>-sweep` without it."""
    try:
        measured = Metrics.model_validate(metrics)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"--{str(first['loc'][0]).replace('_', '-')} {first['input']!r}: {first['msg']}") from None
    video = planned.combinations[0].plan.config.video
    sweep = Sweep(
        planned.combinations, planned.store, output or Path(f"{video.stem}-sweep"), measured, engine, say, progress
    )
    say(sweep.ahead.sentence())
    for note in dict.fromkeys(note for each in planned.combinations for note in each.plan.notes):
        say(note)
    return sweep.run()
