"""Named sets of ordinary options, for those who would rather not choose each: `--preset fast|balanced|best`.

A preset is nothing of its own: the same options written out give the same keys. What each costs and gains is measured
by `benchmarks/presets.toml` and told in docs/performance.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

Preset = Literal["fast", "balanced", "best"]

PRESETS: dict[str, dict[str, Any]] = {
    "fast": {"guidance_stop": 0.6, "feature_reuse": 2},
    "balanced": {},
    "best": {"keyframe_offsets": 64},
}
"""Preset → options; `balanced` is the exact method as the defaults have it."""


def with_preset(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a preset, and over them those that were given: None counts as not given.

    raises   InputError for a name that is none
    """
    from store.errors import InputError

    if name not in PRESETS:
        raise InputError(f"--preset {name!r}: have {', '.join(PRESETS)}")
    return PRESETS[name] | {option: value for option, value in options.items() if value is not None}
