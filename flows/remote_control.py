"""Runs that go on elsewhere: handed to a worker, watched, cancelled, and declared dead, over Prefect's API."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterName,
    FlowRunFilterState,
    FlowRunFilterStateType,
    LogFilter,
    LogFilterFlowRunId,
    LogFilterTimestamp,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort, LogSort
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.states import Cancelled, Cancelling, Crashed

from flows.desk import online_workers
from flows.engine import EngineError
from flows.plan import Plan
from flows.summary import run_name
from store.errors import InputError

SECONDS_TO_CANCEL = 30
SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_BETWEEN_LINES = 10.0
SECONDS_WITHOUT_SIGN = 120
EDIT = "edit-video/edit-video"


@contextmanager
def api() -> Iterator[Any]:
    """A client of the configured API; its failures come out as one sentence."""
    import httpx
    from prefect.settings import PREFECT_API_URL

    where = PREFECT_API_URL.value()
    try:
        with get_client(sync_client=True) as client:
            yield client
    except PrefectHTTPStatusError as error:
        code = error.response.status_code
        if code in (401, 403):
            raise EngineError(
                f"the Prefect API {where} refuses: set PREFECT_API_AUTH_STRING or PREFECT_API_KEY"
            ) from None
        raise EngineError(f"the Prefect API {where} answers {code}: {_detail(error)}") from None
    except httpx.HTTPError as error:
        raise EngineError(
            f"the Prefect API {where} does not answer ({type(error).__name__}); is its server up? tf up starts one here"
        ) from None


def _detail(error: PrefectHTTPStatusError) -> str:
    """What a server found wrong, in a few words."""
    try:
        detail = error.response.json().get("detail") or error.response.text
    except ValueError:
        detail = error.response.text
    return " ".join(str(detail).split())[:300]


# handing over


def detach(plan: Plan, output: Path | None) -> tuple[FlowRun, list[str]]:
    """Have a worker make this run; returns it, and what the user should hear.

    output   the clip, as in `tf run`: named after video and prompt, in this folder, without it
    raises   InputError where there is no deployment
    """
    from flows.run import clip_files

    config = plan.config.model_copy(update={"video": plan.config.video.absolute()})
    files = clip_files(plan, output)
    target = (output or (files[0] if len(files) == 1 else Path(f"{config.video.stem}.mp4"))).absolute()
    parameters = {
        "config": config.model_dump(mode="json"), "runtime": plan.runtime.model_dump(mode="json"),
        "store": plan.store.place, "output": str(target),
    }  # fmt: skip
    title = run_name("edit", config.video.stem, config.prompts)
    with api() as client:
        try:
            deployment = client.read_deployment_by_name(EDIT)
        except ObjectNotFound:
            raise InputError(
                f"this Prefect server has no deployment {EDIT}; tf deploy --pool NAME registers it, or tf up here"
            ) from None
        run = client.create_flow_run_from_deployment(deployment.id, parameters=parameters, name=title)
    pool = deployment.work_pool_name
    asleep = [] if online_workers(pool) else [f"no worker of the pool {pool} is alive: the run waits until one is"]
    return run, asleep


# finding


def find_run(name: str) -> FlowRun:
    """The flow run with this id, beginning of an id, or name; `latest` is the one that was begun last.

    raises    InputError where there is none, or several
    """
    with api() as client:
        if name == "latest":
            found = client.read_flow_runs(sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=1)
        else:
            found = _by_id(client, name) or client.read_flow_runs(
                flow_run_filter=FlowRunFilter(name=FlowRunFilterName(any_=[name])), limit=10
            ) or [run for run in _newest(client) if str(run.id).startswith(name.lower())]  # fmt: skip
    if len(found) == 1:
        return found[0]
    if not found:
        raise InputError(f"no flow run {name!r} at this Prefect server; give its id, its name, or latest")
    raise InputError(f"{name!r} names {len(found)} flow runs; give the id: " + ", ".join(str(run.id) for run in found))


def _by_id(client: Any, name: str) -> list[FlowRun]:
    try:
        return list(client.read_flow_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[UUID(name)]))))
    except ValueError:
        return []


def _newest(client: Any) -> list[FlowRun]:
    return list(client.read_flow_runs(sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=200))


def running_in(pool: str) -> list[FlowRun]:
    """Flow runs of a work pool that are under way."""
    with api() as client:
        return list(
            client.read_flow_runs(
                flow_run_filter=_in_states(StateType.RUNNING, StateType.PENDING, StateType.CANCELLING),
                work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[pool])),
            )
        )


def _in_states(*types: StateType) -> FlowRunFilter:
    return FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(types))))


# cancelling


def cancel(run: FlowRun, say: Callable[[str], None]) -> FlowRun:
    """Have a run stop, and wait until it has; one that is over already stays as it is.

    raises    EngineError where it has not stopped after half a minute
    """
    with api() as client:
        if run.state is not None and run.state.is_final():
            say(f"{run.name} is over already: {run.state.name}")
            return run
        begun = run.state is not None and run.state.type in (StateType.RUNNING, StateType.CANCELLING)
        client.set_flow_run_state(run.id, Cancelling() if begun else Cancelled(message="before it began"))
        deadline = time.monotonic() + SECONDS_TO_CANCEL
        while time.monotonic() < deadline:
            run = client.read_flow_run(run.id)
            if run.state is not None and run.state.is_final():
                say(f"{run.name}: {run.state.name}; what was finished is kept")
                return run
            time.sleep(0.3)
    raise EngineError(
        f"{run.name} has not stopped after {SECONDS_TO_CANCEL} s; if its process is dead, tf doctor --mend says so"
    )


# watching


@dataclass
class Seen:
    """What was told of a run so far."""

    states: dict[UUID, str]
    since: datetime
    progress: str = ""
    told: float = 0.0


def watch(run: FlowRun, say: Callable[[str], None]) -> FlowRun:
    """Follow a run until it ends: its states, its task runs, how far it has come, warnings of its log."""
    seen = Seen({}, datetime.now(UTC) - timedelta(days=1))
    say(f"{run.name} ({run.id})")
    while True:
        with api() as client:
            run = client.read_flow_run(run.id)
            _tell(client, run, seen, say)
        if run.state is not None and run.state.is_final():
            return run
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _tell(client: Any, run: FlowRun, seen: Seen, say: Callable[[str], None]) -> None:
    if run.state is not None and seen.states.get(run.id) != run.state.name:
        seen.states[run.id] = str(run.state.name)
        say(f"run: {run.state.name}{f' · {run.state.message}' if run.state.message else ''}")
    tasks = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])))
    for task in sorted(tasks, key=lambda each: str(each.start_time or each.expected_start_time)):
        if task.state and task.state.is_final() and seen.states.get(task.id) != task.state.name:
            seen.states[task.id] = str(task.state.name)
            say(f"{task.name}: {task.state.name}")
    for line in client.read_logs(
        LogFilter(
            flow_run_id=LogFilterFlowRunId(any_=[run.id]), timestamp=LogFilterTimestamp(after_=seen.since),
            level={"ge_": 30},
        ),
        sort=LogSort.TIMESTAMP_ASC,
    ):  # fmt: skip
        seen.since = max(seen.since, line.timestamp + timedelta(microseconds=1))
        say(line.message.splitlines()[0])
    progress = _progress(client, run)
    if progress and progress != seen.progress and time.monotonic() - seen.told > SECONDS_BETWEEN_LINES:
        seen.progress, seen.told = progress, time.monotonic()
        say(progress)


def _progress(client: Any, run: FlowRun) -> str:
    """The newest progress that the run has shown."""
    of_run = {"flow_run_id": {"any_": [str(run.id)]}, "type": {"any_": ["progress"]}}
    asked = {"artifacts": of_run, "sort": "UPDATED_DESC", "limit": 1}
    found = client.request("POST", "/artifacts/filter", json=asked).json()
    return str(found[0]["description"]) if found else ""


def outcome(run: FlowRun) -> dict[str, Any]:
    """How a run ended, as JSON."""
    state = run.state
    return {
        "id": str(run.id), "name": run.name, "state": state.name if state else None,
        "message": state.message if state else None, "seconds": round(run.total_run_time.total_seconds(), 1),
    }  # fmt: skip


# the dead


def dead_runs() -> list[tuple[FlowRun, str]]:
    """Runs that say they are running and whose process is dead, each with how that is known."""
    with api() as client:
        running = client.read_flow_runs(flow_run_filter=_in_states(StateType.RUNNING, StateType.CANCELLING))
        found = ((run, _sign_of_death(client, run)) for run in running)
        return [(run, sign) for run, sign in found if sign]


def bury(runs: list[tuple[FlowRun, str]]) -> None:
    """Mark dead runs Crashed; a retry goes on from what they finished."""
    with api() as client:
        for run, sign in runs:
            client.set_flow_run_state(run.id, Crashed(message=f"{sign}; retry it to go on"), force=True)


def _sign_of_death(client: Any, run: FlowRun) -> str | None:
    host, _, pid = (run.infrastructure_pid or "").rpartition(":")
    if pid.isdigit() and host == socket.gethostname():
        return None if _is_python(int(pid)) else f"its process {pid} on this machine is gone"
    since = datetime.now(UTC) - timedelta(seconds=SECONDS_WITHOUT_SIGN)
    if run.start_time is None or run.start_time > since:
        return None
    asked = {
        "filter": {
            "event": {"name": ["prefect.flow-run.heartbeat"]}, "occurred": {"since": since.isoformat()},
            "resource": {"id": [f"prefect.flow-run.{run.id}"]},
        },
        "limit": 1,
    }  # fmt: skip
    heard = client.request("POST", "/events/filter", json=asked).json()
    return None if heard["events"] else f"it has shown no sign of life for {SECONDS_WITHOUT_SIGN} s"


def _is_python(pid: int) -> bool:
    """Whether a process with this id runs, and could be a run: ids are used again."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and "python" in " ".join(process.cmdline()).lower()
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True
