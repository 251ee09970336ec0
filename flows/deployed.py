"""The flows that are deployed: what a form or a schedule starts on a worker, with parameters alone.

Flow and deployment have one name: `edit-video/edit-video`. `store` is the worker's own where none is given.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prefect import State, flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.runtime import flow_run
from prefect.states import Completed, Failed

from flows.config import EditConfig, RuntimeConfig
from flows.deployments import refresh_cached_videos
from flows.edit_flow import edit_video, elsewhere, walked
from flows.forms import CachedEdit, Collection, PrepareConfig, Setting, Sweep
from flows.places import store_at
from flows.plan import Plan
from flows.presets import with_preset
from flows.summary import run_name
from flows.upkeep import collected, collection_lines
from flows.videos import choose_preparation
from store.errors import InputError, TokenflowError

__all__ = ["collect_garbage", "edit_cached", "edit_video", "prepare_video", "sweep"]

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

    if (spread := elsewhere(prepare_video, runtime)) is not None:
        return spread(config, store, runtime, return_state=True)

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
    if (spread := elsewhere(edit_cached, runtime)) is not None:
        return spread(edit, store, runtime, return_state=True)
    return walked(lambda: cached_plan(edit, store, runtime))


def cached_plan(edit: CachedEdit, store: str | None, runtime: RuntimeConfig) -> Plan:
    """The plan of an edit whose first four stages are those of a preparation.

    raises   InputError where there is no such video, or its model is another one here
    """
    opened = store_at(store)
    found = choose_preparation(opened, edit.video)
    own = {"editor": edit.editor, "editor_settings": edit.editor_settings, "negative_prompt": edit.negative_prompt}
    asked = with_preset(edit.preset, {**found.config, **own, "guidance_scale": edit.guidance_scale or None})
    plan = Plan(EditConfig(prompts=edit.prompts, **asked), runtime, opened, found.video)
    if plan.match.key.hex != found.key:
        raise InputError(
            f"{found.label!r} was prepared with another model {plan.config.model} than the one on this worker, or by "
            "another version of this program; run prepare-video again here"
        )
    return plan


def _sweep_name() -> str:
    asked = Sweep.model_validate(flow_run.parameters["sweep"])
    counts = ((asked.videos, "video"), (asked.prompts, "prompt"), (asked.settings, "setting"))
    return "sweep · " + " × ".join(f"{len(each)} {noun}{'s' * (len(each) > 1)}" for each, noun in counts)


@flow(name="sweep", flow_run_name=_sweep_name, persist_result=False)
def sweep(sweep: Sweep, store: str | None = None, runtime: RuntimeConfig = _RUNTIME) -> State[None]:
    """Edit every video with every prompt in every setting. A run that fails stops no other, and is named at the end.

    Args:
        sweep: what is tried
        store: folder or URL of the store; the worker's own without it
        runtime: how it is done; changes no result
    """
    failed, done = [], 0
    for config in _edits(sweep):  # all of a video after one another: the first prepares it for the rest
        done += 1
        state: Any = edit_video(config, store, runtime, return_state=True)
        if state.is_cancelled():
            return state
        if not state.is_completed():
            failed.append(f"{config.video.name}, {config.editor}: {' '.join(str(state.message).split())[:200]}")
    if failed:
        return Failed(message=f"{len(failed)} of {done} runs failed: " + "; ".join(failed))
    return Completed(message=f"{done} runs")


def _edits(sweep: Sweep) -> Iterator[EditConfig]:
    """One run per video and setting, with all prompts."""
    shared = sweep.model_dump(include={"model", "source_prompt", "size", "steps"})
    for video in sweep.videos:
        for setting in sweep.settings:
            yield EditConfig(video=video, prompts=sweep.prompts, **_options(setting, shared))


def _options(setting: Setting, shared: dict[str, Any]) -> dict[str, Any]:
    own = setting.model_dump(exclude={"preset", "guidance_scale"})
    return with_preset(setting.preset, {**shared, **own, "guidance_scale": setting.guidance_scale or None})


def _collection_name() -> str:
    asked = Collection.model_validate(flow_run.parameters.get("collection") or {})
    limits = [text for text in (asked.max_size, asked.older_than and f"older than {asked.older_than}") if text]
    return " · ".join(["gc", *(limits or ["what nobody can use"]), *(["dry run"] if asked.dry_run else [])])


@flow(name="collect-garbage", flow_run_name=_collection_name, persist_result=False)
def collect_garbage(collection: Collection = Collection(), store: str | None = None) -> State[None]:  # noqa: B008
    """Remove from the store what nobody uses; what is removed can be computed again.

    Args:
        collection: what may leave
        store: folder or URL of the store; the worker's own without it
    """
    try:
        gone = collected(
            store_at(store), collection.max_size or None, collection.older_than or None, collection.keep_edits,
            collection.dry_run,
        )  # fmt: skip
    except TokenflowError as error:
        return Failed(message=str(error))
    lines = [line.strip() for line in collection_lines(gone)]
    for line in lines:
        get_run_logger().info(line)
    create_markdown_artifact("\n".join(f"- {line}" for line in lines), key="tokenflow-gc", description="What left")
    refresh_cached_videos(store)
    return Completed(message=lines[-1])
