"""What local edits keep and still change, with and without a mask, on the example clips.

    python -m benchmarks.local --store DIR [-o FILE.json] [--sheet PICTURE.png]    # half an hour on one core

Outside: PSNR of the edit against the source outside the object's exact mask, beside that of the autoencoder alone.
Inside: PSNR within that mask against the world's own drawing of the object in the colour that is asked for. Rim: of the
object's pixels within RIM of its border, the share that is nearer to the source's colour than to the drawing's.
Changed, kept: shares of frames in which the judge reads the colour as asked, and the ground as it was. Overlap: of the
mask in use with the exact one, intersection over union.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
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
from pocket.world import COLOURS, Scene, render
from stages.backbones import Backbone
from store.store import Store

EXAMPLES = Path(__file__).parent.parent / "examples"
FRAMES, SHOWN = 16, [2, 12]
RIM = 2  # pixels
CLIPS = {  # name → what it shows, what it is to show, the object's word
    "ball": ("a red ball on grass", "a purple ball on grass", "ball"),
    "ring": ("a blue striped ring on sand", "a yellow striped ring on sand", "ring"),
    "star": ("a yellow star on water", "a pink star on water", "star"),
    "square": ("a purple checkered square on snow", "an orange checkered square on snow", "square"),
}
EDITORS = ("pnp", "ddpm", "sdedit")
MEASURES = ("outside", "autoencoder", "inside", "rim", "changed", "kept", "overlap")
Picture = np.ndarray[Any, Any]
Measured = tuple[list[float], Picture, Backbone]


def scenes_of(clip: str) -> Scene:
    """What the clip's frames show."""
    scenes = read_truth(EXAMPLES / f"{clip}.mp4")
    assert scenes is not None, "the examples have their truth beside them"
    return scenes[:FRAMES]


def true_mask(clip: str) -> Picture:
    """(frame, height, width) bool of the object."""
    mask: Picture = render(scenes_of(clip), 64).mask.numpy() > 0.5
    return mask


def drawing(clip: str) -> Picture:
    """rgb (frame, height, width, 3) uint8 of the clip with its object in the colour that is asked for."""
    scenes, colour = scenes_of(clip), CLIPS[clip][1].split()[1]
    asked = replace(scenes, colour=torch.full_like(scenes.colour, COLOURS.index(colour)))
    rgb: Picture = (render(asked, 64).rgb * 255).round().byte().numpy()
    return rgb


def psnr(one: Picture, other: Picture, where: Picture) -> float:
    """In dB, of rgb (frame, height, width, 3) where the mask (frame, height, width) is."""
    return float(10 * np.log10(255**2 / np.square(one.astype(float) - other)[where].mean()))


def rim(mask: Picture) -> Picture:
    """Pixels of `mask` (frame, height, width) that lie no farther than RIM from its border."""
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * RIM + 1, 2 * RIM + 1))
    inner = np.stack([cv2.erode(each.astype(np.uint8), disc) for each in mask])
    return mask & (inner == 0)


def still_source(shown: Picture, source: Picture, asked: Picture, where: Picture) -> float:
    """The share of pixels of rgb (frame, height, width, 3) that are nearer to `source` than to `asked`."""
    to_source, to_asked = (np.linalg.norm(shown.astype(float) - other, axis=-1) for other in (source, asked))
    return float((to_source < to_asked)[where].mean())


def measured(store: Store, clip: str, options: dict[str, Any], backbone: Backbone | None) -> Measured:
    """One edit in the numbers of MEASURES; its pictures rgb (frame, height, width, 3); the model, to be used again."""
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
    shown, given, mask, asked = edited["rgb"][:], frames["rgb"][:], true_mask(clip), drawing(clip)
    alone = session.backbone.decode(session.backbone.encode(given))
    verdict = load_judge().read(torch.from_numpy(shown).float() / 255)
    words = prompt.split()
    changed = np.mean([name == words[1] for name in verdict.names("colour")])
    kept = np.mean([name == words[-1] for name in verdict.names("ground")])
    overlap = float("nan")
    if session.plan.mask is not None and (used := session.find(session.plan.mask)):
        own = used["mask"][:] > 127
        overlap = float((own & mask).sum() / (own | mask).sum())
    row = [
        psnr(shown, given, ~mask), psnr(alone, given, ~mask), psnr(shown, asked, mask),
        still_source(shown, given, asked, rim(mask)), float(changed), float(kept), overlap,
    ]  # fmt: skip
    return row, shown, session.backbone


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
    parser.add_argument("--sheet", type=Path, help="some frames of each clip, as it is asked for and by every editor")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    command = "python -m benchmarks.local --store DIR -o benchmarks/results/local.json"
    answer: dict[str, Any] = {"command": command, "machine": f"{platform.machine()}, one thread"}
    store, backbone = Store(args.store), None
    sheet = {clip: [drawing(clip)[SHOWN]] for clip in CLIPS}
    print(f"{FRAMES} frames of {', '.join(CLIPS)}; model {pocket.model_folder().name}")
    print("| editor | edited | outside, dB | autoencoder, dB | inside, dB | rim | changed | kept | overlap |")
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        asked = {clip: ways(clip, Path(folder)) for clip in CLIPS}
        for editor in args.editors:
            for way in asked["ball"]:
                rows = []
                for clip in CLIPS:
                    row, shown, backbone = measured(store, clip, {"editor": editor, **asked[clip][way]}, backbone)
                    rows.append(row)
                    sheet[clip].append(shown[SHOWN])
                means = np.mean(rows, axis=0)
                answer[f"{editor}, {way}"] = {
                    clip: {name: round(value, 3) for name, value in zip(MEASURES, row, strict=True) if value == value}
                    for clip, row in zip(CLIPS, rows, strict=True)
                }
                numbers = [f"{mean:.1f}" for mean in means[:3]] + [f"{mean:.2f}" for mean in means[3:]]
                print(f"| {editor} | {way} | {' | '.join(numbers).replace('nan', '–')} |", flush=True)
    if args.sheet:
        lines = [np.concatenate([each[row] for each in sheet[clip]], 1) for clip in CLIPS for row in range(len(SHOWN))]
        whole = Image.fromarray(np.concatenate(lines))
        whole.resize((4 * whole.width, 4 * whole.height), Image.Resampling.NEAREST).save(args.sheet)
    if args.output:
        args.output.write_text(json.dumps(answer, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
