"""A suite: clips × prompts × settings to be edited and measured, read from a TOML file or made for one video."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, ValidationError

from store.errors import InputError
from store.schemas import Frozen

from .config import EditConfig, make_config
from .toml import read_toml

Options = dict[str, JsonValue]
"""Options of `tf run` by name, such as keyframe_interval; an editor's own under editor_settings."""

OWN = ("video", "prompts", "source_prompt", "frames")  # of the clips, not of the settings
PER_FRAME: Options = {"keyframe_interval": 1, "keyframe_offsets": 1, "attended_keyframes": 1}
"""Every frame its own keyframe, attending to itself alone: the editing base frame by frame, without propagation."""


class Clip(Frozen):
    """One video, and what it is to be edited into; no prompts where only its inversion is looked at."""

    video: Path
    source_prompt: str = ""
    prompts: tuple[str, ...] = ()
    frames: str | None = None

    @property
    def name(self) -> str:
        """What tables call it."""
        return self.video.stem


class PocketClips(Frozen):
    """Clips rendered from the embedded model's own world, whose motion, masks and attributes are known exactly.

    change   which attribute each clip's one edit changes, in turn; empty: no edits
    """

    clips: int = Field(ge=1, le=1000)
    seed: int = Field(0, ge=0)
    frames: int = Field(16, ge=2, le=512)
    size: int = Field(64, ge=16, le=512, multiple_of=8)
    change: tuple[Literal["colour", "surface", "ground"], ...] = ("colour", "surface", "ground")


class Setting(Frozen):
    """One way of editing; `clips`: of how many clips, from the first, all without it."""

    name: str = Field(min_length=1)
    clips: int | None = Field(None, ge=1)
    options: Options = Field(default_factory=dict)


class Metrics(Frozen):
    """Which estimator of optical flow, where the true flow is not known, and which CLIP model, if any."""

    flow: Literal["auto", "raft", "dis"] = "auto"
    clip_model: str | None = None


class Suite(Frozen):
    """All of it; the first setting is the one that the others are compared with."""

    name: str
    options: Options = Field(default_factory=dict)
    settings: Annotated[tuple[Setting, ...], Field(min_length=1)] = (Setting(name="ours"),)
    clips: tuple[Clip, ...] = ()
    pocket: PocketClips | None = None
    per_frame: bool = True
    field: bool = True
    metrics: Metrics = Metrics()

    def all_settings(self) -> tuple[Setting, ...]:
        """The settings, and per-frame editing where it is not one of them."""
        if not self.per_frame or any(setting.name == "per-frame" for setting in self.settings):
            return self.settings
        first = self.settings[0]
        return (*self.settings, Setting(name="per-frame", options={**first.options, **PER_FRAME}))

    def config(self, clip: Clip, setting: Setting) -> EditConfig:
        """What `tf run` would be asked for; without prompts, the source prompt stands in and is never edited."""
        prompts = clip.prompts or (clip.source_prompt or "nothing",)
        options = {**self.options, **setting.options}
        shared, own = (given.get("editor_settings") for given in (self.options, setting.options))
        if isinstance(shared, dict) and isinstance(own, dict):
            options["editor_settings"] = {**shared, **own}
        return make_config(
            **options,
            video=clip.video, source_prompt=clip.source_prompt, frames=clip.frames, prompts=prompts,
        )  # fmt: skip


def read_suite(file: Path) -> Suite:
    """The suite in a TOML file; InputError, one sentence with the place, where it cannot be used."""
    written = read_toml(file, "suite", "a .toml file, or a video")
    settings = [_with_options(setting) for setting in _tables(written.get("settings", []), file, "settings")]
    if settings:
        written["settings"] = settings
    try:
        suite = Suite.model_validate({"name": file.stem, **written})
    except ValidationError as error:
        raise InputError(f"suite {file}: {_first(error)}") from None
    clips = tuple(clip.model_copy(update={"video": file.parent / clip.video}) for clip in suite.clips)
    return checked(suite.model_copy(update={"clips": clips}), f"suite {file}")


def checked(suite: Suite, where: str) -> Suite:
    """The suite, if its clips are there, its names differ and its options are those of `tf run`; else InputError."""
    if not suite.clips and suite.pocket is None:
        raise InputError(f"{where} has no clips; add [[clips]] with a video, or [pocket]")
    names = [setting.name for setting in suite.settings]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{where}: two settings are called {name!r}; a table could not tell them apart")
    known = [name for name in EditConfig.model_fields if name not in OWN]
    for place, options in [("options", suite.options), *((f"settings {s.name!r}", s.options) for s in suite.settings)]:
        for option in options:
            if option not in known:
                raise InputError(f"{where}: {place}: no option {option!r}; have {', '.join(known)}")
    for clip in suite.clips:
        if not clip.video.is_file():
            raise InputError(f"{where}: there is no clip {clip.video}; a path is relative to the suite's folder")
    return suite


def pocket_clips(wanted: PocketClips, folder: Path) -> tuple[Clip, ...]:
    """Render what is not rendered yet into `folder`, each video with its truth beside it."""
    import torch

    from pocket.clips import write_video
    from pocket.truth import ForeignTruthError, read_truth
    from pocket.world import caption, sample_clip

    folder.mkdir(parents=True, exist_ok=True)
    clips = []
    for number in range(wanted.clips):
        seed = 1000 * wanted.seed + number
        scenes = sample_clip(wanted.frames, torch.Generator().manual_seed(seed))
        video = folder / f"pocket-{seed}-{wanted.frames}f-{wanted.size}px.mp4"
        try:
            known = read_truth(video) if video.is_file() else None
        except ForeignTruthError:
            known = None
        if known is None:
            write_video(video, scenes, size=wanted.size)
        prompts = (changed_caption(scenes, wanted.change[number % len(wanted.change)], seed),) if wanted.change else ()
        clips.append(Clip(video=video, source_prompt=caption(scenes), prompts=prompts))
    return tuple(clips)


def changed_caption(scenes: Any, attribute: str, seed: int) -> str:
    """The caption of a clip with one attribute, 'colour', 'surface' or 'ground', drawn anew among the others."""
    from dataclasses import replace

    import torch

    from pocket.world import COLOURS, GROUNDS, SURFACES, caption

    count = len({"colour": COLOURS, "surface": SURFACES, "ground": GROUNDS}[attribute])
    step = int(torch.randint(1, count, (1,), generator=torch.Generator().manual_seed(seed)))
    now = getattr(scenes, attribute)
    return caption(replace(scenes, **{attribute: (now + step) % count}))


def suite_of(config: EditConfig, metrics: Metrics) -> Suite:
    """One video, edited as `config` says and frame by frame."""
    clip = Clip(
        video=config.video, source_prompt=config.source_prompt, prompts=config.prompts, frames=config.frames
    )  # fmt: skip
    options = {name: value for name, value in config.model_dump(mode="json").items() if name not in OWN}
    return checked(Suite(name=config.video.stem, options=options, clips=(clip,), metrics=metrics), "this evaluation")


def _tables(value: Any, file: Path, name: str) -> Sequence[Mapping[str, Any]]:
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        return value
    raise InputError(f"suite {file}: {name} is no list of tables; write [[{name}]]")


def _with_options(setting: Mapping[str, Any]) -> dict[str, Any]:
    """A setting as it is written, its options beside its name, in the shape that is validated."""
    own = {name: value for name, value in setting.items() if name in ("name", "clips")}
    return own | {"options": {name: value for name, value in setting.items() if name not in own}}


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"{where} is not known here"
    return f"{where}: {first['msg'][0].lower()}{first['msg'][1:]}"
