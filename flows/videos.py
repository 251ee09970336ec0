"""What a plan must know of a video: its description and the hash of its bytes. The file itself only decoding needs."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from pydantic import JsonValue, ValidationError

from stages import decode_frames, invert_frames, match_tokens
from stages.media.letterbox import Bars, find_bars
from stages.media.video import VideoInfo, survey
from store.errors import InputError
from store.schemas import Frozen
from store.store import Store
from store.summaries import Summary

from .shots import written_cuts


class KnownVideo(Frozen):
    """A video as a plan sees it: so a plan can be made where the file is not.

    key         "blake3:" and the hash of the file's bytes
    mask_key    the same of its mask's files, where these are not here either
    bars        black bars that were found around its picture
    given       the same as the key, of its control videos in the order of their controls
    region_keys the same per region; None for one whose mask is found
    """

    key: str
    info: VideoInfo
    mask_key: str | None = None
    bars: Bars | None = None
    given: tuple[str, ...] = ()
    region_keys: tuple[str | None, ...] = ()

    @classmethod
    def of(cls, file: Path, store: Store) -> KnownVideo:
        """Look at a file; InputError where it is no video."""
        clip = survey(file)
        key = f"blake3:{store.file_hash(file)}"

        def look() -> JsonValue:
            with suppress(InputError):  # damaged: decoding says where
                bars = find_bars(clip)
                return [] if bars is None else [bars.model_dump()]
            return []

        found: Any = store.remembered(f"bars 2 {key}", look)
        return cls(key=key, info=clip.info, bars=Bars.model_validate(found[0]) if found else None)


@dataclass(frozen=True)
class Preparation:
    """A video whose first four stages a store has, and how they were asked for.

    key     of its field, in hex: it names the preparation
    label   for people; its last word is the beginning of the key
    """

    key: str
    label: str
    video: KnownVideo
    config: Mapping[str, Any]


def preparations(store: Store) -> list[Preparation]:
    """All that a new prompt can be put to at once, the newest first; records of older Specs are passed over."""
    known = {summary.hex: summary for summary in store.summaries()}
    held = store.held()
    found = []
    for field in sorted((s for s in known.values() if s.stage == "match_tokens"), key=_created, reverse=True):
        line = _line(field, known)
        if line and all(summary.digest in held for summary in line):
            try:
                found.append(_preparation(store, *line))
            except (ValidationError, KeyError):
                continue
    return found


def choose_preparation(store: Store, wanted: str) -> Preparation:
    """The one that a label or the first digits of its key name, or of its video's key.

    raises    InputError, with those there are, where none or several are meant
    """
    found = preparations(store)
    digits = wanted.split()[-1].removeprefix("blake3:").lower() if wanted.split() else ""
    chosen = [each for each in found if digits and _is_meant(each, digits)]
    if len(chosen) == 1:
        return chosen[0]
    have = "; ".join(each.label for each in (chosen or found)[:10]) or "none yet: prepare-video makes one"
    fault = "names several prepared videos" if chosen else "is no prepared video"
    raise InputError(f"{wanted!r} {fault} of {store.place}; have {have}")


def file_of(store: Store, key: str) -> Path | None:
    """Where the video of this key lies on this machine, as far as the store's runs know; its sound is wanted."""
    for run in store.runs():
        with suppress(KeyError, TypeError, OSError):
            file = Path(run["config"]["video"])
            if run["video"] == key and file.is_file() and f"blake3:{store.file_hash(file)}" == key:
                return file
    return None


def _is_meant(preparation: Preparation, digits: str) -> bool:
    keys = (preparation.key, preparation.video.key.removeprefix("blake3:"))
    return any(key.startswith(digits) for key in keys)


def _created(summary: Summary) -> str:
    return summary.created


