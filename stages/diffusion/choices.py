"""What can be chosen by name; apart from the modules that do it, so that a configuration needs no torch."""

from typing import Literal

Blend = Literal["linear", "sigmoid", "nearest", "previous"]
"""The ways in which two keyframes are mixed."""

Placement = Literal["interval", "adaptive"]
"""The ways in which a shot is divided into keyframe intervals: of equal lengths, or shorter where more moves."""

Solver = Literal["ddim", "dpmpp_2m"]
"""The deterministic solvers, of first and of second order."""

Spacing = Literal["auto", "leading", "trailing", "linspace", "lcm"]
"""The ways in which an edit's timesteps are taken from those that a model was trained on; auto: as its file says."""

MOST_REGIONS = 8  # prompts of parts of the picture: each costs about what the edit's own prompt does
