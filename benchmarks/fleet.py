"""What many clips on many GPUs take: arithmetic over the real schemas, for docs/scaling.md. Nothing is run.

    python -m benchmarks.fleet --clips 10000 --prompts 4 --gpus 100

Sizes, chunks and passes come from the stages' own `outputs` and SD 1.x's structure; what a GPU computes in a second,
what a task costs and what things cost in money are assumptions, named in the answer, to be replaced by your own.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, prod
from typing import Annotated, Any

import typer

from flows.config import EditConfig
from stages import decode_frames, edit_keyframes, editors, extract_tokens, invert_frames, match_tokens, propagate_tokens
from stages.backbones.layout import ModelLayout, forward_flops, layout
from stages.diffusion.ddim import timesteps
from stages.media.video import VideoInfo
from store.schemas import Schema

SD_1 = {  # the published structure of Stable Diffusion 1.x
    "unet": {
        "_class_name": "UNet2DConditionModel", "sample_size": 64, "in_channels": 4, "out_channels": 4,
        "block_out_channels": [320, 640, 1280, 1280], "layers_per_block": 2, "attention_head_dim": 8,
        "cross_attention_dim": 768,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    },
    "vae": {
        "_class_name": "AutoencoderKL", "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2,
        "latent_channels": 4, "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    },
    "scheduler": {
        "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "set_alpha_to_one": False,
        "steps_offset": 1, "num_train_timesteps": 1000, "prediction_type": "epsilon",
    },
}  # fmt: skip
DEFAULT = {name: field.default for name, field in EditConfig.model_fields.items()}


@dataclass(frozen=True)
class Row:
    """One artifact of one clip: bytes before compression, files, and forwards of one frame."""

    stage: str
    bytes: int
    files: int
    forwards: int


def files_of(schema: Schema, frames: int) -> int:
    """Files of an artifact: one per chunk, one of metadata per array and one for the group."""
    chunks = 0
    for variable in schema.variables.values():
        shape = [frames if size is None else size for size in variable.shape]
        chunks += prod(ceil(size / chunk) for size, chunk in zip(shape, variable.chunks, strict=True))
    return chunks + len(schema.variables) + len(schema.coordinates) + 1


def rows(frames: int, pixels: int, traced: ModelLayout) -> list[Row]:
    """The artifacts of one clip with one prompt and the command line's defaults, tokens not kept."""
    steps, evaluations = int(DEFAULT["steps"]), int(DEFAULT["inversion_evaluations"])
    spec = decode_frames.Spec(width=pixels, height=pixels)
    decoded = sized(decode_frames.outputs(spec, video=square_video(frames, pixels)), frames)
    inversion = invert_frames.Spec(num_steps=steps, num_inversion_steps=steps, evaluations=evaluations)
    latents = invert_frames.outputs(inversion, frames=decoded, layout=traced)
    extraction = extract_tokens.Spec()
    tokens = extract_tokens.outputs(extraction, latents=latents, layout=traced, keep_tokens=False)
    interval = int(DEFAULT["keyframe_interval"])
    matching = match_tokens.Spec(keyframe_interval=interval, keyframe_offsets=int(DEFAULT["keyframe_offsets"]))
    field = match_tokens.outputs(matching, latents=latents, layout=traced)
    asked = edit_keyframes.Spec(prompt="a prompt", editor=editors.choose("pnp", {}))
    keyframes = edit_keyframes.outputs(asked, field=field, layout=traced)
    edit = propagate_tokens.outputs(propagate_tokens.Spec(), frames=decoded, layout=traced)
    sampled_back = len(invert_frames.checked_frames(frames)) * len(timesteps(traced.schedule, steps))
    support = len(field.coordinates["support"])
    forwards = {
        "decode_frames": 0, "invert_frames": frames * steps * evaluations + sampled_back,
        "extract_tokens": frames * steps, "match_tokens": 0,
        "edit_keyframes": 2 * support * steps, "propagate_tokens": 2 * (frames - support) * steps,
    }  # fmt: skip
    schemas = dict(zip(forwards, (decoded, latents, tokens, field, keyframes, edit), strict=True))
    return [Row(s, schemas[s].nbytes(frames), files_of(schemas[s], frames), forwards[s]) for s in forwards]


def sized(schema: Schema, frames: int) -> Schema:
    """The same schema, its growing variables as long as the clip."""
    return schema.model_copy(
        update={
            "variables": {
                name: variable.model_copy(update={"shape": (frames, *variable.shape[1:])})
                for name, variable in schema.variables.items()
            }
        }
    )


def square_video(frames: int, pixels: int) -> VideoInfo:
    """A plain clip of 24 frames per second."""
    return VideoInfo(
        width=pixels, height=pixels, coded_width=pixels, coded_height=pixels, frames=frames, declared_frames=frames,
        start=0, duration=frames / 24, average_fps="24/1", variable=False, rotation=0, mirrored=False,
        sample_aspect_ratio="1/1", container="mp4", codec="h264", pixel_format="yuv420p", has_alpha=False,
        colour_matrix="bt709", colour_range="limited", has_audio=False, audio_codec=None, notes=(),
    )  # fmt: skip


