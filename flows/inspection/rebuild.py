"""Frames rebuilt without an edit: by sampling, from another frame's tokens, and by warping another frame's pixels.

Source: TokenFlow (arXiv 2307.10373), section 4.2 and figure 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from stages import invert_frames
from stages.backbones.layout import Layer
from stages.diffusion.matching import nearest_tokens, normalized
from stages.editing.swapping import swapped
from stages.measures.correspondence import match_displacement
from stages.measures.frames import psnr, unit, warped
from stages.measures.tokens import pixel_displacement
from stages.media.sheets import Row, tile_sheet, tile_size

from .pictures import Inspection, spaced
from .source import Rgb, Source

Values = np.ndarray[Any, Any]


def autoencoded(source: Source) -> Rgb:
    """The clip through the autoencoder alone."""
    backbone = source.session.backbone
    with torch.inference_mode():
        return np.asarray(backbone.decode(backbone.to_device(source.latents["clean_latents"][:]).float()))


def reconstructed(source: Source) -> Rgb:
    """The clip inverted and sampled back, with no edit and no guidance."""
    plan, backbone = source.plan, source.session.backbone
    noisiest = backbone.to_device(source.latents["latents"][0]).float()
    with source.working("plain reconstruction", source.count * len(plan.timesteps)), torch.inference_mode():
        text = backbone.encode_text([plan.invert.spec.prompt])
        return np.asarray(
            backbone.decode(invert_frames.sampled(noisiest, plan.timesteps, text, backbone, plan.config.solver))
        )


def swapped_from(source: Source, donor: int) -> Rgb:
    """The clip sampled on the tokens of one frame alone."""
    plan, backbone = source.plan, source.session.backbone
    latents, read = source.latents, source.read_tokens
    passes = (source.count + 1) * len(plan.timesteps) * (1 if source.keeps_tokens else 2)
    with source.working(f"tokens of frame {donor} swapped in", passes):
        clean = swapped(
            donor, range(source.count), latents=latents, read=read, prompt=plan.invert.spec.prompt,
            timesteps=plan.timesteps, backbone=backbone, solver=plan.config.solver,
        )  # fmt: skip
        return np.asarray(backbone.decode(clean))


def warped_from(source: Source, donor: int, pictures: Rgb, layer: Layer, step: int) -> Rgb:
    """Every frame as one frame of `pictures` warped along the field of one layer at one step."""
    rows, columns = source.grid(layer)
    keys = normalized(source.read_tokens(step, range(donor, donor + 1))[layer.name])
    index = torch.cat([nearest_tokens(normalized(tokens), keys)[0].cpu() for tokens in source.tokens(layer, step)])
    moved = match_displacement(index, rows, columns).unflatten(1, (rows, columns))
    given = unit(pictures[donor : donor + 1]).expand(len(index), -1, -1, -1)
    seen = warped(given, pixel_displacement(moved, *pictures.shape[1:3]))
    return (seen * 255).round().to(torch.uint8).numpy()


@dataclass(frozen=True)
class Rebuilt:
    """The clip as it is and rebuilt in several ways, each rgb (frame, height, width, 3) uint8, and PSNR in dB.

    against_source    way → (frame,)
    against_decoded   the same of swap and warp against the autoencoder's pictures, with the warp's pixels from those
    """

    clips: dict[str, Rgb]
    against_source: dict[str, Values]
    against_decoded: dict[str, Values]

    @property
    def words(self) -> dict[str, list[str]]:
        """What is written below each frame."""
        return {way: [f"{value:.1f} dB" for value in values] for way, values in self.against_source.items()}


def rebuild(source: Source, donor: int, layer: Layer, step: int) -> Rebuilt:
    """All frames from one, by its tokens and by its pixels; and what no way can surpass."""
    floor = autoencoded(source)
    clips = {
        "source": source.rgb, "autoencoder": floor, "reconstruction": reconstructed(source),
        "swap": swapped_from(source, donor), "warp": warped_from(source, donor, source.rgb, layer, step),
    }  # fmt: skip
    decoded = {"swap_decoded": clips["swap"], "warp_decoded": warped_from(source, donor, floor, layer, step)}
    return Rebuilt(
        clips,
        {way: psnr(frames, source.rgb).numpy() for way, frames in clips.items() if way != "source"},
        {way: psnr(frames, floor).numpy() for way, frames in decoded.items()},
    )


def inspect_swap(
    source: Source, folder: Path, name: str, donor: int | None, layer_name: str | None, timestep: int | None
) -> Inspection:
    """Rebuild the clip from one frame, by its tokens and by its pixels; a picture, a clip, and PSNR by distance.

    name   of the files: swap or warp
    """
    layer, step = source.layer(layer_name), source.step(timestep)
    donor = source.frame(donor)
    facts = {"from": donor, "layer": layer.name, "timestep": source.plan.timesteps[step]}
    rebuilt = rebuild(source, donor, layer, step)
    done = Inspection(name, facts, _by_distance(donor, rebuilt.against_source | rebuilt.against_decoded))
    done.save_picture(_swap_sheet(rebuilt, facts), folder / f"{name}.png")
    panels = [(way, rebuilt.clips[way]) for way in ("source", "swap", "warp")]
    frames = [f"frame {frame}" for frame in range(source.count)]
    captions = list(zip(frames, rebuilt.words["swap"], rebuilt.words["warp"], strict=True))
    done.save_clip(source, panels, captions, folder / f"{name}.mp4")
    return done


def _swap_sheet(rebuilt: Rebuilt, facts: dict[str, Any]) -> Image.Image:
    """Every way in a row, at growing distances from the donor."""
    donor, rgb = facts["from"], rebuilt.clips["source"]
    shown = _around(donor, len(rgb))
    labels = {
        "autoencoder": "autoencoder alone",
        "reconstruction": "plain reconstruction: inverted and sampled back",
        "swap": f"swap: nearest tokens of frame {donor} in every layer and at every timestep",
        "warp": f"warp: pixels of frame {donor} along the field of {facts['layer']} at timestep {facts['timestep']}",
    }
    rows = [Row("source", rgb[shown])]
    for way, label in labels.items():
        rows.append(Row(label, rebuilt.clips[way][shown], [rebuilt.words[way][frame] for frame in shown]))
    headings = [f"frame {frame}" + (f" ({frame - donor:+d})" if frame != donor else "") for frame in shown]
    title = f"every frame rebuilt from frame {donor}; dB: PSNR against the source"
    return tile_sheet(rows, tile_size(*rgb.shape[1:3]), title, headings)


def inspect_reconstruct(source: Source, folder: Path) -> Inspection:
    """Invert and sample the clip with no edit; a picture, a clip, and PSNR per frame."""
    clips = {"source": source.rgb, "autoencoder": autoencoded(source), "reconstruction": reconstructed(source)}
    values = {
        "autoencoder": psnr(clips["autoencoder"], source.rgb).numpy(),
        "reconstruction": psnr(clips["reconstruction"], source.rgb).numpy(),
        "against_autoencoder": psnr(clips["reconstruction"], clips["autoencoder"]).numpy(),
    }
    spec = source.plan.invert.spec
    facts = {"steps": spec.num_steps, "inversion_steps": spec.num_inversion_steps}
    means = {f"mean_{way}": float(each.mean()) for way, each in values.items()}
    rows = [{"frame": f} | {way: float(each[f]) for way, each in values.items()} for f in range(source.count)]
    done = Inspection("reconstruct", facts | means, rows)
    words = [
        [f"frame {row['frame']}", f"{row['autoencoder']:.1f} dB",
         f"{row['reconstruction']:.1f} dB ({row['against_autoencoder']:.1f})"]
        for row in rows
    ]  # fmt: skip
    done.save_picture(_reconstruction_sheet(clips, words), folder / "reconstruct.png")
    done.save_clip(source, list(clips.items()), words, folder / "reconstruct.mp4")
    return done


def _reconstruction_sheet(clips: dict[str, Rgb], words: Sequence[Sequence[str]]) -> Image.Image:
    """Source, autoencoder and reconstruction below each other."""
    shown = spaced(len(words))
    labels = ("source", "autoencoder alone", "inverted and sampled back (in brackets: against the autoencoder)")
    rows = [
        Row(label, frames[shown], [words[frame][place] for frame in shown])
        for place, (label, frames) in enumerate(zip(labels, clips.values(), strict=True))
    ]
    return tile_sheet(rows, tile_size(*clips["source"].shape[1:3]), "dB: PSNR against the source")


def distances(frames: int) -> list[int]:
    """1, 2, 4, 8, … below `frames`."""
    return [1 << power for power in range(max(1, frames - 1).bit_length()) if 1 << power < frames]


def _around(donor: int, frames: int) -> list[int]:
    """The frames at these distances on either side of the donor, and the donor itself; those that there are."""
    places = {donor + sign * distance for distance in (0, *distances(frames)) for sign in (1, -1)}
    return sorted(place for place in places if 0 <= place < frames)


def _by_distance(donor: int, values: dict[str, Values]) -> list[dict[str, Any]]:
    """PSNR by distance from the donor, the mean of the frames on either side."""
    frames = len(next(iter(values.values())))
    rows = []
    for distance in (0, *distances(frames)):
        own = sorted({f for f in (donor - distance, donor + distance) if 0 <= f < frames})
        if own:
            means = {way: float(each[own].mean()) for way, each in values.items()}
            rows.append({"distance": distance, "frames": len(own)} | means)
    return rows
