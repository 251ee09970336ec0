"""What a whole pass of the UNet found, kept for the next steps: on these, all but its outermost blocks is left out.

Source: Ma et al., DeepCache, arXiv 2312.00858, section 3.3: features of the deep blocks change slowly between
neighbouring steps. The cut is below the outermost blocks: the first down block and the last up block are executed, and
their self-attention puts out what it put out last, as in Zhao et al., Pyramid Attention Broadcast, arXiv 2408.12588.

What is kept is large (18 MB a frame and branch at SD 512²) and needed by its own frame alone.
So frames are not taken through a step one after the other: those of one pass go on through all steps that reuse as soon
as the whole pass has been over them, and then nothing is kept of them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from ..diffusion.patching import Forward, Hook


class Reuse:
    """Per frame and branch: what the last up block was given, and what outermost self-attention layers put out.

    layers   the self-attention layers of the UNet
    frames   those of which it is kept
    """

    def __init__(self, unet: Any, layers: Sequence[str], frames: Collection[int]) -> None:
        self.unet, self.frames = unet, set(frames)
        last = len(unet.up_blocks) - 1
        self.outermost = [name for name in layers if name.startswith(("down_blocks.0.", f"up_blocks.{last}."))]
        self.deepest = f"up_blocks.{last - 1}"
        self.kept: dict[tuple[str, int], Tensor] = {}  # (module, frame) → (branch, …)

    def keeping(self, frames: Sequence[int], branches: int) -> dict[str, Hook]:
        """Hooks of a whole pass over (branch, frame) that keep what it finds."""
        rows = {frame: row for row, frame in enumerate(frames) if frame in self.frames}

        def keep(name: str) -> Hook:
            def hook(module: Any, inputs: Any, output: Tensor) -> None:
                parts = output.unflatten(0, (branches, len(frames)))
                self.kept.update({(name, frame): parts[:, row].clone() for frame, row in rows.items()})

            return hook

        return {name: keep(name) for name in (self.deepest, *self.outermost)} if rows else {}

    def reusing(self, frames: Sequence[int], branches: int) -> dict[str, Forward]:
        """Forwards that put what was kept for `frames` in the place of computing it.

        Fewer branches than were kept are the last ones: the conditional branch comes last.
        """

        def kept(name: str) -> Forward:
            found = torch.stack([self.kept[name, frame][-branches:] for frame in frames], 1).flatten(0, 1)
            return lambda *args, **kwargs: found

        forwards = {f"down_blocks.{n}": _skipping(block) for n, block in enumerate(self.unet.down_blocks) if n > 0}
        forwards["mid_block"] = lambda hidden_states, *args, **kwargs: hidden_states
        for place in range(len(self.unet.up_blocks) - 2):
            forwards[f"up_blocks.{place}"] = lambda hidden_states, *args, **kwargs: hidden_states
        return forwards | {name: kept(name) for name in (self.deepest, *self.outermost)}

    def forget(self, frames: Sequence[int]) -> None:
        """Keep nothing of `frames` any more."""
        for frame in frames:
            for name in (self.deepest, *self.outermost):
                del self.kept[name, frame]


class Waiting:
    """Rows that are put into one pass together, once each of them has come.

    passes   rows, each in one pass
    """

    def __init__(self, passes: Sequence[list[int]]) -> None:
        self.passes = passes
        self.number = {row: number for number, rows in enumerate(passes) for row in rows}
        self.missing = [len(rows) for rows in passes]

    def come(self, rows: Sequence[int]) -> list[list[int]]:
        """The passes that `rows`, each of which comes once, make complete."""
        for row in rows:
            self.missing[self.number[row]] -= 1
        return [
            self.passes[number] for number in sorted({self.number[row] for row in rows}) if not self.missing[number]
        ]


def _skipping(block: Any) -> Forward:
    """A down block that computes nothing: its residuals are read by up blocks alone that are skipped as well."""
    residuals = len(block.resnets) + (block.downsamplers is not None)
    return lambda hidden_states, *args, **kwargs: (hidden_states, (hidden_states,) * residuals)
