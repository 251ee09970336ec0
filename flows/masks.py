"""Where an edit may change the picture, as a plan knows it: drawn by the user, or found by a word or at a point."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from stages import find_masks, read_masks, segment_masks
from store.errors import InputError
from store.store import Store

from .config import EditConfig

if TYPE_CHECKING:
    from .models import ModelFiles
    from .plan import Node

MaskSpec = read_masks.Spec | find_masks.Spec | segment_masks.Spec


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
    @property
    def taken(self) -> Sequence[int]: ...


def mask_key(config: EditConfig, store: Store) -> str | None:
    """ "blake3:" and the hash of the files that the mask is drawn in, or of the model that finds it; None: of none."""
    if (folder := config.mask_model) is not None:
        files = [file.relative_to(folder) for file in segment_masks.identity_files(folder)]
        return f"blake3:{store.folder_hash(folder, files)}"
    if config.mask is None:
        return None
    return f"blake3:{store.sequence_hash(read_masks.mask_files(config.mask))}"


def mask_recipe(plan: Masked, edge: int) -> tuple[str, MaskSpec, dict[str, str]] | None:
    """(stage, Spec, inputs) of the mask, drawn by the user or found; None: everything is edited.

    edge   width of the soft edge in pixels where none is asked for
    """
    config, decode = plan.config, plan.decode
    size = {"width": decode.spec.width, "height": decode.spec.height}
    feather = edge if config.mask_feather is None else config.mask_feather
    if config.mask is not None:
        assert plan.mask_key is not None, "a mask that is drawn has a key"
        taken = tuple(plan.taken) if decode.spec.fps else None
        drawn = read_masks.Spec(
            start=decode.spec.start, step=decode.spec.step, taken=taken, bars=decode.spec.bars, feather=feather,
            padding=decode.spec.padding, **size,
        )  # fmt: skip
        return "read_masks", drawn, {"mask": plan.mask_key, "frames": decode.key.hex}
    if config.mask_model is not None:
        assert plan.mask_key is not None, "a model has a key"
        (wide, high), shown = (decode.spec.width, decode.spec.height), decode.spec.shown
        points = tuple((x * (shown[0] / wide), y * (shown[1] / high)) for x, y in config.mask_points)
        asked = segment_masks.Spec(points=points, feather=feather, **size)
        return "segment_masks", asked, {"model": plan.mask_key, "frames": decode.key.hex}
    if config.mask_from is not None:
        words = config.mask_words
        found = find_masks.Spec(prompt=config.source_prompt or words, words=words, feather=feather, **size)
        inputs = {"frames": decode.key.hex, "latents": plan.invert.key.hex, "model": plan.model.key}
        return "find_masks", found, inputs
    return None


def stored_mask(store: Store, digits: str) -> tuple[dict[str, Any], str]:
    """The mask that a run has drawn its edit in before: the options that ask for it, and the key of its files.

    digits   the first of the key of a read_masks artifact
    raises   InputError, with those there are, where none or several are meant
    """
    records = list(store.records("read_masks"))
    chosen = [each for each in records if each.hex.startswith(digits)]
    if len(chosen) != 1:
        have = ", ".join(sorted(each.hex[:12] for each in chosen or records)[:10]) or "none yet"
        fault = "names several masks" if chosen else "is no file on this machine, and no mask"
        raise InputError(f"the mask {digits!r} {fault} of {store.place}; have {have}; or name a file that is here")
    (record,) = chosen
    place = next(_places(store, record.hex), Path(record.hex))
    return {"mask": place, "mask_feather": record.recipe.spec["feather"]}, record.recipe.inputs["mask"]


def _places(store: Store, key: str) -> Iterator[Path]:
    """Where runs had the files of this mask, on whatever machine."""
    for run in store.runs():
        with suppress(KeyError, TypeError):
            if any(row["key"] == key for row in run["stages"]):
                yield Path(run["config"]["mask"])
