"""The flows that edit: `edit_video` and `preview_video`, which a worker may call with their parameters alone.

The store is the only cache; Prefect orders, retries what may pass, shows and logs. The modules of this package are
imported by their full names, since Prefect may load this file by its path as well.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, cast

from prefect import Flow, State, flow, get_run_logger
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed

from flows.cancelling import cancellable, heard_in_background, impatient
from flows.config import EditConfig, RuntimeConfig, check_texts
from flows.deployments import refresh_cached_videos
from flows.engine import EngineError, T
from flows.outliving import outlive_readers
from flows.pages import add_tags, place_for_clip, publish, publish_end
from flows.places import store_at
from flows.plan import Plan
from flows.prefect_engine import PrefectEngine, Walk, current
from flows.run import FlowName, Work, clip_files, edited, prepared, previewed
from flows.showing import log_cause, log_sentences, sentence_of, shown, store_heard
from flows.summary import run_name
from flows.tasks import Session
from store.artifact import Artifact

_RUNTIME = RuntimeConfig()


def run(session: Session, work: Callable[[Session], T], flow: Flow[..., Any]) -> T:
    """Do `work` in a run of `flow`, in this process; see `flows.engine.run_with_prefect`."""
    walk = Walk(session, work)
    token = current.set(walk)
    failure = None
    try:
        plan = session.plan
        with walk.farewell:
            state: State[Any] = flow(plan.config, session.store.place, plan.runtime, return_state=True)  # type: ignore[assignment]
        failure = None if state.is_completed() else state.message
    except Exception as error:
        failure = f"{type(error).__name__}: {error}"
    finally:
        current.reset(token)
    if walk.error is not None and not _is_prefects(walk.error):
        raise walk.error
    if failure is not None:
        reason = " ".join(str(walk.error or failure).split())[:300]
        raise EngineError(
            f"Prefect could not carry this run ({reason}); finished parts are kept: run again, or use --engine direct"
        ) from walk.error
    return cast(T, walk.value)


def _is_prefects(error: BaseException) -> bool:
    """Whether an error that came out of the flow is about the server or Prefect, not about the work."""
    return type(error).__module__.partition(".")[0] in ("prefect", "httpx", "httpcore", "websockets")


def _run_name() -> str:
    given = flow_run.parameters
    config = EditConfig.model_validate(given["config"])
    verb = (flow_run.flow_name or "edit").removesuffix("-video")
    return run_name(verb, config.video.stem, config.prompts)


@flow(name="edit-video", flow_run_name=_run_name, persist_result=False)
def edit_video(
    config: EditConfig, store: str | None = None, runtime: RuntimeConfig = _RUNTIME, output: Path | None = None
) -> list[str] | State[None]:
    """Edit a video as prompts say.

    The edits lie in the store; the run's page shows the first of them beside the source.

    Args:
        config: what is asked for
        store: folder or URL of the store; the worker's own without it
        runtime: how it is done; changes no result
        output: the clip to write, numbered where there are several prompts; none without it
    """
    return walked(lambda: Plan(config, runtime, store_at(store)), output)


@flow(name="preview-video", flow_run_name=_run_name, persist_result=False)
def preview_video(
    config: EditConfig, store: str | None = None, runtime: RuntimeConfig = _RUNTIME
) -> list[str] | State[None]:
    """Edit a video's keyframes alone."""
    return walked(lambda: Plan(config, runtime, store_at(store)), name="preview-video")


def walked(
    make_plan: Callable[[], Plan], output: Path | None = None, name: FlowName = "edit-video"
) -> list[str] | State[None]:
    """The body of every flow: this process's own run where there is one, else one that is made from the parameters.

    Returns the keys of what came out. An error that is a sentence ends the run Failed with that sentence.
    """
    walk = current.get(None)
    sessions = [walk.session] if walk else []
    if walk is None:
        outlive_readers()
    log_sentences()
    try:
        with heard_in_background(), cancellable(), store_heard():
            if walk is None:
                plan = make_plan()
                check_texts(*plan.config.prompts, plan.config.source_prompt, plan.config.negative_prompt)
                return _served(plan, output, name, sessions)
            _do(walk)
            publish(walk.session)
            return Completed(message=f"{sum(not use.hit for use in walk.session.used())} artifacts computed")
    except BaseException as error:
        if walk is not None:  # whoever walks it here gets the error itself
            walk.error = error
            if isinstance(error, KeyboardInterrupt):
                walk.farewell.enter_context(impatient())
        publish_end(error, sessions[-1] if sessions else None)
        if isinstance(error, KeyboardInterrupt):
            return Cancelled(message="interrupted; finished parts are kept")
        if isinstance(error, Exception):
            log_cause(error)
            return Failed(message=sentence_of(error))
        raise


def _served(plan: Plan, output: Path | None, name: FlowName, sessions: list[Session]) -> list[str]:
    """What `tf run` does, with the parameters alone; returns the keys of what came out.

    sessions   is told the one that is begun
    """

    def walker(session: Session, work: Work, name: FlowName, work_to_do: bool) -> list[Artifact]:
        sessions.append(session)
        walk = Walk(session, work)
        token = current.set(walk)
        try:
            _do(walk)
        finally:
            current.reset(token)
        return cast(list[Artifact], walk.value)

    if name == "prepare-video":
        result = prepared(plan, walker)
    elif name == "preview-video":
        result = previewed(plan, [], walker)
    else:
        target = output or place_for_clip(str(flow_run.id))
        result = edited(plan, clip_files(plan, target) if target else [], walker)
    publish(sessions[-1], result)
    for note in [*plan.notes, *result.notes]:
        get_run_logger().warning(note)
    wanted = [pair[0 if name == "preview-video" else 1] for pair in plan.edits] or [plan.match]
    return [node.key.hex for node in wanted]


def _engine(walk: Walk) -> AbstractContextManager[PrefectEngine]:
    if walk.session.plan.runtime.runner == "here":
        return nullcontext(PrefectEngine(walk))
    from flows.spread import spread_engine

    return spread_engine(walk)


def _do(walk: Walk) -> None:
    """Walk the run: its stages are task runs of the current flow run."""
    session = walk.session
    add_tags(f"video:{session.plan.config.video.stem}", f"model:{Path(session.plan.config.model).name}")
    with _engine(walk) as session.engine, shown(session):
        for node in session.plan.nodes:  # in DAG order, so that what was found has its edges
            session.find(node)
        walk.value = walk.work(session)
    if any(not use.hit for use in session.used() if use.node.stage == "match_tokens"):
        refresh_cached_videos(session.store.place)
