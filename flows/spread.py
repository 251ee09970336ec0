"""One run over several workers, which share nothing but the store: Prefect's Dask or Ray task runner.

The run itself walks as ever: it holds the drafts, decodes the video, asks for the parts that are missing, gathers them
from the store and commits. A worker is told the configuration, what is known of the video, and which part.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import copy_context
from typing import Any
from uuid import UUID

from prefect import State, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.context import FlowRunContext, TaskRunContext
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelled, Completed, Failed
from prefect.tasks import exponential_backoff

from flows.clusters import Cluster, Watch, cluster, expect_api, placed
from flows.engine import EngineError
from flows.one_part import SECONDS_TO_APPEAR, Heeding, Stopped, compute, given
from flows.plan import Node, Plan
from flows.prefect_engine import PrefectEngine, Walk, may_pass, part_title
from stages.diffusion.checks import NonFiniteLatents
from store.errors import InputError, SchemaError, SilentPlaceError, StoreError, StorePlaceError, TokenflowError
from store.parts import adopt_part

READ_HERE = (
    "decode_frames",
    "control_frames",
    "read_masks",
    "segment_masks",
)  # stages that read files which only this machine is known to have
TRIES = 3  # for a part whose files are lost or damaged on their way
SECONDS_BETWEEN_LOOKS = 3  # of a worker, at whether the run is over
ERRORS: dict[str, type[TokenflowError]] = {
    kind.__name__: kind
    for kind in (NonFiniteLatents, SilentPlaceError, StorePlaceError, SchemaError, InputError, StoreError)
}  # what a worker's error is here, by the first of its classes that stands here


@contextmanager
def spread_engine(walk: Walk) -> Iterator[PrefectEngine]:
    """The engine of a run that has its parts computed by workers; with nothing to compute no worker is looked for.

    raises    InputError as `flows.clusters.cluster`, and where workers cannot reach the run's Prefect API
    """
    plan = walk.session.plan
    if all(node.stage in READ_HERE for node in plan.to_compute()):
        yield PrefectEngine(walk)
        return
    api = _api()
    expect_api(api, plan.runtime.address)
    if not plan.runtime.address:
        _settle_device(plan, plan.device)
    with cluster(plan.runtime) as there:
        _settle_device(plan, "cuda" if there.gpus() else "cpu")
        yield SpreadEngine(walk, there, api)


def _api() -> str:
    """The address of the API of this run: that of its own server too, of which no setting tells."""
    context = FlowRunContext.get()
    assert context is not None, "a run is spread inside its flow run"
    return str(context.client.api_url)


def _settle_device(plan: Plan, device: str) -> None:
    """What `auto` means: what workers elsewhere have, whatever this machine has."""
    if plan.runtime.device == "auto":
        plan.runtime = plan.runtime.model_copy(update={"device": device})


class SpreadEngine(PrefectEngine):
    """Has parts computed by workers, side by side, and gathers them.

    Differs from a flow's own task runner: it is looked for only when there is something to compute, and what the
    parameters of a served run ask for can be given to it.
    """

    apart = True

    def __init__(self, walk: Walk, there: Cluster, api: str) -> None:
        super().__init__(walk)
        self.there, self.api = there, api

    def work(self, node: Node, parts: list[range], do: Callable[[range], None]) -> None:
        """Have all parts done; those that read the user's files here, where these are."""
        if node.stage in READ_HERE:
            super().work(node, parts, do)
            return
        for draft in self.walk.session.open_drafts.values():
            draft.gathers = True
        waiting = {self._submit(node, part): (part, 1) for part in parts}
        watch = Watch(self.there)
        try:
            while waiting:
                for future in self.there.finished(waiting):
                    state = self.there.state(future)
                    if state is None:
                        continue
                    part, tries = waiting.pop(future)
                    if not self._gathered(node, part, state):
                        if tries == TRIES:
                            raise EngineError(f"what {self._title(node, part)} gave is lost again and again; run again")
                        waiting[self._submit(node, part)] = part, tries + 1
                watch.look()
        except BaseException:
            with suppress(Exception):  # what it was stopped by is what counts
                self.there.cancel(waiting)
            raise

    def _submit(self, node: Node, part: range) -> Any:
        title, number = self._title(node, part), self.plan.schema(node).divided().index(part)
        named: Any = spread_part.with_options(name=node.stage, task_run_name=title, tags=self._tags(node))
        parameters = {"said": given(self.plan), "key": node.key.hex, "number": number}
        with placed(self.there, self.plan.device), temporary_settings({PREFECT_API_URL: self.api}):
            return self.there.runner.submit(named, parameters=parameters, wait_for=self._upstream(node))

    def _gathered(self, node: Node, part: range, state: State[Any]) -> bool:
        """Have the drafts take what a worker left; False where it is not there, or not sound."""
        session = self.walk.session
        if not state.is_completed():
            session.part_in_hand = self._title(node, part)
            raise _error_of(state)
        drafts = [draft for draft in session.open_drafts.values() if part in draft.missing()]
        deadline = time.monotonic() + SECONDS_TO_APPEAR
        for draft in drafts:
            number = draft.schema.divided().index(part)
            while not adopt_part(session.store.parts_place(), draft, number):
                if time.monotonic() > deadline:
                    return False
                time.sleep(0.5)
        self.states.setdefault(node.key.hex, []).append(state)
        session.progress.advance(self.plan.units_of(node, [part]))
        return True

    def _title(self, node: Node, part: range) -> str:
        return part_title(node, (self.plan.schema(node).parts or (None, 0))[0], part)


