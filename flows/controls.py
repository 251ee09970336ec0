"""What holds the layout of an edit with --editor controlnet: ControlNets, and the control images they are shown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, model_validator

from store.errors import InputError
from store.schemas import Frozen
from store.store import Store

from .hub import is_hub_id, snapshot

WRITTEN = re.compile(
    r"(?P<kind>[a-z]+)(:(?P<model>(?!\d+(\.\d+)?(:|$)).+?))?"
    r"(:(?P<strength>\d+(\.\d+)?)(:(?P<start>\d+(\.\d+)?)-(?P<stop>\d+(\.\d+)?))?)?"
)
WEIGHTS = "diffusion_pytorch_model"
Kind = Literal["canny", "softedge", "depth", "openpose", "given"]
KINDS = ("canny", "softedge", "depth", "openpose", "given")


def _form(schema: dict[str, Any]) -> None:
    from .config import plain_fields

    plain_fields(schema)


class Control(Frozen):
    """One ControlNet: what it is shown, and how strongly and when it acts."""

    model_config = ConfigDict(json_schema_extra=_form)

    kind: Kind = Field(
        "canny",
        title="Kind",
        description="what is drawn of every frame; given: the images of a control video or folder",
    )
    model: str = Field(
        "", title="ControlNet", description="a folder, a .safetensors file or a hub id; pocket has its own for canny",
    )  # fmt: skip
    strength: float = Field(1.0, title="Strength", description="of what it adds to the model", ge=0, le=2)
    start: float = Field(0.0, title="Start", description="share of the steps before which it does nothing", ge=0, le=1)
    stop: float = Field(1.0, title="Stop", description="share of the steps after which it does nothing", ge=0, le=1)
    low: int = Field(100, title="Low threshold", description="of canny: weaker edges are none", ge=0, le=1000)
    high: int = Field(200, title="High threshold", description="of canny: stronger edges are edges", ge=0, le=1000)
    video: Path | None = Field(
        None,
        title="Control video",
        description="of given: a video or a folder of pictures, the control images of the video's frames",
    )

    @model_validator(mode="after")
    def _whole(self) -> Control:
        if self.start > self.stop or self.low > self.high:
            raise ValueError(f"--control {self.kind}: its start is after its stop, or its low above its high threshold")
        if (self.kind == "given") != (self.video is not None):
            raise ValueError("--control given and --control-video go together, one of each for each ControlNet")
        return self

    @property
    def written(self) -> str:
        """As `parse_controls` reads it."""
        model = f":{self.model}" if self.model else ""
        return f"{self.kind}{model}:{self.strength:g}:{self.start:g}-{self.stop:g}"

    def anywhere(self) -> Control:
        """The same with paths that are understood from any folder."""
        model = Path(self.model).expanduser()
        named = str(model.absolute()) if self.model and model.exists() else self.model
        return self.model_copy(update={"model": named, "video": self.video and self.video.absolute()})

    @property
    def share(self) -> dict[str, Any]:
        """What the editor needs to know."""
        return {"strength": self.strength, "start": self.start, "stop": self.stop}


def parse_controls(texts: Sequence[str], videos: Sequence[Path], thresholds: str) -> tuple[Control, ...]:
    """Read KIND[:MODEL][:STRENGTH[:START-STOP]] texts; each `given` takes the next of `videos`.

    thresholds   LOW-HIGH of all canny edges
    raises       InputError, one sentence
    """
    limits = re.fullmatch(r"(\d+)-(\d+)", thresholds)
    if limits is None:
        raise InputError(f"--canny-thresholds {thresholds!r} is not LOW-HIGH; write for example 100-200")
    left, controls = list(videos), []
    for text in texts:
        found = WRITTEN.fullmatch(text)
        if found is None or found["kind"] not in KINDS:
            raise InputError(
                f"--control {text!r} is not KIND[:MODEL][:STRENGTH[:START-STOP]] with a KIND of {', '.join(KINDS)}; "
                "write for example canny, or canny:FOLDER:0.8:0-0.6"
            )
        given: dict[str, Any] = {name: value for name, value in found.groupdict().items() if value is not None}
        if found["kind"] == "canny":
            given |= {"low": int(limits[1]), "high": int(limits[2])}
        if found["kind"] == "given":
            given["video"] = left.pop(0) if left else None
        controls.append(_control(text, given))
    if left:
        raise InputError(
            f"--control-video {left[0]} has no --control given that it belongs to; say --control given:MODEL"
        )
    return tuple(controls)


def _control(text: str, given: dict[str, Any]) -> Control:
    try:
        return Control.model_validate(given)
    except ValueError as error:
        first = error.errors()[0]  # type: ignore[attr-defined]
        where = f"--control {text}: {first['loc'][0]} {first['input']!r}: " if first["loc"] else ""
        raise InputError(where + first["msg"].removeprefix("Value error, ")) from None


@dataclass(frozen=True)
class ControlFiles:
    """A ControlNet that is there: the folder to load, and the hash of its bytes."""

    name: str
    folder: Path
    key: str


def find_control(control: Control, model: Any, store: Store, allow_pickle: bool) -> ControlFiles:
    """The ControlNet of `control`, which fits `model` (ModelFiles); InputError, one sentence, otherwise."""
    from stages.backbones.controlnet import check_folder, identity_files

    folder = _folder(control, model, store, allow_pickle)
    check_folder(folder, model.folder, allow_pickle)
    files = [path.relative_to(folder) for path in identity_files(folder)]
    return ControlFiles(control.model or "pocket", folder, f"blake3:{store.folder_hash(folder, files)}")


ANNOTATOR_REPOSITORY = "lllyasviel/Annotators"
ANNOTATOR_FILES = {
    "softedge": ["ControlNetHED.pth"],
    "depth": ["dpt_hybrid-midas-501f0c75.pt"],
    "openpose": ["body_pose_model.pth", "hand_pose_model.pth", "facenet.pth"],
}
"""What controlnet_aux reads of that repository, by detector."""


def find_annotator(detector: str, store: Store, allow_pickle: bool) -> ControlFiles:
    """The weights that controlnet_aux draws with; InputError, one sentence, where they are not to be had."""
    if not allow_pickle:
        raise InputError(
            f"--control {detector} is drawn with pickled weights ({ANNOTATOR_REPOSITORY}), which are not opened unless "
            "you trust them and say --allow-pickle; canny needs none"
        )
    folder = snapshot(ANNOTATOR_REPOSITORY, ANNOTATOR_FILES[detector])
    files = [Path(name) for name in ANNOTATOR_FILES[detector]]
    return ControlFiles(ANNOTATOR_REPOSITORY, folder, f"blake3:{store.folder_hash(folder, files)}")


def _folder(control: Control, model: Any, store: Store, allow_pickle: bool) -> Path:
    name = control.model
    if not name and control.kind == "canny" and model.name == "pocket":
        from pocket import control_folder

        return control_folder()
    if not name:
        raise InputError(
            f"--control {control.kind} names no ControlNet, and none comes with the model {model.name}; say "
            f"--control {control.kind}:MODEL with a folder, a .safetensors file or a hub id"
        )
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        return _unpacked(path, model, store)
    if is_hub_id(name):
        return _downloaded(name, allow_pickle)
    raise InputError(f"no ControlNet {name!r}: it is no folder, no file and no hub id; give one of these (org/name)")


def _downloaded(name: str, allow_pickle: bool) -> Path:
    """The folder of a hub id; weights of half precision are fetched only where there are no others."""
    from stages.backbones.folders import weights_of

    folder = snapshot(name, ["config.json", f"{WEIGHTS}.safetensors", *(["*.bin"] if allow_pickle else [])])
    if weights_of(folder)[1] or (allow_pickle and any(folder.glob("*.bin"))):
        return folder
    return snapshot(name, ["config.json", f"{WEIGHTS}.fp16.safetensors"])


def _unpacked(file: Path, model: Any, store: Store) -> Path:
    """A single weight file as a folder, made once per file and model and kept in the store."""
    from stages.backbones.controlnet import unpack_single_file

    if file.suffix != ".safetensors":
        raise InputError(f"ControlNet file {file} is no .safetensors file; other weight files are not opened")
    folder = store.root / "models" / f"control-{store.file_hash(file)}-{model.key.removeprefix('blake3:')[:16]}"
    if not folder.is_dir():
        unpack_single_file(file, model.folder, folder)
    return folder
