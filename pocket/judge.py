"""A small classifier that looks at a frame and says colour, surface, shape and ground, and where the object is.

It is the project's yardstick for "did the edit happen": its own accuracy on held-out frames is measured by
``python -m pocket.score`` and stated in the model card.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from pocket import judge_file
from pocket.world import COLOURS, GROUNDS, SHAPES, SURFACES

HEADS = {"shape": SHAPES, "colour": COLOURS, "surface": SURFACES, "ground": GROUNDS}


@dataclass(frozen=True)
class Verdict:
    """Probabilities (frame, class) per attribute in the world's order, and mask (frame, height, width) in [0, 1]."""

    shape: Tensor
    colour: Tensor
    surface: Tensor
    ground: Tensor
    mask: Tensor

    def names(self, head: str) -> list[str]:
        """The likeliest name per frame, for head 'shape', 'colour', 'surface' or 'ground'."""
        return [HEADS[head][i] for i in getattr(self, head).argmax(dim=1).tolist()]


def _block(channels_in: int, channels_out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False),
        nn.GroupNorm(8, channels_out),
        nn.SiLU(),
    )


class Judge(nn.Module):
    """Maps rgb (frame, 3, 64, 64) in [0, 1] to logits per attribute and mask logits at a quarter of the side."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Sequential(_block(3, 24, 1), _block(24, 32, 2), _block(32, 48, 2), _block(48, 48, 1))
        self.coarse = nn.Sequential(_block(48, 96, 2), _block(96, 96, 1), _block(96, 128, 2), _block(128, 128, 1))
        self.mask = nn.Conv2d(48, 1, 3, padding=1)
        self.heads = nn.ModuleDict({name: nn.Linear(3 * 128, len(classes)) for name, classes in HEADS.items()})
        self.lift = nn.Conv2d(48, 128, 1)

    def forward(self, rgb: Tensor) -> dict[str, Tensor]:
        fine = self.fine(rgb * 2 - 1)
        mask = self.mask(fine)
        coarse = self.coarse(fine)
        weight = torch.sigmoid(mask)
        on_object = (self.lift(fine) * weight).sum(dim=(2, 3)) / (weight.sum(dim=(2, 3)) + 1e-3)
        pooled = torch.cat([coarse.mean(dim=(2, 3)), coarse.amax(dim=(2, 3)), on_object], dim=1)
        return {name: head(pooled) for name, head in self.heads.items()} | {"mask": mask[:, 0]}

    @torch.no_grad()
    def read(self, rgb: Tensor) -> Verdict:
        """Judge frames rgb (frame, height, width, 3), uint8 or float in [0, 1], of any size: resized to 64 × 64."""
        x = rgb.float() / 255 if rgb.dtype == torch.uint8 else rgb.float()
        x = x.permute(0, 3, 1, 2)
        if x.shape[-2:] != (64, 64):
            x = F.interpolate(x, size=(64, 64), mode="bilinear", antialias=True, align_corners=False)
        out = self(x)
        mask = F.interpolate(torch.sigmoid(out["mask"])[:, None], size=rgb.shape[1:3], mode="bilinear")[:, 0]
        return Verdict(**{name: out[name].softmax(dim=1) for name in HEADS}, mask=mask)


def judge_loss(out: dict[str, Tensor], attributes: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy of every head plus that of the mask.

    attributes (frame, 4) int64: shape, colour, surface, ground; mask (frame, height, width) bool
    """
    losses = [F.cross_entropy(out[name], attributes[:, i]) for i, name in enumerate(HEADS)]
    height, width = out["mask"].shape[-2:]
    coarse = F.adaptive_avg_pool2d(mask[:, None].float(), (height, width))[:, 0]
    return torch.stack([*losses, F.binary_cross_entropy_with_logits(out["mask"], coarse)]).sum()


def load_judge(path: Path | None = None) -> Judge:
    """The shipped judge (float16 on disk, float32 in memory), ready to ``read``."""
    judge = Judge()
    judge.load_state_dict({k: v.float() for k, v in load_file(path or judge_file()).items()})
    return judge.eval().requires_grad_(False)
