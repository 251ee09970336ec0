"""Editing bases, one file each: its name, - for _, is the option's, its `Spec` the settings, its `Editor` the method.

INVERSION   the stage whose latents it wants as the source's, if not those of invert_frames
SCHEDULE    options that it decides: which frames are keyframes, and how many attend to each other
BASE        the editor whose advised settings are its own, if not itself

An editor answers three questions: where the edit starts (`first_step`, `first_latents`), what the UNet is given at a
step (`conditions`: text, guidance, ControlNets), and what is injected from the source at a step (`injection`).
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from pydantic import Field, JsonValue, ValidationError
from torch import Tensor

from store.errors import InputError
from store.schemas import Arrays, Frozen

from ..diffusion.chunks import frames_of, rows
from ..diffusion.ddim import NoiseLevels, noised


class EditorChoice(Frozen):
    """An editor with all its settings written out: part of an edit's identity."""

    name: str
    version: int
    settings: dict[str, JsonValue] = Field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """What is known of the video before the edit.

    latents     latents (timestep, frame, channel, height, width), noisiest first, and clean_latents (frame, …)
    timesteps   the edit's timesteps, noisiest first
    text        (branch, token, channel): unconditional (not at guidance 1), conditional, one per region
    """

    latents: Arrays
    timesteps: tuple[int, ...]
    levels: NoiseLevels
    text: Tensor
    guidance_scale: float


@dataclass(frozen=True)
class Conditions:
    """What the UNet is given at a step: text (branch, token, channel), and how the branches are combined.

    control_strengths   per ControlNet of the edit, what its residuals are multiplied by; 0: it is not run
    """

    text: Tensor
    guidance_scale: float
    control_strengths: tuple[float, ...] = ()


@dataclass(frozen=True)
class Injection:
    """What is taken from the source at a step: q and k of the decoder's self-attention, a residual block's feature.

    noise   whether the step is a DDPM step that adds the source's own noise, see `stages.invert_ddpm`
    """

    attention: bool = False
    feature: bool = False
    noise: bool = False


class Editor(Protocol):
    """One editing base over one source."""

    first_step: int

    def first_latents(self, frames: Sequence[int]) -> Tensor:
        """Latents (frame, channel, height, width) float32 on the CPU, at the noise level of `first_step`."""

    def conditions(self, step: int) -> Conditions:
        """What the UNet is given at `step`."""

    def injection(self, step: int) -> Injection:
        """What is taken from the source at `step`."""


def names() -> list[str]:
    """The editors there are."""
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__))


def choose(name: str, settings: dict[str, JsonValue]) -> EditorChoice:
    """The editor called `name` with `settings` checked and its defaults written out; InputError where that fails."""
    if name not in names():
        raise InputError(f"no editor {name!r} in stages/editors; have {', '.join(names())}")
    module = _module(name)
    try:
        spec = module.Spec.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        field, known = ".".join(map(str, first["loc"])), ", ".join(module.Spec.model_fields)
        if first["type"] == "extra_forbidden":
            raise InputError(f"editor {name} has no setting {field!r}; have {known}") from None
        raise InputError(
            f"editor {name}: {field} {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}"
        ) from None
    return EditorChoice(name=name, version=module.VERSION, settings=spec.model_dump(mode="json"))


def inversion(name: str) -> str | None:
    """The stage whose latents an editor wants as the source's; None: those of invert_frames."""
    stage: str | None = getattr(_module(name), "INVERSION", None)
    return stage


def schedule(name: str) -> Mapping[str, Any]:
    """The options that an editor decides itself, and their values."""
    decided: Mapping[str, Any] = getattr(_module(name), "SCHEDULE", {})
    return decided


def base(name: str) -> str:
    """The editor whose settings suit this one too; itself for a name that is none, which `choose` refuses."""
    return str(getattr(_module(name), "BASE", name)) if name in names() else name


def inverted(source: Source, step: int, frames: Sequence[int]) -> Tensor:
    """The source's own inverted latents (frame, channel, height, width) float32 at the noise level of `step`."""
    return torch.from_numpy(rows(source.latents["latents"], step, frames)).float()


def noised_alike(source: Source, step: int, frames: Sequence[int], seed: int) -> Tensor:
    """x_0 noised to the level of `step`, every frame with the same noise: different noise would flicker."""
    clean = source.latents["clean_latents"]
    noise = torch.randn(clean.shape[1:], generator=torch.Generator().manual_seed(seed))
    return noised(source.levels, torch.from_numpy(frames_of(clean, frames)).float(), noise, source.timesteps[step])


def first_step_of(strength: float, steps: int) -> int:
    """Where an edit starts that runs the share `strength` of `steps`; the last step is always run."""
    return min(steps - 1, steps - round(strength * steps))


def build(choice: EditorChoice, source: Source) -> Editor:
    """The chosen editor over one source."""
    module = _module(choice.name)
    editor: Editor = module.Editor(module.Spec.model_validate(choice.settings), source)
    return editor


def _module(name: str) -> Any:
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
