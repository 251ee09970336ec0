"""From artifacts to what people look at: videos and contact sheets."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from stages import decode_frames
from stages.diffusion.chunks import blocks_of
from stages.media.encoding import Encoding, choose_format
from stages.media.export import DEFAULT, Written, check_output, write_video
from stages.media.letterbox import with_bars
from stages.media.sheets import contact_sheet, save_png
from stages.media.transparency import with_alpha
from stages.media.video import read_pictures, survey
from store.artifact import Artifact
from store.collect import is_run
from store.errors import InputError
from store.records import Record
from store.schemas import Array, Schema
from store.store import Store

from .videos import file_of

OF_FILES = frozenset((".csv", ".gif", ".html", ".json", ".mkv", ".mov", ".mp4", ".png", ".webm", ".webp"))  # endings


def output_files(video: Path, prompts: Sequence[str], output: Path | None, suffix: str) -> list[Path]:
    """Where each prompt's result goes: `output`, numbered when there are several, else named after video and prompt."""
    if output and len(prompts) == 1:
        return [output]
    if output:
        return [output.with_name(f"{output.stem}-{number}{output.suffix}") for number in range(1, len(prompts) + 1)]
    names: list[str] = []
    for prompt in prompts:
        words = re.sub(r"\W+", "-", prompt.lower()).strip("-")[:60].strip("-") or "edit"
        name = f"{video.stem}-{words}"
        taken = sum(1 for other in names if other == name or re.fullmatch(re.escape(name) + r"-\d+", other))
        names.append(f"{name}-{taken + 1}" if taken else name)
    return [Path(f"{name}{suffix}") for name in names]


def check_outputs(
    files: Sequence[Path], video: Path | None, encoding: Encoding = DEFAULT, size: tuple[int, int] | None = None
) -> None:
    """InputError, before anything is computed, where a result of `size` (width, height) could not be written."""
    for file in files:
        check_output(file, video, encoding)
        choose_format(file, encoding, size)


def check_pictures(files: Sequence[Path], video: Path) -> None:
    """The same for pictures."""
    for file in files:
        check_picture(file)
        if file.exists() and file.samefile(video):
            raise InputError(f"{file} is the source itself; give the picture another name")


def check_picture(file: Path) -> None:
    """InputError, before anything is drawn, if a picture cannot be written to `file`."""
    if file.suffix.lower() != ".png":
        raise InputError(f"{file} does not say what to write; end its name in .png")
    if file.is_dir():
        raise InputError(f"{file} is a folder; name a file in it")
    if not file.parent.is_dir():
        raise InputError(f"{file} cannot be written: there is no folder {file.parent}; make it first")
    if not os.access(file.parent, os.W_OK):
        raise InputError(f"{file} cannot be written (permission denied); choose another folder")


def make_folder(path: Path) -> Path:
    """The folder, made if need be; InputError, before anything is computed, where results could not be written."""
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is no folder; name a folder with -o")
    if path.suffix.lower() in OF_FILES and not path.exists():
        raise InputError(f"{path} is to be a folder of several files; name it without {path.suffix}")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path} cannot be made ({error.strerror or error}); choose another folder") from error
    if not os.access(path, os.W_OK):
        raise InputError(f"{path} cannot be written (permission denied); choose another folder")
    return path


def export_edit(
    edit: Artifact, frames: Artifact, file: Path, *, step: int, source: Path | None, encoding: Encoding = DEFAULT,
    original: Path | None = None,
) -> Written:  # fmt: skip
    """Write an edited clip with the source's times, and its sound where `source` is there.

    original    the source, where `encoding` asks for its transparency or its frame rate
    """
    plain = Pictures(edit, framing_of(frames))
    assert original or not encoding.needs_source, "transparency and rate are read from the source"
    pictures: Iterable[np.ndarray[Any, Any]] = (
        Transparent(plain, original) if encoding.keep_alpha and original else plain
    )
    if encoding.source_rate and original:
        clip, (start, repeats) = survey(original), repeats_of(framing_of(frames), original)
        times = np.array([float(each) for each in clip.times[start : start + sum(repeats) + 1]])
        return write_video(
            file, Repeated(pictures, repeats), pts=times[:-1], durations=np.diff(times), fps=clip.info.average_fps,
            variable=clip.info.variable, source=source, encoding=encoding,
        )  # fmt: skip
    return write_video(
        file,
        pictures,
        pts=frames["pts"][:],
        durations=frames["duration"][:],
        fps=str(frames.attrs["average_fps"]),
        variable=bool(frames.attrs["variable"]),
        step=step,
        source=source,
        encoding=encoding,
    )


