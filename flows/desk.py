"""`tf up` and `tf down`: a Prefect server, a worker, and a server for reports on this machine, in the background.

One file says what was started, each process by its id and its start, so that `tf down` ends exactly these.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
from pydantic import ValidationError

from store.errors import InputError
from store.layout import write_whole
from store.schemas import Frozen

from .engine import DEFAULTS, EngineError, answers, configured_url, desk_file, set_defaults
from .places import store_at

SECONDS_TO_START = 120
SECONDS_TO_STOP = 20
PORT = 4200


class Process(Frozen):
    """A process, told from a later one with the same id by when it was started (seconds since 1970)."""

    pid: int
    started: float

    @classmethod
    def of(cls, pid: int) -> Process:
        return cls(pid=pid, started=psutil.Process(pid).create_time())

    def alive(self) -> psutil.Process | None:
        """The process, where it still runs."""
        with suppress(psutil.Error):
            process = psutil.Process(self.pid)
            if abs(process.create_time() - self.started) < 1 and process.status() != psutil.STATUS_ZOMBIE:
                return process
        return None


class Desk(Frozen):
    """What `tf up` started; no server where another one answered already."""

    api: str
    ui: str
    pool: str
    store: str
    reports: str
    reports_url: str
    logs: str
    server: Process | None = None
    pages: Process | None = None
    worker: Process | None = None

    @property
    def processes(self) -> list[Process]:
        """In the order in which they are ended."""
        return [each for each in (self.worker, self.pages, self.server) if each]

    def is_up(self) -> bool:
        """Whether all that was started still runs, and the server answers."""
        return all(each.alive() for each in self.processes) and answers(self.api)


def read_desk() -> Desk | None:
    """What `tf up` started on this machine, as the file says; None where there is no such file."""
    try:
        return Desk.model_validate_json(desk_file().read_bytes())
    except (OSError, ValidationError):
        return None


def up(port: int | None, pool: str, store: str | None, say: Callable[[str], None]) -> tuple[Desk, bool]:
    """Start what is not there yet; returns the desk, and whether anything was started.

    raises   EngineError, one sentence, where something does not start; what was started before it is ended
    """
    with _alone():
        there = read_desk()
        if there and there.is_up():
            return there, False
        if there:
            if port is None and there.server:  # at the old place: its address is known, its runs are in the database
                port = urlsplit(there.api).port
            _end(there.processes)
        started: list[Process] = []
        try:
            return _started(port, pool, store, say, started), True
        except BaseException:
            _end(reversed(started))
            desk_file().unlink(missing_ok=True)
            raise


def down(now: bool, say: Callable[[str], None]) -> Desk | None:
    """End what `tf up` started; returns what that was.

    now      cancel what is running first
    raises   InputError where runs are going on
    """
    with _alone():
        desk = read_desk()
        if desk is None:
            return None
        if desk.worker and desk.worker.alive() and answers(desk.api):
            _free(desk, now, say)
        _end(desk.processes)
        desk_file().unlink(missing_ok=True)
        return desk


def _started(
    port: int | None, pool: str, store: str | None, say: Callable[[str], None], started: list[Process]
) -> Desk:
    set_defaults()
    home = desk_file().parent
    logs, reports = home / "logs", home / "reports"
    for folder in (logs, reports):
        folder.mkdir(parents=True, exist_ok=True)
    place = store_at(store).place
    url = configured_url() if port is None else None
    server = None
    if url is None or not answers(url):
        if url is not None and "127.0.0.1" not in url and "localhost" not in url:
            raise EngineError(f"the Prefect API {url} does not answer; start its server, or unset PREFECT_API_URL")
        url, server = _server(port or PORT, logs, say, started)
    _use(url)
    pages, reports_url = _pages(reports, logs, started)
    from .deployments import deploy

    say("registering the deployments")
    deploy(pool, "process", place)
    worker = _worker(url, pool, {"TOKENFLOW_STORE": place, "TOKENFLOW_REPORTS": str(reports),
                                 "TOKENFLOW_REPORTS_URL": reports_url}, logs, say, started)  # fmt: skip
    desk = Desk(
        api=url, ui=url.removesuffix("/api"), pool=pool, store=place, reports=str(reports), reports_url=reports_url,
        logs=str(logs), server=server, pages=pages, worker=worker,
    )  # fmt: skip
    write_whole(desk_file(), desk.model_dump_json(indent=1))
    return desk


def _server(port: int, logs: Path, say: Callable[[str], None], started: list[Process]) -> tuple[str, Process]:
    url = f"http://127.0.0.1:{port}/api"
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise EngineError(
                f"port {port} is taken by something that is no Prefect server; choose another with --port"
            )
    say("starting a Prefect server")
    own = {"PREFECT_SERVER_UI_API_URL": url, "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": LEASES}
    command = ["-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    process = _begun(command, own, logs / "server.log", started, without=("PREFECT_API_URL",))
    _wait(lambda: answers(url), process, "the Prefect server", logs / "server.log")
    return url, process


LEASES = "prefect.server.concurrency.lease_storage.filesystem"  # so that a restart forgets no slot that is held


def _pages(folder: Path, logs: Path, started: list[Process]) -> tuple[Process, str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = _begun(["-m", "flows.page_server", str(folder), str(port)], {}, logs / "pages.log", started)
    url = f"http://127.0.0.1:{port}"
    _wait(lambda: _listens(port), process, "the server of reports", logs / "pages.log")
    return process, url


def _worker(
    url: str, pool: str, own: dict[str, str], logs: Path, say: Callable[[str], None], started: list[Process]
) -> Process:
    say("starting a worker")
    name = f"{socket.gethostname()}-{os.getpid()}"
    command = ["-m", "prefect", "worker", "start", "--pool", pool, "--type", "process", "--limit", "1", "--name", name]
    process = _begun(command, {**own, "PREFECT_API_URL": url}, logs / "worker.log", started)
    _wait(lambda: name in online_workers(pool), process, "the worker", logs / "worker.log")
    return process


def online_workers(pool: str) -> list[str]:
    """Names of the workers of a pool that showed a sign of life of late."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        answer = client.request(
            "POST", "/work_pools/{work_pool_name}/workers/filter", path_params={"work_pool_name": pool}, json={}
        )
        return [each["name"] for each in answer.json() if each["status"] == "ONLINE"]


