"""What a user may choose, in two halves: `EditConfig` is what is asked (identity), `RuntimeConfig` how it is done.

Nothing of `RuntimeConfig` can change a result beyond float tolerance, and none of it enters a key.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import Field, JsonValue

from stages.diffusion.blend import Blend
from store.errors import InputError
from store.schemas import Frozen

UNITS = {"": 1, "B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class EditConfig(Frozen):
    """One video, one or more prompts, one model, and how the edit is made."""

    video: Path = Field(title="Video", description="a local video file")
    prompts: tuple[str, ...] = Field(title="Prompts", description="one edit each; all share what can be shared", min_length=1)
    model: str = Field("pocket", title="Model", description="'pocket', a diffusers folder, a .safetensors file or a hub id")
    source_prompt: str = Field("", title="Source prompt", description="what the video shows; may be empty")
    frames: str | None = Field(None, title="Frames", description="START:STOP or START:STOP:STEP; all without it")
    size: str | None = Field(None, title="Size", description="WIDTHxHEIGHT in pixels; as large as the source without it")
    steps: int = Field(50, title="Steps", description="denoising steps of the edit", ge=1, le=1000)
    inversion_steps: int | None = Field(None, title="Inversion steps", description="as many as steps without it", ge=1, le=1000)
    seed: int = Field(0, title="Seed", description="of the keyframe schedule, and of an editor's noise", ge=0, lt=2**63)
    editor: str = Field("pnp", title="Editor", description="the editing base")
    editor_settings: dict[str, JsonValue] = Field({}, title="Editor settings", description="its own settings by name")
    guidance_scale: float = Field(7.5, title="Guidance scale", description="classifier-free guidance; 1 is none", ge=0, le=100)
    negative_prompt: str = Field("", title="Negative prompt", description="what to keep away from")
    keyframe_interval: int = Field(8, title="Keyframe interval", description="frames per keyframe", ge=1, le=64)
    keyframe_offsets: int = Field(2, title="Keyframe offsets", description="places in an interval a keyframe may have", ge=1, le=64)
    attended_keyframes: int = Field(16, title="Attended keyframes", description="beyond so many, not all attend to all", ge=2, le=4096)
    blend: Blend = Field("linear", title="Blend", description="how two keyframes are mixed")


class RuntimeConfig(Frozen):
    """Where it runs, how much at once, and what is kept."""

    device: Literal["auto", "cpu", "cuda"] = Field("auto", title="Device", description="auto: a GPU where there is one")
    frames_per_pass: int = Field(8, title="Frames per pass", description="memory only; no result depends on it", ge=1, le=1024)
    token_budget: int = Field(8 << 30, title="Token budget", description="bytes of tokens that may be kept", ge=0)


def parse_bytes(text: str) -> int:
    """Read a size such as "8GiB", "500MB" or "0" (units are powers of 1024); InputError otherwise."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*", text, re.IGNORECASE)
    if match is None:
        raise InputError(f"{text!r} is not a size; write for example 8GiB, 500MB or 0")
    return int(float(match[1]) * UNITS[match[2].upper()])
