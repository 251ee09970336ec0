"""Runs of the command line, as the store keeps them: JSON that anyone may have written, held to what is read of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from store.errors import StoreError
from store.guard import read_json, reason, shown_path

NEEDED = {"config", "video", "stages", "outputs", "store"}  # of a run that made clips


class _Loose(BaseModel):
    """What is read of a file is typed; what else it holds is left alone."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class _Stage(_Loose):
    stage: str = Field(pattern=r"^[A-Za-z0-9_]{1,64}$")
    key: str = Field(pattern=r"^[0-9a-f]{64}$")
    hit: bool = False
    seconds: float = 0
    bytes: int = 0


class _Output(_Loose):
    file: str
    prompt: str = ""


class _Run(_Loose):
    id: str
    command: str = ""
    config: dict[str, JsonValue] = {}
    runtime: dict[str, JsonValue] = {}
    video: str = ""
    store: str = ""
    seconds: float = 0
    stages: list[_Stage] = []
    outputs: list[_Output] = []


def read_run(path: Path) -> dict[str, Any]:
    """The run kept at `path`; StoreError, naming the file and the field, when it cannot be trusted.

    raises    FileNotFoundError where there is none
    """
    run = read_json(path, "the run")
    try:
        known = _Run.model_validate(run)
    except ValidationError as error:
        raise _damaged(path, reason(error)) from None
    if known.id != path.stem:
        raise _damaged(path, "it says that it is another run")
    missing = sorted(NEEDED - run.keys()) if known.command == "run" else []
    if missing:
        raise _damaged(path, f"it has no {missing[0]}")
    return run


def _damaged(path: Path, why: str) -> StoreError:
    return StoreError(f"the run {shown_path(path)} is damaged ({why}); delete that file")
