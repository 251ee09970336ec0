"""How well a word's mask fits its object, on clips that nothing was tuned on.

    python -m benchmarks.masks --store DIR [-o FILE.json] [--sheet PICTURE.png]
    python -m benchmarks.masks --store DIR --words [-o FILE.json]

Clips of the pocket world from seeds of their own, and the same with the object smaller than any that the model has been
trained on. Against the exact mask, over 8 frames: intersection over union; the share of the object that is found; the
share of what is found that is object.

With --words: how unevenly the frames of half of the clips attend to the object's name and to other words, in other
prompts too (`find_masks.variation`, mean over frames); and for how many it is below `find_masks.NAMES_NOTHING`.
"""

from __future__ import annotations

import json
import platform
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image

from flows.config import make_config, make_runtime
from flows.plan import Plan
from flows.prepare import prepare
from flows.tasks import Session
from pocket.clips import write_video
from pocket.world import SHAPES, Scene, caption, render, sample_clip
from stages import find_masks
from stages.backbones import Backbone
from store.store import Store

FIRST_SEED, FRAMES, SHOWN = 9000, 8, [0, 4, 7]
SIZES = {1.0: 8, 0.6: 4}  # of the object, as a share of what the model was trained on → how many clips
Picture = np.ndarray[Any, Any]


def scenes_of(seed: int, size: float) -> Scene:
    """Every other frame of a short clip."""
    scenes = sample_clip(2 * FRAMES, torch.Generator().manual_seed(seed))[torch.arange(0, 2 * FRAMES, 2)]
    return replace(scenes, scale=scenes.scale * size)


def opened_on(store: Store, scenes: Scene, video: Path, backbone: Backbone | None) -> Session:
    """A session that is to find the object's mask by its name."""
    write_video(video, scenes)
    word = SHAPES[int(scenes.shape[0])]
    config = make_config(
        video=video, source_prompt=caption(scenes), prompts=("anything",), steps=20, cuts="none", mask_feather=0,
        mask_from=f"cross-attention:{word}",
    )  # fmt: skip
    return Session(Plan(config, make_runtime(device="cpu"), store), backbone=(lambda: backbone) if backbone else None)


def found(session: Session) -> Picture:
    """The object's mask (frame, height, width) bool."""
    mask = prepare(session).mask
    assert mask is not None, "a mask was asked for"
    found: Picture = mask()["mask"][:] > 127
    return found


def asked(scenes: Scene) -> dict[str, tuple[str, str]]:
    """Kind of word → the prompt that it stands in, the word."""
    prompt, shape, number = caption(scenes), SHAPES[int(scenes.shape[0])], int(scenes.seed[0])
    absent = [other for other in SHAPES if other != shape][number % (len(SHAPES) - 1)]
    beside = prompt.replace(" on ", f" and a {absent} on ")
    return {
        "the object": (prompt, shape),
        "the object, and another is said to be there": (beside, shape),
        "its colour and what follows": (prompt, prompt[prompt.index(" ") + 1 : prompt.index(" on ")]),
        "the ground": (prompt, prompt.split()[-1]),
        "on": (prompt, "on"),
        "a": (prompt, prompt.split()[0]),
        "its colour": (prompt, prompt.split()[1]),
        "an object that is not there": (beside, absent),
        "a word that the model does not know": (f"{prompt} with a dog", "dog"),
        "the object, without a prompt": (shape, shape),
        "an object that is not there, without a prompt": (absent, absent),
    }


def variation_of(session: Session, prompt: str, words: str) -> float:
    """Of attention to `words` of `prompt`, in the latents of the clip's own prompt."""
    plan, node = session.plan, session.plan.mask
    assert node is not None, "a mask was asked for"
    frames, latents = (session.find(each) for each in (plan.decode, plan.invert))
    assert frames is not None and latents is not None, "the mask was found"
    first = next(find_masks.run(
        node.spec.model_copy(update={"prompt": prompt, "words": words}), range(1), frames=frames, latents=latents,
        timesteps=plan.timesteps, trained=plan.layout.schedule.num_train_timesteps, backbone=session.backbone,
    ))  # fmt: skip
    assert first.variable == "variation"
    return float(first.values.mean())


