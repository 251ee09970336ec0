"""The work of a run as Prefect shows it: one task run per part of a stage, *Cached* where the store had it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from contextvars import ContextVar
from typing import Any

from prefect import State, Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import TaskRun
from prefect.concurrency._asyncio import ConcurrencySlotAcquisitionError
from prefect.settings import PREFECT_API_URL
from prefect.states import Completed, Failed
from prefect.tasks import exponential_backoff

from flows.engine import SECONDS_WITHOUT_SIGN, EngineError, answers
from flows.plan import Node
from flows.showing import sentence_of
from flows.tasks import Session
from store.artifact import Artifact
from store.errors import SilentPlaceError
from store.layout import PASSING


class Walk:
    """One run under way in this process: its session and work, and what came of it."""

    def __init__(self, session: Session, work: Callable[[Session], Any]) -> None:
        self.session, self.work = session, work
        self.parts: dict[str, Callable[[range], None]] = {}  # key in hex → does a part of that artifact
        self.value: Any = None
        self.error: BaseException | None = None
        self.farewell = ExitStack()  # what holds until Prefect has been told how the run ended


current: ContextVar[Walk] = ContextVar("walk")


class PrefectEngine:
    """Has parts done as task runs of the current flow run, one after the other, here.

    Differs from a task runner's threads: the model is shared and patched while it works, so there is one part at a time
    anyway, and work on the main thread is what Ctrl-C and a cancellation can stop at once.
    """

    apart = False

    def __init__(self, walk: Walk) -> None:
        self.walk = walk
        self.plan = walk.session.plan
        self.states: dict[str, list[State[Any]]] = {}  # key in hex → the task runs behind that artifact

    def found(self, node: Node, artifact: Artifact) -> None:
        """Show the stage as one task run that ends *Cached*."""
        state = self._call(cached_stage, node, part_title(node), artifact.digest)
        self.states[node.key.hex] = [state]

    def work(self, node: Node, parts: list[range], do: Callable[[range], None]) -> None:
        """Do all parts, each in its task run; the first error ends it, as the object that was raised."""
        self.walk.parts[node.key.hex] = do
        dim = (self.plan.schema(node).parts or (None, 0))[0]
        states = self.states.setdefault(node.key.hex, [])
        for part in parts:
            state = self._call(stage_part, node, part_title(node, dim, part), part.start, part.stop)
            if not state.is_completed():
                raise self.walk.error or EngineError(f"Prefect ended {part_title(node, dim, part)} as {state.name}")
            states.append(state)

    def along(self, node: Node, artifact: Artifact, main: Node) -> None:
        """Show the stage as one task run, completed by the work on `main`."""
        self.states[node.key.hex] = [self._call(along_stage, node, part_title(node), main.stage)]

    def _call(self, what: Task[..., Any], node: Node, title: str, *given: Any) -> State[Any]:
        named = what.with_options(name=node.stage, task_run_name=lambda: title, tags=self._tags(node))
        upstream = self._upstream(node)
        for last in (False, False, True):
            try:
                return named(node.key.hex, *given, return_state=True, wait_for=upstream)
            except ConcurrencySlotAcquisitionError:  # asked by tag before a task begins: nothing was done
                if last or not _answers_again():
                    raise
        raise AssertionError("the last try returns or raises")

    def _upstream(self, node: Node) -> list[State[Any]]:
        """The task runs a node stands on; an input without any (it is written by this very work) is looked through."""
        states: list[State[Any]] = []
        for key in node.key.inputs.values():
            above = next((other for other in self.plan.nodes if other.key.hex == key), None)
            if above is not None:
                states += self.states.get(key) or self._upstream(above)
        return states

    def _tags(self, node: Node) -> set[str]:
        """The stage; and for a Prefect concurrency limit what runs the model says on which device."""
        device = set() if node.stage in ("decode_frames", "control_frames") else {self.plan.device}
        return {f"stage:{node.stage}"} | device


def _answers_again() -> bool:
    """Wait for a server that went away; False where it does not come back, or is this process's own."""
    url = PREFECT_API_URL.value()
    if url is None:
        return False
    deadline = time.monotonic() + SECONDS_WITHOUT_SIGN
    while not (there := answers(url)) and time.monotonic() < deadline:
        time.sleep(1)
    return there


def part_title(node: Node, dim: str | None = None, part: range | None = None) -> str:
    """A task run's name: "invert · frames 0–15", "edit · 'a marble statue'"."""
    words = [node.stage.partition("_")[0]]
    if node.prompt is not None:
        words.append(f"'{node.prompt}'")
    if dim is not None and part is not None:
        words.append(f"{dim}s {part.start}–{part.stop - 1}" if len(part) > 1 else f"{dim} {part.start}")
    return " · ".join(words)


def may_pass(error: BaseException | None, tries: int) -> bool:
    """Whether trying again may help: a network or disk that failed, a store that does not answer, a GPU that was full.

    Never an input, a schema, a full disk, or permission denied. What did not fit into a GPU was tried in ever smaller
    passes before it came here; what another process took of its memory may be back, once.

    tries   so far
    """
    if type(error).__name__ == "OutOfMemoryError":
        return tries <= 1
    if isinstance(error, OSError):
        return error.errno in PASSING or isinstance(error, ConnectionError | TimeoutError)
    return isinstance(error, SilentPlaceError)


def _try_again(_task: Any, run: TaskRun, state: State[Any]) -> bool:
    walk = current.get()
    again = may_pass(walk.error, run.run_count)
    if again:
        assert walk.error is not None, "nothing may pass where there is nothing"
        walk.session.progress.note(f"{run.name} is tried again: {sentence_of(walk.error)[:300]}")
        walk.error.__traceback__ = None  # it holds what the part had in memory
        if type(walk.error).__name__ == "OutOfMemoryError":
            walk.session.make_room()
    return again


@task(
    cache_policy=NO_CACHE, persist_result=False, retries=3, retry_delay_seconds=exponential_backoff(2),
    retry_jitter_factor=0.5, retry_condition_fn=_try_again,
)  # fmt: skip
def stage_part(key: str, start: int, stop: int) -> State[None] | None:
    """One part of a stage, written into its draft."""
    walk = current.get()
    walk.error = None
    try:
        walk.parts[key](range(start, stop))
    except Exception as error:  # told as a sentence; where it came from, the flow run's log says
        walk.error = error
        return Failed(message=sentence_of(error))
    except BaseException as error:
        walk.error = error
        raise
    return None


@task(cache_policy=NO_CACHE, persist_result=False)
def cached_stage(key: str, digest: str) -> State[str]:
    """A stage whose artifact the store has."""
    return Completed(name="Cached", message=f"artifact {digest}", data=key)


@task(cache_policy=NO_CACHE, persist_result=False)
def along_stage(key: str, main: str) -> State[str]:
    """A stage whose artifact another stage's work wrote along."""
    return Completed(message=f"written along with {main}", data=key)