def repeats_of(framing: decode_frames.Spec, video: Path) -> tuple[int, list[int]]:
    """The first frame of a video that was taken, and how many frames of it each of those taken stands for."""
    clip = survey(video)
    taken = decode_frames.taken(framing, clip.info, clip.times)
    ends = [*taken[1:], clip.info.frames if framing.stop is None else framing.stop]
    return taken[0], [end - frame for frame, end in zip(taken, ends, strict=True)]


def framing_of(frames: Artifact) -> decode_frames.Spec:
    """How the frames of decode_frames lie in the source's pictures."""
    return decode_frames.Spec.model_validate(frames.record.recipe.spec)


@dataclass(frozen=True)
class Pictures:
    """The frames of an artifact in blocks, as often as they are asked for: without padding, between black bars."""

    artifact: Artifact
    framing: decode_frames.Spec

    def __iter__(self) -> Iterator[np.ndarray[Any, Any]]:
        rgb = Cut(self.artifact["rgb"], self.framing)
        blocks = (rgb[block.start : block.stop] for block in blocks_of(rgb.shape[0]))
        return (with_bars(pictures, self.framing.around) for pictures in blocks)


@dataclass(frozen=True)
class Transparent:
    """The same in rgba, with the transparency of the video that they were made from."""

    pictures: Pictures
    video: Path

    def __iter__(self) -> Iterator[np.ndarray[Any, Any]]:
        framing = self.pictures.framing
        alphas = decode_frames.transparency(framing, self.video)
        for rgb in self.pictures:
            yield with_alpha(rgb, np.stack([*islice(alphas, len(rgb))]), framing.background)


@dataclass(frozen=True)
class Repeated:
    """The same, each frame as often as `repeats` says."""

    pictures: Iterable[np.ndarray[Any, Any]]
    repeats: list[int]

    def __iter__(self) -> Iterator[np.ndarray[Any, Any]]:
        frames = (frame for block in self.pictures for frame in block)
        for frame, times in zip(frames, self.repeats, strict=True):
            yield np.broadcast_to(frame, (times, *frame.shape))


@dataclass(frozen=True)
class Cut:
    """Frames (frame, height, width, channel) of an artifact without what they were padded with for the model."""

    rgb: Array
    framing: decode_frames.Spec

    @property
    def shape(self) -> tuple[int, ...]:
        width, height = self.framing.shown
        return (self.rgb.shape[0], height, width, 3)

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.rgb.dtype

    def __getitem__(self, frames: Any, /) -> Any:
        """Of frames, or of one: what is taken of the first dimension."""
        return picture_of(self.rgb[frames], self.framing)


def picture_of(rgb: np.ndarray[Any, Any], framing: decode_frames.Spec) -> np.ndarray[Any, Any]:
    """Frames (…, height, width, channel) without what they were padded with for the model."""
    width, height = framing.shown
    return rgb[..., :height, :width, :]


class Unpadded(Mapping[str, Array]):
    """An artifact as it is looked at: its pictures without what they were padded with."""

    def __init__(self, artifact: Artifact, frames: Artifact) -> None:
        self.artifact, self.framing = artifact, framing_of(frames)

    def __getitem__(self, name: str) -> Array:
        array: Array = self.artifact[name]
        return Cut(array, self.framing) if name == "rgb" else array

    def __iter__(self) -> Iterator[str]:
        return iter(self.artifact)

    def __len__(self) -> int:
        return len(self.artifact)

    @property
    def schema(self) -> Schema:
        return self.artifact.schema


def clip_hash(store: Store, clip: Path) -> str:
    """blake3 of a clip: of its bytes, or of its pictures and their names where it is a folder."""
    if clip.is_dir():
        return store.folder_hash(clip, sorted(each.name for each in clip.iterdir()))
    return store.file_hash(clip)


