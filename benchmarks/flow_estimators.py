"""How good estimated flow is on clips whose exact flow is known, by the size that small pictures are enlarged to.

python -m benchmarks.flow_estimators [--clips 12] [--size 64]

error              mean end-point error of visible points, pixels; "still" says that nothing moves
precision, recall  of the forward–backward check, against the true occlusion
warp               warp error × 1000 of the source clip itself, by the estimated flow; "exact" by the true one
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from pocket.world import flow, render, sample_clip
from stages.measures.frames import Motion, warp_errors
from stages.measures.optical_flow import Dis, Estimator, estimated_motion


class Still:
    """Says that nothing moves."""

    name = "still"

    def __call__(self, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        return np.zeros((*source.shape[:2], 2), np.float32)


def main() -> None:
    """Print a row per estimator."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--clips", type=int, default=12)
    arguments.add_argument("--size", type=int, default=64)
    options = arguments.parse_args()
    estimators: dict[str, Estimator] = {"still": Still()}
    estimators |= {f"DIS at {side}": Dis(side) for side in (64, 128, 256, 512) if side >= options.size}
    clips = [sample_clip(8, torch.Generator().manual_seed(9000 + seed)) for seed in range(options.clips)]
    pictures = [(render(clip, options.size).rgb * 255).round().byte().numpy() for clip in clips]
    truths = [flow(clip, options.size) for clip in clips]
    exact = [
        warp_errors(rgb, Motion(t.backward, ~t.occluded_backward)).mean()
        for rgb, t in zip(pictures, truths, strict=True)
    ]
    print(f"{'':12}{'error':>8}{'precision':>11}{'recall':>8}{'warp':>8}")
    print(f"{'exact':12}{0:8.2f}{1:11.2f}{1:8.2f}{1000 * float(torch.stack(exact).mean()):8.2f}")
    for name, estimator in estimators.items():
        motions = [estimated_motion(rgb, estimator) for rgb in pictures]
        backward, visible = (torch.cat([getattr(m, part) for m in motions]) for part in ("backward", "visible"))
        truth = torch.cat([t.backward for t in truths])
        hidden = torch.cat([t.occluded_backward for t in truths])
        error = (backward - truth).norm(dim=-1)[~hidden].mean()
        found = (~visible & hidden).sum()
        warp = torch.cat([warp_errors(rgb, motion) for rgb, motion in zip(pictures, motions, strict=True)]).mean()
        precision, recall = found / (~visible).sum(), found / hidden.sum()
        print(f"{name:12}{error:8.2f}{precision:11.2f}{recall:8.2f}{1000 * float(warp):8.2f}")


if __name__ == "__main__":
    main()
