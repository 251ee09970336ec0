"""The ways in which two keyframes are mixed; apart from `keyframes`, so that a configuration needs no torch."""

from typing import Literal

Blend = Literal["linear", "sigmoid", "nearest", "previous"]
