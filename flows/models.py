"""From what a user calls a model to its files: an identity by bytes, and its layout without its weights."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, JsonValue, ValidationError

from stages.backbones.adapters import NO_ADAPTERS, Adapters
from stages.backbones.weighting import check_weighted
from store.errors import InputError
from store.keys import canonical_json
from store.schemas import Frozen
from store.store import Store

from .config import EditConfig

ADVICE_FILE = "tokenflow.json"
PICKLES = (".ckpt", ".pt", ".pth", ".bin")


class Advice(Frozen):
    """What a model's maker found to work, in `tokenflow.json` beside its weights: used where the user says nothing."""

    guidance_scale: float | None = Field(None, ge=0, le=100)
    editors: dict[str, dict[str, JsonValue]] = Field(default_factory=dict)  # editor → its settings


@dataclass(frozen=True)
class ModelFiles:
    """A model that is there: what to load (folder or hub id), where its files lie, and the hash of their bytes."""

    name: str
    load_from: str
    folder: Path
    key: str
    advice: Advice
    pickled: bool = False  # its weights, or some of them, are no .safetensors
    adapters: Adapters = NO_ADAPTERS


def find_model(name: str, store: Store, allow_pickle: bool = False, adapters: Adapters = NO_ADAPTERS) -> ModelFiles:
    """The model called `name`: 'pocket', a diffusers folder, a single checkpoint file, or a hub id.

    allow_pickle   take weights that are no .safetensors too, where there are no others
    adapters       put on top of its weights
    """
    from stages.backbones.folders import check_folder, identity_files, pickled_weights

    if not name.strip():
        raise InputError("--model is empty; give a diffusers folder, a .safetensors file, a hub id, or 'pocket'")
    if name == "pocket":
        from pocket import model_folder

        folder, load_from = model_folder(), str(model_folder())
    elif Path(name).expanduser().is_dir():
        folder = Path(name).expanduser()
        load_from = str(folder)
    elif Path(name).expanduser().is_file():
        folder = _unpacked(Path(name).expanduser(), store, allow_pickle)
        load_from = str(folder)
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.startswith((".", "/")):
        folder, load_from = _downloaded(name, allow_pickle), name
    else:
        raise InputError(
            f"no model {name!r}: it is no folder, no file and no hub id; give one of these (org/name), or 'pocket'"
        )
    check_folder(folder, allow_pickle)
    pickled = bool(pickled_weights(folder)) or (Path(name).is_file() and Path(name).suffix != ".safetensors")
    files = [path.relative_to(folder) for path in identity_files(folder)]
    key = _key_with(adapters, f"blake3:{store.folder_hash(folder, files)}", store)
    return ModelFiles(name, load_from, folder, key, _advice(folder), pickled, adapters)


def adapters_of(config: EditConfig) -> Adapters:
    """What a run puts on top of its model; InputError for the first file or weighted prompt that cannot be used."""
    if config.prompt_weighting:
        check_weighted(*config.prompts, config.source_prompt, config.negative_prompt)
    return Adapters.read(config.loras, config.embeddings, config.prompt_weighting)


def layout_of(model: ModelFiles, width: int, height: int, store: Store) -> Any:
    """The model's ModelLayout for frames of this size, traced once per model and size and remembered in the store."""
    from stages.backbones.layout import ModelLayout, layout, read_configs

    traced = store.remembered(
        f"layout 2 {model.key} {width}x{height}",
        lambda: layout(read_configs(model.folder), width, height).model_dump(mode="json"),
    )
    return ModelLayout.model_validate(traced)


def geometry_of(model: ModelFiles, store: Store) -> Any:
    """The model's ModelGeometry, likewise."""
    from stages.backbones.layout import ModelGeometry, geometry, read_configs

    traced = store.remembered(
        f"geometry 2 {model.key}", lambda: geometry(read_configs(model.folder)).model_dump(mode="json")
    )
    return ModelGeometry.model_validate(traced)


def _key_with(adapters: Adapters, model: str, store: Store) -> str:
    """The model's key with its adapters by the bytes of their files; the model's own where there are none."""
    if not adapters:
        return model
    named = {
        "model": model,
        "loras": [[store.file_hash(lora.file), lora.weight] for lora in adapters.loras],
        "embeddings": [[store.file_hash(embedding.file), embedding.token] for embedding in adapters.embeddings],
        "prompt_weighting": adapters.prompt_weighting,
    }
    return f"sha256:{hashlib.sha256(canonical_json(named).encode()).hexdigest()}"


def _advice(folder: Path) -> Advice:
    file = folder / ADVICE_FILE
    try:
        return Advice.model_validate_json(file.read_bytes()) if file.is_file() else Advice()
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "it"
        raise InputError(f"{file}: {where}: {first['msg']}; mend or delete that file") from None


def _downloaded(name: str, allow_pickle: bool) -> Path:
    """The folder in which diffusers keeps the files of a hub id, downloaded where they are not there yet."""
    from diffusers import DiffusionPipeline

    try:
        return Path(DiffusionPipeline.download(name, use_safetensors=None if allow_pickle else True))
    except Exception as error:  # the hub's client raises a dozen unrelated classes, all meaning: not to be had
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"model {name!r} is no folder or file here, and as a hub id it cannot be downloaded: {reason}"
        ) from None


def _unpacked(file: Path, store: Store, allow_pickle: bool) -> Path:
    """A single checkpoint file as a diffusers folder, made once and kept in the store under the file's hash."""
    if file.suffix != ".safetensors" and not (allow_pickle and file.suffix in PICKLES):
        way_out = "" if file.suffix not in PICKLES else " unless you trust it and say --allow-pickle"
        raise InputError(f"model file {file} is no .safetensors file; other weight files are not opened{way_out}")
    folder = store.root / "models" / store.file_hash(file)
    if not (folder / "model_index.json").is_file():
        from stages.backbones.folders import unpack_single_file

        unpack_single_file(file, folder)
    return folder
