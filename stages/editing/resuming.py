"""What an edit keeps of itself while it runs, so that one that was stopped goes on near where it was.

The state of a trajectory between two steps is its latents (and, of a two-step solver, the last guess of x_0): nothing
is drawn, and what is reused is found anew by every whole pass. So what is kept is that, of the newest steps alone, and
of all steps the frames that the artifact holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import Tensor

STATES_KEPT = 2  # of the newest steps: where one is damaged, the one before is gone on from

Values = np.ndarray[Any, Any]


class Scratch(Protocol):
    """Where values of unfinished work are kept, by name: each is there whole or not at all, and may be lost."""

    def keep(self, name: str, values: Values) -> None:
        """Keep `values` under `name`, in the place of what was kept under it."""

    def recall(self, name: str) -> Values | None:
        """What was kept under `name`; None where nothing was, or it is damaged."""

    def forget(self, name: str) -> None:
        """Keep nothing under `name` any more."""


class NothingKept:
    """A scratch that keeps nothing: work that is stopped begins anew."""

    def keep(self, name: str, values: Values) -> None: ...

    def recall(self, name: str) -> Values | None:
        """Nothing."""
        return None

    def forget(self, name: str) -> None: ...


NOTHING_KEPT = NothingKept()


@dataclass(frozen=True)
class Moment:
    """Where an edit stands at the start of a step, or at its end.

    step       position in the timesteps; their number at the end
    followed   latents (frame, c, h, w) float32 of the frames that are followed from step to step
    latents    latents (frame, c, h, w) float32 of all frames; None at a step that was done before this run, or that
               reuses features: frames are there one pass after the other
    """

    step: int
    followed: Tensor
    latents: Tensor | None

    @property
    def edited(self) -> Tensor:
        """Latents of all frames, at the end or at a step that this run did and can be gone on from."""
        assert self.latents is not None, f"of step {self.step} the followed frames alone are known"
        return self.latents


class PassedSteps:
    """The steps of one trajectory in a scratch.

    name   of the trajectory: others in the same scratch are of other frames
    """

    def __init__(self, scratch: Scratch, name: str) -> None:
        self.scratch, self.name = scratch, name
        self.states: list[int] = []  # steps whose whole state is kept, ascending

    def keep_followed(self, step: int, latents: Tensor) -> None:
        """Keep what the artifact is to hold of `step`: latents (frame, c, h, w)."""
        if len(latents):
            self.scratch.keep(self._followed(step), latents.cpu().numpy())

    def followed(self, step: int, shape: tuple[int, ...]) -> Values | None:
        """What `keep_followed` was given, if it has this shape; no frames are always there."""
        if not shape[0]:
            return np.empty(shape, np.float32)
        kept = self.scratch.recall(self._followed(step))
        return kept if kept is not None and kept.shape == shape and kept.dtype == np.float32 else None

    def keep_state(self, step: int, state: Tensor) -> None:
        """Keep all that `step` starts from (latents and guess, frame, c, h, w), and forget that of older steps."""
        if step not in self.states:
            self.scratch.keep(self._state(step), state.cpu().numpy())
            self.states.append(step)
        while len(self.states) > STATES_KEPT:
            self.scratch.forget(self._state(self.states.pop(0)))

    def newest(
        self, steps: Sequence[int], shape: tuple[int, ...], first: int, followed: tuple[int, ...]
    ) -> tuple[int, Values] | None:
        """The newest of `steps` (ascending) that can be gone on from, and its state; None where there is none.

        shape      of the state
        first      from this step on, up to the one that is gone on from, what is followed must be there as well
        followed   its shape
        """
        there = first
        for step in reversed(steps):
            state = self.scratch.recall(self._state(step))
            if state is not None and state.shape == shape and state.dtype == np.float32:
                while there < step and self.followed(there, followed) is not None:
                    there += 1
                if there >= step:
                    self.states = [older for older in steps if older <= step]
                    return step, state
            self.scratch.forget(self._state(step))
        return None

    def forget_states(self) -> None:
        """Have the next run begin anew."""
        while self.states:
            self.scratch.forget(self._state(self.states.pop()))

    def _followed(self, step: int) -> str:
        return f"{self.name}.followed.{step}"

    def _state(self, step: int) -> str:
        return f"{self.name}.state.{step}"
