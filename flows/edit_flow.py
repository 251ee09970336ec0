"""The run as Prefect shows it: one flow run, one task run per part of a stage, *Cached* where the store had it.

`edit_video` and `preview_video` may be served or called by a worker: parameters are all they need. The store is the
only cache; Prefect orders, retries I/O, shows and logs. The modules of this package are imported by their full names,
since Prefect loads this file by its path as well.
"""

from __future__ import annotations

import _thread
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar, copy_context
from typing import Any, cast
from uuid import UUID

from prefect import Flow, State, Task, flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType, TaskRun
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed

from flows.config import EditConfig, RuntimeConfig
from flows.edit import edit, preview
from flows.engine import EngineError, T
from flows.places import store_at
from flows.plan import Node, Plan
from flows.summary import artifact_key, summary
from flows.tasks import Session
from store.artifact import Artifact

_RUNTIME = RuntimeConfig()
SECONDS_BETWEEN_LOOKS = 5  # at whether the run is to be cancelled


class Walk:
    """One run under way in this process: its session and work, and what came of it."""

    def __init__(self, session: Session, work: Callable[[Session], Any]) -> None:
        self.session, self.work = session, work
        self.parts: dict[str, Callable[[range], None]] = {}  # key in hex → does a part of that artifact
        self.value: Any = None
        self.error: BaseException | None = None


_walk: ContextVar[Walk] = ContextVar("_walk")


def run(session: Session, work: Callable[[Session], T], flow: Flow[..., Any]) -> T:
    """Do `work` in a run of `flow`, in this process; see `flows.engine.run_with_prefect`."""
    walk = Walk(session, work)
    token = _walk.set(walk)
    failure = None
    try:
        plan = session.plan
        state: State[Any] = flow(plan.config, session.store.place, plan.runtime, return_state=True)  # type: ignore[assignment]
        failure = None if state.is_completed() else state.message
    except Exception as error:
        failure = f"{type(error).__name__}: {error}"
    finally:
        _walk.reset(token)
    if walk.error is not None and not _is_prefects(walk.error):
        raise walk.error
    if failure is not None:
        reason = " ".join(str(walk.error or failure).split())[:300]
        raise EngineError(
            f"Prefect could not carry this run ({reason}); finished parts are kept: run again, or use --engine direct"
        ) from walk.error
    return cast(T, walk.value)


class PrefectEngine:
    """Has parts done as task runs of the current flow run, one after the other, here.

    Differs from a task runner's threads: the model is shared and patched while it works, so there is one part at a time
    anyway, and work on the main thread is what Ctrl-C and a cancellation can stop at once.
    """

    def __init__(self, walk: Walk) -> None:
        self.walk = walk
        self.plan = walk.session.plan
        self.states: dict[str, list[State[Any]]] = {}  # key in hex → the task runs behind that artifact

    def found(self, node: Node, artifact: Artifact) -> None:
        """Show the stage as one task run that ends *Cached*."""
        state = self._call(cached_stage, node, _title(node), artifact.digest)
        self.states[node.key.hex] = [state]

    def work(self, node: Node, parts: list[range], do: Callable[[range], None]) -> None:
        """Do all parts, each in its task run; the first error ends it, as the object that was raised."""
        self.walk.parts[node.key.hex] = do
        dim = (self.plan.schema(node).parts or (None, 0))[0]
        states = self.states.setdefault(node.key.hex, [])
        for part in parts:
            state = self._call(stage_part, node, _title(node, dim, part), part.start, part.stop)
            if not state.is_completed():
                raise self.walk.error or EngineError(f"Prefect ended {_title(node, dim, part)} as {state.name}")
            states.append(state)

    def along(self, node: Node, artifact: Artifact, main: Node) -> None:
        """Show the stage as one task run, completed by the work on `main`."""
        self.states[node.key.hex] = [self._call(along_stage, node, _title(node), main.stage)]

    def _call(self, what: Task[..., Any], node: Node, title: str, *given: Any) -> State[Any]:
        named = what.with_options(name=node.stage, task_run_name=lambda: title, tags=self._tags(node))
        upstream = self._upstream(node)
        return named(node.key.hex, *given, return_state=True, wait_for=upstream)

    def _upstream(self, node: Node) -> list[State[Any]]:
        """The task runs a node stands on; an input without any (it is written by this very work) is looked through."""
        states: list[State[Any]] = []
        for key in node.key.inputs.values():
            above = next((other for other in self.plan.nodes if other.key.hex == key), None)
            if above is not None:
                states += self.states.get(key) or self._upstream(above)
        return states

    def _tags(self, node: Node) -> set[str]:
        """For a Prefect concurrency limit: what runs the model says on which device."""
        return set() if node.stage == "decode_frames" else {self.plan.device}


