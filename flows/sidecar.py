"""What lies beside a clip as `<clip>.json`: everything that makes the same clip again, and tells it from another.

It holds the configuration of this one edit with every advised or default value written out, the video and the model
by the hash of their bytes, and the recipe of each stage.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import JsonValue, ValidationError, model_validator

from stages.media.encoding import Encoding
from store.artifact import Artifact
from store.errors import InputError
from store.keys import ArtifactKey
from store.layout import write_whole
from store.schemas import Frozen

from .config import EditConfig
from .export import clip_hash
from .models import absolute_place
from .plan import STAGES, Node, Plan
from .shots import written_cuts

FORMAT: Literal[1] = 1


class NamedFile(Frozen):
    """A file or model as the user named it, and the hash of its bytes."""

    name: str
    key: str


class Sidecar(Frozen):
    """One edit: what was asked, what it was made from and by, and what came out.

    run        id of the saved run, for `tf report`; none where the store kept none
    clip       the file or folder, and the blake3 of its bytes
    software   versions, device and commit that made the edit
    recipes    of each stage that every edit has, in the order of the method; the hash of each is the stage's key
    digest     of the edit's artifact: what came out, whatever it is encoded as
    encoding   what the clip is written as; the default in sidecars of before there was a choice
    """

    format: Literal[1] = FORMAT
    run: str | None = None
    clip: NamedFile
    video: NamedFile
    model: NamedFile
    config: EditConfig
    recipes: tuple[ArtifactKey, ...]
    keys: dict[str, str]
    digest: str
    encoding: Encoding = Encoding()
    software: dict[str, JsonValue]

    @model_validator(mode="after")
    def _consistent(self) -> Sidecar:
        if [recipe.stage for recipe in self.recipes] != list(STAGES):
            raise ValueError("its recipes are not those of the stages")
        if {recipe.stage: recipe.hex for recipe in self.recipes} != self.keys:
            raise ValueError("its recipes do not give its keys")
        return self

    @classmethod
    def of(cls, plan: Plan, keyframes: Node, edit: Artifact, clip: Path) -> Sidecar:
        """What to put beside `clip`, into which `edit` was written."""
        shared = [node.key for node in (plan.decode, plan.invert, plan.extract, plan.match)]
        recipes = (*shared, keyframes.key, edit.record.recipe)
        return cls(
            clip=NamedFile(name=clip.name, key=f"blake3:{clip_hash(plan.store, clip)}"),
            video=NamedFile(name=str(plan.config.video.absolute()), key=plan.video_key),
            model=NamedFile(name=absolute_place(plan.config.model), key=plan.model.key),
            config=resolved(plan, keyframes),
            recipes=recipes,
            keys={recipe.stage: recipe.hex for recipe in recipes},
            digest=edit.digest,
            encoding=plan.encoding,
            software=edit.record.provenance,
        )

    def like(self, other: Sidecar) -> bool:
        """Whether both tell of the same clip, whichever run wrote it."""
        return self.model_copy(update={"run": None}) == other.model_copy(update={"run": None})

    def write(self, clip: Path, run: str | None) -> None:
        """Put it beside `clip`, whole or not at all; InputError where that cannot be written."""
        file = sidecar_file(clip)
        try:
            write_whole(file, self.model_copy(update={"run": run}).model_dump_json(indent=1) + "\n", durable=True)
        except OSError as error:
            raise InputError(f"{file} cannot be written ({error.strerror}); choose another folder") from None


def sidecar_file(clip: Path) -> Path:
    """Where the sidecar of a clip lies."""
    return clip.with_name(f"{clip.name}.json")


def read_sidecar(file: Path) -> Sidecar:
    """The sidecar in `file`; InputError, saying what is wrong, where it is none or is damaged."""
    try:
        return Sidecar.model_validate_json(file.read_bytes())
    except OSError as error:
        raise InputError(f"cannot read {file} ({error.strerror}); name the .json beside a clip of tf run") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ").split(":")[0]
        reason = f"{where}: {message}" if where else message
        raise InputError(
            f"{file} is damaged or no sidecar of tf run, layout {FORMAT} ({reason}); "
            "take it from a copy, or run tf run again"
        ) from None


def written_sidecar(clip: Path) -> Sidecar | None:
    """The sidecar that lies beside `clip`, if there is a sound one."""
    try:
        return read_sidecar(sidecar_file(clip))
    except InputError:
        return None


def check_sidecar_place(clip: Path) -> None:
    """InputError, before anything is computed, where another file or a folder lies in the sidecar's place."""
    file = sidecar_file(clip)
    if file.exists() and written_sidecar(clip) is None:
        raise InputError(f"{file} is in the way and is no sidecar of {clip.name}; move it, or name another output")


def resolved(plan: Plan, keyframes: Node) -> EditConfig:
    """The configuration of one edit alone, with what was advised, found or left to an editor written out."""
    return plan.config.anywhere().model_copy(
        update={
            "prompts": (keyframes.spec.prompt,),
            "guidance_scale": plan.guidance_scale,
            "editor_settings": {k: v for k, v in keyframes.spec.editor.settings.items() if k != "controls"},
            "cuts": written_cuts(plan.match.spec.cuts, plan.taken),
        }
    )
