"""A grid: every combination of prompts and of options that are tried, planned before any of it runs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from stages import editors
from store.errors import FullPlaceError, InputError
from store.layout import human_bytes
from store.store import Store

from .config import EditConfig, RuntimeConfig, check_texts
from .forms import MOST_EDITS
from .options import GIVEN_AS, REPEATED, Options, config_of, over
from .plan import Node, Plan
from .videos import KnownVideo

NOT_TRIED = {
    "video": "a sweep is of one video",
    "prompts": "prompts are given by --prompts",
    "editor_settings": "a setting is written EDITOR.SETTING, such as pnp.attention",
    "controls": "make a sweep with each --control",
    "keep_background": "write mask_from=cross-attention:WORD,cross-attention:WORD",
}
"""What a grid does not vary under these names, and the way out."""
PLACES = ("model", "loras", "embeddings", "regions", "mask", "mask_from", "decoder")  # whose values hold paths
AS_GIVEN = (*GIVEN_AS.items(), ("controls", "control"), ("controls", "control_video"), ("editor_settings", "set"))
Choice = dict[str, Any]
"""What one combination has of each axis: option, or EDITOR.SETTING, → value."""


@dataclass(frozen=True)
class Axis:
    """What is varied and its values. An editor's setting is called EDITOR.SETTING, and is of that editor alone."""

    name: str
    values: tuple[Any, ...]

    @property
    def editor(self) -> str | None:
        """The editor whose setting it is; None for an option of `tf run`."""
        return self.name.partition(".")[0] if "." in self.name else None


@dataclass(frozen=True)
class Combination:
    """One edit of a sweep: its number as asked, from 1, its prompt, what it has of each axis, and its plan."""

    number: int
    prompt: str
    choice: Choice
    plan: Plan

    @property
    def edit(self) -> Node:
        """The clip that comes out."""
        return self.plan.edits[0][1]

    @property
    def label(self) -> str:
        """Prompt and choices in one line."""
        return named(self.prompt, self.choice)


@dataclass(frozen=True)
class Forecast:
    """What a sweep would do; artifacts that several edits need are counted once.

    unshared   how many artifacts as many single runs, each in a store of its own, would make
    bytes      that are written at most
    stages     stage → (artifacts, of these to compute)
    """

    edits: int
    artifacts: int
    unshared: int
    compute: int
    bytes: int
    stages: dict[str, tuple[int, int]]

    def sentence(self) -> str:
        """The same for people."""
        return (
            f"{self.edits} edits of {self.artifacts} artifacts, where one by one they would need {self.unshared}: "
            f"{self.artifacts - self.compute} are there or not needed, {self.compute} to compute, "
            f"up to {human_bytes(self.bytes)} to write"
        )


def read_axes(texts: Sequence[str]) -> list[Axis]:
    """Axes from NAME=VALUE,VALUE texts; a list in JSON where a value has a comma; InputError for what is none."""
    found = []
    for text in texts:
        name, equals, written = text.partition("=")
        if not equals or not name.strip() or not written.strip():
            raise InputError(f"--grid {text!r} is not NAME=VALUE,VALUE; write for example guidance_scale=5,7.5")
        found.append((name.strip(), _values(written.strip(), text)))
    return make_axes(found)


def make_axes(given: Sequence[tuple[str, Sequence[Any]]]) -> list[Axis]:
    """Axes from names and values; InputError for a name that is none, or that comes twice."""
    for name, values in given:
        if isinstance(values, str) or not isinstance(values, Iterable):
            raise InputError(f"--grid {name}: {values!r} is no list of values; give {name} a list, even of one")
    axes = [_axis(_axis_name(name), values) for name, values in given]
    names = [axis.name for axis in axes]
    for axis in axes:
        if names.count(axis.name) > 1:
            raise InputError(f"--grid names {axis.name} twice; give all its values at once")
        if not axis.values:
            raise InputError(f"--grid {axis.name} has no value")
    return axes


def choices(axes: Sequence[Axis], editor: str) -> list[Choice]:
    """Every combination of the axes' values, each once: those of an editor's settings only beside that editor.

    editor   the one of combinations that choose none
    """
    named = {str(value) for axis in axes if axis.name == "editor" for value in axis.values} or {editor}
    for axis in axes:
        if axis.editor and axis.editor not in named:
            raise InputError(
                f"--grid {axis.name} is of the editor {axis.editor}, which no edit of this sweep has; "
                f"add --grid editor={','.join([*sorted(named), axis.editor])}"
            )
    found: dict[str, Choice] = {}
    for values in product(*(axis.values for axis in axes)):
        chosen = dict(zip([axis.name for axis in axes], values, strict=True))
        own = str(chosen.get("editor", editor))
        kept = {axis.name: chosen[axis.name] for axis in axes if axis.editor in (None, own)}
        found[json.dumps(kept)] = kept
    return [*found.values()]


