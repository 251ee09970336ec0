"""The flows that edit: `edit_video` and `preview_video`, which a worker may call with their parameters alone.

The store is the only cache; Prefect orders, retries I/O, shows and logs. The modules of this package are imported by
their full names, since Prefect loads this file by its path as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from prefect import Flow, State, flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed

from flows.cancelling import cancellable, heard_in_background
from flows.config import EditConfig, RuntimeConfig
from flows.edit import edit, preview
from flows.engine import EngineError, T
from flows.places import store_at
from flows.plan import Plan
from flows.prefect_engine import PrefectEngine, Walk, current
from flows.summary import artifact_key, summary
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
    more = f" +{len(config.prompts) - 1}" if len(config.prompts) > 1 else ""
    return f"{verb} · {config.video.stem} · '{config.prompts[0]}'{more}"


@flow(name="edit-video", flow_run_name=_run_name, persist_result=False)
def edit_video(config: EditConfig, store: str, runtime: RuntimeConfig = _RUNTIME) -> list[str] | State[None]:
    """Edit a video as prompts say; returns the keys of the edits, one per prompt, in `store` (a path or URL)."""
    return _walked(config, store, runtime, edit)


@flow(name="preview-video", flow_run_name=_run_name, persist_result=False)
def preview_video(config: EditConfig, store: str, runtime: RuntimeConfig = _RUNTIME) -> list[str] | State[None]:
    """Edit a video's keyframes alone; returns the keys of the keyframe edits, one per prompt."""
    return _walked(config, store, runtime, preview)


def _walked(
    config: EditConfig, store: str, runtime: RuntimeConfig, work: Callable[[Session], list[Artifact]]
) -> list[str] | State[None]:
    """The body of both flows: this process's run where there is one, else one made from the parameters."""
    walk = current.get(None)
    if walk is not None:
        return _walked_here(walk)
    walk = Walk(Session(Plan(config, runtime, store_at(store))), work)
    token = current.set(walk)
    try:
        with walk.session.plan.leased():
            _do(walk)
    finally:
        current.reset(token)
    return [artifact.key for artifact in walk.value]


def _walked_here(walk: Walk) -> State[None]:
    """The run of `run`: its error is kept as it is, and the flow run can be cancelled from the UI."""
    try:
        with heard_in_background(), cancellable():
            _do(walk)
    except KeyboardInterrupt as error:
        walk.error = error
        return Cancelled(message="interrupted; finished parts are kept")
    except BaseException as error:
        walk.error = error
        raise
    return Completed(message=f"{sum(not use.hit for use in walk.session.used())} artifacts computed")


def _do(walk: Walk) -> None:
    session = walk.session
    session.engine = PrefectEngine(walk)
    for node in session.plan.nodes:  # in DAG order, so that what was found has its edges
        session.find(node)
    walk.value = walk.work(session)
    _publish(session)


def _publish(session: Session) -> None:
    """Show what came out on the run's page; a picture that fails to be drawn fails no run."""
    try:
        create_markdown_artifact(summary(session), key=artifact_key(session.plan), description="What came out")
    except Exception as error:
        get_run_logger().warning("the run's summary could not be shown: %s", error)