def preview_sheet(edit: Artifact, frames: Artifact, label: str, file: Path) -> None:
    """Edited keyframes below the source's own, as one PNG."""
    shown = [int(frame) for frame in edit["frame"][:]]
    rgb = Unpadded(frames, frames)["rgb"]
    source = np.stack([rgb[frame : frame + 1][0] for frame in shown])
    save_png(contact_sheet([("source", source), (label, Unpadded(edit, frames)["rgb"][:])], columns=8), file)


def video_sheet(videos: Sequence[Path], labels: Sequence[str], columns: int, file: Path) -> None:
    """Frames of several videos at the same places of the clip, one labelled row each, as one PNG."""
    check_picture(file)
    rows = []
    for video, label in zip(videos, labels, strict=True):
        clip = survey(video)
        wanted = set(np.linspace(0, clip.info.frames - 1, min(columns, clip.info.frames)).round().astype(int).tolist())
        rows.append((label, np.stack([p.rgb for p in read_pictures(clip) if p.index in wanted])))
    save_png(contact_sheet(rows, columns=columns), file)


def export_key(store: Store, named: str, file: Path, encoding: Encoding = DEFAULT) -> Written:
    """Write the clip of a key, or of a run, as a video: an edit, or the decoded frames themselves; without sound.

    named    the first digits of a key; the id of a run that made one edit, or 'latest'
    raises   InputError where nothing, or more than one thing, is named so, or it was removed
    """
    check_output(file, encoding=encoding)
    record = store.resolve(_only_edit(store, named) if is_run(named) else named)
    frames_record = ancestor(store, record, "decode_frames")
    with store.lease((record.hex, frames_record.hex)):
        return _exported(store, record, frames_record, file, encoding)


def _only_edit(store: Store, run: str) -> str:
    """The key of the edit that a run made."""
    from .report import find_run

    keys = [str(row["key"]) for row in find_run(store, run)["stages"] if row["stage"] == "propagate_tokens"]
    if len(keys) != 1:
        have = ", ".join(key[:12] for key in keys) or "none"
        raise InputError(f"the run {run} made {len(keys)} edits; give the key of one: {have}")
    return keys[0]


def _exported(store: Store, record: Record, frames_record: Record, file: Path, encoding: Encoding) -> Written:
    artifact = store.find(record.recipe)
    if artifact is None:
        raise InputError(
            f"{record.stage}/{record.hex[:12]} was removed from the store; run its edit again to have it back"
        )
    if record.stage not in ("propagate_tokens", "decode_frames"):
        raise InputError(
            f"{record.stage}/{record.hex[:12]} is no video; export a propagate_tokens or decode_frames key"
        )
    frames = store.find(frames_record.recipe)
    if frames is None:
        raise InputError(f"the frames of {record.hex[:12]}, which hold its times, were removed; run its edit again")
    step = frames_record.recipe.spec["step"]
    assert isinstance(step, int)
    original = _original(store, frames_record, encoding) if encoding.needs_source else None
    return export_edit(artifact, frames, file, step=step, source=None, encoding=encoding, original=original)


def _original(store: Store, frames: Record, encoding: Encoding) -> Path:
    """The video that frames were decoded from, of which more is wanted."""
    option = "--keep-alpha" if encoding.keep_alpha else "--source-rate"
    video = file_of(store, frames.recipe.inputs["video"])
    if video is None:
        raise InputError(
            f"{option} reads the source again, which is not where any run of this store had it; put it there, or leave "
            f"{option} out"
        )
    if encoding.keep_alpha and not survey(video).info.has_alpha:
        raise InputError(f"--keep-alpha: {video} has no transparency; leave it out")
    return video


def ancestor(store: Store, record: Record, stage: str) -> Record:
    """The record of `stage` that a record was made from."""
    if record.stage == stage:
        return record
    for key in record.recipe.inputs.values():
        if not re.fullmatch(r"[0-9a-f]{64}", key):
            continue
        found = ancestor(store, store.resolve(key), stage)
        if found.stage == stage:
            return found
    return record