def with_choice(options: Options, choice: Choice) -> Options:
    """The options of one combination."""
    editor = str(choice.get("editor", options.get("editor", "pnp")))
    own = {name.partition(".")[2]: value for name, value in choice.items() if "." in name}
    anew = {name: _repeated(value) if name in REPEATED else value for name, value in choice.items() if "." not in name}
    controls = {"controls": options["controls"]} if editor == "controlnet" and "controls" in options else {}
    if "editor" in choice and not controls:  # those of the one editor of several that has a use for them
        options = {name: value for name, value in options.items() if name != "controls"}
    preset = {"preset": anew.pop("preset")} if "preset" in anew else {}  # what was said beside the grid stays
    return {**over(options, {**anew, "editor_settings": own}), **controls, **preset}


def check_free(axes: Sequence[Axis], said: Mapping[str, Any]) -> None:
    """InputError where a grid varies what was said to be one value: an option, or a setting of the editor.

    said   options by name, those alone that somebody gave beside the grid
    """
    settings = {f"{said.get('editor', 'pnp')}.{name}": f"--set {name}" for name in said.get("editor_settings", ())}
    fixed = settings | {name: f"--{GIVEN_AS.get(name, name).replace('_', '-')}" for name in said}
    for axis in axes:
        if axis.name in fixed:
            raise InputError(f"--grid varies {axis.name}, and {fixed[axis.name]} sets it; leave one out")


def read_prompts(file: Path) -> list[str]:
    """The prompts in a text file, one a line; empty lines and those that begin with # are none."""
    try:
        lines = file.read_text("utf-8-sig").splitlines()
    except FileNotFoundError:
        raise InputError(f"--prompts {file} is not there; give a text file with a prompt on each line") from None
    except UnicodeDecodeError:
        raise InputError(f"--prompts {file} is no text in UTF-8; save it as such") from None
    except OSError as error:
        raise InputError(f"--prompts {file} cannot be read: {error.strerror}") from None
    prompts = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not prompts:
        raise InputError(f"--prompts {file} holds no prompt; write one on each line")
    return prompts


def combine(
    options: Options, prompts: Sequence[str], axes: Sequence[Axis], runtime: RuntimeConfig, store: Store
) -> list[Combination]:
    """Every prompt in every choice, in the order that reuses most: what shares a stage's work follows each other.

    Edits that come to the same artifact are one, the first.
    raises   InputError, naming the combination, where one cannot be used, and where they are too many
    """
    asked, tried = list(dict.fromkeys(prompts)), choices(axes, str(options.get("editor", "pnp")))
    if options.get("controls") and "controlnet" not in {options.get("editor"), *(each.get("editor") for each in tried)}:
        raise InputError("--control is of --editor controlnet, which no edit has; add controlnet to --grid editor")
    if not asked:
        raise InputError("there is no prompt: give a file of them with --prompts FILE, or --prompt TEXT")
    if len(asked) * len(tried) > MOST_EDITS:
        raise InputError(
            f"a sweep of {len(asked)} prompts × {len(tried)} settings is {len(asked) * len(tried)} edits; one may have "
            f"{MOST_EDITS}: make several of it"
        )
    check_texts(*asked)
    video = KnownVideo.of(Path(options["video"]), store)
    found: dict[str, Combination] = {}
    for number, (choice, prompt) in enumerate(product(tried, asked), 1):
        each = Combination(number, prompt, choice, _plan(options, prompt, choice, runtime, store, video))
        found.setdefault(each.edit.key.hex, each)
    return _ordered([*found.values()])


def forecast(combinations: Sequence[Combination]) -> Forecast:
    """What running them would do; nothing is run."""
    nodes = {node.key.hex: node for each in combinations for node in each.plan.nodes}
    compute: dict[str, int] = {}
    for each in combinations:
        missing = [node for node in each.plan.to_compute() if node.key.hex not in compute]
        compute |= {node.key.hex: each.plan.missing_bytes([node]) for node in missing}
    stages: dict[str, tuple[int, int]] = {}
    for key, node in nodes.items():
        there, missing_ones = stages.get(node.stage, (0, 0))
        stages[node.stage] = (there + 1, missing_ones + (key in compute))
    unshared = sum(len(each.plan.nodes) for each in combinations)
    return Forecast(len(combinations), len(nodes), unshared, len(compute), sum(compute.values()), stages)


