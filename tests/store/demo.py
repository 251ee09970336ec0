"""A small artifact with every dtype that the stages use, in three parts; also run as a second process:

python -m tests.store.demo ROOT WHERE [WAIT]    write the artifact, say "here" at WHERE and wait for a line (or a kill)

WHERE is one of: start, block, part, moved, never.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from store.artifact import Artifact
from store.draft import Draft
from store.keys import ArtifactKey
from store.records import Record
from store.schemas import Block, Frozen, Schema, Variable
from store.store import Store


class DemoSpec(Frozen):
    steps: int = 50
    strength: float = 0.5


def demo_key(steps: int = 50, version: int = 1, **inputs: str) -> ArtifactKey:
    return ArtifactKey.of("demo_stage", version, DemoSpec(steps=steps), inputs)


def demo_schema(frames: int = 6) -> Schema:
    return Schema(
        artifact="demo",
        variables={
            "rgb": Variable(dims=("frame", "width", "channel"), shape=(frames, 4, 3), dtype="uint8", chunks=(2, 4, 3)),
            "index": Variable(
                dims=("frame", "token"), shape=(frames, 5), dtype="uint16", chunks=(1, 5), le=4, compress=True
            ),
            "count": Variable(dims=("frame",), shape=(frames,), dtype="int32", chunks=(2,), ge=0),
            "latents": Variable(
                dims=("frame", "channel4"), shape=(frames, 4), dtype="float16", chunks=(2, 2), finite=True
            ),
            "weights": Variable(
                dims=("frame", "side"), shape=(frames, 2), dtype="float32", chunks=(2, 2), sums_to_one="side"
            ),
            "pts": Variable(
                dims=("frame",), shape=(frames,), dtype="float64", chunks=(2,), finite=True, units="seconds"
            ),
        },
        coordinates={"frame": tuple(range(10, 10 + frames))},
        attrs={"scale": 0.18215},
        parts=("frame", 2),
    )


def demo_values(name: str, part: range) -> np.ndarray:
    """What variable `name` holds in the frames of `part`; the same on every call."""
    variable = demo_schema().variables[name]
    shape = (len(part), *[size or 0 for size in variable.shape[1:]])
    random = np.random.default_rng([part.start, *name.encode()])
    if name == "weights":
        left = random.random(shape[:1])
        return np.stack([left, 1 - left], axis=1).astype(np.float32)
    return (random.random(shape) * 5).astype(variable.dtype)


def demo_blocks(part: range) -> Iterator[Block]:
    """Two blocks for `latents`, one for each other variable: seven in all."""
    for name, variable in demo_schema().variables.items():
        values = demo_values(name, part)
        start = (part.start,) + (0,) * (len(variable.dims) - 1)
        if name == "latents":
            yield Block(name, start, values[:, :2])
            yield Block(name, (part.start, 2), values[:, 2:])
        else:
            yield Block(name, start, values)


def make_demo(store: Store, key: ArtifactKey | None = None, schema: Schema | None = None) -> Artifact:
    with store.draft(key or demo_key(), schema or demo_schema()) as draft:
        for part in draft.missing():
            draft.write(part, demo_blocks(part))
        draft.attrs["fps"] = 24.0
    return draft.artifact


@contextmanager
def stopped() -> Iterator[None]:
    """A block that a KeyboardInterrupt must end."""
    with pytest.raises(KeyboardInterrupt):
        yield


def _here() -> None:
    print("here", flush=True)
    sys.stdin.readline()


def main(root: str, where: str) -> None:
    publish = Draft._publish

    def pausing(draft: Draft, record: Record) -> Artifact:
        _here()
        return publish(draft, record)

    if where == "moved":
        Draft._publish = pausing  # type: ignore[method-assign]
    with Store(Path(root)).draft(demo_key(), demo_schema()) as draft:
        if where == "start":
            _here()
        for position, part in enumerate(draft.missing()):
            if where == "part" and position == 2:
                _here()
            draft.write(part, _pausing_blocks(part) if where == "block" and position == 1 else demo_blocks(part))
        draft.attrs["fps"] = 24.0
    print("done", draft.artifact.digest, flush=True)


def _pausing_blocks(part: range) -> Iterator[Block]:
    for position, block in enumerate(demo_blocks(part)):
        if position == 4:
            _here()
        yield block


if __name__ == "__main__":
    main(*sys.argv[1:3])
