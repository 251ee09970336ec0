"""Runs are stopped, lose their worker or their server, and are found again: by hand, as a person would at a desk."""

from __future__ import annotations

import http.server
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import psutil
import pytest

from flows.engine import EngineError, api_fault, choose_engine, describe_api, use_server
from store.errors import InputError
from store.store import Store
from tests.flows.desks import AtDesk, command, environment_in, post
from tests.flows.server import PATIENCE, configured, free_port, get, serving, wait_for
from tests.stages.clips import write_clip

FINAL = ("COMPLETED", "FAILED", "CANCELLED", "CRASHED")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "woman-running.mp4", frames=18, width=32, height=32)


Asked = Callable[..., list[object]]


@pytest.fixture
def asked(clip: Path, tiny_folder: Path, tmp_path: Path) -> Asked:
    """The words of a `tf run` into a store of the test's own."""

    def make(prompt: str, *more: object, store: str = "store") -> list[object]:
        return [
            "run", clip, "--prompt", prompt, "--model", tiny_folder, "--steps", 6, "--device", "cpu",
            "--store", tmp_path / store, "-o", tmp_path / f"{store}.mp4", *more,
        ]  # fmt: skip

    return make


def begun(desk: AtDesk, words: list[object], ignoring: bool = False) -> subprocess.Popen[str]:
    """A command in a process of its own, which ignores Ctrl-C where a shell would have put it in the background."""
    handler = signal.SIG_IGN if ignoring else signal.default_int_handler
    return subprocess.Popen(
        command(*words), env=desk.environment, cwd=desk.home, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, preexec_fn=lambda: signal.signal(signal.SIGINT, handler),
    )  # fmt: skip


def reached(api: str, prompt: str, stage: str, process: subprocess.Popen[str] | None = None, said: str = "") -> str:
    """The id of the newest run of `prompt`, once a stage of it is at work, or its log has said something."""

    def look() -> Any:
        name = {"name": {"like_": f"'{prompt}'"}}
        found = post(api, "/flow_runs/filter", flow_runs=name, sort="EXPECTED_START_TIME_DESC", limit=1)[1]
        if not found:
            return None
        run = {"id": {"any_": [found[0]["id"]]}}
        tasks = post(api, "/task_runs/filter", flow_runs=run)[1]
        at_work = any(each["name"].startswith(stage) and each["state_name"] == "Running" for each in tasks)
        logs = post(api, "/logs/filter", logs={"flow_run_id": run["id"]})[1] if said else []
        heard = any(said in each["message"] for each in logs)
        return found[0]["id"] if (heard if said else at_work) else None

    return str(wait_for(look, f"{stage} does not begin", process))


def state(api: str, run: str) -> tuple[str, str]:
    """Type and message of a run's state."""
    seen = get(api, f"/flow_runs/{run}")["state"]
    return seen["type"], seen["message"]


def ended(api: str, run: str) -> tuple[str, str]:
    """The same, once it is over."""
    return tuple(wait_for(lambda: (s := state(api, run))[0] in FINAL and s, "the run does not end"))  # type: ignore[return-value]


def digests(folder: Path) -> dict[str, str]:
    """Key → digest of everything in a store."""
    return {record.hex: record.digest for record in Store(folder).records()}


