"""A diffusers folder as it lies on the disk: what it must hold, which of its files are its identity, single files."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from store.errors import InputError

from .families import Family, families, family_of_pipeline, pipelines
from .layout import check_variant

LIBRARIES = {  # of a model's components: nothing else is imported because a model's index says so
    "unet": ("diffusers",),
    "vae": ("diffusers",),
    "scheduler": ("diffusers",),
    "text_encoder": ("transformers",),
    "text_encoder_2": ("transformers",),
    "tokenizer": ("transformers",),
    "tokenizer_2": ("transformers",),
    "image_encoder": ("transformers", None),
    "feature_extractor": ("transformers", None),
    "safety_checker": ("stable_diffusion", None),
}

WEIGHTS = re.compile(r"(?:diffusion_pytorch_)?model(?:\.(?P<variant>\w+))?(?:-\d+-of-\d+)?\.safetensors")
TOKENIZER = ("tokenizer_config.json", "vocab.json", "merges.txt")
OTHERWISE = "v1"  # what diffusers calls a single file of which it knows nothing


def check_folder(folder: Path, allow_pickle: bool = False) -> None:
    """InputError, one sentence, unless `folder` is a diffusers folder of a supported class with all its components.

    allow_pickle   weights that are no .safetensors will do
    """
    index = folder / "model_index.json"
    try:
        declared = json.loads(index.read_text(encoding="utf-8"))
    except OSError:
        raise InputError(
            f"{folder} has no model_index.json; give a diffusers folder, a hub id, a .safetensors file, or 'pocket'"
        ) from None
    except ValueError:
        raise InputError(f"{index} is not valid JSON; download the model again") from None
    if not isinstance(declared, dict):
        raise InputError(f"{index} is no JSON object; download the model again")
    family = family_of_pipeline(declared.get("_class_name"))
    if family is None:
        raise InputError(
            f"model {folder} is a {declared.get('_class_name')}, which is not supported; have {', '.join(pipelines())}"
        )
    for component, value in declared.items():
        if (
            isinstance(value, list)
            and value[:1] != [None]
            and value[:1] not in [[x] for x in LIBRARIES.get(component, ())]
        ):
            raise InputError(
                f"{index} has its {component} made by {value[0] if value else 'nothing'}, and code that comes with a "
                "model is not run; give a model of plain diffusers components"
            )
    for component in family.COMPONENTS:
        if not declared.get(component) or not (folder / component).is_dir():
            raise InputError(f"model folder {folder} has no {component}; give a complete diffusers folder")
    pickled = pickled_weights(folder)
    for component in _weighted(family):
        if component in pickled and not allow_pickle:
            raise InputError(
                f"model folder {folder} has no .safetensors file in {component}; other weight files are not opened "
                "unless you trust them and say --allow-pickle"
            )
        if component not in pickled and not list((folder / component).glob("*.safetensors")):
            raise InputError(f"model folder {folder} has no .safetensors file in {component}; download it again")
    for component in (name for name in family.COMPONENTS if name.startswith("tokenizer")):
        there = {path.name for path in (folder / component).iterdir()} | {
            *(TOKENIZER[1:] if (folder / component / "tokenizer.json").is_file() else ())
        }
        if missing := [name for name in TOKENIZER if name not in there]:
            raise InputError(f"model folder {folder} has no {component}/{missing[0]}; give a complete diffusers folder")


def variant_of(folder: Path) -> str | None:
    """Which weights are taken where a component of a diffusers folder has none without a variant: "fp16", say."""
    found = (weights_of(folder / name)[0] for name in _weighted(family_of_folder(folder)))
    return next(filter(None, found), None)


def weights_of(component: Path) -> tuple[str | None, list[Path]]:
    """The variant whose .safetensors files in a component's folder are loaded, and these files; none: (None, []).

    Files without a variant (None) are taken where there are any.
    """
    found: dict[str | None, list[Path]] = {None: []}
    for path in sorted(component.iterdir()):
        if named := WEIGHTS.fullmatch(path.name):
            found.setdefault(named["variant"], []).append(path)
    variant = None if found[None] else next((name for name in found if name), None)
    return variant, found[variant]


def without_bars() -> None:
    """Have diffusers and transformers draw no bars of their own."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()


def check_filled(module: Any, named: str, missing: Collection[str] = ()) -> None:
    """InputError where a loaded part has weights that its files did not hold; diffusers leaves those on `meta`.

    missing   names of others that are known not to be there
    """
    weights = module.state_dict()
    empty = [*missing, *(name for name, values in weights.items() if values.is_meta)]
    if empty:
        raise InputError(
            f"the files of {named} lack {len(empty)} of its {len(weights)} weights ({empty[0]} …); download it again"
        )


def missing_weights(folder: Path, component: str, wanted: Collection[str]) -> list[str]:
    """Of the weights that a text encoder is made of those that its .safetensors files have not.

    Of those transformers draws new ones at random, and says nothing that can be asked for. Files of older versions
    have the names behind `text_model.`.
    """
    from safetensors import safe_open

    held: set[str] = set()
    for file in (folder / component).glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            names = tensors.keys()
        held |= {name.removeprefix("text_model.") for name in names}
    return [name for name in wanted if name.removeprefix("text_model.") not in held]


def pickled_weights(folder: Path) -> list[str]:
    """Components of a diffusers folder whose weights are pickled: there is a .bin file and no .safetensors file."""
    return [
        name for name in _weighted(family_of_folder(folder))
        if list((folder / name).glob("*.bin")) and not list((folder / name).glob("*.safetensors"))
    ]  # fmt: skip