def answer(
    clips: int, prompts: int, frames: int, pixels: int, gpus: int, teraflops: float, task_runs: int, rows_bytes: int
) -> dict[str, Any]:
    """All figures: per clip, and of the whole fleet."""
    artifacts = rows(frames, pixels, layout(SD_1, pixels, pixels))
    flops = forward_flops(SD_1["unet"], (pixels // 8, pixels // 8))
    once, each = artifacts[:4], artifacts[4:]

    def seconds(some: list[Row]) -> float:
        return sum(row.forwards for row in some) * flops / (teraflops * 1e12)

    def total(name: str) -> int:
        return clips * (sum(getattr(r, name) for r in once) + prompts * sum(getattr(r, name) for r in each))

    prepare, edit = seconds(once), seconds(each)
    gpu_seconds = clips * (prepare + prompts * edit)
    wall = gpu_seconds / gpus
    read = clips * prompts * sum(row.bytes for row in once if row.stage != "decode_frames")
    runs = clips * (1 + prompts)
    return {
        "teraflop_per_forward": flops / 1e12, "artifacts": artifacts, "prepare_seconds": prepare, "edit_seconds": edit,
        "gpu_hours": gpu_seconds / 3600, "wall_hours": wall / 3600, "bytes": total("bytes"), "files": total("files"),
        "written_per_second": total("bytes") / wall, "read_per_second": read / wall, "puts_per_second":
        total("files") / wall, "flow_runs": runs, "task_runs": runs * task_runs, "runs_per_second": runs / wall,
        "database_bytes": runs * rows_bytes,
    }  # fmt: skip


def main(
    clips: int = 10_000,
    prompts: Annotated[int, typer.Option(help="Edits of each clip.")] = 4,
    frames: int = 40,
    pixels: Annotated[int, typer.Option(help="Side of a frame.")] = 512,
    gpus: int = 100,
    teraflops: Annotated[float, typer.Option(help="Assumed: what a GPU computes in a second, in earnest.")] = 200,
    task_runs: Annotated[int, typer.Option(help="Assumed: task runs of one flow run.")] = 10,
    database_bytes: Annotated[int, typer.Option(help="Of one flow run with its tasks; see benchmarks.engines.")] = 0,
    gpu_hour: Annotated[float, typer.Option(help="Assumed price of a GPU for an hour.")] = 2.5,
    terabyte_month: Annotated[float, typer.Option(help="Assumed price of a terabyte stored for a month.")] = 23,
    million_puts: Annotated[float, typer.Option(help="Assumed price of a million files written.")] = 5,
) -> None:
    """Print the tables of docs/scaling.md."""
    said = answer(clips, prompts, frames, pixels, gpus, teraflops, task_runs, database_bytes)
    print(f"{frames} frames of {pixels}², {said['teraflop_per_forward']:.2f} TFLOP per forward of one frame\n")
    print("| artifact of one clip | MB before compression | files | forwards of one frame |\n|---|---:|---:|---:|")
    for row in said["artifacts"]:
        print(f"| {row.stage} | {row.bytes / 1e6:.1f} | {row.files} | {row.forwards} |")
    print(f"\n| {clips} clips × {prompts} prompts on {gpus} GPUs at {teraflops:g} TFLOP/s | |\n|---|---:|")
    money = said["gpu_hours"] * gpu_hour
    for name, value in (
        ("seconds to prepare a clip; to edit it once", f"{said['prepare_seconds']:.0f}; {said['edit_seconds']:.0f}"),
        ("GPU hours", f"{said['gpu_hours']:.0f}"),
        ("hours, all GPUs busy", f"{said['wall_hours']:.1f}"),
        ("TB written, before compression", f"{said['bytes'] / 1e12:.2f}"),
        ("million files", f"{said['files'] / 1e6:.1f}"),
        ("written, MB/s; files/s", f"{said['written_per_second'] / 1e6:.0f}; {said['puts_per_second']:.0f}"),
        ("read by edits on another machine than the preparation, MB/s", f"{said['read_per_second'] / 1e6:.0f}"),
        ("flow runs; task runs", f"{said['flow_runs']}; {said['task_runs']}"),
        ("flow runs started per second", f"{said['runs_per_second']:.2f}"),
        ("GB in Prefect's database", f"{said['database_bytes'] / 1e9:.1f}" if database_bytes else "–"),
        (f"GPUs, at {gpu_hour:g} an hour", f"{money:.0f}"),
        (f"store for a month, at {terabyte_month:g} a TB", f"{said['bytes'] / 1e12 * terabyte_month:.0f}"),
        (f"writing, at {million_puts:g} a million files", f"{said['files'] / 1e6 * million_puts:.0f}"),
    ):
        print(f"| {name} | {value} |")


if __name__ == "__main__":
    typer.run(main)
