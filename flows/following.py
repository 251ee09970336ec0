"""A run that goes on elsewhere, followed to its end: states, stages, how far it has come, warnings."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol
from uuid import UUID

from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    LogFilter,
    LogFilterFlowRunId,
    LogFilterTimestamp,
)
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import LogSort

from flows.remote_control import SilentServer, api

SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_BETWEEN_LINES = 10.0  # about progress, where it is not drawn
SECONDS_OF_SILENCE = 120  # of the server, after which watching ends
WARNING = 30


class Gauge(Protocol):
    """Where it is drawn how far stages have come; `draws` says whether anybody sees it."""

    draws: bool

    def show(self, key: str, words: str, percent: float) -> None:
        """So far has the stage come."""


class Watch:
    """What was told of a run so far, and to whom."""

    def __init__(self, run: FlowRun, say: Callable[[str], None], gauge: Gauge) -> None:
        self.run, self.say, self.gauge = run, say, gauge
        self.states: dict[UUID, str] = {}
        self.since = datetime.now(UTC) - timedelta(days=1)
        self.progress, self.told = "", 0.0

    def look(self, client: Any) -> None:
        """Tell what is new."""
        self.run = client.read_flow_run(self.run.id)
        state = self.run.state
        if not (state and state.is_final()):  # how it ended is told last
            self._tell_state()
        for task in self._tasks(client):
            if task.state and task.state.is_final() and self.states.get(task.id) != task.state.name:
                self.states[task.id] = str(task.state.name)
                self.say(f"{task.name}: {task.state.name}")
        for line in self._warnings(client):
            self.since = max(self.since, line.timestamp + timedelta(microseconds=1))
            self.say(line.message.splitlines()[0])
        self._tell_progress(client)
        if state and state.is_final():
            self._tell_state()

    def _tell_state(self) -> None:
        state = self.run.state
        if state is not None and self.states.get(self.run.id) != state.name:
            self.states[self.run.id] = str(state.name)
            self.say(f"run: {state.name}{f' · {state.message}' if state.message else ''}")

    def _tasks(self, client: Any) -> list[Any]:
        tasks = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[self.run.id])))
        return sorted(tasks, key=lambda each: str(each.start_time or each.expected_start_time))

    def _warnings(self, client: Any) -> list[Any]:
        asked = LogFilter(
            flow_run_id=LogFilterFlowRunId(any_=[self.run.id]), timestamp=LogFilterTimestamp(after_=self.since),
            level={"ge_": WARNING},
        )  # fmt: skip
        return list(client.read_logs(asked, sort=LogSort.TIMESTAMP_ASC))

    def _tell_progress(self, client: Any) -> None:
        of_run = {"flow_run_id": {"any_": [str(self.run.id)]}, "type": {"any_": ["progress"]}}
        asked = {"artifacts": of_run, "sort": "UPDATED_DESC", "limit": 1 if not self.gauge.draws else 50}
        found = client.request("POST", "/artifacts/filter", json=asked).json()
        for each in reversed(found):
            self.gauge.show(each["id"], str(each["description"]), float(each["data"] or 0))
        words = str(found[0]["description"]) if found else ""
        due = time.monotonic() - self.told > SECONDS_BETWEEN_LINES
        if due and words != self.progress and not self.gauge.draws:
            self.progress, self.told = words, time.monotonic()
            self.say(words)


def watch(run: FlowRun, say: Callable[[str], None], gauge: AbstractContextManager[Gauge]) -> FlowRun:
    """Follow a run until it ends; a server that is away for a moment is waited for.

    raises   SilentServer where it stays away
    """
    say(f"{run.name} ({run.id})")
    heard, waiting = time.monotonic(), False
    with gauge as drawn:
        watching = Watch(run, say, drawn)
        while True:
            try:
                with api() as client:
                    watching.look(client)
                heard, waiting = time.monotonic(), False
            except SilentServer:
                if time.monotonic() - heard > SECONDS_OF_SILENCE:
                    raise
                if not waiting:
                    say("the Prefect server does not answer; waiting for it, the run may well go on")
                waiting = True
            state = watching.run.state
            if state is not None and state.is_final():
                return watching.run
            time.sleep(SECONDS_BETWEEN_LOOKS)
