"""What was asked: the identity of an artifact, known before anything runs.

A key is the sha256 of the canonical JSON of {stage, version, spec, inputs}. File names, devices, batch sizes and paths
never enter it. What cannot be named canonically is refused, never hashed by `repr` or pickle.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from functools import cached_property

from pydantic import BaseModel, ConfigDict, JsonValue


class UnnameableError(TypeError):
    """A value has no canonical name (a lambda, a NaN, an unknown type), so nothing may be keyed by it."""


def canonical(value: object, where: str = "value") -> JsonValue:
    """Reduce `value` to plain JSON, equal things to equal text; raise UnnameableError, saying where, otherwise."""
    if isinstance(value, BaseModel):
        return canonical({name: getattr(value, name) for name in _named_fields(value)}, where)
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise UnnameableError(f"{where} is {value}, which has no canonical name")
        return int(value) if value.is_integer() else value
    if isinstance(value, list | tuple):
        return [canonical(item, f"{where}[{position}]") for position, item in enumerate(value)]
    if isinstance(value, Mapping):
        for name in value:
            if not isinstance(name, str):
                raise UnnameableError(f"{where} has the name {name!r}, and only text can name a field")
        return {name: canonical(item, f"{where}.{name}") for name, item in value.items()}
    raise UnnameableError(f"{where} is a {type(value).__name__}, which has no canonical name")


def _named_fields(model: BaseModel) -> list[str]:
    """The fields that name a model: all but those of its `left_out` (see `Frozen`) that have their default."""
    fields, left_out = type(model).model_fields, getattr(model, "left_out", ())
    return [name for name, field in fields.items() if name not in left_out or getattr(model, name) != field.default]


def canonical_json(value: object) -> str:
    """Canonical JSON text of `value`: sorted names, no spaces, no NaN; 1 and 1.0 are one number."""
    return json.dumps(canonical(value), sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


class ArtifactKey(BaseModel):
    """What was asked of one stage: `spec` holds every setting that may change the result, `inputs` role → key."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str
    version: int
    spec: dict[str, JsonValue]
    inputs: dict[str, str]

    @classmethod
    def of(cls, stage: str, version: int, spec: BaseModel, inputs: Mapping[str, str]) -> ArtifactKey:
        """Key of `stage` under `spec`, its inputs named by their own keys (hex)."""
        plain = canonical(spec, stage)
        assert isinstance(plain, dict)
        return cls(stage=stage, version=version, spec=plain, inputs=dict(inputs))

    @cached_property
    def hex(self) -> str:
        """64 hexadecimal digits: sha256 of the canonical JSON."""
        return hashlib.sha256(canonical_json(self).encode()).hexdigest()

    def __str__(self) -> str:
        return f"{self.stage}/{self.hex[:12]}"
