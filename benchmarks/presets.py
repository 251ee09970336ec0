"""What the presets cost and gain: the same clips edited as `balanced` and in each other way, measured against it.

    python -m benchmarks.presets [--clips 8] [--store DIR] [-o RESULT.csv]

Clips are rendered from the embedded model's world, whose motion and attributes are known: PSNR against the balanced
edit, warp error, and edit success by the pocket judge, with each way's seconds in this very run beside them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from flows.config import make_runtime
from flows.edit import edit_one
from flows.measure import Known, edit_row
from flows.plan import Plan
from flows.prepare import prepare
from flows.presets import PRESETS
from flows.runtime import load_backbone
from flows.suite import Clip, pocket_clips, read_suite
from flows.tasks import Session
from stages.measures.frames import psnr
from stages.measures.optical_flow import choose
from store.store import Store

SUITE = Path(__file__).parent / "fidelity.toml"
WAYS: dict[str, dict[str, Any]] = {
    "balanced": {},
    "guidance until 0.8": {"guidance_stop": 0.8},
    "guidance until 0.6": {"guidance_stop": 0.6},
    "guidance from 0.2": {"guidance_start": 0.2},
    "features every 2 steps": {"feature_reuse": 2},
    "features every 3 steps": {"feature_reuse": 3},
    "12 steps": {"steps": 12},
    "12 steps, dpmpp_2m": {"steps": 12, "solver": "dpmpp_2m"},
    "fast": PRESETS["fast"],
    "best": PRESETS["best"],
}
MEASURED = ("psnr_to_balanced", "warp_error", "edit_success", "kept", "sharpness", "seconds")


def main() -> None:
    """Edit and measure; print the means, and write every row."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--clips", type=int, default=8)
    arguments.add_argument("--store", type=Path, required=True)
    arguments.add_argument("-o", "--output", type=Path)
    given = arguments.parse_args()
    store = Store(given.store)
    rows = pd.DataFrame(list(measured(store, given.clips)))
    if given.output:
        rows.round(5).to_csv(given.output, index=False)
    means = rows.groupby("way", sort=False)[list(MEASURED)].mean()
    means["of_balanced_seconds"] = means["seconds"] / means["seconds"]["balanced"]
    print(means.round(3).to_string())


def measured(store: Store, clips: int) -> Iterator[dict[str, Any]]:
    """A row per clip and way of editing."""
    suite = read_suite(SUITE)
    assert suite.pocket is not None
    backbone: Any = None
    for clip in pocket_clips(suite.pocket, store.root / "clips")[:clips]:
        balanced: Any = None
        known: Known | None = None
        for name, options in WAYS.items():
            plan = Plan(_config(suite, clip, options), make_runtime(), store)
            backbone = backbone or load_backbone(plan)
            session = Session(plan, backbone=partial(_same, backbone))
            prepared = prepare(session)
            prepared.field()
            began = time.perf_counter()
            edited = edit_one(session, prepared, *plan.edits[0])[1]()
            seconds = time.perf_counter() - began
            rgb = edited["rgb"][:]
            if known is None:
                frames = prepared.frames()["rgb"][:]
                floor = backbone.decode(backbone.encode(frames))
                known, balanced = Known.of(clip, plan.decode.spec, frames, floor, choose()), rgb
            row = edit_row(known, rgb, clip.prompts[0])
            kept = {measure: row[measure] for measure in MEASURED if measure in row}
            yield {
                "clip": clip.name, "way": name, **kept,
                "psnr_to_balanced": float(psnr(rgb, balanced).mean()) if name != "balanced" else float("nan"),
                "seconds": seconds,
            }  # fmt: skip


def _same(backbone: Any) -> Any:
    return backbone


def _config(suite: Any, clip: Clip, options: dict[str, Any]) -> Any:
    config = suite.config(clip, suite.settings[0])
    return config.model_copy(update=options)


if __name__ == "__main__":
    main()
