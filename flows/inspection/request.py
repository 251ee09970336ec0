"""What is inspected, and how: a video with the options of an edit, or an edit that was made, by its run or a key."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from store.errors import InputError
from store.store import RUN_ID, Store

from ..config import EditConfig, RuntimeConfig, make_config, make_runtime, parse_bytes
from ..export import make_folder
from ..plan import Plan
from ..tasks import Progress
from .components import inspect_components
from .fields import inspect_field
from .pictures import Inspection
from .rebuild import inspect_reconstruct, inspect_swap
from .source import Say, Source

Configs = Callable[[dict[str, Any]], tuple[EditConfig, RuntimeConfig]]
WITH_A_RUN = (
    "--store",
    "--device",
    "--frames-per-pass",
    "--token-budget",
    "--cache-size",
    "--allow-pickle",
)  # options that change no result
RUN = re.compile(RUN_ID)
KEY = re.compile(r"[0-9a-f]{6,64}")
UNEDITED = "unedited"  # stands where a plan wants a prompt and no edit will be made


@dataclass(frozen=True)
class Request:
    """The plan of what is inspected, and whether it has prompts that somebody asked for."""

    plan: Plan
    edited: bool


def read_request(given: dict[str, Any], configs: Configs, changed: Sequence[str], store: Store) -> Request:
    """The request in the values of the edit options by name; `changed` are those that were given.

    raises   InputError for a run or a key that the store does not know, or with options that it already has
    """
    named = str(given["video"])
    if Path(named).is_file() or not (RUN.fullmatch(named) or KEY.fullmatch(named)):
        prompts = given["prompt"] or [given["source_prompt"].strip() or UNEDITED]
        config, runtime = configs(given | {"prompt": prompts})
        return Request(Plan(config, runtime, store), edited=bool(given["prompt"]))
    refused = [option for option in changed if option not in WITH_A_RUN]
    if refused:
        raise InputError(f"{refused[0]} does not go with {named}, which has its own; name a video file instead")
    run = store.load_run(named) if RUN.fullmatch(named) else _run_with(store, named)
    budget = parse_bytes(given["token_budget"])
    runtime = make_runtime(
        device=given["device"], frames_per_pass=given["frames_per_pass"], precision=given["precision"],
        token_budget=budget, allow_pickle=given["allow_pickle"],
    )  # fmt: skip
    return Request(Plan(make_config(**run["config"]), runtime, store), edited=True)


def inspect_request(
    what: str, request: Request, output: Path | None, say: Say, progress: Progress | None = None, **options: Any
) -> Inspection:
    """Draw swap, warp, field, pca or reconstruct into `output`, `<video>-inspect` without it."""
    folder = output or Path(f"{request.plan.config.video.stem}-inspect")
    is_new = not folder.exists()
    make_folder(folder)
    try:
        with request.plan.leased():
            return _drawn(what, request, folder, Source(request.plan, say, progress), options)
    except BaseException:
        if is_new:
            with suppress(OSError):
                folder.rmdir()  # where nothing was drawn, nothing is left; what was drawn stays
        raise


def _drawn(what: str, request: Request, folder: Path, source: Source, options: dict[str, Any]) -> Inspection:
    if what in ("swap", "warp"):
        return inspect_swap(source, folder, what, **options)
    if what == "pca":
        return inspect_components(source, folder, with_edits=request.edited, **options)
    if what == "field":
        return inspect_field(source, folder, **options)
    assert what == "reconstruct", what
    return inspect_reconstruct(source, folder)


def _run_with(store: Store, prefix: str) -> dict[str, Any]:
    """The newest run that used an artifact whose key begins with `prefix`."""
    for run in store.runs():
        if any(stage["key"].startswith(prefix) for stage in run.get("stages", ())):
            return run
    raise InputError(f"{prefix} is neither a video file nor a key that a run in {store.place} used; see tf list")
