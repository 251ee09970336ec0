"""Runs that go on elsewhere: handed to a worker, found, cancelled, and declared dead, over Prefect's API."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import psutil
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterId,
    FlowRunFilterName,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.states import Cancelled, Cancelling, Crashed

from flows.deployments import TOKENFLOW_FLOWS
from flows.desk import online_workers
from flows.engine import SECONDS_WITHOUT_SIGN, SILENT, EngineError, refusal
from flows.forms import sweep_of
from store.errors import InputError

if TYPE_CHECKING:  # who cancels or watches a run waits for no torch
    from flows.plan import Plan
    from flows.run_sweep import Planned

SECONDS_TO_CANCEL = 30
CLOCKS_DIFFER = 60  # seconds at most between this machine's and the server's

_OURS = FlowFilter(name=FlowFilterName(any_=TOKENFLOW_FLOWS))  # a server may have others' flows too


class SilentServer(EngineError):
    """The server does not answer now, and may a little later."""


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
            raise EngineError(f"the Prefect API {where} {refusal(code).what}; {refusal(code).way_out}") from None
        raise EngineError(f"the Prefect API {where} answers {code}: {_detail(error)}") from None
    except httpx.HTTPError:
        raise SilentServer(f"the Prefect API {where} {SILENT.what}; is its server up? tf up starts one here") from None


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
    from flows.summary import run_name

    config = plan.config.anywhere()
    files = clip_files(plan, output)
    target = (output or (files[0] if len(files) == 1 else Path(f"{config.video.stem}.mp4"))).absolute()
    asked = {"config": config.model_dump(mode="json"), "output": str(target)}
    return _handed_over("edit-video", asked, plan, run_name("edit", config.video.stem, config.prompts))


def detach_sweep(planned: Planned) -> tuple[FlowRun, list[str]]:
    """The same for a sweep, whose edits a worker puts into the store."""
    plans = [each.plan for each in sorted(planned.combinations, key=lambda each: each.number)]
    sweep = sweep_of([plan.config.anywhere() for plan in plans])
    return _handed_over("sweep", {"sweep": sweep.model_dump(mode="json")}, plans[0], sweep.title)


def _handed_over(name: str, asked: dict[str, Any], plan: Plan, title: str) -> tuple[FlowRun, list[str]]:
    """A run of the deployment that has the name of its flow; done as `plan` is, over its store."""
    parameters = {**asked, "runtime": plan.runtime.model_dump(mode="json"), "store": plan.store.place}
    with api() as client:
        try:
            deployment = client.read_deployment_by_name(f"{name}/{name}")
        except ObjectNotFound:
            raise InputError(
                f"this Prefect server has no deployment {name}/{name}; tf deploy --pool NAME registers it, or tf up "
                "here"
            ) from None
        run = client.create_flow_run_from_deployment(deployment.id, parameters=parameters, name=title)
    pool = deployment.work_pool_name
    asleep = [] if online_workers(pool) else [f"no worker of the pool {pool} is alive: the run waits until one is"]
    return run, asleep


# finding


def find_run(name: str) -> FlowRun:
    """The flow run with this id, beginning of an id, or name; `latest` is the one that was begun or handed over last.

    raises    InputError where there is none, or several
    """
    with api() as client:
        if name == "latest":
            found = _newest(client, _due(), limit=1)
        else:
            found = _by_id(client, name) or _newest(
                client, FlowRunFilter(name=FlowRunFilterName(any_=[name])), limit=10
            ) or [run for run in _newest(client) if str(run.id).startswith(name.lower())]  # fmt: skip
    if len(found) == 1:
        return found[0]
    if not found:
        raise InputError(
            "this Prefect server has no flow run yet"
            if name == "latest"
            else f"no flow run {name!r} at this Prefect server; give its id, its name, or latest"
        )
    raise InputError(f"{name!r} names {len(found)} flow runs; give the id: " + ", ".join(map(_told, found)))


def _told(run: FlowRun) -> str:
    return f"{run.id} ({run.state.name if run.state else 'of no state'})"


def _by_id(client: Any, name: str) -> list[FlowRun]:
    try:
        return list(client.read_flow_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[UUID(name)]))))
    except ValueError:
        return []


def _due() -> FlowRunFilter:
    """Runs that should have begun: no schedule's next week."""
    return FlowRunFilter(
        expected_start_time=FlowRunFilterExpectedStartTime(before_=datetime.now(UTC) + timedelta(minutes=1))
    )


