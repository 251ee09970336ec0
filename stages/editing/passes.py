"""Which frames an edit puts into one pass of the model: the same ones, whoever runs it and however it is divided.

The sums of a pass depend, in their last bits, on how many rows it has. So that a clip has the same bytes whether all of
it is edited at once, continued from its keyframes, or done window by window on several machines, no pass mixes what
one of these ways runs and another does not: the keyframes of a step, the rest of the support, and of the other frames
those of different windows.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from numpy.typing import NDArray

from ..diffusion.attention import keyframe_groups

KEYFRAMES_PER_PASS = 8  # short blocks of keyframes are put into one pass while there are no more of them
WINDOW_FRAMES = 64  # whole blocks of frames, and whole intervals of most lengths; shorter repeats more joint passes


@dataclass(frozen=True)
class Stretch:
    """Keyframes that are edited in one pass at a step, and the frames that can be propagated once they are.

    keyframes   their positions among the step's keyframes
    blocks      blocks of equal length that they form
    anchors     whether they are the anchors of all that follow at this step
    groups      frames of the clip, none of them a keyframe; no pass mixes those of two groups
    kept        positions whose T_base later stretches gather from
    """

    step: int
    keyframes: list[int]
    blocks: int
    anchors: bool
    groups: list[list[int]]
    kept: list[int]

    @property
    def frames(self) -> list[int]:
        """Frames of all groups, one group after the other."""
        return [frame for group in self.groups for frame in group]


def window_of(frame: int) -> int:
    """The number of the window that a frame of the clip lies in."""
    return frame // WINDOW_FRAMES


def apart(frames: Sequence[int], support: Collection[int], border: int = 0) -> list[list[int]]:
    """Frames in groups that no pass mixes: those of the support, and of the others those of each window.

    border   so many frames at either end of a window are groups of their own: the window beside it may need them too
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for frame in frames:
        inside = frame % WINDOW_FRAMES
        place = (inside >= border) + (inside >= WINDOW_FRAMES - border)
        groups.setdefault((-1, 0) if frame in support else (window_of(frame), place), []).append(frame)
    return [groups[number] for number in sorted(groups)]


def widened(part: range, wanted: range, border: int, frames: int) -> range:
    """`part`, whole windows of a clip of `frames` frames, and the borders beside it that some of `wanted` lie in."""
    start = part.start - border * (wanted.start < part.start)
    return range(start, min(frames, part.stop + border * (wanted.stop > part.stop)))


def spans(groups: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """Per group where it begins and ends when one is laid after the other."""
    ends = list(accumulate(len(group) for group in groups))
    return list(zip([0, *ends], ends, strict=False))


def stretches(
    step: int, frames: Sequence[int], *, keyframes: NDArray[Any], neighbours: NDArray[Any], support: Collection[int],
    limit: int, border: int = 0,
) -> list[Stretch]:  # fmt: skip
    """A step in pieces that bound memory: each joint pass, followed by the frames that it makes known.

    Joint passes that none of `frames` needs are left out; those that are run have the keyframes that they always have.

    frames       of the clip, ascending: those that are denoised
    keyframes    the step's (keyframe)     neighbours   positions (frame, side) among them, of all frames of the clip
    limit        keyframes that attend to each other, see `keyframe_groups`
    border       see `apart`
    """
    anchors, blocks = keyframe_groups(len(keyframes), limit)
    passes = ([(anchors, 1)] if anchors else []) + _joined(blocks, KEYFRAMES_PER_PASS)
    order = {position: number for number, (own, _) in enumerate(passes) for position in own}
    place = {int(frame): position for position, frame in enumerate(keyframes)}
    followed: list[dict[int, tuple[int, int]]] = [{} for _ in passes]  # per pass: frame → its two keyframes
    wanted = {order[place[frame]] for frame in frames if frame in place}
    for frame in frames:
        if frame not in place:
            previous, following = (int(position) for position in neighbours[frame])
            wanted |= {order[previous], order[following]}
            followed[max(order[previous], order[following])][frame] = previous, following
    if anchors and wanted:
        wanted.add(0)
    found: list[Stretch] = []
    later: set[int] = set()
    for number in sorted(wanted, reverse=True):
        own, blocks_of_own = passes[number]
        kept = sorted(position for position in later if order[position] <= number)
        groups = apart(list(followed[number]), support, border)
        found.append(Stretch(step, own, blocks_of_own, bool(anchors) and not number, groups, kept))
        later |= {position for pair in followed[number].values() for position in pair}
    return found[::-1]


def _joined(blocks: list[list[int]], at_once: int) -> list[tuple[list[int], int]]:
    """Blocks of equal length put into one pass while they fit: (positions, number of blocks)."""
    passes: list[tuple[list[int], int]] = []
    for block in blocks:
        before, count = passes[-1] if passes else ([], 0)
        if count and len(before) == count * len(block) and len(before) + len(block) <= at_once:
            passes[-1] = ([*before, *block], count + 1)
        else:
            passes.append((block, 1))
    return passes
