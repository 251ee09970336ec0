"""The commands as functions: the same options by name, the same store and keys, and artifacts that open with xarray.

Importing this loads no model library; calling does.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from .config import EditConfig, RuntimeConfig
from .presets import Preset

if TYPE_CHECKING:
    from store.store import Store

    from .engine import Wanted
    from .options import Options
    from .plan import Plan
    from .run import Result
    from .sweep import Swept
    from .tasks import Progress

Prompts = str | Iterable[str]
NAMED = ("video", "prompts")  # arguments of their own


def _with_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Have help() and a notebook show every option by name, with its default, where the function takes **options."""
    own = [p for p in inspect.signature(function).parameters.values() if p.kind is not p.VAR_KEYWORD]
    fields = {**EditConfig.model_fields, **RuntimeConfig.model_fields}
    options: list[tuple[str, Any, Any]] = [
        ("preset", Preset, "balanced"),
        ("config", Path | None, None),
        ("like", str | None, None),
    ]
    options += [(name, field.annotation, field.default) for name, field in fields.items() if name not in NAMED]
    shown = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=default)
        for name, kind, default in options
    ]
    function.__signature__ = inspect.Signature([*own, *shown])  # type: ignore[attr-defined]
    return function


@_with_options
def edit_video(
    video: str | Path | None = None, prompts: Prompts | None = None, *, output: str | Path | None = None,
    store: str | Path | None = None, engine: Wanted = "direct", progress: Progress | None = None, **options: Any,
) -> Result:  # fmt: skip
    """Edit a video, once per prompt, as `tf run` does: what is in the store already is not computed again.

    prompts    one text or several; with `config` or `like` they and the video may be left out
    output     the video to write, numbered where there are several prompts; without it none is written
    store      folder or URL; TOKENFLOW_STORE or the user's cache folder without it
    options    those of `tf run`, by name: `steps=20`, `editor_settings={"attention": 0.3}`, `device="cuda"` …
    returns    what came of it: `result.dataset("propagate_tokens")` is the edit, that of "match_tokens" the field
    raises     InputError, one sentence, where something cannot be used
    """
    from .run import clip_files, edited, walked_by

    _check_engine(engine)
    plan = plan_video(video, prompts, store=store, **options)
    files = clip_files(plan, Path(output)) if output is not None else []
    return edited(plan, files, walked_by(engine), progress)


@_with_options
def plan_video(
    video: str | Path | None = None, prompts: Prompts | None = None, *, store: str | Path | None = None, **options: Any
) -> Plan:
    """What `edit_video` would do with the same arguments; nothing is run.

    returns    the plan: `plan.summary()`, and `plan.to_compute()` for the artifacts that are missing
    """
    from .options import config_of, runtime_of
    from .places import store_at
    from .plan import Plan

    opened = store_at(None if store is None else str(store))
    asked = _asked(video, prompts, options, opened)
    return Plan(config_of(asked), runtime_of(asked), opened)


@_with_options
def sweep_video(
    video: str | Path | None = None, prompts: Prompts | None = None, *, grid: Mapping[str, Sequence[Any]] | None = None,
    output: str | Path | None = None, store: str | Path | None = None, clip_model: str | None = None,
    flow: str = "auto", engine: Wanted = "direct", progress: Progress | None = None, **options: Any,
) -> Swept:  # fmt: skip
    """Edit a video with every prompt in every setting, as `tf sweep` does.

    grid       option, or EDITOR.SETTING, → the values to try: {"pnp.attention": [0.3, 0.5], "guidance_scale": [5, 7.5]}
    output     the folder of clips, sheet and page; VIDEO-sweep without it
    returns    the edits with their scores; `swept.dataset()` is the table
    """
    from .grid import make_axes
    from .options import renamed
    from .places import store_at
    from .run_sweep import planned_sweep, run_sweep

    _check_engine(engine)
    opened = store_at(None if store is None else str(store))
    asked = _asked(video, prompts, options, opened)
    said = renamed({name: value for name, value in options.items() if value is not None})
    planned = planned_sweep(asked, said, asked.get("prompts", ()), make_axes([*(grid or {}).items()]), opened)
    metrics = {"flow": flow, "clip_model": clip_model}
    return run_sweep(planned, None if output is None else Path(output), metrics, engine, progress=progress)


def _texts(name: str, value: Any) -> tuple[str, ...]:
    """What may be given several times: one text or path, or any number of them; InputError for other things."""
    from store.errors import InputError

    several = value if isinstance(value, Iterable) and not isinstance(value, str) else (value,)
    given = tuple(several)
    if not all(isinstance(each, str | Path) for each in given):
        raise InputError(f"{name}: {value!r} is neither a text nor a list of texts")
    return tuple(map(str, given))


def _check_engine(engine: str) -> None:
    from store.errors import InputError

    from .engine import Wanted

    if engine not in get_args(Wanted):
        raise InputError(f"there is no engine {engine!r}; have {', '.join(get_args(Wanted))}")


def _asked(video: str | Path | None, prompts: Prompts | None, options: Mapping[str, Any], store: Store) -> Options:
    """The options by name, those of `config` and `like` among them where nothing else is said."""
    from store.errors import InputError

    from .options import EDIT, REPEATED, RUNTIME, layered, renamed

    named = {"video": video and Path(video), "prompts": prompts}
    anew = renamed({name: value for name, value in {**named, **options}.items() if value is not None})
    anew |= {name: _texts(name, anew[name]) for name in REPEATED if name in anew}
    known = (*EDIT, *RUNTIME, "config", "like")
    for name in anew:
        if name not in known:
            have = ", ".join(name for name in known if name not in NAMED)
            raise InputError(f"there is no option {name!r}; have {have}")
    config, like = anew.pop("config", None), anew.pop("like", None)
    asked = layered(anew, config and Path(config), like, lambda: store)
    if "video" not in asked:
        raise InputError("there is no video: name it, or a config or an earlier run (like) that does")
    return asked
