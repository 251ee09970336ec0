"""What an explanation of a miss costs in a store of thousands of records, in milliseconds.

    python -m benchmarks.explaining --records 5000 --files 300

The store is made up: records of edits and of their clips as a suite or a long sweep leaves them, no objects. `edit` and
`clip` are misses as `tf plan` explains them, a clip's by what its edit is made from; `explain` is `tf explain KEY`, and
`list` reads every summary; each asked twice.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flows.explain import explain_keys
from stages import edit_keyframes, editors, propagate_tokens
from store.keys import ArtifactKey
from store.layout import write_whole
from store.records import FileEntry, Record, manifest_digest, now, software
from store.schemas import Schema, Variable
from store.store import Store


def key_of(number: int) -> ArtifactKey:
    """The key of the edit number so-and-so: its prompt is its own, every tenth has another guidance."""
    spec = edit_keyframes.Spec(
        prompt=f"a ball number {number}", guidance_scale=5 + number % 10, editor=editors.choose("pnp", {})
    )
    inputs = {role: f"{place:064x}" for place, role in enumerate(("latents", "tokens", "field"))}
    return ArtifactKey.of("edit_keyframes", edit_keyframes.VERSION, spec, {**inputs, "model": "blake3:0"})


def clip_of(edit: ArtifactKey) -> ArtifactKey:
    """The key of an edit's clip: the same for all of them but for the edit."""
    inputs = {role: f"{place:064x}" for place, role in enumerate(("latents", "tokens", "field"))}
    return ArtifactKey.of(
        "propagate_tokens", propagate_tokens.VERSION, propagate_tokens.Spec(), {**inputs, "keyframes": edit.hex}
    )


def record_of(key: ArtifactKey, files: int) -> Record:
    """A sound record of so many files; there is no object behind it."""
    variable = Variable(dims=("frame",), shape=(files,), dtype="uint8", chunks=(1,))
    names = ["zarr.json", "rgb/zarr.json", *(f"rgb/c/{place}" for place in range(files))]
    listed = {name: FileEntry(size=1, blake3=key.hex) for name in names}
    return Record(
        recipe=key, hex=key.hex, stage=key.stage, digest=manifest_digest(listed), bytes=len(listed),
        files=listed,
        schema=Schema(artifact="keyframe_edit", variables={"rgb": variable}), attrs={}, seconds=1.0, created=now(),
        provenance=dict(software()),
    ).sealed()  # fmt: skip


def fill(store: Store, records: int, files: int) -> None:
    """Write the records of so many edits and their clips."""
    for edit in map(key_of, range(records)):
        for record in (record_of(edit, files), record_of(clip_of(edit), files)):
            write_whole(store.layout.record(record.stage, record.hex), record.to_json())


def milliseconds(what: Callable[[], Any]) -> float:
    """How long it takes."""
    began = time.perf_counter()
    what()
    return 1000 * (time.perf_counter() - began)


def main() -> None:
    """Print one line per question."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=5000, help="of edits; as many clips")
    parser.add_argument("--files", type=int, default=300, help="that each record lists")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place, edit = Path(folder) / "store", key_of(asked.records)
        fill(Store(place), asked.records, asked.files)
        questions: dict[str, Callable[[], Any]] = {  # each in a store that was just opened, as by a command
            "edit": lambda: Store(place).explain(edit),
            "clip": lambda: Store(place).explain(clip_of(edit), {edit.hex: edit}),
            "explain": lambda: explain_keys(Store(place), key_of(0).hex),
            "list": lambda: list(Store(place).summaries()),
        }
        for name, ask in questions.items():
            print(f"{name:<8} first {milliseconds(ask):8.1f} ms   again {milliseconds(ask):8.1f} ms")


if __name__ == "__main__":
    main()