def _newest(client: Any, asked: FlowRunFilter | None = None, limit: int = 200) -> list[FlowRun]:
    """Runs of this program's flows, the newest first."""
    return list(
        client.read_flow_runs(
            flow_filter=_OURS, flow_run_filter=asked, sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=limit
        )
    )


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
        sign = _sign_of_death(client, run)
        if sign:  # nobody is left who could stop it
            client.set_flow_run_state(run.id, Cancelled(message=f"{sign}; finished parts are kept"), force=True)
        elif run.state is not None and run.state.type in (StateType.RUNNING, StateType.CANCELLING):
            client.set_flow_run_state(run.id, Cancelling())
        else:
            client.set_flow_run_state(run.id, Cancelled(message="before it began"))
        run = _ended(client, run)
    if run.state is None or not run.state.is_final():
        raise EngineError(
            f"{run.name} has not stopped after {SECONDS_TO_CANCEL} s; if its process is dead, tf doctor --mend says so"
        )
    kept = "" if run.state.name == "Completed" else "; what was finished is kept"
    say(f"{run.name}: {run.state.name}{kept}")
    return run


def _ended(client: Any, run: FlowRun) -> FlowRun:
    """The run when it has ended, or as it is when that takes too long."""
    deadline = time.monotonic() + SECONDS_TO_CANCEL
    while time.monotonic() < deadline:
        run = client.read_flow_run(run.id)
        if run.state is not None and run.state.is_final():
            break
        time.sleep(0.3)
    return run


def outcome(run: FlowRun) -> dict[str, Any]:
    """How a run stands or ended, as JSON."""
    state = run.state
    return {
        "id": str(run.id), "name": run.name, "state": state.name if state else None,
        "message": state.message if state else None, "seconds": round(run.total_run_time.total_seconds(), 1),
        "output": run.parameters.get("output"),
    }  # fmt: skip


# the dead


def dead_runs() -> list[tuple[FlowRun, str]]:
    """Runs of ours that say they go on and whose process is dead, each with how that is known."""
    states = _in_states(StateType.RUNNING, StateType.CANCELLING, StateType.PENDING)
    with api() as client:
        found = [(run, _sign_of_death(client, run)) for run in _newest(client, states)]
    return [(run, sign) for run, sign in found if sign]


def bury(runs: list[tuple[FlowRun, str]]) -> None:
    """Mark dead runs Crashed; a retry goes on from what they finished."""
    with api() as client:
        for run, sign in runs:
            client.set_flow_run_state(run.id, Crashed(message=f"{sign}; retry it to go on"), force=True)


def _sign_of_death(client: Any, run: FlowRun) -> str | None:
    """How it is known that a run's process is dead: here by its id, elsewhere by its silence."""
    host, _, pid = (run.infrastructure_pid or "").rpartition(":")
    if run.state is None:
        return None
    if pid.isdigit() and host == socket.gethostname():
        return None if _is_run(int(pid), run.state.timestamp) else f"its process {pid} on this machine is gone"
    since = datetime.now(UTC) - timedelta(seconds=SECONDS_WITHOUT_SIGN)
    if run.state.type == StateType.PENDING or run.state.timestamp > since:
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


def _is_run(pid: int, since: datetime) -> bool:
    """Whether a process with this id could be a run that has been in its state since then: ids are used again."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE or process.create_time() > since.timestamp() + CLOCKS_DIFFER:
            return False
        return "python" in " ".join(process.cmdline()).lower()
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True
