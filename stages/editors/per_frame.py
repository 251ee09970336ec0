"""Each frame by itself, a baseline: Plug-and-Play in which every frame is a keyframe that attends to itself alone.

Source: TokenFlow (arXiv 2307.10373), section 5, where it is a baseline. Nothing is propagated.
"""

from __future__ import annotations

from .pnp import Editor, Spec

__all__ = ["BASE", "SCHEDULE", "VERSION", "Editor", "Spec"]

VERSION = 1
BASE = "pnp"
SCHEDULE = {"keyframe_interval": 1, "keyframe_offsets": 1, "attended_keyframes": 1, "keyframe_placement": "interval"}
