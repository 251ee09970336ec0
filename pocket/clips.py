"""Render the example clips: ``python -m pocket.clips examples`` writes an mp4 per clip below, its truth beside it."""

import argparse
from dataclasses import dataclass
from pathlib import Path

import av
import torch
from torch import Tensor

from pocket.truth import write_truth
from pocket.world import Scene, caption, render, sample_clip


@dataclass(frozen=True)
class Clip:
    """One example: its file name, what it shows, and the seed of its motion and ground."""

    name: str
    colour: str
    surface: str
    shape: str
    ground: str
    seed: int


CLIPS = (
    Clip("ball", "red", "plain", "ball", "grass", 1),
    Clip("ring", "blue", "striped", "ring", "sand", 2),
    Clip("star", "yellow", "plain", "star", "water", 3),
    Clip("square", "purple", "checkered", "square", "snow", 4),
)


def write_clip(clip: Clip, folder: Path, *, frames: int = 24, size: int = 64, rate: int = 12) -> str:
    """Write ``folder/<name>.mp4`` and return its caption."""
    generator = torch.Generator().manual_seed(clip.seed)
    scenes = sample_clip(
        frames, generator, shape=clip.shape, colour=clip.colour, surface=clip.surface, ground=clip.ground
    )
    write_video(folder / f"{clip.name}.mp4", scenes, size=size, rate=rate)
    return caption(scenes)


def write_video(file: Path, scenes: Scene, *, size: int = 64, rate: int = 12) -> None:
    """Render one scene per frame into `file`, and keep their truth beside it (`pocket.truth`)."""
    write_pictures(file, render(scenes, size).rgb, rate=rate)
    write_truth(file, scenes)


def write_pictures(file: Path, rgb: Tensor, *, rate: int = 12) -> None:
    """Write rgb (frame, height, width, 3) in [0, 1] into `file`.

    H.264 in 4:4:4 at CRF 12: chroma subsampling would blur a 64-pixel world by more than the autoencoder does.
    """
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "12", "preset": "slow", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = rgb.shape[2], rgb.shape[1], "yuv444p"
        for picture in (rgb * 255).round().byte().numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--size", type=int, default=64)
    args = parser.parse_args(arguments)
    args.folder.mkdir(parents=True, exist_ok=True)
    for clip in CLIPS:
        print(f"{clip.name}.mp4\t{write_clip(clip, args.folder, frames=args.frames, size=args.size)}")


if __name__ == "__main__":
    main()
