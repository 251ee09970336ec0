"""Model families, one file each, found by what they declare: a new family is one new file here.

A family is a module with eight names and no base class:

    PIPELINE     class that a model folder's index names, and that diffusers loads it with
    COMPONENTS   parts that are used: component → whether it has weights
    SINGLE_FILES what diffusers calls a single checkpoint file of it
    SETTINGS     files beside the components that may change a result
    ADDED        what its UNet is given beside text, as the UNet's config calls it (`addition_embed_type`)
    VARIANTS     other classes that are the same but for how they sample, which is done here; may be left out
    encode_text  (pipeline, prompts, device) → text (prompt, row, channel), opaque but for its first axis
    encode_weighted  the same, for prompts of any length with weights in them, as compel reads them
    unet_inputs  (UNet config, text, pixels) → named inputs of the UNet for this text, for frames of (height, width)
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from store.errors import InputError


class Family(Protocol):
    """The module of a family."""

    PIPELINE: str
    COMPONENTS: Mapping[str, bool]
    SINGLE_FILES: tuple[str, ...]
    SETTINGS: tuple[str, ...]
    ADDED: str | None

    def encode_text(self, pipeline: Any, prompts: list[str], device: str) -> Tensor: ...

    def encode_weighted(self, pipeline: Any, prompts: list[str], device: str) -> Tensor: ...

    def unet_inputs(self, config: Any, text: Tensor, pixels: tuple[int, int]) -> dict[str, Any]: ...


def families() -> list[Family]:
    """All families there are, by name."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return [importlib.import_module(f"{__name__}.{name}") for name in names]


def pipelines() -> list[str]:
    """Classes of model folder that some family loads."""
    return [family.PIPELINE for family in families()]


def family_of_pipeline(name: object) -> Family | None:
    """The family whose folders declare the class `name`."""
    return next((family for family in families() if name in (family.PIPELINE, *getattr(family, "VARIANTS", ()))), None)


def family_of_unet(config: Any) -> Family:
    """The family that a UNet's config belongs to; InputError where its UNet wants what no family gives it."""
    added = config.get("addition_embed_type")
    found = next((family for family in families() if added == family.ADDED), None)
    if found is None or config.get("class_embed_type") or config.get("encoder_hid_dim_type"):
        raise InputError(
            "this model's UNet is conditioned on more than text "
            f"({added or config.get('class_embed_type') or config.get('encoder_hid_dim_type')}), which is not "
            f"supported; have text-to-image models of {', '.join(pipelines())}"
        )
    return found