def of_words(store: Path, output: Path | None) -> None:
    """Print how unevenly the frames of half of the clips attend to each kind of word, write JSON."""
    opened, backbone, seen = Store(store), None, dict[str, list[float]]()
    for size, count in SIZES.items():
        for seed in range(FIRST_SEED, FIRST_SEED + count // 2):
            scenes = scenes_of(seed, size)
            session = opened_on(opened, scenes, store / f"{seed}-{size}.mp4", backbone)
            found(session)
            backbone = session.backbone
            for kind, (prompt, words) in asked(scenes).items():
                seen.setdefault(kind, []).append(variation_of(session, prompt, words))
    print(f"| word | least | median | most | below {find_masks.NAMES_NOTHING} |\n|---|---|---|---|---|")
    for kind, values in seen.items():
        low = sum(value < find_masks.NAMES_NOTHING for value in values)
        least, median, most = np.quantile(values, [0, 0.5, 1])
        print(f"| {kind} | {least:.2f} | {median:.2f} | {most:.2f} | {low} of {len(values)} |")
    if output:
        answer = {
            "command": "python -m benchmarks.masks --store DIR --words",
            "machine": f"{platform.machine()}, CPU, one thread, torch {torch.__version__}",
            "variation": {kind: [round(value, 3) for value in values] for kind, values in seen.items()},
        }
        output.write_text(json.dumps(answer, indent=1) + "\n", encoding="utf-8")


def coloured(shown: Picture, own: Picture, true: Picture) -> Picture:
    """Some frames beside their masks: white where both are, red where too much, green where too little."""
    marks = np.zeros((*own.shape, 3), np.uint8)
    marks[own & true], marks[own & ~true], marks[~own & true] = 255, (255, 0, 0), (0, 255, 0)
    return np.concatenate([part[frame] for frame in SHOWN for part in (shown, marks)], axis=1)


def main(
    store: Annotated[Path, typer.Option()],
    output: Annotated[Path | None, typer.Option("-o", "--output")] = None,
    sheet: Annotated[Path | None, typer.Option()] = None,
    words: Annotated[bool, typer.Option("--words")] = False,
) -> None:
    """Find each clip's object by its name, print how well it fits, write JSON and a contact sheet."""
    torch.set_num_threads(1)
    if words:
        of_words(store, output)
        return
    opened, backbone = Store(store), None
    rows, pictures = list[dict[str, Any]](), list[Picture]()
    print("| clip | size | overlap | found of the object | object of the found |\n|---|---|---|---|---|")
    for size, count in SIZES.items():
        for seed in range(FIRST_SEED, FIRST_SEED + count):
            scenes = scenes_of(seed, size)
            session = opened_on(opened, scenes, store / f"{seed}-{size}.mp4", backbone)
            own, backbone = found(session), session.backbone
            exact = render(scenes, 64)
            true = exact.mask.numpy()
            both = float((own & true).sum())
            row = {"overlap": both / (own | true).sum(), "of_object": both / true.sum(), "of_found": both / own.sum()}
            rows.append({"seed": seed, "size": size, "clip": caption(scenes), **row})
            print(
                f"| {caption(scenes)} | {size} | {' | '.join(f'{value:.2f}' for value in row.values())} |", flush=True
            )
            pictures.append(coloured((exact.rgb * 255).round().byte().numpy(), own, true))
    means = {
        str(size): {
            kind: float(np.mean([row[kind] for row in rows if row["size"] == size]))
            for kind in ("overlap", "of_object", "of_found")
        }
        for size in SIZES
    }
    for share, mean in means.items():
        print(f"| mean | {share} | {' | '.join(f'{value:.2f}' for value in mean.values())} |")
    if output:
        answer = {
            "command": "python -m benchmarks.masks --store DIR",
            "machine": f"{platform.machine()}, CPU, one thread, torch {torch.__version__}", "means": means,
            "clips": rows,
        }  # fmt: skip
        output.write_text(json.dumps(answer, indent=1) + "\n", encoding="utf-8")
    if sheet:
        Image.fromarray(np.concatenate(pictures)).save(sheet)


if __name__ == "__main__":
    typer.run(main)
