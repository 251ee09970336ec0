"""Deterministic steps between noise levels, of first and of second order, towards the clean end and back.

Source: DDIM, arXiv 2010.02502, eq. 12, is the first-order solver; DPM-Solver++(2M), arXiv 2211.01095, algorithm 2, the
second-order one. In λ = log(α/σ) both are x_t = σ_t/σ_s · x_s − α_t (e^−h − 1) D with h = λ_t − λ_s; they differ in D,
the guess of x_0 over the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import expm1, inf, log

from torch import Tensor

from .choices import Solver
from .ddim import NoiseLevels


class Sampling:
    """Steps towards the clean end, taken in order by one and the same frames."""

    def __init__(self, levels: NoiseLevels, solver: Solver) -> None:
        self.levels, self.solver = levels, solver
        self.before: tuple[Tensor, int] | None = None  # x_0 as the last step guessed it, and where that step began

    def of(self, rows: Sequence[int]) -> Sampling:
        """The same for some of the frames, which go on by themselves."""
        own = Sampling(self.levels, self.solver)
        own.before = self.before and (self.before[0][rows], self.before[1])
        return own

    def step(self, latents: Tensor, prediction: Tensor, start: int, stop: int | None) -> Tensor:
        """Latents (frame, c, h, w) taken from the noise of `start` to that of `stop`; None is the clean end.

        The second-order D is what a line through this step's guess and the last one's says for half of the step.
        """
        if self.solver == "ddim":
            return self.levels.step(latents, prediction, start, stop)
        guess = self.levels.split(latents.float(), prediction.float(), start)[0]
        before, self.before = self.before, (guess, start)
        if before is None or self.levels.at(stop) == 1:
            return self.levels.step(latents, prediction, start, stop)
        h = lambda_at(self.levels, stop) - lambda_at(self.levels, start)
        ratio = (lambda_at(self.levels, start) - lambda_at(self.levels, before[1])) / h
        return exponential_step(self.levels, latents, guess + (guess - before[0]) / (2 * ratio), start, stop)


class Inverting:
    """Steps towards noise, taken in order by one and the same frames."""

    def __init__(self, levels: NoiseLevels, solver: Solver) -> None:
        self.levels, self.solver = levels, solver
        self.before: Tensor | None = None  # x_0 as it was guessed at the level that was last arrived at
        self.guess: Tensor | None = None

    def step(self, latents: Tensor, noisier: Tensor, prediction: Tensor, start: int | None, stop: int) -> Tensor:
        """Latents (frame, c, h, w) taken from the noise of `start` (None: clean) to that of `stop`.

        The second-order D is the mean of the guesses at both ends: what sampling extrapolates to, from behind.

        noisier      what `prediction` was made of, at the noise of `stop`: the guess at the step's end
        """
        if self.solver == "ddim":
            return self.levels.step(latents, prediction, start, stop)
        self.guess = self.levels.split(noisier.float(), prediction.float(), stop)[0]
        if self.before is None or self.levels.at(start) == 1:
            return self.levels.step(latents, prediction, start, stop)
        return exponential_step(self.levels, latents, (self.guess + self.before) / 2, start, stop)

    def arrived(self) -> None:
        """The step is final: its guess is the next step's guess at its beginning."""
        self.before = self.guess


def exponential_step(
    levels: NoiseLevels, latents: Tensor, clean: Tensor, start: int | None, stop: int | None
) -> Tensor:
    """x_t = σ_t/σ_s · x_s − α_t (e^−h − 1) · D for a given D = `clean`, in float32."""
    here, there = levels.at(start), levels.at(stop)
    if there == 0:  # h is −∞, and α_t e^−h is α_s σ_t/σ_s
        share = (here / (1 - here)) ** 0.5
    else:
        share = there**0.5 * expm1(lambda_at(levels, start) - lambda_at(levels, stop))
    return ((1 - there) / (1 - here)) ** 0.5 * latents.float() - share * clean


def lambda_at(levels: NoiseLevels, timestep: int | None) -> float:
    """Half the log of the signal-to-noise ratio: λ = log(α/σ); −∞ where there is no signal (arXiv 2305.08891)."""
    alpha = levels.at(timestep)
    return 0.5 * log(alpha / (1 - alpha)) if alpha else -inf
