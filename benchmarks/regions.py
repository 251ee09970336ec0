"""What regions do: a new ground by the prompt and a new colour by a region, and two objects with a colour each.

    python -m benchmarks.regions --store DIR -o benchmarks/results/regions.json --sheet PICTURE.png
    python -m benchmarks.regions --store DIR --objects 2 -o benchmarks/results/regions-two.json --sheet PICTURE.png

Colour, ground: shares of frames in which the judge reads the object's colour and the ground as asked. Of two objects
both are read, each with the other one hidden under the true ground: the judge knows one object a picture.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import torch
import typer
from PIL import Image, ImageDraw

from flows.config import make_config, make_runtime
from flows.edit import edit
from flows.plan import Plan
from flows.tasks import Session
from pocket.clips import write_pictures
from pocket.judge import Verdict, load_judge
from pocket.world import Scene, render, render_two, sample_clip
from stages.backbones import Backbone
from store.store import Store

from .local import CLIPS, EXAMPLES, Picture, true_mask

GROUNDS = {"ball": "snow", "ring": "water", "star": "sand"}  # clip → its new ground
EDITORS = ("pnp", "ddpm")
FRAMES, SHOWN = 8, [0, 4, 7]
OPTIONS: dict[str, Any] = {"steps": 20, "frames": f"0:{FRAMES}", "cuts": "none"}
PAIRS = {  # clip → (colour, shape) of its two objects, the colours that they are to have, the ground
    "ball and square": ((("red", "ball"), ("blue", "square")), ("purple", "yellow"), "grass"),
    "star and ring": ((("yellow", "star"), ("green", "ring")), ("pink", "blue"), "water"),
}
APART, SCALE = 0.48, 0.44  # of the two objects: where they are left and right of the middle, and how large
WIDER = 4  # pixels that a mask reaches beyond its object
LABELS = 320  # pixels of a sheet's column of words


def ways(clip: str, folder: Path) -> dict[str, dict[str, Any]]:
    """What is asked: ground alone; ground and colour in one prompt; the colour in a region, drawn and found."""
    source, recoloured, word = CLIPS[clip]
    both, ground = (f"{text.rpartition(' ')[0]} {GROUNDS[clip]}" for text in (recoloured, source))
    return {
        "the ground alone": {"prompts": (ground,)},
        "one prompt": {"prompts": (both,)},
        "--region, exact mask": {
            "prompts": (ground,),
            "regions": (f"{with_masks(true_mask(clip)[:FRAMES], folder / clip)}={both}",),
        },
        "--region cross-attention:WORD": {"prompts": (ground,), "regions": (f"cross-attention:{word}={both}",)},
    }


def edited(
    store: Store, video: Path, source_prompt: str, options: dict[str, Any], backbone: Backbone | None
) -> tuple[Picture, Picture, Any]:
    """The edit's rgb and the source's (frame, height, width, 3), and the model, to be used again."""
    config = make_config(video=video, source_prompt=source_prompt, **OPTIONS, **options)
    session = Session(
        Plan(config, make_runtime(device="cpu"), store), backbone=(lambda: backbone) if backbone else None
    )
    [clip_edited] = edit(session)
    frames = session.find(session.plan.decode)
    assert frames is not None, "an edit has frames"
    return clip_edited["rgb"][:], frames["rgb"][:], session.backbone


def pair_of(clip: str) -> tuple[Scene, Scene]:
    """The scenes (frame,) of each object of a clip with two, side by side, moving up and down against each other."""
    objects, _, ground = PAIRS[clip]
    scenes = list[Scene]()
    for side, (colour, shape) in zip((-1, 1), objects, strict=True):
        own = sample_clip(
            FRAMES, torch.Generator().manual_seed(len(scenes)), shape=shape, colour=colour, surface="plain",
            ground=ground,
        )  # fmt: skip
        height = side * torch.linspace(-0.3, 0.3, FRAMES)
        place = torch.stack([torch.full((FRAMES,), side * APART), height], dim=1)
        scenes.append(replace(own, centre=place, scale=torch.full((FRAMES,), SCALE)))
    return scenes[0], scenes[1]


def with_masks(masks: Picture, place: Path) -> Path:
    """A folder with a picture of each mask (frame, height, width) bool."""
    place.mkdir(parents=True, exist_ok=True)
    for frame, mask in enumerate(masks):
        Image.fromarray(mask.astype(np.uint8) * 255).save(place / f"{frame:03}.png")
    return place


def two_edited(
    store: Store, clip: str, backbone: Backbone | None
) -> Iterator[tuple[str, str, Picture, Picture, dict[str, float], Any]]:
    """Editor, way, the edit's and the source's rgb, the shares, and the model, for every edit of a clip with two."""
    first, second = pair_of(clip)
    objects, colours, ground = PAIRS[clip]
    rgb, *seen = render_two(first, second, 64)
    folder = store.root / "two" / clip.replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    write_pictures(folder / "clip.mp4", rgb)
    bare = (render(replace(first, centre=torch.full((FRAMES, 2), 9.0)), 64).rgb * 255).round().byte().numpy()
    wider = [np.stack([cv2.dilate(m.astype(np.uint8), np.ones((2 * WIDER + 1,) * 2)) > 0 for m in masks.numpy()])
             for masks in seen]  # fmt: skip

    def sentence(named: Sequence[str]) -> str:
        one, other = (f"{_article(colour)} {colour} {shape}" for colour, (_, shape) in zip(named, objects, strict=True))
        return f"{one} and {other} on {ground}"

    source = sentence([colour for colour, _ in objects])
    alone = [
        f"{_article(colour)} {colour} {shape} on {ground}" for colour, (_, shape) in zip(colours, objects, strict=True)
    ]

    def regions(masks: Sequence[Picture], kind: str) -> dict[str, Any]:
        drawn = [with_masks(mask, folder / f"{kind}-{n}") for n, mask in enumerate(masks)]
        return {"prompts": (source,), "regions": tuple(f"{m}={text}" for m, text in zip(drawn, alone, strict=True))}

    asked = {
        "one prompt": {"prompts": (sentence(colours),)},
        "--region over each, exact masks": regions([mask.numpy() for mask in seen], "exact"),
        f"--region over each, {WIDER} pixels wider": regions(wider, "wider"),
    }
    for editor in EDITORS:
        for way, options in asked.items():
            shown, given, backbone = edited(store, folder / "clip.mp4", source, {"editor": editor, **options}, backbone)
            read: dict[str, list[float]] = {"colour": [], "ground": []}
            for colour, other in zip(colours, wider[::-1], strict=True):
                verdict = verdict_of(np.where(other[..., None], bare, shown))
                for kind, wanted in (("colour", colour), ("ground", ground)):
                    read[kind].append(float(np.mean([name == wanted for name in verdict.names(kind)])))
            shares = {kind: float(np.mean(each)) for kind, each in read.items()}
            yield editor, way, shown, given, shares, backbone


def one_edited(
    store: Store, clip: str, backbone: Backbone | None
) -> Iterator[tuple[str, str, Picture, Picture, dict[str, float], Any]]:
    """The same for every edit of an example clip."""
    colour = CLIPS[clip][1].split()[1]
    for editor in EDITORS:
        for way, options in ways(clip, store.root / "masks").items():
            asked = {"editor": editor, **options}
            rgb, source, backbone = edited(store, EXAMPLES / f"{clip}.mp4", CLIPS[clip][0], asked, backbone)
            verdict = verdict_of(rgb)
            shares = {
                "colour": float(np.mean([name == colour for name in verdict.names("colour")])),
                "ground": float(np.mean([name == GROUNDS[clip] for name in verdict.names("ground")])),
            }
            yield editor, way, rgb, source, shares, backbone


def verdict_of(rgb: Picture) -> Verdict:
    """What the judge reads in rgb (frame, height, width, 3) uint8."""
    return load_judge().read(torch.from_numpy(rgb).float() / 255)


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


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
    objects: Annotated[int, typer.Option(min=1, max=2)] = 1,
) -> None:
    """Edit each clip in every way, print the comparison, write JSON and a contact sheet."""
    torch.set_num_threads(1)
    opened, backbone = Store(store), None
    rows, pictures = list[dict[str, Any]](), list[Picture]()
    print("| clip | editor | asked | colour | ground |\n|---|---|---|---|---|")
    for clip in PAIRS if objects == 2 else GROUNDS:
        edits = two_edited(opened, clip, backbone) if objects == 2 else one_edited(opened, clip, backbone)
        for editor, way, rgb, source, shares, model in edits:
            backbone = model
            if not rows or rows[-1]["clip"] != clip:
                pictures.append(labelled(source, f"{clip}: the source"))
            pictures.append(labelled(rgb, f"{editor}: {way}"))
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
        "command": f"python -m benchmarks.regions --store DIR{' --objects 2' * (objects == 2)} -o {output}",
        "machine": f"{platform.machine()}, CPU, one thread, torch {torch.__version__}",
        "options": OPTIONS, "clips": PAIRS if objects == 2 else GROUNDS, "means": means, "edits": rows,
    }  # fmt: skip
    if output:
        output.write_text(json.dumps(answer, indent=1) + "\n", encoding="utf-8")
    if sheet:
        Image.fromarray(np.concatenate(pictures)).save(sheet)


def _mean(rows: list[dict[str, Any]], editor: str, way: str, kind: str) -> float:
    return float(np.mean([row[kind] for row in rows if (row["editor"], row["asked"]) == (editor, way)]))


if __name__ == "__main__":
    typer.run(main)