def identity_files(folder: Path) -> list[Path]:
    """Files of a diffusers folder that may change a result: weights and configs of the components used."""
    wanted = {".safetensors", ".json", ".txt"}
    pickled, family = pickled_weights(folder), family_of_folder(folder)
    parts = [
        (name, path) for name in family.COMPONENTS for path in sorted((folder / name).rglob("*")) if path.is_file()
    ]
    files = [path for name, path in parts if path.suffix in wanted or (name in pickled and path.suffix == ".bin")]
    return [*files, *(folder / name for name in family.SETTINGS)]


def family_of_folder(folder: Path) -> Family:
    """The family of a folder that `check_folder` accepts."""
    family = family_of_pipeline(json.loads((folder / "model_index.json").read_text(encoding="utf-8"))["_class_name"])
    assert family is not None, "the folder was not checked"
    return family


def _weighted(family: Family) -> list[str]:
    return [name for name, has_weights in family.COMPONENTS.items() if has_weights]


def unpack_single_file(file: Path, folder: Path, configs: Path | None = None) -> None:
    """Write a single checkpoint file of any family as a diffusers folder; InputError where that fails.

    configs   a diffusers folder whose configs, tokenizer and scheduler are taken; those of the hub without it
    """
    import diffusers

    without_bars()
    try:
        family, described = _family_of_file(file)
        if configs is None:
            configs = _descriptions(file, described)
        else:
            _check_configs(configs, file, family)
        pipeline = getattr(diffusers, family.PIPELINE).from_single_file(
            str(file), safety_checker=None, config=str(configs)
        )
        check_variant(dict(pipeline.unet.config), dict(pipeline.vae.config))
        for name in _weighted(family):
            check_filled(getattr(pipeline, name), f"checkpoint {file}: {name}")
    except InputError:
        raise
    except Exception as error:  # diffusers' converters raise whatever a foreign file makes them trip over
        if isinstance(error, NotImplementedError):  # of torch: weights that are on no device cannot be moved
            raise InputError(f"checkpoint {file} lacks weights of the model that it is; download it again") from None
        reason = " ".join(str(error).split())[:240]
        raise InputError(
            f"checkpoint {file} cannot be read as Stable Diffusion ({reason}); convert it to a diffusers folder, or "
            f"say {file.name}:FOLDER with one of the same structure, whose configs and tokenizer are taken"
        ) from None
    save_whole(pipeline, folder)


def settings_files(folder: Path) -> list[Path]:
    """Files of a diffusers folder, relative to it, that say how its weights are used: configs and tokenizers."""
    return sorted(
        path.relative_to(folder) for path in folder.rglob("*") if path.suffix in (".json", ".txt") and path.is_file()
    )


def _check_configs(configs: Path, file: Path, family: Family) -> None:
    """InputError unless `configs` is a folder of the pipeline that the family of `file` is."""
    try:
        declared = json.loads((configs / "model_index.json").read_text(encoding="utf-8"))["_class_name"]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{configs} is no diffusers folder: it has no model_index.json that says what it is") from None
    if declared != family.PIPELINE:
        raise InputError(f"{configs} is of {declared}, and {file} is of {family.PIPELINE}; name a folder of its kind")


def save_whole(model: Any, folder: Path) -> None:
    """Write a diffusers pipeline or model to `folder`, which is there whole or not at all."""
    partial = folder.with_name(f"{folder.name}.part")
    model.save_pretrained(partial, safe_serialization=True)
    partial.rename(folder)


def _descriptions(file: Path, repository: str) -> Path:
    """The folder of configs and tokenizers that go with a single file's weights, of the hub or of its cache."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, allow_patterns=["*.json", "*.txt"]))
    except Exception:  # the hub's client raises a dozen unrelated classes, all meaning: not to be had
        raise InputError(
            f"checkpoint {file} holds weights alone, and the configs and tokenizer that go with them are not here and "
            f"cannot be downloaded; where there is a network say hf download {repository} --include '*.json' --include "
            f"'*.txt', or say {file.name}:FOLDER with a diffusers folder of the same structure"
        ) from None


def _family_of_file(file: Path) -> tuple[Family, str]:
    """The family of a single checkpoint file, by the names and shapes of its tensors, and the hub id of its configs."""
    from diffusers.loaders.single_file_utils import (
        fetch_diffusers_config,
        infer_diffusers_model_type,
        load_single_file_checkpoint,
    )

    tensors = load_single_file_checkpoint(str(file))
    kind = infer_diffusers_model_type(tensors)
    if kind == OTHERWISE and not any(name.startswith("model.diffusion_model.") for name in tensors):
        raise InputError(f"{file} is no whole model but {_part_in(tensors)}")
    found = next((family for family in families() if kind in family.SINGLE_FILES), None)
    if found is None:
        raise InputError(
            f"checkpoint {file} is of the kind {kind}, which is not supported; have text-to-image models of "
            f"{', '.join(pipelines())}"
        )
    return found, str(fetch_diffusers_config(tensors)["pretrained_model_name_or_path"])


def _part_in(names: Collection[str]) -> str:
    """What a file with tensors of these names is, and where it goes."""
    if any("lora" in name.lower() for name in names):
        return "a LoRA; give it with --lora, and its model with --model"
    if any(name.startswith(("controlnet_", "input_hint_block.")) for name in names):
        return "a ControlNet; give it with --control KIND:FILE, and its model with --model"
    if len(names) <= 2:
        return "a learnt word; give it with --embedding, and its model with --model"
    return "one part, such as the unet of a diffusers folder; give the folder that has all of them"
