"""What lists and decisions need to know of a record: its list of files is neither checked nor kept.

A store of thousands of records is listed in about a second, where checking each would take a minute. Nothing is opened
on the word of a summary: that is for `store.records.read_record`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import JsonValue
from pydantic_core import from_json

from store.errors import StoreError
from store.guard import Refused, check_bulk, read_small
from store.keys import ArtifactKey

EDITS = ("edit_keyframes", "propagate_tokens")  # stages that see the prompt of an edit


@dataclass(frozen=True)
class Summary:
    """One record: what was asked, what came out, how long it took.

    sizes   dimension → its length, of all variables
    """

    hex: str
    stage: str
    recipe: ArtifactKey
    digest: str
    bytes: int
    seconds: float
    created: str  # ISO 8601, UTC
    sizes: Mapping[str, int | None]
    note: JsonValue = None

    @property
    def inputs(self) -> list[str]:
        """Keys of the artifacts that it was made from; a video and a model are none."""
        return [key for key in self.recipe.inputs.values() if is_key(key)]

    @property
    def prompt(self) -> str | None:
        """The prompt of an edit."""
        prompt = self.recipe.spec.get("prompt") if self.stage in EDITS else None
        return str(prompt) if prompt is not None else str(self.noted("prompt") or "") or None

    def noted(self, name: str) -> JsonValue:
        """A field of the note that whoever made the artifact left."""
        return self.note.get(name) if isinstance(self.note, dict) else None

    def __str__(self) -> str:
        prompt = f" ({self.prompt!r})" if self.prompt else ""
        return f"{self.stage}/{self.hex[:12]}{prompt}"


def is_key(text: str) -> bool:
    """Whether a text is a whole key or digest: 64 hexadecimal digits."""
    return re.fullmatch(r"[0-9a-f]{64}", text) is not None


def read_summary(path: Path) -> Summary | None:
    """The summary of the record at `path`, None where there is none; StoreError when it cannot be read as one."""
    try:
        data = read_small(path)
        check_bulk(data)
        summary = _summary(from_json(data))
    except FileNotFoundError:
        return None
    except Refused as error:
        raise _damaged(path, str(error)) from None
    except OSError as error:
        raise StoreError(f"cannot read the record {path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise _damaged(path, "is no record") from error
    if (summary.hex, summary.stage) != (path.stem, path.parent.name):
        raise _damaged(path, "is that of another key")
    return summary


def summary_of(record: Any) -> Summary:
    """The summary of a whole `store.records.Record`."""
    return Summary(
        hex=record.hex, stage=record.stage, recipe=record.recipe, digest=record.digest, bytes=record.bytes,
        seconds=record.seconds, created=record.created, sizes=_sizes(record.promised.model_dump()), note=record.note,
    )  # fmt: skip


def below(keys: Iterable[str], summaries: Iterable[Summary]) -> list[Summary]:
    """What was made from the artifacts of `keys`, directly or by way of others, nearest first."""
    made: dict[str, list[Summary]] = defaultdict(list)
    for summary in summaries:
        for key in summary.inputs:
            made[key].append(summary)
    found: dict[str, Summary] = {}
    pending = list(keys)
    while pending:
        for summary in made[pending.pop(0)]:
            if summary.hex not in found:
                found[summary.hex] = summary
                pending.append(summary.hex)
    return list(found.values())


def _summary(written: Mapping[str, Any]) -> Summary:
    summary = Summary(
        hex=str(written["hex"]),
        stage=str(written["stage"]),
        recipe=ArtifactKey.model_validate(written["recipe"]),
        digest=str(written["digest"]),
        bytes=int(written["bytes"]),
        seconds=float(written["seconds"]),
        created=str(written["created"]),
        sizes=_sizes(written["schema"]),
        note=written.get("note"),
    )
    datetime.fromisoformat(summary.created)
    if not is_key(summary.digest) or summary.bytes < 0 or summary.recipe.hex != summary.hex:
        raise ValueError("fields that do not fit each other")
    return summary


def _sizes(schema: Mapping[str, Any]) -> dict[str, int | None]:
    sizes: dict[str, int | None] = {}
    for variable in schema["variables"].values():
        sizes.update(zip(variable["dims"], variable["shape"], strict=True))
    return sizes


def _damaged(path: Path, reason: str) -> StoreError:
    return StoreError(f"the record {path} is damaged (it {reason}); delete it, and the next run makes it again")
