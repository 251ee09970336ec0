"""A real Prefect server for tests, and what its API says of flow runs."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from flows.engine import DEFAULTS

PATIENCE = 300  # seconds after which something that is waited for is taken to never come, on any machine
QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def serving(home: Path, port: int | None = None) -> Iterator[str]:
    """URL of the API of a server of our own, whose Prefect home is `home`; it is stopped when the block ends."""
    port = port or free_port()
    url = f"http://127.0.0.1:{port}/api"
    environment = {**os.environ, **QUIET, "PREFECT_HOME": str(home), "PREFECT_SERVER_UI_API_URL": url}
    environment.pop("PREFECT_API_URL", None)
    with (home / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)],
            env=environment, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        try:
            wait_for(lambda: get(url, "/health"), f"no server: {(home / 'server.log').read_text()}")
            yield url
        finally:
            server.terminate()
            server.wait(PATIENCE)


@contextmanager
def configured(url: str, home: Path) -> Iterator[str]:
    """Prefect in this process is configured for the server at `url` until the block ends."""
    from prefect.context import refresh_global_settings_context

    with pytest.MonkeyPatch.context() as patch:
        for name in DEFAULTS:  # run_with_prefect sets them: they are to be gone afterwards
            patch.setenv(name, DEFAULTS[name])
        patch.setenv("PREFECT_HOME", str(home))
        patch.setenv("PREFECT_API_URL", url)
        refresh_global_settings_context()
        yield url
    refresh_global_settings_context()


def get(api: str, path: str) -> Any:
    """The API's answer as JSON, None while it does not answer."""
    try:
        with urllib.request.urlopen(f"{api}{path}", timeout=5) as answer:
            return json.load(answer)
    except OSError:
        return None


def wait_for(look: Callable[[], Any], otherwise: str, process: subprocess.Popen[str] | None = None) -> Any:
    """What `look` gives as soon as it gives something; in vain once `process`, which is to cause it, has ended."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        over = process is not None and process.poll() is not None
        if seen := look():
            return seen
        if over:
            assert process is not None
            raise AssertionError(f"{otherwise}; the process ended with {process.returncode}: {process.communicate()}")
        time.sleep(0.2)
    raise AssertionError(f"{otherwise} in {PATIENCE} s")


def last_flow_run() -> Any:
    """The newest flow run, once it is over."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.sorting import FlowRunSort

    with get_client(sync_client=True) as client:

        def finished() -> Any:
            run = client.read_flow_runs(sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=1)[0]
            return run if run.state and run.state.is_final() else None

        return wait_for(finished, "the flow run does not end")


def flow_runs() -> int:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        return len(client.read_flow_runs())


def task_runs(run: Any, count: int) -> list[Any]:
    """The `count` task runs of a flow run in the order in which they began; they reach the API a little later."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    with get_client(sync_client=True) as client:

        def all_there() -> Any:
            runs = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])))
            settled = [each for each in runs if each.state and each.state.is_final()]
            return settled if len(settled) == len(runs) >= count else None

        seen = wait_for(all_there, f"{count} task runs do not appear")
    assert len(seen) == count
    return sorted(seen, key=lambda each: each.start_time)
