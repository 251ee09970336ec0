"""Where an edit may change the picture, as a plan knows it: drawn by the user, or found by a word or at a point."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages import find_masks, read_masks, segment_masks
from store.store import Store

from .config import EditConfig

if TYPE_CHECKING:
    from .plan import Plan

MaskSpec = read_masks.Spec | find_masks.Spec | segment_masks.Spec


def mask_key(config: EditConfig, store: Store) -> str | None:
    """ "blake3:" and the hash of the files that the mask is drawn in, or of the model that finds it; None: of none."""
    if (folder := config.mask_model) is not None:
        files = [file.relative_to(folder) for file in segment_masks.identity_files(folder)]
        return f"blake3:{store.folder_hash(folder, files)}"
    if config.mask is None:
        return None
    return f"blake3:{store.sequence_hash(read_masks.mask_files(config.mask))}"


def mask_recipe(plan: Plan, latent_pixel: int) -> tuple[str, MaskSpec, dict[str, str]] | None:
    """(stage, Spec, inputs) of the mask, drawn by the user or found; None: everything is edited.

    latent_pixel   side in pixels: the width of the soft edge where none is asked for
    """
    config, decode = plan.config, plan.decode
    size = {"width": decode.spec.width, "height": decode.spec.height}
    feather = latent_pixel if config.mask_feather is None else config.mask_feather
    if config.mask is not None:
        assert plan.mask_key is not None, "a mask that is drawn has a key"
        drawn = read_masks.Spec(start=decode.spec.start, step=decode.spec.step, feather=feather, **size)
        return "read_masks", drawn, {"mask": plan.mask_key, "frames": decode.key.hex}
    if config.mask_model is not None:
        assert plan.mask_key is not None, "a model has a key"
        asked = segment_masks.Spec(points=config.mask_points, feather=feather, **size)
        return "segment_masks", asked, {"model": plan.mask_key, "frames": decode.key.hex}
    if config.mask_from is not None:
        words = config.mask_words
        found = find_masks.Spec(prompt=config.source_prompt or words, words=words, feather=feather, **size)
        return "find_masks", found, {"latents": plan.invert.key.hex, "model": plan.model.key}
    return None