def _is_prefects(error: BaseException) -> bool:
    """Whether an error that came out of the flow is about the server or Prefect, not about the work."""
    return type(error).__module__.partition(".")[0] in ("prefect", "httpx", "httpcore", "websockets")


def _title(node: Node, dim: str | None = None, part: range | None = None) -> str:
    words = [node.stage]
    if node.prompt is not None:
        words.append(f"'{node.prompt}'")
    if dim is not None and part is not None:
        words.append(f"{dim}s {part.start}–{part.stop - 1}" if len(part) > 1 else f"{dim} {part.start}")
    return " · ".join(words)


def _is_io(_task: Any, _run: TaskRun, state: State[Any]) -> bool:
    """Whether trying again may help: a network or disk that failed, never an input, a schema, or a full disk."""
    return isinstance(_walk.get().error, OSError)


@task(cache_policy=NO_CACHE, persist_result=False, retries=2, retry_delay_seconds=[1, 5], retry_condition_fn=_is_io)
def stage_part(key: str, start: int, stop: int) -> None:
    """One part of a stage, written into its draft."""
    walk = _walk.get()
    try:
        walk.parts[key](range(start, stop))
    except BaseException as error:
        walk.error = error
        raise
    walk.error = None


@task(cache_policy=NO_CACHE, persist_result=False)
def cached_stage(key: str, digest: str) -> State[str]:
    """A stage whose artifact the store has."""
    return Completed(name="Cached", message=f"artifact {digest}", data=key)


@task(cache_policy=NO_CACHE, persist_result=False)
def along_stage(key: str, main: str) -> State[str]:
    """A stage whose artifact another stage's work wrote along."""
    return Completed(message=f"written along with {main}", data=key)


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
    walk = _walk.get(None)
    if walk is not None:
        return _walked_here(walk)
    walk = Walk(Session(Plan(config, runtime, store_at(store))), work)
    token = _walk.set(walk)
    try:
        with walk.session.plan.leased():
            _do(walk)
    finally:
        _walk.reset(token)
    return [artifact.key for artifact in walk.value]


def _walked_here(walk: Walk) -> State[None]:
    """The run of `run`: its error is kept as it is, and the flow run can be cancelled from the UI."""
    try:
        with _heard_in_background(), _cancellable():
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


def _interrupt_main() -> None:
    """Ctrl-C for the main thread; as a real signal, where there are any, it ends a blocking call too."""
    main = threading.main_thread().ident
    if hasattr(signal, "pthread_kill") and main is not None:
        ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        signal.pthread_kill(main, signal.SIGUSR1 if ignored else signal.SIGINT)
    else:
        _thread.interrupt_main()


@contextmanager
def _heard_in_background() -> Iterator[None]:
    """Where Ctrl-C is ignored, as in a job that a shell put in the background, SIGUSR1 interrupts instead."""
    ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    if not ignored or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGUSR1, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)


@contextmanager
def _cancellable() -> Iterator[None]:
    """Interrupt the main thread when the flow run is to be cancelled: Prefect tells only runs that it started."""
    run_id, ended, deciding = UUID(str(flow_run.id)), threading.Event(), threading.Lock()

    def look() -> None:
        with get_client(sync_client=True) as client:
            while not ended.wait(SECONDS_BETWEEN_LOOKS):
                with suppress(Exception):  # a server that is away for a while cancels nothing
                    state = client.read_flow_run(run_id).state
                    if state is not None and state.type == StateType.CANCELLING:
                        with deciding:
                            if not ended.is_set():
                                _interrupt_main()
                        return

    context = copy_context()  # the thread is to see the same Prefect settings
    threading.Thread(target=context.run, args=(look,), name="watch for cancellation", daemon=True).start()
    try:
        yield
    finally:
        with deciding:
            ended.set()
