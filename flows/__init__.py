"""The order of things, and what Python is offered: `from flows import edit_video`, with the options of `tf run`."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .python import edit_video, plan_video, sweep_video

__all__ = ["edit_video", "plan_video", "sweep_video"]


def __getattr__(name: str) -> Any:
    """Loaded when it is asked for: whoever imports one module of flows does not pay for another."""
    if name not in __all__:
        raise AttributeError(f"module 'flows' has no attribute {name!r}")
    from . import python

    return getattr(python, name)
