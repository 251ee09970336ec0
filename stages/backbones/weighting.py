"""Prompts with weights in them, as compel (https://github.com/damian0815/compel) reads them."""

from __future__ import annotations

from typing import Any

from store.errors import InputError


def check_weighted(*prompts: str) -> None:
    """InputError for the first prompt that compel cannot read, or that asks for more than weights."""
    for prompt in prompts:
        if any(getattr(part, "wants_cross_attention_control", False) for part in _parts(prompt)):
            raise InputError(f"--prompt-weighting: .swap() is not supported; say {prompt!r} without it")


def unweighted(prompt: str) -> str:
    """The words of a weighted prompt alone: what is left where weights have no meaning."""
    flat = [single for part in _parts(prompt) for single in getattr(part, "prompts", [part])]
    return ", ".join(" ".join(fragment.text for fragment in single.children) for single in flat)


def _parts(prompt: str) -> list[Any]:
    from compel import Compel

    try:
        parts: list[Any] = Compel.parse_prompt_string(prompt).prompts
    except Exception as error:  # compel's own, and its grammar's
        reason = " ".join(str(error).split())[:120]
        raise InputError(
            f"--prompt-weighting: the prompt {prompt!r} cannot be read ({reason}); mend it, or leave the option out"
        ) from None
    return parts