def check_room(store: Store, ahead: Forecast) -> None:
    """FullPlaceError where a sweep would not fit, before any of it runs."""
    free = store.free_bytes()
    if ahead.bytes > free:
        raise FullPlaceError(
            f"this sweep would write up to {human_bytes(ahead.bytes)} to {store.place}, where {human_bytes(free)} is "
            "free; free some space, try fewer combinations, or choose another place with --store"
        )


def named(prompt: str, choice: Mapping[str, Any]) -> str:
    """A combination in one line."""
    return " · ".join(filter(None, [" ".join(prompt.split()), setting(choice)]))


def setting(choice: Mapping[str, Any]) -> str:
    """What a combination has of each axis, in one line."""
    return " · ".join(f"{name} {_shown(name, value)}" for name, value in choice.items())


def _shown(name: str, value: Any) -> str:
    """A value in a label: of a path its last part."""
    return re.sub(r"[^\s:=]*/", "", str(value), count=1) if name in PLACES else str(value)


def _plan(
    options: Options, prompt: str, choice: Choice, runtime: RuntimeConfig, store: Store, video: KnownVideo
) -> Plan:
    try:
        return Plan(config_of({**with_choice(options, choice), "prompts": (prompt,)}), runtime, store, video)
    except InputError as error:
        if not choice:
            raise
        raise InputError(f"{named(prompt, choice)}: {error}") from None


def _ordered(combinations: list[Combination]) -> list[Combination]:
    """Grouped by model, which is loaded once, then stage by stage by what they share; groups as they were asked for."""
    first: dict[str, int] = {}

    def place(each: Combination) -> list[int]:
        above = [each.plan.model.key, *(node.key.hex for node in each.plan.nodes)]
        return [first.setdefault(key, each.number) for key in above]

    return [each for _, each in sorted([(place(each), each) for each in combinations], key=lambda pair: pair[0])]


def _axis_name(name: str) -> str:
    """How an axis is called: an option with its underscores, or EDITOR.SETTING, which may be written with a _ too."""
    known = [option for option in ("preset", *EditConfig.model_fields) if option not in NOT_TRIED]
    written = name.replace("-", "_")
    option = next((option for option, given in AS_GIVEN if given == written), written)
    if option in known:
        return option
    if option in RuntimeConfig.model_fields:
        raise InputError(f"--grid {name}: no result depends on it, so there is nothing to choose; give it as an option")
    if option in NOT_TRIED:
        raise InputError(f"--grid {name}: not varied here; {NOT_TRIED[option]}")
    for editor in sorted(editors.names(), key=len, reverse=True):
        known_as = editor.replace("-", "_")
        if option.startswith((f"{known_as}.", f"{known_as}_")) and len(option) > len(editor) + 1:
            return f"{editor}.{option[len(editor) + 1 :]}"
    raise InputError(
        f"--grid {name}: neither an option ({', '.join(known)}) nor a setting of an editor, such as pnp.attention"
    )


def _values(written: str, text: str) -> list[JsonValue]:
    """Values of one axis: a JSON list, or texts between commas, numbers as numbers."""
    if written.startswith("["):
        try:
            values = json.loads(written, parse_constant=str)
        except ValueError as error:
            raise InputError(f"--grid {text!r} is no list in JSON ({error})") from None
        return list(values)
    return [_value(each.strip()) for each in written.split(",") if each.strip()]


def _value(text: str) -> JsonValue:
    try:
        value: JsonValue = json.loads(text, parse_constant=str)
    except ValueError:
        return text
    return value


def _repeated(value: Any) -> tuple[str, ...]:
    """One value of an option that may be given several times; an empty one stands for none."""
    return (str(value),) if value not in (None, "") else ()


def _axis(name: str, values: Sequence[Any]) -> Axis:
    """An axis with each of its values once; what is a text in an edit is one here, whatever it looks like."""
    field = EditConfig.model_fields.get(name)
    is_text = field is not None and (field.annotation in (str, str | None) or name in REPEATED)
    for value in values:
        if isinstance(value, list | dict):
            raise InputError(f"--grid {name}: {value!r} is no single value; give numbers or texts")
    texts = (str(v) if isinstance(v, Path) or (is_text and v is not None) else v for v in values)
    return Axis(name, tuple(dict.fromkeys(texts)))
