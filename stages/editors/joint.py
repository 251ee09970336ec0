"""All frames jointly, a baseline: Plug-and-Play in which every frame is a keyframe, and all attend to all.

Source: TokenFlow (arXiv 2307.10373), section 4.1 for every frame instead of some. Nothing is propagated. Each frame
attends to every other, so seconds and memory grow with the square of their number: it is for short clips.
"""

from __future__ import annotations

from .pnp import Editor, Spec

__all__ = ["BASE", "SCHEDULE", "VERSION", "Editor", "Spec"]

VERSION = 1
BASE = "pnp"
SCHEDULE = {"keyframe_interval": 1, "keyframe_offsets": 1, "attended_keyframes": 4096, "keyframe_placement": "interval"}
