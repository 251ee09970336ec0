"""From what a user calls a model to its files: an identity by bytes, and its layout without its weights."""

from __future__ import annotations

import hashlib
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
from .hub import fetched, is_hub_id, snapshot

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
    """The model called `name`: 'pocket', a diffusers folder, a hub id, or a single checkpoint FILE[:CONFIGS].

    allow_pickle   take weights that are no .safetensors too, where there are no others
    adapters       put on top of its weights
    """
    from stages.backbones.folders import check_folder, identity_files, pickled_weights

    if not name.strip():
        raise InputError("--model is empty; give a diffusers folder, a .safetensors file, a hub id, or 'pocket'")
    file, configs = split_place(name)
    if name == "pocket":
        from pocket import model_folder

        folder, load_from = model_folder(), str(model_folder())
    elif Path(name).expanduser().is_dir():
        folder = Path(name).expanduser()
        load_from = str(folder)
    elif file.is_file():
        folder = _unpacked(file, configs, store, allow_pickle)
        load_from = str(folder)
    elif is_hub_id(name):
        folder, load_from = _downloaded(name, allow_pickle), name
    else:
        raise InputError(
            f"no model {name!r}: it is no folder, no file and no hub id; give one of these (org/name), or 'pocket'"
        )
    check_folder(folder, allow_pickle)
    pickled = bool(pickled_weights(folder)) or (file.is_file() and file.suffix != ".safetensors")
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
        f"layout 3 {model.key} {width}x{height}",
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

    return fetched(name, lambda: DiffusionPipeline.download(name, use_safetensors=None if allow_pickle else True))


def _unpacked(file: Path, configs: str | None, store: Store, allow_pickle: bool) -> Path:
    """A single checkpoint file as a diffusers folder, made once and kept in the store under the file's hash.

    configs   folder or hub id of a diffusers model of the same structure, whose configs and tokenizer are taken; those
              that diffusers knows for the file's kind without it
    """
    from stages.backbones.folders import settings_files, unpack_single_file

    if file.suffix != ".safetensors" and not (allow_pickle and file.suffix in PICKLES):
        way_out = "" if file.suffix not in PICKLES else " unless you trust it and say --allow-pickle"
        raise InputError(f"model file {file} is no .safetensors file; other weight files are not opened{way_out}")
    made_of, place = store.file_hash(file), None
    if configs is not None:
        place = Path(configs).expanduser()
        if not place.is_dir():
            place = snapshot(configs, ["*.json", "*.txt"])
        made_of += f"-{store.folder_hash(place, settings_files(place))[:16]}"
    folder = store.root / "models" / made_of
    if not (folder / "model_index.json").is_file():
        unpack_single_file(file, folder, place)
    return folder


def absolute_place(name: str) -> str:
    """A model's name as it is understood from any folder: 'pocket', a hub id, or absolute paths."""
    file, configs = split_place(name)
    if name == "pocket" or not file.exists():
        return name
    if configs is None:
        return str(file.absolute())
    place = Path(configs).expanduser()
    return f"{file.absolute()}:{place.absolute() if place.is_dir() else configs}"


def split_place(name: str) -> tuple[Path, str | None]:
    """FILE[:CONFIGS] as (FILE, CONFIGS); a file or folder whose own name holds a colon is itself."""
    whole = Path(name).expanduser()
    file, colon, configs = name.partition(":")
    return (Path(file).expanduser(), configs.strip()) if colon and not whole.exists() else (whole, None)
