"""The flows that are deployed: what a form or a schedule starts on a worker, with parameters alone.

Flow and deployment have one name: `edit-video/edit-video`. `store` is the worker's own where none is given.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefect import State, flow, get_run_logger
from prefect.artifacts import create_table_artifact
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed

from flows.config import EditConfig, RuntimeConfig
from flows.deployments import refresh_cached_videos
from flows.edit_flow import edit_video, walked
from flows.forms import MOST_EDITS, CachedEdit, Collection, PrepareConfig, Sweep
from flows.masks import stored_mask
from flows.places import store_at
from flows.plan import Plan
from flows.presets import with_preset
from flows.runtime import model_kept
from flows.summary import run_name
from flows.upkeep import collected, collection_lines
from flows.videos import choose_preparation, file_of
from store.collect import Collection as Gone
from store.errors import InputError, TokenflowError
from store.layout import human_bytes

__all__ = ["collect_garbage", "edit_cached", "edit_video", "prepare_video", "sweep"]

OF_CACHED = (
    "editor", "editor_settings", "negative_prompt", "controls", "mask", "mask_from", "mask_feather", "loras",
)  # fmt: skip

_RUNTIME = RuntimeConfig()


def _prepare_name() -> str:
    config: Any = PrepareConfig.model_validate(flow_run.parameters["config"])
    return run_name("prepare", config.video.stem, ())


@flow(name="prepare-video", flow_run_name=_prepare_name, persist_result=False)
def prepare_video(
    config: PrepareConfig, store: str | None = None, runtime: RuntimeConfig = _RUNTIME
) -> list[str] | State[None]:
    """Decode, invert, extract and match: all that knows no prompt. Then it can be picked in edit-cached.

    Args:
        config: what is prepared
        store: folder or URL of the store; the worker's own without it
        runtime: how it is done; changes no result
    """

    def plan() -> Plan:
        asked = EditConfig(prompts=("-",), **config.model_dump()).model_copy(update={"prompts": ()})
        return Plan(asked, runtime, store_at(store))

    return walked(plan, name="prepare-video")


def _cached_name() -> str:
    asked = CachedEdit.model_validate(flow_run.parameters["edit"])
    return run_name("edit", asked.video.split(" · ")[0][:60], asked.prompts)


@flow(name="edit-cached", flow_run_name=_cached_name, persist_result=False)
def edit_cached(
    edit: CachedEdit, store: str | None = None, runtime: RuntimeConfig = _RUNTIME
) -> list[str] | State[None]:
    """Put a new prompt to a video that is prepared: only the edit itself is computed.

    Args:
        edit: what is asked for
        store: folder or URL of the store; the worker's own without it
        runtime: how it is done; changes no result
    """
    return walked(lambda: cached_plan(edit, store, runtime))


def cached_plan(edit: CachedEdit, store: str | None, runtime: RuntimeConfig) -> Plan:
    """The plan of an edit whose first four stages are those of a preparation.

    raises   InputError where there is no such video or mask, or its model is another one here
    """
    opened = store_at(store)
    found = choose_preparation(opened, edit.video)
    own, known = edit.model_dump(include=set(OF_CACHED)), found.video
    if edit.mask is not None and not Path(edit.mask).exists():
        mask, key = stored_mask(opened, edit.mask)
        asked_feather = {} if edit.mask_feather is None else {"mask_feather": edit.mask_feather}
        own, known = own | mask | asked_feather, known.model_copy(update={"mask_key": key})
    asked = with_preset(edit.preset, {**found.config, **own, "guidance_scale": edit.guidance_scale or None})
    asked["video"] = file_of(opened, found.video.key) or asked["video"]
    plan = Plan(EditConfig(prompts=edit.prompts, **asked), runtime, opened, known)
    if plan.match.key.hex != found.key:
        raise InputError(
            f"{found.label!r} was prepared with another model {plan.config.model} than the one on this worker, with "
            "other LoRAs, or by another version of this program; name its LoRAs, or run prepare-video again here"
        )
    if known.mask_key and plan.mask and not opened.find(plan.mask.key):
        raise InputError(
            f"the mask {edit.mask!r} of {opened.place} was read for other frames than those of {found.label!r} or with "
            "another feather, or has left the store; name its file as this machine sees it"
        )
    return plan


def _sweep_name() -> str:
    return Sweep.model_validate(flow_run.parameters["sweep"]).title


@flow(name="sweep", flow_run_name=_sweep_name, persist_result=False)
def sweep(sweep: Sweep, store: str | None = None, runtime: RuntimeConfig = _RUNTIME) -> State[None]:
    """Edit every video with every prompt in every setting. A run that fails stops no other, and is named at the end.

    Args:
        sweep: what is tried
        store: folder or URL of the store; the worker's own without it
        runtime: how it is done; changes no result
    """
    try:
        edits = list(sweep.edits())
    except InputError as error:
        return Failed(message=str(error))
    if len(edits) > MOST_EDITS:
        return Failed(message=f"a sweep of {len(edits)} edits; one may have {MOST_EDITS}: make several of it")
    rows: list[dict[str, Any]] = []
    with model_kept():
        for config, setting in edits:  # all of a video after one another: the first prepares it for the rest
            state: State[Any] = edit_video(config, store, runtime, return_state=True)
            rows.append(_outcome(config, setting, state))
            if state.is_cancelled():
                break
    create_table_artifact(rows, key="tokenflow-sweep", description=f"What became of {len(edits)} edits")
    return _swept(rows, len(edits))


def _outcome(config: EditConfig, setting: int, state: State[Any]) -> dict[str, Any]:
    """A row of the table: which edit, how it ended, and its key or why it has none."""
    said = state.result(raise_on_failure=False) if state.is_completed() else state.message
    came = said[0][:12] if isinstance(said, list) else " ".join(str(said).split())[:300]
    return {
        "video": config.video.name, "prompt": config.prompts[0], "setting": setting, "editor": config.editor,
        "state": state.name, "key, or why": came,
    }  # fmt: skip


def _swept(rows: Sequence[Mapping[str, Any]], wanted: int) -> State[None]:
    """How the whole ended: what failed is named."""
    if rows and rows[-1]["state"] == "Cancelled":
        return Cancelled(message=f"cancelled at edit {len(rows)} of {wanted}; what was finished is kept")
    failed = [row for row in rows if row["state"] != "Completed"]
    if not failed:
        return Completed(message=f"{wanted} edits")
    named = [f"{row['video']}, {row['prompt']!r}, setting {row['setting']}: {row['key, or why']}" for row in failed]
    more = f"; and {len(named) - 5} more, in the table of this run" if len(named) > 5 else ""
    return Failed(message=f"{len(failed)} of {wanted} edits failed: {'; '.join(named[:5])}{more}")


def _collection_name() -> str:
    asked = Collection.model_validate(flow_run.parameters.get("collection") or {})
    age = asked.older_than.strip() and f"older than {asked.older_than}"
    limits = [re.sub(r"(?<=\d)\s*(?=[A-Za-z])", " ", text.strip()) for text in (asked.max_size, age) if text.strip()]
    return " · ".join(["gc", *(limits or ["what nobody can use"]), *(["dry run"] if asked.dry_run else [])])


@flow(name="collect-garbage", flow_run_name=_collection_name, persist_result=False)
def collect_garbage(collection: Collection = Collection(), store: str | None = None) -> State[None]:  # noqa: B008
    """Remove from the store what nobody uses; what is removed can be computed again.

    Args:
        collection: what may leave
        store: folder or URL of the store; the worker's own without it
    """
    log = get_run_logger()
    try:
        gone = collected(
            store_at(store), collection.max_size or None, collection.older_than or None, collection.keep_edits,
            collection.dry_run,
        )  # fmt: skip
    except TokenflowError as error:
        log.error(" ".join(str(error).split()))
        return Failed(message=" ".join(str(error).split()))
    lines = [line.strip() for line in collection_lines(gone)]
    for line in lines:
        log.info(line)
    create_table_artifact(_gone(gone), key="tokenflow-gc", description="\n\n".join(lines[-3:]))
    refresh_cached_videos(store)
    return Completed(message=_freed(gone))


def _gone(collection: Gone) -> list[dict[str, Any]]:
    """What left, or would leave: a row each."""
    artifacts = [
        {
            "artifact": ", ".join(f"{stage}/{key[:12]}" for stage, key in zip(each.stages, each.keys, strict=True)),
            "size": human_bytes(each.bytes),
            "last used": each.used[:16].replace("T", " "),
        }
        for each in collection.removed
    ]
    orphans = [(f"object {each.digest[:12]} of no record", each.bytes) for each in collection.orphans]
    rest = orphans + [(each.name, each.bytes) for each in collection.leftovers]
    return artifacts + [{"artifact": name, "size": human_bytes(size), "last used": ""} for name, size in rest]


def _freed(collection: Gone) -> str:
    verb = "would free" if collection.dry_run else "freed"
    return f"{verb} {human_bytes(collection.freed)}; {human_bytes(collection.left)} of objects left"