# stopping


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_run_with_one_line_and_the_server_says_cancelled(
    desk: AtDesk, asked: Asked, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    prompt = f"stopped by {number.name}"
    with desk.holding(tmp_path / "store", "invert_frames"):
        process = begun(desk, asked(prompt))
        run = reached(desk.api, prompt, "invert", process)
        process.send_signal(number)
        _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == code
    assert said.count("\n") == 1
    assert "what was finished is kept" in said
    assert ended(desk.api, run) == ("CANCELLED", "interrupted; finished parts are kept")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_direct_run_in_the_background_is_cancelled_inside_its_edit_and_the_next_goes_on_to_the_same_bytes(
    desk: AtDesk, asked: Asked, tmp_path: Path
) -> None:
    """Cancelled from elsewhere; a run that was never disturbed has the same bytes."""
    prompt = "stopped inside the edit"
    assert desk.tf(*asked(prompt, store="calm"), "--engine", "direct").code == 0
    with desk.holding(tmp_path / "store", "edit_keyframes"):
        process = begun(desk, asked(prompt), ignoring=True)
        run = reached(desk.api, prompt, "edit", process)
        desk.post(f"/flow_runs/{run}/set_state", state={"type": "CANCELLING", "name": "Cancelling"})
        _, said = process.communicate(timeout=PATIENCE)
    assert (process.returncode, said.count("\n")) == (130, 1)
    assert ended(desk.api, run)[0] == "CANCELLED"
    kept = digests(tmp_path / "store")
    assert len(kept) >= 4
    again = desk.tf(*asked(prompt), "--json")
    assert again.code == 0, again.err
    assert {stage["key"] for stage in again.json["stages"] if stage["hit"]} >= kept.keys()
    assert digests(tmp_path / "store") == digests(tmp_path / "calm")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_goes_on_without_its_worker_and_it_and_who_waits_for_it_can_still_be_cancelled(
    desk: AtDesk, asked: Asked, tmp_path: Path
) -> None:
    with desk.holding(tmp_path / "store", "match_tokens"):
        with desk.holding(tmp_path / "store", "invert_frames"):
            run = desk.tf(*asked("without a worker"), "--detach").out.strip()
            reached(desk.api, "without a worker", "invert")
            process = psutil.Process(int(desk.flow_run(run)["infrastructure_pid"].split(":")[1]))
            psutil.Process(desk.state()["worker"]["pid"]).kill()
        reached(desk.api, "without a worker", "match")
        assert process.is_running()
        waiter = begun(desk, asked("waits for the same video"))
        waiting = reached(desk.api, "waits for the same video", "", waiter, said="wait")
        for each, stopped in ((waiting, waiter.pid), (run, process.pid)):
            done = desk.tf("cancel", each[:12], "--json")
            assert (done.code, done.json["state"]) == (0, "Cancelled"), done.err
            wait_for(lambda stopped=stopped: _is_over(stopped), "the process goes on")  # type: ignore[misc]
    assert waiter.wait(PATIENCE) == 130
    assert desk.tf("up", "--store", desk.store).code == 0


def _is_over(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_that_is_declared_cancelled_stops_too(desk: AtDesk, asked: Asked, tmp_path: Path) -> None:
    """As when it began in the moment in which somebody cancelled it."""
    with desk.holding(tmp_path / "store", "invert_frames"):
        process = begun(desk, asked("declared cancelled"))
        run = reached(desk.api, "declared cancelled", "invert", process)
        desk.post(f"/flow_runs/{run}/set_state", state={"type": "CANCELLED", "name": "Cancelled"}, force=True)
        assert process.wait(PATIENCE) == 130
    assert state(desk.api, run)[0] == "CANCELLED"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_that_has_not_begun_is_cancelled_and_latest_is_no_run_of_next_week(
    desk: AtDesk, at_server: None, clip: Path
) -> None:
    from flows.remote_control import cancel, find_run

    running(desk, "edit-video", f"{socket.gethostname()}:{os.getpid()}")
    deployment = get(desk.api, "/deployments/name/edit-video/edit-video")
    assert deployment["job_variables"]["env"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"
    later = (datetime.now(UTC) + timedelta(days=7)).isoformat()
    run = desk.post(
        f"/deployments/{deployment['id']}/create_flow_run",
        parameters={"config": {"video": str(clip), "prompts": ["some day"]}},
        state={"type": "SCHEDULED", "state_details": {"scheduled_time": later}},
    )[1]["id"]
    assert str(find_run("latest").id) != run
    said: list[str] = []
    assert cancel(find_run(run[:20]), said.append).state.name == "Cancelled"  # type: ignore[union-attr]
    assert cancel(find_run(run), said.append).state.name == "Cancelled"  # type: ignore[union-attr]
    assert ["Cancelled" in said[0], "is over already" in said[1]] == [True, True]
    with pytest.raises(InputError, match=r"no flow run 'nowhere'"):
        find_run("nowhere")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_only_our_own_runs_are_found_dead_and_only_when_they_are(
    desk: AtDesk, at_server: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows import remote_control

    monkeypatch.setattr(remote_control, "SECONDS_WITHOUT_SIGN", 10)
    gone = subprocess.Popen(["true"])
    gone.wait()
    here = socket.gethostname()
    runs = {
        "elsewhere, silent": (running(desk, "edit-video", f"elsewhere:{gone.pid}"), True),
        "elsewhere, heard": (running(desk, "edit-video", f"elsewhere:{gone.pid}"), False),
        "gone": (running(desk, "edit-video", f"{here}:{gone.pid}"), True),
        "alive": (running(desk, "edit-video", f"{here}:{os.getpid()}"), False),
        "somebody else's": (running(desk, "their-flow", f"{here}:{gone.pid}"), False),
    }
    time.sleep(10)
    heartbeat(desk, runs["elsewhere, heard"][0])
    runs["elsewhere, just begun"] = (running(desk, "edit-video", f"elsewhere:{gone.pid}"), False)
    named = {str(run.id): (run, sign) for run, sign in remote_control.dead_runs()}
    assert {name: run in named for name, (run, _) in runs.items()} == {name: dead for name, (_, dead) in runs.items()}
    remote_control.bury([named[run] for run, dead in runs.values() if dead])
    for run, dead in runs.values():
        assert state(desk.api, run)[0] == ("CRASHED" if dead else "RUNNING")
        desk.post(f"/flow_runs/{run}/set_state", state={"type": "CRASHED"}, force=True)


def running(desk: AtDesk, flow: str, process: str) -> str:
    """The id of a flow run that the server has been told is running in a process."""
    from prefect.client.orchestration import get_client

    own = desk.post("/flows/", name=flow)[1]["id"]
    run = str(desk.post("/flow_runs/", flow_id=own, state={"type": "RUNNING", "name": "Running"})[1]["id"])
    with get_client(sync_client=True) as client:
        client.update_flow_run(UUID(run), infrastructure_pid=process)
    return run


def heartbeat(desk: AtDesk, run: str) -> None:
    """A sign of life, as a run's own process sends it."""
    name, resource = "prefect.flow-run.heartbeat", f"prefect.flow-run.{run}"
    event = {
        "occurred": datetime.now(UTC).isoformat(), "event": name, "id": str(uuid4()),
        "resource": {"prefect.resource.id": resource},
    }  # fmt: skip
    httpx.post(f"{desk.api}/events", json=[event], timeout=60).raise_for_status()
    asked = {"event": {"name": [name]}, "resource": {"id": [resource]}}
    wait_for(lambda: desk.post("/events/filter", filter=asked)[1]["events"], "the heartbeat does not arrive")


@pytest.fixture
def at_server(desk: AtDesk) -> Iterator[None]:
    """Prefect in this process is configured for the desk's server."""
    with configured(desk.api, desk.home / "prefect"):
        yield


# a server that goes away, and what is no server


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_and_who_watches_it_go_on_when_the_server_is_started_again_and_ctrl_c_does_not_wait_for_one(
    asked: Asked, tmp_path: Path
) -> None:
    home, port = tmp_path / "server", free_port()
    home.mkdir()
    api = f"http://127.0.0.1:{port}/api"
    desk = AtDesk(tmp_path, {**environment_in(tmp_path), "PREFECT_API_URL": api}, {"api": api})
    first, second = tmp_path / "first", tmp_path / "second"
    with desk.holding(first, "invert_frames"), serving(home, port):
        process = begun(desk, asked("through a restart", store="first"))
        run = reached(api, "through a restart", "invert", process)
        watching = begun(desk, ["watch", run, "--json"])
        assert watching.stderr is not None
        assert "through a restart" in watching.stderr.readline()
    assert any("does not answer; waiting for it" in line for line in watching.stderr)
    with desk.holding(second, "invert_frames"), serving(home, port):
        _, said = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, said
        assert ended(api, run)[0] == "COMPLETED"
        _, seen = watching.communicate(timeout=PATIENCE)
        assert watching.returncode == 0, seen
        process = begun(desk, asked("left alone", store="second"))
        reached(api, "left alone", "invert", process)
    time.sleep(10)  # so that there is much that Prefect could not tell
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=PATIENCE)
    assert (process.returncode, said.count("\n")) == (130, 1), said


Answers = Callable[[str], tuple[int, str]]
"""(path) → status and body of a server that is not the one we hoped for."""


@contextmanager
def answering(answers: Answers) -> Iterator[str]:
    """URL of an API at which something answers so."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = answers(self.path)
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *given: Any) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/api"
    finally:
        server.shutdown()
        server.server_close()


OTHERS: dict[str, tuple[Answers, str, str]] = {
    "another program": (lambda path: (404, "not found"), "is no Prefect API: it answers 404", "PREFECT_API_URL"),
    "a web page": (lambda path: (200, "<html>"), "is no Prefect API, though something answers", "PREFECT_API_URL"),
    "an older Prefect": (lambda path: (200, '"2.20.1"'), "is that of Prefect 2.20.1", "up to date"),
    "a newer Prefect": (lambda path: (200, '"4.0.0"'), "is that of Prefect 4.0.0", "up to date"),
    "a Prefect with a password": (
        lambda path: (200, "true") if path.endswith("/health") else (401, "{}"), "refuses this machine (401)",
        "PREFECT_API_AUTH_STRING or PREFECT_API_KEY",
    ),
    "a server in trouble": (lambda path: (500, "{}"), "fails (500)", "its server's log"),
}  # fmt: skip


@pytest.mark.parametrize("what", OTHERS)
def test_what_is_no_server_of_ours_is_told_in_one_sentence_with_the_way_out(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers, said, way_out = OTHERS[what]
    with answering(answers) as url, configured(url, tmp_path):
        for refused, error in ((lambda: choose_engine("prefect", True), InputError), (use_server, EngineError)):
            with pytest.raises(error) as raised:
                refused()
            sentence = str(raised.value)
            assert sentence.startswith(f"the Prefect API {url} {said}")
            assert way_out in sentence
            assert "--engine direct" in sentence
        assert choose_engine("auto", True) == "direct"
        assert "goes on without Prefect" in capsys.readouterr().err
        found, works, _ = describe_api()
        assert (said in found, works) == (True, False)


def test_an_address_that_is_none_is_told_too(tmp_path: Path) -> None:
    for url in ("127.0.0.1:4200", "http://127.0.0.1:9/api"):
        with configured(url, tmp_path):
            assert api_fault() is not None
