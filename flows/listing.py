"""What a store holds, by video: what people know it by, and what was made of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from store.collect import last_uses, used_at
from store.store import Store
from store.summaries import Summary

UNKNOWN = "unknown video"


@dataclass(frozen=True)
class Listed:
    """One artifact in the list; `used`: when it was last used, in seconds since 1970."""

    summary: Summary
    pinned: bool
    there: bool
    used: float


@dataclass(frozen=True)
class Video:
    """Everything that was made of one video, in the order in which it was.

    name            the file name that it was last seen under
    key             of the video's bytes, "blake3:…"; empty where no record tells
    width, height   of its frames, the last size that was asked for, without padding; None where no record tells
    frames          of its longest clip
    bytes           on disk: equal objects counted once, collected ones not at all
    """

    name: str
    key: str
    width: int | None
    height: int | None
    frames: int | None
    models: tuple[str, ...]
    bytes: int
    artifacts: tuple[Listed, ...]


def videos(store: Store) -> list[Video]:
    """All videos, the one that was used last at the end."""
    known = {summary.hex: summary for summary in store.summaries()}
    groups: dict[str, list[Summary]] = defaultdict(list)
    for summary in known.values():
        groups[video_key(summary, known) or str(summary.noted("video") or UNKNOWN)].append(summary)
    pins, held, used, names = store.pins(), store.held(), last_uses(store), _names(store)
    found = []
    for key, own in groups.items():
        listed = [Listed(s, s.hex in pins, s.digest in held, used_at(s, used)) for s in sorted(own, key=_made)]
        found.append(_video(key, listed, names.get(key)))
    return sorted(found, key=lambda video: max(each.used for each in video.artifacts))


def video_key(summary: Summary, known: Mapping[str, Summary]) -> str | None:
    """The key of the video that an artifact was made from; None where a record on the way is gone."""
    pending, seen = [summary], set()
    while pending:
        here = pending.pop()
        if "video" in here.recipe.inputs:
            return here.recipe.inputs["video"]
        seen.add(here.hex)
        pending += [known[key] for key in here.inputs if key in known and key not in seen]
    return None


def listed_json(found: Sequence[Video]) -> list[dict[str, Any]]:
    """One object per artifact, as `tf list --json` prints them."""
    return [
        {
            "key": each.summary.hex, "stage": each.summary.stage, "bytes": each.summary.bytes,
            "seconds": each.summary.seconds, "created": each.summary.created, "note": each.summary.note,
            "prompt": each.summary.prompt, "pinned": each.pinned, "there": each.there, "used": round(each.used, 3),
            "video": {
                "name": video.name, "key": video.key, "width": video.width, "height": video.height,
                "frames": video.frames,
            },
        }
        for video in found
        for each in video.artifacts
    ]  # fmt: skip


def _made(summary: Summary) -> str:
    return summary.created


def _names(store: Store) -> dict[str, str]:
    """Key of a video → the file name under which a run saw it last."""
    names: dict[str, str] = {}
    for run in store.runs():
        with suppress(KeyError, TypeError):  # a run that cannot be read names nothing
            names.setdefault(run["video"], Path(run["config"]["video"]).name)
    return names


def _shown(clip: Summary, side: Literal["width", "height"]) -> int | None:
    """Pixels of decoded frames without what pads them for the model."""
    whole, padding = clip.sizes.get(side), clip.recipe.spec.get("padding")
    added = padding[side == "height"] if isinstance(padding, list | tuple) and len(padding) == 2 else 0
    return whole - added if whole is not None and isinstance(added, int) else whole


def _video(key: str, artifacts: list[Listed], name: str | None) -> Video:
    clips = [each.summary for each in artifacts if each.summary.stage == "decode_frames"]
    newest = max(artifacts, key=lambda each: each.summary.created)
    noted = [each.summary.noted("model") for each in artifacts if each.summary.stage != "decode_frames"]
    return Video(
        name=name or str(newest.summary.noted("video") or UNKNOWN),
        key=key if key.startswith("blake3:") else "",
        width=_shown(clips[-1], "width") if clips else None,
        height=_shown(clips[-1], "height") if clips else None,
        frames=max((clip.sizes.get("frame") or 0 for clip in clips), default=0) or None,
        models=tuple(dict.fromkeys(str(model) for model in noted if model)),
        bytes=sum({each.summary.digest: each.summary.bytes for each in artifacts if each.there}.values()),
        artifacts=tuple(artifacts),
    )