def _error_of(state: State[Any]) -> Exception:
    """What a worker's task run ended with, as it would have been raised here."""
    data: Any = state.result(raise_on_failure=False)  # Prefect may have wrapped it
    said: dict[str, Any] = data if isinstance(data, dict) else {}
    kind = ERRORS.get(str(said.get("kind")))
    if kind is None:
        return EngineError(
            f"a worker could not do its part ({state.name}: {' '.join(str(state.message).split())[:300]})"
        )
    error = kind(str(said["sentence"]))
    for name in ("stage", "timestep", "frame"):
        if name in said:
            setattr(error, name, said[name])
    return error


# on the worker

_failed: dict[str, BaseException] = {}  # id of a task run → its last error


def _try_again(_task: Any, run: Any, state: State[Any]) -> bool:
    return may_pass(_failed.pop(str(run.id), None), run.run_count)


@task(
    cache_policy=NO_CACHE, persist_result=False, retries=3, retry_delay_seconds=exponential_backoff(2),
    retry_jitter_factor=0.5, retry_condition_fn=_try_again,
)  # fmt: skip
def spread_part(said: dict[str, Any], key: str, number: int) -> State[Any]:
    """One part of an artifact, left in the store for the run that gathers it."""
    context = TaskRunContext.get()
    assert context is not None, "a part is a task run"
    here = f"{socket.gethostname()}, process {os.getpid()}"
    try:
        with _heeding(context.task_run.flow_run_id) as progress:
            computed = compute(said, key, number, progress)
    except Stopped as error:
        return Cancelled(message=str(error))
    except Exception as error:
        _failed[str(context.task_run.id)] = error
        if not isinstance(error, TokenflowError):
            raise
        return _failure(error)
    return Completed(message=f"by {here}") if computed else Completed(name="Cached", message=f"found by {here}")


def _failure(error: TokenflowError) -> State[Any]:
    """An error of ours as plain data, with the machine it is of: classes need not survive the way."""
    kind = next((base.__name__ for base in type(error).__mro__ if base.__name__ in ERRORS), "StoreError")
    sentence = f"on the worker {socket.gethostname()}: {error}"
    where = {name: at for name in ("stage", "timestep", "frame") if (at := getattr(error, name, None)) is not None}
    return Failed(message=sentence, data={"kind": kind, "sentence": sentence, **where})


@contextmanager
def _heeding(run: UUID | None) -> Iterator[Heeding]:
    """Progress that stops the work when the flow run is cancelled or over; a server that is away stops nothing."""
    progress, ended = Heeding(), threading.Event()

    def look() -> None:
        with get_client(sync_client=True) as client:
            while run and not ended.wait(SECONDS_BETWEEN_LOOKS):
                with suppress(Exception):
                    state = client.read_flow_run(run).state
                    if state is not None and (state.is_final() or state.type == StateType.CANCELLING):
                        progress.over.set()
                        return

    context = copy_context()  # the thread is to see the same Prefect settings
    threading.Thread(target=context.run, args=(look,), name="watch for the run's end", daemon=True).start()
    try:
        yield progress
    finally:
        ended.set()
