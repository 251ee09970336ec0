"""What can be chosen by name; apart from the modules that do it, so that a configuration needs no torch."""

from typing import Literal

Blend = Literal["linear", "sigmoid", "nearest", "previous"]
"""The ways in which two keyframes are mixed."""

Solver = Literal["ddim", "dpmpp_2m"]
"""The deterministic solvers, of first and of second order."""
