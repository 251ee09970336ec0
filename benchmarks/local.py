"""What local edits keep and still change, with and without a mask, on the example clips.

    python -m benchmarks.local --store DIR [-o FILE.json]     # some minutes on one core; a store that has them: seconds

Outside: PSNR of the edit against the source outside the object's exact mask, beside that of the autoencoder alone.
Changed, kept: shares of frames in which the judge reads the colour as asked, and the ground as it was. Overlap: of the
mask in use with the exact one, intersection over union.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import pocket
from flows.config import make_config, make_runtime
from flows.edit import edit
from flows.plan import Plan
from flows.tasks import Session
from pocket.judge import load_judge
from pocket.truth import read_truth
from pocket.world import render
from stages.backbones import Backbone
from store.store import Store

EXAMPLES = Path(__file__).parent.parent / "examples"
FRAMES = 16
CLIPS = {  # name → what it shows, what it is to show, the object's word
    "ball": ("a red ball on grass", "a purple ball on grass", "ball"),
    "ring": ("a blue striped ring on sand", "a yellow striped ring on sand", "ring"),
    "star": ("a yellow star on water", "a pink star on water", "star"),
    "square": ("a purple checkered square on snow", "an orange checkered square on snow", "square"),
}
EDITORS = ("pnp", "ddpm", "sdedit")
Picture = np.ndarray[Any, Any]


def true_mask(clip: str) -> Picture:
    """(frame, height, width) bool of the object."""
    scenes = read_truth(EXAMPLES / f"{clip}.mp4")
    assert scenes is not None, "the examples have their truth beside them"
    mask: Picture = render(scenes, 64).mask[:FRAMES].numpy() > 0.5
    return mask


def outside(source: Picture, shown: Picture, mask: Picture) -> float:
    """PSNR in dB of rgb (frame, height, width, 3) outside of `mask`."""
    return float(10 * np.log10(255**2 / np.square(shown.astype(float) - source)[~mask].mean()))


def measured(store: Store, clip: str, options: dict[str, Any], backbone: Backbone | None) -> tuple[list[float], Any]:
    """Outside, that of the autoencoder, changed, kept, overlap; and the model, to be used again."""
    source, prompt, _ = CLIPS[clip]
    config = make_config(
        video=EXAMPLES / f"{clip}.mp4", prompts=(prompt,), source_prompt=source, steps=20, frames=f"0:{FRAMES}",
        **options,
    )  # fmt: skip
    session = Session(
        Plan(config, make_runtime(device="cpu"), store), backbone=(lambda: backbone) if backbone else None
    )
    [edited] = edit(session)
    frames = session.find(session.plan.decode)
    assert frames is not None, "an edit has frames"
    shown, given, mask = edited["rgb"][:], frames["rgb"][:], true_mask(clip)
    alone = session.backbone.decode(session.backbone.encode(given))
    verdict = load_judge().read(torch.from_numpy(shown).float() / 255)
    words = prompt.split()
    changed = np.mean([name == words[1] for name in verdict.names("colour")])
    kept = np.mean([name == words[-1] for name in verdict.names("ground")])
    overlap = float("nan")
    if session.plan.mask is not None and (used := session.find(session.plan.mask)):
        own = used["mask"][:] > 127
        overlap = float((own & mask).sum() / (own | mask).sum())
    row = [outside(given, shown, mask), outside(given, alone, mask), float(changed), float(kept), overlap]
    return row, session.backbone


def ways(clip: str, folder: Path) -> dict[str, dict[str, Any]]:
    """Where the edit may change the picture: everywhere, in what a word names, in the object's exact mask."""
    drawn = folder / clip
    drawn.mkdir()
    for frame, mask in enumerate(true_mask(clip)):
        Image.fromarray(mask.astype(np.uint8) * 255).save(drawn / f"{frame:03}.png")
    return {
        "everywhere": {},
        "--keep-background WORD": {"mask_from": f"cross-attention:{CLIPS[clip][2]}"},
        "--mask, exact": {"mask": drawn},
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--editors", nargs="+", choices=EDITORS, default=EDITORS)
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    measures = ("outside", "autoencoder", "changed", "kept", "overlap")
    command = "python -m benchmarks.local --store DIR -o benchmarks/results/local.json"
    answer: dict[str, Any] = {"command": command, "machine": f"{platform.machine()}, one thread"}
    store, backbone = Store(args.store), None
    print(f"{FRAMES} frames of {', '.join(CLIPS)}; model {pocket.model_folder().name}")
    print("| editor | edited | outside, dB | autoencoder, dB | changed | kept | overlap |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        asked = {clip: ways(clip, Path(folder)) for clip in CLIPS}
        for editor in args.editors:
            for way in asked["ball"]:
                rows = []
                for clip in CLIPS:
                    row, backbone = measured(store, clip, {"editor": editor, **asked[clip][way]}, backbone)
                    rows.append(row)
                means = np.mean(rows, axis=0)
                answer[f"{editor}, {way}"] = {
                    clip: {name: round(value, 3) for name, value in zip(measures, row, strict=True) if value == value}
                    for clip, row in zip(CLIPS, rows, strict=True)
                }
                numbers = [f"{mean:.1f}" for mean in means[:2]] + [f"{mean:.2f}" for mean in means[2:]]
                print(f"| {editor} | {way} | {' | '.join(numbers).replace('nan', '–')} |", flush=True)
    if args.output:
        args.output.write_text(json.dumps(answer, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
