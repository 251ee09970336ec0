"""What another decoder makes of a model's latents, unedited and edited, and whether its groups or windows show.

    python -m benchmarks.decoding --decoder DIR --store DIR [--clips 4] [-o benchmarks/results/decoding.json]

Clips of 256 frames of the pocket world are encoded and decoded, not edited: PSNR against the frames, sharpness
(gradient energy over theirs), warp error (×1000) along the exact motion, and that error where windows of the stage, and
where groups of the decoder, meet over that elsewhere: as it is, and over the same of the model's own decoder. "apart"
is the other decoder with every window decoded on its own. Then the clips of `benchmarks.placement` are edited, and the
edits' latents decoded in both ways, with the measures of `tf eval`. Means, and differences clip by clip with their 95 %
interval. Seconds are of one frame, both in one thread.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image
from torch import Tensor

from benchmarks.long import Values, at_borders, scenes_of, warp_errors_of
from benchmarks.placement import EDITS, OPTIONS, SETTINGS, clip_of
from flows.config import make_runtime
from flows.edit import edit
from flows.measure import Known, edit_row
from flows.plan import Plan
from flows.suite import Suite
from flows.tasks import Session
from pocket import model_folder
from pocket.world import render
from stages.backbones import Backbone
from stages.backbones.decoders import OVERLAP, Decoder, autoencoder_folder, check_folder, groups, load_decoder
from stages.backbones.stable_diffusion import Runtime, load
from stages.editing.passes import WINDOW_FRAMES, window_of
from stages.measures.frames import gradient_energy, psnr
from stages.measures.optical_flow import choose
from stages.measures.statistics import interval, paired_difference
from store.store import Store

FRAMES, SIZE = 256, 64
Rgb = np.ndarray[Any, Any]
Ways = dict[str, Callable[[Tensor], Rgb]]


def ways_of(backbone: Backbone, other: Decoder) -> Ways:
    """Name → latents (frame, c, h, w) to rgb (frame, height, width, 3) uint8, of one shot."""

    def by_other(latents: Tensor, shots: list[range]) -> Rgb:
        return np.stack([*other.pictures(latents, 0, range(len(latents)), shots)])

    def windows(frames: int) -> list[range]:
        return [range(at, min(at + WINDOW_FRAMES, frames)) for at in range(0, frames, WINDOW_FRAMES)]

    return {
        "own": backbone.decode,
        "other": lambda latents: by_other(latents, [range(len(latents))]),
        "apart": lambda latents: by_other(latents, windows(len(latents))),
    }


def meetings(frames: int) -> dict[str, Values]:
    """Which pairs of neighbours (pair) bool lie where windows meet, and where one group of a decoder meets another."""
    windows = np.diff([window_of(frame) for frame in range(frames)]) != 0
    fades = np.zeros(frames - 1, bool)
    for group in groups(range(frames), OVERLAP)[1:]:
        fades[group.start - 1 : group.start + OVERLAP] = True
    return {"windows": windows, "groups": fades}


def unedited(ways: Ways, backbone: Backbone, clips: int, sheet: Path | None) -> dict[str, Any]:
    """Measures by name and way, of clips that are encoded and decoded."""
    rows: dict[str, list[dict[str, float]]] = {}
    errors: dict[str, list[Values]] = {}
    shown: list[Rgb] = []
    for number in range(clips):
        scenes = scenes_of(FRAMES, 9000 + number)
        source = (render(scenes, SIZE).rgb * 255).round().byte().numpy()
        latents = backbone.encode(source)
        errors.setdefault("source", []).append(1000 * warp_errors_of(scenes, source))
        shown.append(source)
        for name, decode in ways.items():
            began = time.perf_counter()
            rgb = decode(latents)
            seconds = (time.perf_counter() - began) / FRAMES
            errors.setdefault(name, []).append(1000 * warp_errors_of(scenes, rgb))
            shown.append(rgb)
            row = {
                "psnr": float(psnr(rgb, source).mean()),
                "sharpness": gradient_energy(rgb) / gradient_energy(source),
                "warp_error": float(errors[name][-1].mean()),
                "seconds": seconds,
            }
            rows.setdefault(name, []).append(row)
    if sheet:
        picture = Image.fromarray(np.concatenate([np.concatenate([*rgb[60:68]], axis=1) for rgb in shown]))
        picture.resize((2 * picture.width, 2 * picture.height), Image.Resampling.NEAREST).save(sheet)
    where: dict[str, Any] = {
        name: {
            kind: at_borders(np.concatenate(each), np.tile(borders, clips))
            for kind, borders in meetings(FRAMES).items()
        }
        for name, each in errors.items()
    }
    for of_way in where.values():  # what moves in these very frames is the same in every way
        for kind, found in of_way.items():
            found["ratio_over_own"] = round(found["ratio"] / where["own"][kind]["ratio"], 3)
    return {"measures": compared(rows, ("psnr", "sharpness", "warp_error", "seconds")), "where_they_meet": where}


def edited(ways: Ways, store: Path, clips: int) -> dict[str, Any]:
    """Measures by name and way, of edits of the clips of `benchmarks.placement`."""
    opened, rows = Store(store), dict[str, list[dict[str, float]]]()
    folder = store / "clips"
    folder.mkdir(exist_ok=True)
    for number in range(clips):
        clip = clip_of(number, folder)
        plan = Plan(
            Suite(name="decoding", options=OPTIONS, clips=(clip,)).config(clip, SETTINGS[0]), make_runtime(), opened
        )
        latents = torch.from_numpy(edit(Session(plan))[0]["latents"][:])
        frames, inverted = plan.find(plan.decode), plan.find(plan.invert)
        assert frames is not None and inverted is not None
        clean = torch.from_numpy(inverted["clean_latents"][:]).float()
        known = Known.of(clip, plan.decode.spec, frames["rgb"][:], ways["own"](clean), choose())
        for name in ("own", "other"):
            rows.setdefault(name, []).append(edit_row(known, ways[name](latents), clip.prompts[0]))
    return compared(rows, EDITS)


def compared(rows: dict[str, list[dict[str, float]]], names: tuple[str, ...]) -> dict[str, Any]:
    """Per measure each way's mean, and by how much another decoder differs from the model's own, clip by clip."""
    said: dict[str, Any] = {}
    for name in names:
        values = {way: np.array([row[name] for row in of_way], float) for way, of_way in rows.items()}
        said[name] = {way: round(interval(each)[0], 4) for way, each in values.items()}
        said[name]["other_minus_own"] = [round(v, 4) for v in paired_difference(values["other"], values["own"])]
    return said


@torch.inference_mode()
def main(
    decoder: Annotated[Path, typer.Option()],
    store: Annotated[Path, typer.Option()],
    clips: int = 4,
    edits: int = 7,
    output: Annotated[Path | None, typer.Option("-o", "--output")] = None,
    sheet: Path | None = None,
) -> None:
    """Decode every clip in every way, print the comparison, write JSON and a picture of frames 60 to 67."""
    torch.set_num_threads(1)
    folder = autoencoder_folder(decoder)
    check_folder(folder, model_folder())
    backbone = load(str(model_folder()), Runtime())
    ways = ways_of(backbone, load_decoder(folder, "cpu"))
    options = f"--decoder DIR --store DIR --clips {clips} --edits {edits} -o {output}"
    answer: dict[str, Any] = {
        "command": f"python -m benchmarks.decoding {options}",
        "clips": clips,
        "frames": FRAMES,
        **unedited(ways, backbone, clips, sheet),
        "edits": {"clips": edits, "options": OPTIONS, "measures": edited(ways, store, edits)},
    }
    print(json.dumps(answer, indent=1))
    if output:
        output.write_text(json.dumps(answer, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
