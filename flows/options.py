"""Options of an edit by name, wherever they are said: on the command line, in a file, by a remembered run, in Python.

They are those of `EditConfig` and `RuntimeConfig`, and `preset`; what nobody said is left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from store.errors import InputError
from store.store import Store

from .config import (
    OF_PRESETS,
    EditConfig,
    RuntimeConfig,
    is_none,
    make_config,
    make_runtime,
    parse_bytes,
    parse_settings,
)
from .controls import parse_controls
from .presets import with_preset
from .regions import Region
from .sidecar import read_sidecar, sidecar_file
from .toml import read_toml

Options = dict[str, Any]
EDIT = ("preset", *EditConfig.model_fields)
RUNTIME = tuple(RuntimeConfig.model_fields)
REPEATED = {"prompts": "prompt", "loras": "lora", "embeddings": "embedding", "regions": "region"}
GIVEN_AS = {**REPEATED, "editor_settings": "set_"}  # option → what the command line calls it
CANNY_THRESHOLDS = "100-200"  # as `Control` has them
MASKS = {"mask", "mask_from"}  # which exclude each other
PATHS = tuple(name for name, field in EditConfig.model_fields.items() if field.annotation in (Path, Path | None))

PLACES = ("loras", "embeddings", "mask_from")  # texts that may begin with a place


def config_of(options: Mapping[str, Any]) -> EditConfig:
    """What is asked; InputError, naming the option, where a value cannot be."""
    own = {name: value for name, value in options.items() if name in EditConfig.model_fields}
    return make_config(**with_preset(options.get("preset", "balanced"), own))


def runtime_of(options: Mapping[str, Any]) -> RuntimeConfig:
    """How it is done; InputError likewise."""
    own = {name: value for name, value in options.items() if name in RuntimeConfig.model_fields}
    if isinstance(own.get("token_budget"), str):
        own["token_budget"] = parse_bytes(own["token_budget"])
    return make_runtime(**own)


def options_of(given: Mapping[str, Any]) -> Options:
    """The same from values as the command line names them, where None is not said.

    Controls that a file or a run said come as they are, under their own name: a text cannot hold all of them.
    raises   InputError where one cannot be read, or a mask is said in two ways
    """
    options = {name: given.get(GIVEN_AS.get(name, name)) for name in (*EDIT, *RUNTIME)}
    if word := given.get("keep_background"):
        if options["mask_from"] not in (None, said := f"cross-attention:{word}"):
            raise InputError(f"--keep-background is short for --mask-from {said}; leave one of them out")
        options["mask_from"] = said
    if options["controls"] is None and (given.get("control") or given.get("control_video")):
        thresholds = given.get("canny_thresholds") or CANNY_THRESHOLDS
        options["controls"] = parse_controls(given.get("control") or (), given.get("control_video") or (), thresholds)
    options |= {name: tuple(value) for name in REPEATED if (value := options[name]) is not None}
    if options["editor_settings"] is not None:
        options["editor_settings"] = parse_settings(options["editor_settings"])
    return {name: value for name, value in options.items() if value is not None}


def given_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """The other way round: as the command line would have given them."""
    given = {GIVEN_AS.get(name, name): value for name, value in options.items()}
    given |= {name: [*given[name]] for name in REPEATED.values() if name in given}
    if "set_" in given:
        given["set_"] = [f"{name}={json.dumps(value)}" for name, value in given["set_"].items()]
    if "token_budget" in given:
        given["token_budget"] = str(given["token_budget"])
    if "video" in given:
        given["video"] = Path(given["video"])
    return given


def renamed(options: Mapping[str, Any]) -> Options:
    """Options as a file or Python names them, in which the command line's names stand for their own too.

    `lora` is `loras`, and one text is a list of one; `keep_background` is a `mask_from`.
    raises   InputError where one is said under both names
    """
    found: Options = {}
    names = {given: name for name, given in REPEATED.items()} | {"keep_background": "mask_from"}
    for said, value in options.items():
        name = names.get(said, said)
        if name in found or (name != said and name in options):
            raise InputError(f"{said} is {name} by another name; say one of them")
        if said == "keep_background":
            value = f"cross-attention:{value}"
        elif name != said and isinstance(value, str):
            value = [value]
        found[name] = value
    return found


def over(base: Mapping[str, Any], anew: Mapping[str, Any]) -> Options:
    """The options of `base` but for what is said anew.

    A preset brings its own options, another editor has no old settings, and one mask takes the place of the other; no
    mask has no feather.
    """
    replaced = (OF_PRESETS if "preset" in anew else set()) | (MASKS if MASKS & anew.keys() else set())
    if any(is_none(anew[name]) for name in MASKS & anew.keys()):
        replaced |= {"mask_feather"}
    kept = {name: value for name, value in base.items() if name not in replaced}
    settings = dict(anew.get("editor_settings", {}))
    if anew.get("editor", base.get("editor", "pnp")) == base.get("editor", "pnp"):
        settings = {**base.get("editor_settings", {}), **settings}
    else:
        from stages import editors  # which imports torch

        decided = editors.schedule(base["editor"]) if base.get("editor") in editors.names() else {}
        kept = {name: value for name, value in kept.items() if name != "controls" and name not in decided}
    return {**kept, **anew, "editor_settings": settings}


def completed(
    given: Mapping[str, Any], said: frozenset[str], open_store: Callable[[str | None], Store]
) -> dict[str, Any]:
    """The command line's values with those of --like and of --config where it says nothing.

    said     names of the options that were really given: they win
    raises   InputError for a file or a run that cannot be used, and where no video is named at all
    """
    anew = options_of({name: value for name, value in given.items() if name in said})
    asked = layered(anew, given["config"], given["like"], lambda: open_store(given["store"]))
    found = {**given, **given_of(asked)}
    if found["video"] is None:
        raise InputError("missing argument VIDEO: name the video, or --config FILE.toml or --like RUN that does")
    return found


def layered(anew: Options, config: Path | None, like: str | None, open_store: Callable[[], Store]) -> Options:
    """What is said anew, over a file of options, over an earlier run."""
    if config is not None:
        anew = over(read_options(config), anew)
    if like is not None:
        anew = over(options_like(open_store(), like, with_video="video" not in anew), anew)
    return anew


def read_options(file: Path) -> Options:
    """The options in a TOML file, by name; a path in it is relative to its folder.

    raises   InputError, one sentence, where it cannot be read or names an option that there is not
    """
    options = renamed(read_toml(file, "--config", "a .toml file of options"))
    for name in options:
        if name not in (*EDIT, *RUNTIME):
            raise InputError(f"--config {file}: no option {name!r}; have {', '.join((*EDIT, *RUNTIME))}")
    _check_shapes(file, options)
    paths: Options = {name: file.parent / options[name] for name in PATHS if not is_none(options.get(name, ""))}
    paths |= {name: _beside(file, options[name]) for name in PLACES if name in options}
    if isinstance(options.get("model"), str):
        paths["model"] = _model_beside(file, options["model"])
    if "regions" in options:
        paths["regions"] = tuple(str(Region.read(text).within(file.parent)) for text in options["regions"])
    if "controls" in options:
        paths["controls"] = [
            {
                **each,
                **({"video": file.parent / each["video"]} if "video" in each else {}),
                **({"model": _beside(file, each["model"])} if "model" in each else {}),
            }
            for each in options["controls"]
        ]
    return {**options, **paths}


def _beside(file: Path, said: Any) -> Any:
    """`said`, a text or a list of them, each seen from the folder of `file` if it names something that lies there."""
    if isinstance(said, list):
        return [_beside(file, each) for each in said]
    if not isinstance(said, str):
        return said
    sam, place = ("sam:", said.removeprefix("sam:")) if said.startswith("sam:") else ("", said)
    named = place.rpartition("@")[0] if sam else place.partition(":")[0]
    return f"{sam}{file.parent / place}" if named and (file.parent / named).exists() else said


def _model_beside(file: Path, said: str) -> str:
    """The same of a model, FILE[:CONFIGS]."""
    if (file.parent / said).exists():
        return str(file.parent / said)
    place, colon, configs = said.partition(":")
    beside = configs and (file.parent / configs).is_dir()
    return f"{_beside(file, place)}{colon}{file.parent / configs if beside else configs}"


def options_like(store: Store, name: str, with_video: bool = True) -> Options:
    """What a remembered run, or the run of a clip, was asked; how it was done is this machine's own affair.

    name         the run's id, 'latest', a clip that tf run wrote, or the sidecar beside one
    with_video   whether its video is meant too: then it must still have the same bytes
    raises       InputError where there is no such run, or another video lies in the place of its own
    """
    file = Path(name)
    if file.suffix == ".json" or sidecar_file(file).is_file():
        sidecar = read_sidecar(file if file.suffix == ".json" else sidecar_file(file))
        asked, key = sidecar.config.model_dump(mode="json"), sidecar.video.key
    else:
        from .report import find_run

        run = find_run(store, name)
        asked, key = dict(run["config"]), run["video"]
    if unknown := sorted(asked.keys() - EditConfig.model_fields):
        raise InputError(
            f"--like {name}: another version made it, with the option {unknown[0]!r}; say its options anew"
        )
    if with_video:
        _check_video(Path(asked["video"]), key, name, store)
    return {option: value for option, value in asked.items() if value is not None}


def _check_video(video: Path, key: str, name: str, store: Store) -> None:
    if not video.is_file():
        raise InputError(f"--like {name}: its video {video} is not there any more; name VIDEO")
    if f"blake3:{store.file_hash(video)}" != key:
        raise InputError(f"--like {name}: {video} has other bytes than then; name VIDEO, this one or another")


def _check_shapes(file: Path, options: Mapping[str, Any]) -> None:
    """InputError where what is read here has another shape; values are checked with those of the command line."""
    prompts = options.get("prompts", [])
    if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts):
        raise InputError(f'--config {file}: prompts is no list of texts; write prompts = ["a text"]')
    regions = options.get("regions", [])
    if not isinstance(regions, list) or not all(isinstance(region, str) for region in regions):
        raise InputError(f'--config {file}: regions is no list of texts; write regions = ["MASK=PROMPT"]')
    controls = options.get("controls", [])
    if not isinstance(controls, list) or not all(isinstance(each, dict) for each in controls):
        raise InputError(f"--config {file}: controls is no list of tables; write [[controls]]")
    if not isinstance(options.get("editor_settings", {}), dict):
        raise InputError(f"--config {file}: editor_settings is no table; write [editor_settings]")
    for name in (*PATHS, "preset", "token_budget"):
        if not isinstance(options.get(name, ""), str | int if name == "token_budget" else str):
            raise InputError(f"--config {file}: {name} is no text; write it in quotes")