def _line(field: Summary, known: Mapping[str, Summary]) -> list[Summary] | None:
    """Field, tokens, latents, frames; None where a record on the way is gone."""
    line = [field]
    for role in ("tokens", "latents", "frames"):
        above = known.get(line[-1].recipe.inputs.get(role, ""))
        if above is None:
            return None
        line.append(above)
    return line


def _preparation(store: Store, field: Summary, tokens: Summary, latents: Summary, frames: Summary) -> Preparation:
    """raises    ValidationError, KeyError where a Spec is one that this version does not know"""
    match = match_tokens.Spec.model_validate(field.recipe.spec)
    invert = invert_frames.Spec.model_validate(latents.recipe.spec)
    decode = decode_frames.Spec.model_validate(frames.recipe.spec)
    video = KnownVideo(key=frames.recipe.inputs["video"], info=_described(store, frames))
    stop = decode.stop or video.info.declared_frames
    all_frames = decode.stop is None and (decode.start, decode.step) == (0, 1)
    name, model = (
        str(frames.noted("video") or "video"),
        str(latents.noted("model_place") or latents.noted("model") or "pocket"),
    )
    config = {
        "video": Path(name), "model": model, "source_prompt": invert.prompt,
        "frames": None if all_frames else f"{decode.start}:{stop}:{decode.step}",
        "size": "{}x{}".format(*decode.shown), "fps": float(Fraction(decode.fps)) if decode.fps else None,
        "letterbox": decode.bars.words() if decode.bars else "keep",
        "background_colour": "#{:02x}{:02x}{:02x}".format(*decode.background),
        "vae_tiling": "on" if invert.tiled else "off", "steps": invert.num_steps,
        "inversion_steps": invert.num_inversion_steps, "inversion_evaluations": invert.evaluations,
        "solver": invert.solver, "timestep_spacing": invert.timestep_spacing, "seed": match.seed,
        "keyframe_interval": match.keyframe_interval, "keyframe_offsets": match.keyframe_offsets, "blend": match.blend,
        "cuts": _written_cuts(match.cuts, decode, video.info),
        "keyframe_placement": "adaptive" if match.interval_starts else "interval",
    }  # fmt: skip
    count = frames.sizes.get("frame") or stop
    words = [Path(name).stem, f"{count} frames", "{}×{}".format(*decode.shown), Path(model).name]
    label = " · ".join([*words, f"{invert.num_steps} steps", field.hex[:8]])
    return Preparation(field.hex, label, video, config)


def _written_cuts(cuts: tuple[int, ...], spec: decode_frames.Spec, info: VideoInfo) -> str:
    """Cuts as an option; those of uneven frames of which some are left out are found again."""
    if spec.fps and info.variable:
        return "auto" if cuts else "none"
    return written_cuts(cuts, decode_frames.taken(spec, info))


def _described(store: Store, frames: Summary) -> VideoInfo:
    """The video as it was when its frames were decoded; from what the frames tell, where an older record does not."""
    try:
        return VideoInfo.model_validate(frames.noted("described"))
    except ValidationError:
        attrs = store.resolve(frames.hex).attrs
    spec = decode_frames.Spec.model_validate(frames.recipe.spec)
    last = spec.stop or spec.start + (frames.sizes.get("frame") or 1) * spec.step
    count = last + (spec.stop is not None)  # to have a stop, the video must go on behind it
    width, height = int(str(attrs["source_width"])), int(str(attrs["source_height"]))
    return VideoInfo(
        width=width, height=height, coded_width=width, coded_height=height, frames=count, declared_frames=count,
        start=0, duration=0, average_fps=str(attrs["average_fps"]), variable=bool(attrs["variable"]),
        rotation=int(str(attrs["rotation"])), mirrored=bool(attrs["mirrored"]), sample_aspect_ratio="1/1",
        container="", codec="", pixel_format="", has_alpha=False, colour_matrix=str(attrs["colour_matrix"]),
        colour_range=str(attrs["colour_range"]), has_audio=False, audio_codec=None, notes=(),
    )  # fmt: skip