def _begun(
    command: list[str], own: dict[str, str], log: Path, started: list[Process], without: tuple[str, ...] = ()
) -> Process:
    """Start a Python process apart from this terminal."""
    environment = {name: value for name, value in {**os.environ, **DEFAULTS, **own}.items() if name not in without}
    environment["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "INFO"
    root = str(Path(__file__).parents[1])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    with log.open("wb") as file:
        child = subprocess.Popen(
            [sys.executable, *command], env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
            start_new_session=True, cwd=log.parent,
        )  # fmt: skip
    process = Process.of(child.pid)
    started.append(process)
    return process


def _wait(ready: Callable[[], Any], process: Process, what: str, log: Path) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < deadline:
        with suppress(Exception):
            if ready():
                return
        if not process.alive():
            lines = log.read_text("utf-8", errors="replace").strip().splitlines()
            raise EngineError(f"{what} ended at once ({lines[-1][:200] if lines else 'it said nothing'}); see {log}")
        time.sleep(0.2)
    raise EngineError(f"{what} did not answer within {SECONDS_TO_START} s; see {log}")


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _use(url: str) -> None:
    """Have Prefect in this process talk to that server."""
    from prefect.context import refresh_global_settings_context

    os.environ["PREFECT_API_URL"] = url
    refresh_global_settings_context()


def _free(desk: Desk, now: bool, say: Callable[[str], None]) -> None:
    """Have nothing running on the desk's worker."""
    _use(desk.api)
    from .remote_control import cancel, running_in

    runs = running_in(desk.pool)
    if runs and not now:
        names = ", ".join(run.name for run in runs)
        raise InputError(f"still running: {names}; wait, or cancel them with tf cancel, or all with tf down --now")
    for run in runs:
        cancel(run, say)


def _end(processes: Any) -> None:
    """End processes with all that they started, kindly first."""
    tree: list[psutil.Process] = []
    for each in processes:
        process = each.alive()
        if process is None:
            continue
        with suppress(psutil.Error):
            tree += [process, *process.children(recursive=True)]
            process.terminate()
        psutil.wait_procs([process], timeout=SECONDS_TO_STOP)
    _, left = psutil.wait_procs(tree, timeout=2)
    for process in left:
        with suppress(psutil.Error):
            process.kill()


@contextmanager
def _alone() -> Iterator[None]:
    from filelock import FileLock, Timeout

    desk_file().parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(desk_file().with_suffix(".lock"), timeout=SECONDS_TO_START):
            yield
    except Timeout:
        raise EngineError("another tf up or tf down is at work; try again when it is over") from None
