"""Files of a store as a stranger may write them: changed anywhere, with every hash and seal made to fit again."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from store.artifact import Artifact
from store.hashing import payload_hash
from store.keys import ArtifactKey
from store.layout import regular_files
from store.records import FileEntry, manifest_digest, seal_of
from store.store import Store

Json = dict[str, Any]
Value = TypeVar("Value")


def outcome(do: Callable[[], Value], *refusals: type[Exception]) -> tuple[Value | None, str]:
    """What `do` gives, or the sentence with which it refuses."""
    try:
        return do(), ""
    except refusals as error:
        return None, str(error)


def changed(document: Json, changes: list[tuple[list[str | int], Any]]) -> Json:
    """A copy of `document` with a value put at each path; "…" as value removes what is there."""
    new = copy.deepcopy(document)
    for path, value in changes:
        *above, last = path
        place: Any = new
        for step in above:
            place = place[step]
        if value == "…":
            del place[last]
        else:
            place[last] = value
    return new


def forged(record: Json) -> Json:
    """The record with key, digest, size and seal as they follow from the rest, wherever the rest allows it."""
    new = copy.deepcopy(record)
    try:
        new["hex"] = ArtifactKey.model_validate(new["recipe"]).hex
        new["digest"] = manifest_digest({name: FileEntry.model_validate(file) for name, file in new["files"].items()})
        new["bytes"] = sum(file["size"] for file in new["files"].values())
    except (ValueError, TypeError, KeyError, AttributeError):
        pass
    return resealed(new)


def resealed(record: Json) -> Json:
    try:
        return record | {"seal": seal_of(record)}
    except (ValueError, TypeError):
        return record


def put_record(store: Store, record: Json) -> Path:
    """Write a record where the store looks for it."""
    path = store.layout.record(record["stage"], record["hex"])
    path.write_text(json.dumps(record))
    return path


def forge_metadata(store: Store, artifact: Artifact, name: str, change: Callable[[Json], Json]) -> Artifact:
    """Change the metadata of the array `name` ("" for the group's own), and the record and the object to fit it."""
    folder = artifact.path
    root = json.loads((folder / "zarr.json").read_text())
    if name:
        own = change(root["consolidated_metadata"]["metadata"][name])
        root["consolidated_metadata"]["metadata"][name] = own
        (folder / name / "zarr.json").write_text(json.dumps(own))
    else:
        root = change(root)
    (folder / "zarr.json").write_text(json.dumps(root))
    record = json.loads(store.layout.record(artifact.stage, artifact.key).read_text())
    record["files"] = {
        file: {"size": size, "blake3": payload_hash(folder / file)} for file, size in regular_files(folder).items()
    }
    record = forged(record)
    folder.rename(store.layout.object(record["digest"]))
    put_record(store, record)
    found = store.find(artifact.key)
    assert found is not None
    return found
