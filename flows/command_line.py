"""A run as the command that makes it, for a shell."""

from __future__ import annotations

import shlex

from .config import EditConfig


def run_command(config: EditConfig, store: str, output: str | None = None) -> str:
    """`tf run …` with every option that is not the default."""
    words = ["tf", "run", str(config.video)]
    for prompt in config.prompts:
        words += ["--prompt", prompt]
    for name, field in EditConfig.model_fields.items():
        value = getattr(config, name)
        if name in ("video", "prompts", "editor_settings") or value == field.default:
            continue
        words += [f"--{name.replace('_', '-')}", str(value)]
    for name, value in config.editor_settings.items():
        words += ["--set", f"{name}={value}"]
    return shlex.join([*words, *(["-o", output] if output else []), "--store", store])
