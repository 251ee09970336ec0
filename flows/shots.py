"""Where a clip's shots begin, as a plan needs to know before anything runs: given, or found in its frames."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from stages import decode_frames
from stages.diffusion.chunks import blocks_of
from store.errors import InputError
from store.keys import ArtifactKey
from store.store import Store

Watch = Callable[[str, int], AbstractContextManager[Callable[[int], object]]]
"""Is told what is looked for, and in how many frames; gives whom to tell that so many more were looked at."""


def _unwatched(what: str, frames: int) -> AbstractContextManager[Callable[[int], object]]:
    return nullcontext(int)


watch: ContextVar[Watch] = ContextVar("watch", default=_unwatched)  # a plan is made at many places, and for few to see


class SeenClip:
    """The frames of a clip that is to be decoded, looked at while a run is planned; what was seen is remembered.

    source   the video; None where it is not here, and its frames are in the store or nowhere
    frames   of the clip, as its container tells
    """

    def __init__(
        self, spec: decode_frames.Spec, key: ArtifactKey, source: Path | None, store: Store, frames: int
    ) -> None:  # fmt: skip
        self.spec, self.key, self.source, self.store, self.frames = spec, key, source, store, frames

    def cuts(self) -> tuple[int, ...]:
        """The frames of the clip at which a new shot begins."""

        def look() -> JsonValue:
            from stages.measures.cuts import cuts_of

            with self._watched("cuts", "--cuts none or --cuts 12,48") as frames:
                return [*cuts_of(frames)]

        found: Any = self.store.remembered(f"cuts 1 {self.key.hex}", look)
        return tuple(found)

    def motion(self) -> list[float]:
        """How much moves from each frame to the next, see `stages.measures.cuts`."""

        def look() -> JsonValue:
            from stages.measures.cuts import motion_of

            with self._watched("motion", "--keyframe-placement interval") as frames:
                return [*motion_of(frames)]

        found: Any = self.store.remembered(f"motion 1 {self.key.hex}", look)
        return list(found)

    @contextmanager
    def _watched(self, what: str, way_out: str) -> Iterator[Iterator[Any]]:
        def told() -> Iterator[Any]:
            for rgb in self._frames(way_out):
                yield rgb
                seen(1)

        with watch.get()(f"looking for {what}", self.frames) as seen:
            yield told()

    def _frames(self, way_out: str) -> Iterator[Any]:
        """rgb (height, width, channel) uint8: the same ones, from the video or from the store."""
        if self.source is not None:
            yield from decode_frames.pictures(self.spec, self.source)
            return
        stored = self.store.find(self.key)
        stored = stored and self.store.fetch(stored)
        if stored is None:
            raise InputError(f"neither the video nor its frames are here to be looked at; say {way_out}")
        rgb = stored["rgb"]
        for block in blocks_of(rgb.shape[0]):
            yield from rgb[block.start : block.stop]


def parse_cuts(text: str, taken: Sequence[int]) -> tuple[int, ...]:
    """Cuts as frames of the clip, from "12,48": frames of the video at which a new shot begins, in any order.

    taken    positions in the video of the clip's frames
    raises   InputError where it is no such list, or a cut does not lie inside the clip
    """
    if not re.fullmatch(r"\s*\d+(\s*,\s*\d+)*\s*", text):
        raise InputError(
            f"--cuts {text!r} is neither auto nor none nor a list of frames at which new shots begin, such as 12,48"
        )
    given = sorted({int(number) for number in text.split(",")})
    cuts = [bisect_left(taken, frame) for frame in given]
    for frame, cut in zip(given, cuts, strict=True):
        if not 0 < cut < len(taken):
            raise InputError(
                f"--cuts {frame}: no shot can begin there, since the clip has the frames {taken[0]} to {taken[-1]}; "
                f"give frames from {taken[0] + 1} to {taken[-1]}, or none"
            )
    return tuple(dict.fromkeys(cuts))


def written_cuts(cuts: tuple[int, ...], taken: Sequence[int]) -> str:
    """Cuts of the clip as `parse_cuts` reads them; "none" where there are none."""
    return ",".join(str(taken[cut]) for cut in cuts) or "none"
