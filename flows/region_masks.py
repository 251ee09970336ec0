"""The regions of an edit as a plan knows them: a mask for each, drawn or found like the mask of the edit itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from store.errors import InputError
from store.schemas import Blocks
from store.store import Store

from .masks import mask_key, mask_recipe
from .regions import FOUND, Region

if TYPE_CHECKING:
    from .config import EditConfig
    from .models import ModelFiles
    from .plan import Node, Plan


@dataclass(frozen=True)
class RegionMask:
    """What `mask_recipe` asks of a plan, for the mask of one region."""

    config: EditConfig
    decode: Node
    invert: Node
    model: ModelFiles
    mask_key: str | None
    taken: Sequence[int]


class RegionPlan:
    """The regions of a run and their masks, each artifact once.

    keys          per region "blake3:" and the hash of its mask's files; None where it is found by a word
    latent_pixel  side in pixels: the soft edge of regions, which are put together in latents alone
    drawn         key in hex → the place that a mask is read from
    raises        InputError where a mask's files are not there
    """

    def __init__(self, plan: Plan, keys: Sequence[str | None], latent_pixel: int) -> None:
        self.prompts = tuple(region.prompt for region in plan.config.parted)
        self.keys = tuple(keys)
        self.drawn: dict[str, Path] = {}
        known = {plan.mask.key.hex: plan.mask} if plan.mask else {}
        self.masks: list[Node] = []  # per region
        for region, key in zip(plan.config.parted, keys, strict=True):
            own = RegionMask(_alone(plan.config, region), plan.decode, plan.invert, plan.model, key, plan.taken)
            recipe = mask_recipe(own, latent_pixel)
            assert recipe is not None, "a region has a mask"
            node = plan._node(*recipe)
            self.masks.append(known.setdefault(node.key.hex, node))
            if region.mask is not None:
                self.drawn[node.key.hex] = region.mask
        self.nodes = [node for node in known.values() if node is not plan.mask]

    @property
    def inputs(self) -> dict[str, str]:
        """What they add to the key of an edit."""
        return {f"region_{number}": node.key.hex for number, node in enumerate(self.masks)}

    def named(self, node: Node, masks: Blocks) -> Blocks:
        """The same masks; what is wrong with one of a region is said of --region, not of --mask or --mask-from."""
        try:
            yield from masks
        except InputError as error:
            if node not in self.nodes:
                raise
            found = node.stage == "find_masks"
            said = ("--mask-from", f"--region {FOUND}{node.spec.words}") if found else ("--mask", "--region")
            raise InputError(str(error).replace(*said, 1)) from None


def region_keys(config: EditConfig, store: Store) -> tuple[str | None, ...]:
    """Per region what `mask_key` is for the mask of an edit; InputError, naming the region, where a file is missing."""
    found = []
    for region in config.parted:
        try:
            found.append(mask_key(_alone(config, region), store))
        except InputError as error:
            raise InputError(f"--region {str(region)!r}: {str(error).removeprefix('--mask ')}") from None
    return tuple(found)


def _alone(config: EditConfig, region: Region) -> EditConfig:
    """The same edit with the region's mask in the place of its own."""
    return config.model_copy(update={"mask": region.mask, "mask_from": region.mask_from})
