"""A run as the command that makes it, for a shell."""

from __future__ import annotations

import shlex
from typing import Any

from .config import REPEATED, EditConfig, RuntimeConfig
from .controls import Control


def run_command(
    config: EditConfig, store: str, output: str | None = None, runtime: RuntimeConfig | None = None,
    wrapped: bool = False,
) -> str:  # fmt: skip
    """`tf run …` with every option that is not the default.

    wrapped   on several lines, an option each
    """
    options: list[tuple[str, ...]] = [
        (option, value) for field, option in REPEATED.items() for value in getattr(config, field.removeprefix("--"))
    ]
    for name, field in EditConfig.model_fields.items():
        value = getattr(config, name)
        if name not in ("video", "editor_settings", "controls") and f"--{name}" not in REPEATED:
            options += [] if value == field.default else [_spelled(name, value)]
    options += [("--set", f"{name}={value}") for name, value in config.editor_settings.items()]
    options += [option for control in config.controls for option in _control(control)]
    for name, field in RuntimeConfig.model_fields.items():
        value = getattr(runtime, name, field.default)
        if value != field.default:
            options.append(_spelled(name, value))
    options += [("-o", output)] if output else []
    words = [shlex.join(option) for option in (("tf", "run", str(config.video)), *options, ("--store", store))]
    return (" \\\n  " if wrapped else " ").join(words)


def _control(control: Control) -> list[tuple[str, str]]:
    video = [("--control-video", str(control.video))] if control.video else []
    edges = (control.low, control.high)
    thresholds = [] if edges == (100, 200) else [("--canny-thresholds", "-".join(map(str, edges)))]
    return [("--control", control.written), *video, *thresholds]


def _spelled(name: str, value: Any) -> tuple[str, ...]:
    option = f"--{name.replace('_', '-')}"
    return (option,) if value is True else (option, str(value))
