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

from .engine import EngineError, answers, configured_url, desk_file, set_defaults
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
        whole = bool(self.worker and self.pages)  # less is what a tf up left that was killed itself
        return whole and all(each.alive() for each in self.processes) and answers(self.api)

    def differs(self, port: int | None, pool: str, store: str | None) -> str | None:
        """What this desk is that is not asked for, in a few words; None where it is what is asked for."""
        if port is not None and urlsplit(self.api).port != port:
            return f"has its server at {self.ui}"
        if pool != self.pool:
            return f"serves the pool {self.pool}"
        if store is not None and store_at(store).place != self.store:
            return f"works in the store {self.store}"
        return None


def read_desk() -> Desk | None:
    """What `tf up` started on this machine, as the file says; None where there is no such file."""
    try:
        return Desk.model_validate_json(desk_file().read_bytes())
    except (OSError, ValidationError):
        return None


def up(port: int | None, pool: str, store: str | None, say: Callable[[str], None]) -> tuple[Desk, bool]:
    """Start what is not there yet; returns the desk, and whether anything was started.

    raises   InputError where another desk is up than the one that is asked for;
             EngineError, one sentence, where something does not start; what was started before it is ended
    """
    with _alone():
        there = read_desk()
        if there and there.is_up():
            if other := there.differs(port, pool, store):
                raise InputError(f"the desk that is up {other}; end it first with tf down, or leave that option out")
            return there, False
        if there:
            if port is None and there.server:  # at the old place: its address is known, its runs are in the database
                port = urlsplit(there.api).port
            store = store or there.store
            _end(there.processes)
        starting = Starting(_planned(port, pool, store))
        try:
            return _started(starting, say), True
        except BaseException:
            _end(starting.desk.processes)
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


class Starting:
    """A desk on its way up. The file knows of each process as soon as it is there, whatever happens to this one."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    def note(self, **known: Any) -> None:
        """Write down what is known now."""
        self.desk = self.desk.model_copy(update=known)
        write_whole(desk_file(), self.desk.model_dump_json(indent=1))

    def begin(self, role: str, command: list[str], own: dict[str, str], without: tuple[str, ...] = ()) -> Process:
        """Start a Python process apart from this terminal; its output goes to `<role>.log`."""
        environment = {name: value for name, value in {**os.environ, **own}.items() if name not in without}
        environment["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "INFO"
        root = str(Path(__file__).parents[1])
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        with self.log(role).open("wb") as file:
            child = subprocess.Popen(
                [sys.executable, *command], env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                start_new_session=True, cwd=self.desk.logs,
            )  # fmt: skip
        process = Process.of(child.pid)
        self.note(**{role: process})
        return process

    def log(self, role: str) -> Path:
        return Path(self.desk.logs) / f"{role}.log"

    def wait(self, role: str, what: str, ready: Callable[[], Any]) -> None:
        """Until a process does what it is for; EngineError, one sentence, where it does not."""
        process: Process = getattr(self.desk, role)
        deadline, log = time.monotonic() + SECONDS_TO_START, self.log(role)
        while time.monotonic() < deadline:
            with suppress(Exception):
                if ready():
                    return
            if not process.alive():
                lines = log.read_text("utf-8", errors="replace").strip().splitlines()
                last = lines[-1][:200] if lines else "it said nothing"
                raise EngineError(f"{what} ended at once ({last}); see {log}")
            time.sleep(0.2)
        raise EngineError(f"{what} did not answer within {SECONDS_TO_START} s; see {log}")


def _planned(port: int | None, pool: str, store: str | None) -> Desk:
    """The desk that is to be: at the server that is configured or found, else at one of its own."""
    set_defaults()
    home = desk_file().parent
    logs, reports = home / "logs", home / "reports"
    for folder in (logs, reports):
        folder.mkdir(parents=True, exist_ok=True)
    url = configured_url() if port is None else None
    url = url or f"http://127.0.0.1:{port or PORT}/api"
    return Desk(
        api=url, ui=url.removesuffix("/api"), pool=pool, store=store_at(store).place, reports=str(reports),
        reports_url="", logs=str(logs),
    )  # fmt: skip


def _started(starting: Starting, say: Callable[[str], None]) -> Desk:
    desk = starting.desk
    if not answers(desk.api):
        _start_server(starting, say)
    _use(desk.api)
    _start_pages(starting)
    from .deployments import deploy

    say("registering the deployments")
    deploy(desk.pool, "process", desk.store)
    _start_worker(starting, say)
    return starting.desk


def _start_server(starting: Starting, say: Callable[[str], None]) -> None:
    url = starting.desk.api
    place = urlsplit(url)
    if place.scheme != "http" or place.hostname not in ("127.0.0.1", "localhost"):
        raise EngineError(f"the Prefect API {url} does not answer; start its server, or unset PREFECT_API_URL")
    port = place.port or 80
    if _listens(port):
        raise EngineError(f"port {port} is taken by something that is no Prefect server; choose another with --port")
    say("starting a Prefect server")
    command = ["-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    own = {"PREFECT_SERVER_UI_API_URL": url, "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": LEASES}
    starting.begin("server", command, own, without=("PREFECT_API_URL",))
    starting.wait("server", "the Prefect server", lambda: answers(url))


LEASES = "prefect.server.concurrency.lease_storage.filesystem"  # so that a restart forgets no slot that is held


def _start_pages(starting: Starting) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    starting.begin("pages", ["-m", "flows.page_server", starting.desk.reports, str(port)], {})
    starting.note(reports_url=f"http://127.0.0.1:{port}")
    starting.wait("pages", "the server of reports", lambda: _listens(port))


def _start_worker(starting: Starting, say: Callable[[str], None]) -> None:
    say("starting a worker")
    desk = starting.desk
    name = f"{socket.gethostname()}-{os.getpid()}"
    command = ["worker", "start", "--pool", desk.pool, "--type", "process", "--limit", "1", "--name", name]
    own = {
        "PREFECT_API_URL": desk.api, "TOKENFLOW_STORE": desk.store, "TOKENFLOW_REPORTS": desk.reports,
        "TOKENFLOW_REPORTS_URL": desk.reports_url,
    }  # fmt: skip
    starting.begin("worker", ["-m", "prefect", *command], own)
    starting.wait("worker", "the worker", lambda: name in online_workers(desk.pool))


def online_workers(pool: str) -> list[str]:
    """Names of the workers of a pool that showed a sign of life of late."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        answer = client.request(
            "POST", "/work_pools/{work_pool_name}/workers/filter", path_params={"work_pool_name": pool}, json={}
        )
        return [each["name"] for each in answer.json() if each["status"] == "ONLINE"]


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
