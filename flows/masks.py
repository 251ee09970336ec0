"""Where an edit may change the picture, as a plan knows it: drawn by the user, or found by a word."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from stages import find_masks, read_masks
from store.store import Store

from .config import EditConfig

if TYPE_CHECKING:
    from .models import ModelFiles
    from .plan import Node

MaskSpec = read_masks.Spec | find_masks.Spec


class Masked(Protocol):
    """What a mask's recipe is made from: a plan, or what a region has of it."""

    @property
    def config(self) -> EditConfig: ...
    @property
    def decode(self) -> Node: ...
    @property
    def invert(self) -> Node: ...
    @property
    def model(self) -> ModelFiles: ...
    @property
    def mask_key(self) -> str | None: ...


def mask_key(config: EditConfig, store: Store) -> str | None:
    """ "blake3:" and the hash of the files that the mask is drawn in; None where none is."""
    if config.mask is None:
        return None
    return f"blake3:{store.sequence_hash(read_masks.mask_files(config.mask))}"


def mask_recipe(plan: Masked, latent_pixel: int) -> tuple[str, MaskSpec, dict[str, str]] | None:
    """(stage, Spec, inputs) of the mask, drawn by the user or found by a word; None: everything is edited.

    latent_pixel   side in pixels: the width of the soft edge where none is asked for
    """
    config, decode = plan.config, plan.decode
    size = {"width": decode.spec.width, "height": decode.spec.height}
    feather = latent_pixel if config.mask_feather is None else config.mask_feather
    if config.mask is not None:
        assert plan.mask_key is not None, "a mask that is drawn has a key"
        drawn = read_masks.Spec(start=decode.spec.start, step=decode.spec.step, feather=feather, **size)
        return "read_masks", drawn, {"mask": plan.mask_key, "frames": decode.key.hex}
    if config.mask_from is not None:
        words = config.mask_words
        found = find_masks.Spec(prompt=config.source_prompt or words, words=words, feather=feather, **size)
        return "find_masks", found, {"latents": plan.invert.key.hex, "model": plan.model.key}
    return None
