"""What B-frames would do to H.264 clips: how much smaller they are, and how often equal frames give another file.

    python -m benchmarks.encoding [--repeats 25] [-o benchmarks/results/encoding.json]

The example clips, and as many of the pocket world of 8 to 24 frames, are written over and over in each way, with the
quality that `tf` gives them; "tf" stands for all that it says to the encoder. "larger": each clip's bytes over those of
H.264 with B-frames, the least, the mean and the most; "differing": files that are not the first of their clip, byte for
byte, of all that were written again.
"""

from __future__ import annotations

import json
import tempfile
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Any
from unittest.mock import patch

import numpy as np
import torch
import typer

from pocket.world import render, sample_clip
from stages.media.encoding import Codec, Encoding, Format
from stages.media.export import write_video
from stages.media.video import read_pictures, survey

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.mp4"))
WAYS: dict[str, tuple[Codec, dict[str, str] | None]] = {
    "h264, B-frames": ("h264", {}),
    "h264, B-frames, no macroblock tree": ("h264", {"mbtree": "0"}),
    "h264, tf": ("h264", None),
    "hevc, tf": ("hevc", None),
}
FPS = 8
Rgb = np.ndarray[Any, Any]


def clips() -> dict[str, Rgb]:
    """Name → rgb (frame, height, width, 3) uint8."""
    found = {file.stem: np.stack([picture.rgb for picture in read_pictures(survey(file))]) for file in EXAMPLES}
    for number in range(len(EXAMPLES)):
        scenes = sample_clip(8 + 16 * number // 3, torch.Generator().manual_seed(number))
        found[f"small {number}"] = (render(scenes, 64).rgb * 255).round().byte().numpy()
    return found


def written(rgb: Rgb, way: str, file: Path) -> tuple[int, str]:
    """Bytes and hash of a clip that is written in a way."""
    (codec, own), as_tf = WAYS[way], Format.options

    def options(form: Format, *, in_order: bool) -> dict[str, str]:
        said = as_tf(form, in_order=in_order)
        return said if own is None else {"crf": said["crf"], **own}

    times = np.arange(len(rgb)) / FPS
    with patch.object(Format, "options", options):
        lengths = np.full(len(rgb), 1 / FPS)
        write_video(file, [rgb], pts=times, durations=lengths, fps=str(FPS), encoding=Encoding(codec=codec))
    content = file.read_bytes()
    return len(content), blake2b(content).hexdigest()


def main(repeats: int = 25, output: Annotated[Path | None, typer.Option("-o", "--output")] = None) -> None:
    """Write every clip in every way so many times more; print sizes and how many files differ, write JSON."""
    found = clips()
    answer: dict[str, Any] = {
        "command": f"python -m benchmarks.encoding --repeats {repeats} -o {output}", "clips": [*found], "ways": {},
    }  # fmt: skip
    least: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "clip.mp4"
        for way in WAYS:
            sizes, differing = {}, 0
            for name, rgb in found.items():
                sizes[name], first = written(rgb, way, file)
                differing += sum(written(rgb, way, file)[1] != first for _ in range(repeats))
            least = least or sizes
            ratios = [size / least[name] for name, size in sizes.items()]
            answer["ways"][way] = {
                "larger": [round(each, 3) for each in (min(ratios), float(np.mean(ratios)), max(ratios))],
                "differing": differing, "written_again": repeats * len(found),
            }  # fmt: skip
            print(way, answer["ways"][way], flush=True)
    if output:
        output.write_text(json.dumps(answer, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
