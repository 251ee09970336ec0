"""New ground by the prompt and a new colour by a region, on example clips: against one prompt that says both.

    python -m benchmarks.regions --store DIR -o benchmarks/results/regions.json --sheet PICTURE.png

Colour, ground: shares of frames in which the judge reads the object's colour and the ground as asked.
"""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image, ImageDraw

from flows.config import make_config, make_runtime
from flows.edit import edit
from flows.plan import Plan
from flows.tasks import Session
from pocket.judge import load_judge
from stages.backbones import Backbone
from store.store import Store

from .local import CLIPS, EXAMPLES, Picture, true_mask

GROUNDS = {"ball": "snow", "ring": "water", "star": "sand"}  # clip → its new ground
EDITORS = ("pnp", "ddpm")
FRAMES, SHOWN = 8, [0, 4, 7]
OPTIONS: dict[str, Any] = {"steps": 20, "frames": f"0:{FRAMES}", "cuts": "none"}
LABELS = 260  # pixels of a sheet's column of words


def drawn(clip: str, folder: Path) -> Path:
    """A folder with the object's exact mask, a picture per frame."""
    place = folder / clip
    place.mkdir(parents=True, exist_ok=True)
    for frame, mask in enumerate(true_mask(clip)[:FRAMES]):
        Image.fromarray(mask.astype(np.uint8) * 255).save(place / f"{frame:03}.png")
    return place


def ways(clip: str, folder: Path) -> dict[str, dict[str, Any]]:
    """What is asked: ground alone; ground and colour in one prompt; the colour in a region, drawn and found."""
    source, recoloured, word = CLIPS[clip]
    both, ground = (f"{text.rpartition(' ')[0]} {GROUNDS[clip]}" for text in (recoloured, source))
    return {
        "the ground alone": {"prompts": (ground,)},
        "one prompt": {"prompts": (both,)},
        "--region, exact mask": {"prompts": (ground,), "regions": (f"{drawn(clip, folder)}={both}",)},
        "--region cross-attention:WORD": {"prompts": (ground,), "regions": (f"cross-attention:{word}={both}",)},
    }


def edited(store: Store, clip: str, options: dict[str, Any], backbone: Backbone | None) -> tuple[Picture, Picture, Any]:
    """The edit's rgb and the source's (frame, height, width, 3), and the model, to be used again."""
    config = make_config(video=EXAMPLES / f"{clip}.mp4", source_prompt=CLIPS[clip][0], **OPTIONS, **options)
    session = Session(
        Plan(config, make_runtime(device="cpu"), store), backbone=(lambda: backbone) if backbone else None
    )
    [clip_edited] = edit(session)
    frames = session.find(session.plan.decode)
    assert frames is not None, "an edit has frames"
    return clip_edited["rgb"][:], frames["rgb"][:], session.backbone


def labelled(rgb: Picture, text: str) -> Picture:
    """Some frames (frame, height, width, 3) in a row, twice as large, behind what they are."""
    row = Image.fromarray(np.concatenate([*rgb[SHOWN]], axis=1))
    row = row.resize((2 * row.width, 2 * row.height), Image.Resampling.NEAREST)
    sheet = Image.new("RGB", (LABELS + row.width, row.height + 4), "white")
    ImageDraw.Draw(sheet).text((6, row.height // 2 - 6), text, fill="black")
    sheet.paste(row, (LABELS, 0))
    return np.asarray(sheet)


def main(
    store: Annotated[Path, typer.Option()],
    output: Annotated[Path | None, typer.Option("-o", "--output")] = None,
    sheet: Annotated[Path | None, typer.Option()] = None,
) -> None:
    """Edit each clip in every way, print the comparison, write JSON and a contact sheet."""
    torch.set_num_threads(1)
    opened, backbone = Store(store), None
    rows, pictures = list[dict[str, Any]](), list[Picture]()
    print("| clip | editor | asked | colour | ground |\n|---|---|---|---|---|")
    for clip in GROUNDS:
        colour = CLIPS[clip][1].split()[1]
        for editor in EDITORS:
            for way, asked in ways(clip, store / "masks").items():
                rgb, source, backbone = edited(opened, clip, {"editor": editor, **asked}, backbone)
                if not rows or rows[-1]["clip"] != clip:
                    pictures.append(labelled(source, f"{clip}: the source"))
                pictures.append(labelled(rgb, f"{editor}: {way}"))
                verdict = load_judge().read(torch.from_numpy(rgb).float() / 255)
                shares = {
                    "colour": float(np.mean([name == colour for name in verdict.names("colour")])),
                    "ground": float(np.mean([name == GROUNDS[clip] for name in verdict.names("ground")])),
                }
                rows.append({"clip": clip, "editor": editor, "asked": way, **shares})
                print(f"| {clip} | {editor} | {way} | {shares['colour']:.2f} | {shares['ground']:.2f} |", flush=True)
    means = [
        {"editor": editor, "asked": way, **{kind: _mean(rows, editor, way, kind) for kind in ("colour", "ground")}}
        for editor in EDITORS
        for way in dict.fromkeys(row["asked"] for row in rows)
    ]
    for mean in means:
        print(f"| mean | {mean['editor']} | {mean['asked']} | {mean['colour']:.2f} | {mean['ground']:.2f} |")
    answer = {
        "command": "python -m benchmarks.regions --store DIR -o benchmarks/results/regions.json",
        "machine": f"{platform.machine()}, CPU, one thread, torch {torch.__version__}",
        "options": OPTIONS, "grounds": GROUNDS, "means": means, "edits": rows,
    }  # fmt: skip
    if output:
        output.write_text(json.dumps(answer, indent=1) + "\n", encoding="utf-8")
    if sheet:
        Image.fromarray(np.concatenate(pictures)).save(sheet)


def _mean(rows: list[dict[str, Any]], editor: str, way: str, kind: str) -> float:
    return float(np.mean([row[kind] for row in rows if (row["editor"], row["asked"]) == (editor, way)]))


if __name__ == "__main__":
    typer.run(main)
