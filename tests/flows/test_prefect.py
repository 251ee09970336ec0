"""Runs as Prefect sees them, on a real server: what its API says afterwards is what is promised."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from flows import cancelling
from flows.config import EditConfig, RuntimeConfig
from flows.engine import choose_engine, describe_api, run_with_prefect
from flows.plan import Plan
from flows.prepare import prepare
from flows.run import run_edit, run_preview
from flows.summary import URI_BYTES
from flows.tasks import Session
from stages import decode_frames
from stages.diffusion.checks import NonFiniteLatents
from store.errors import InputError
from store.store import Store
from tests.flows.runs import broken_model
from tests.flows.server import PATIENCE, flow_runs, last_flow_run, task_runs
from tests.stages.clips import write_clip

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # a busy machine is no failure

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eighteen frames, which are two chunks of frames."""
    return write_clip(tmp_path_factory.mktemp("clip") / "My ball_1.mp4", frames=18, width=32, height=32)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """What the tests of this module share, so that only the first computes much."""
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture
def lone_store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def make_plan(clip: Path, model: Path, store: Store, *prompts: str, **more: Any) -> Plan:
    """Six steps, which are two chunks of timesteps."""
    config = EditConfig(video=clip, prompts=prompts or ("a blue ball",), model=str(model), steps=6, **more)
    return Plan(config, RuntimeConfig(device="cpu"), store)


def test_a_run_is_a_flow_run_with_a_task_run_per_chunk(
    api: str, clip: Path, tiny_folder: Path, store: Store, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    plan = make_plan(clip, tiny_folder, store)
    result = run_edit(plan, tmp_path / "out.mp4", "prefect")
    assert (tmp_path / "out.mp4").is_file()
    assert "Traceback" not in capfd.readouterr().err
    run = last_flow_run()
    assert run.name == "edit · My ball_1 · 'a blue ball'"
    assert run.state.is_completed()
    assert run.parameters["config"]["prompts"] == ["a blue ball"]
    assert run.parameters["runtime"]["device"] == "cpu"
    runs = task_runs(run, sum(len(plan.schema(node).divided()) for node in plan.nodes))
    assert [each.name for each in runs] == [
        "decode",
        "invert · frames 0–15",
        "invert · frames 16–17",
        "extract · timesteps 0–4",
        "extract · timestep 5",
        "match · timesteps 0–4",
        "match · timestep 5",
        "edit · 'a blue ball'",
        "propagate · 'a blue ball'",
    ]
    assert all(each.state.name == "Completed" for each in runs)
    stage_of = {each.id: each.name.split(" · ")[0] for each in runs}
    edges = {
        (stage_of[above.id], stage_of[each.id]) for each in runs for role in each.task_inputs.values() for above in role
    }
    assert ("decode", "invert") in edges
    assert ("match", "edit") in edges
    assert ("edit", "propagate") in edges
    assert not any(use.hit for use in result.uses)


def test_the_run_ends_with_a_page_of_pictures_and_stages(api: str, store: Store, clip: Path) -> None:
    from prefect.client.orchestration import get_client

    run = last_flow_run()
    with get_client(sync_client=True) as client:
        pages = [page for page in client.read_artifacts() if page.flow_run_id == run.id and page.type == "markdown"]
    assert [page.key for page in pages] == ["tokenflow-edit-my-ball-1"]
    text = str(pages[0].data)
    picture = re.search(r"data:image/webp;base64,[A-Za-z0-9+/=]+", text)
    assert picture is not None
    assert len(picture[0]) <= URI_BYTES
    for record in store.records():
        assert f"| {record.stage} |" in text
        assert record.hex[:12] in text


def test_another_prompt_shows_the_first_four_stages_cached(
    api: str, clip: Path, tiny_folder: Path, store: Store, tmp_path: Path
) -> None:
    run_edit(make_plan(clip, tiny_folder, store, "a {red} ball"), tmp_path / "out.mp4", "auto")
    runs = task_runs(last_flow_run(), 6)
    assert [(each.name, each.state.name) for each in runs] == [
        ("decode", "Cached"),
        ("invert", "Cached"),
        ("extract", "Cached"),
        ("match", "Cached"),
        ("edit · 'a {red} ball'", "Completed"),
        ("propagate · 'a {red} ball'", "Completed"),
    ]
    digests = {record.stage: record.digest for record in store.records()}
    assert runs[0].state.message == f"artifact {digests['decode_frames']}"
    assert {above.id for above in runs[1].task_inputs["wait_for"]} == {runs[0].id}


def test_with_nothing_to_compute_no_flow_run_is_started(
    api: str, clip: Path, tiny_folder: Path, store: Store, tmp_path: Path
) -> None:
    before = flow_runs()
    result = run_edit(make_plan(clip, tiny_folder, store), tmp_path / "out.mp4", "prefect")
    assert all(use.hit for use in result.uses)
    run_preview(make_plan(clip, tiny_folder, store), tmp_path / "out.png", "prefect")
    assert flow_runs() == before


def test_a_worker_needs_the_parameters_alone(api: str, clip: Path, tiny_folder: Path, store: Store) -> None:
    from prefect.flows import load_flow_from_entrypoint

    flow = load_flow_from_entrypoint(f"{ROOT / 'flows' / 'edit_flow.py'}:edit_video")
    assert flow.name == "edit-video"
    plan = make_plan(clip, tiny_folder, store)
    keys = flow(config=plan.config.model_dump(mode="json"), store=str(store.root), runtime={"device": "cpu"})
    assert keys == [plan.edits[0][1].key.hex]
    assert {each.state.name for each in task_runs(last_flow_run(), 6)} == {"Cached"}


def test_a_worker_opens_a_shared_store_by_its_url(
    api: str, clip: Path, tiny_folder: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.edit_flow import edit_video
    from flows.places import store_at
    from store.moving import StoreSource, chosen_runs, move

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    url = f"memory://{tmp_path}"
    plan = make_plan(clip, tiny_folder, store)
    result = run_edit(plan, tmp_path / "out.mp4", "direct")
    move(chosen_runs(StoreSource(store), result.run), StoreSource(store), store_at(url))
    keys = edit_video(config=plan.config, store=url, runtime=plan.runtime)
    assert keys == [plan.edits[0][1].key.hex]
    assert {each.state.name for each in task_runs(last_flow_run(), 6)} == {"Cached"}


def test_an_input_error_comes_out_as_it_is_and_fails_the_flow_run(
    api: str, clip: Path, tiny_folder: Path, lone_store: Store, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = broken_model(tiny_folder, tmp_path / "model")
    with pytest.raises(NonFiniteLatents, match="frame 0"):
        run_edit(make_plan(clip, model, lone_store), tmp_path / "out.mp4", "prefect")
    assert "Traceback" not in capfd.readouterr().err
    run = last_flow_run()
    assert run.state.is_failed()
    states = [(each.name, each.state.name, each.run_count) for each in task_runs(run, 2)]
    assert states == [("decode", "Completed", 1), ("invert · frames 0–15", "Failed", 1)]


def test_a_disk_that_fails_once_is_asked_again(
    api: str, clip: Path, tiny_folder: Path, lone_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, calls = decode_frames.run, []

    def fails_once(*given: Any, **named: Any) -> Any:
        calls.append(given)
        if len(calls) == 1:
            raise OSError(5, "Input/output error")
        return whole(*given, **named)

    monkeypatch.setattr(decode_frames, "run", fails_once)
    session = Session(make_plan(clip, tiny_folder, lone_store))
    frames = run_with_prefect(session, lambda session: prepare(session).frames(), "edit-video")
    assert frames["rgb"].shape[0] == 18
    run = last_flow_run()
    assert run.state.is_completed()
    assert [each.run_count for each in task_runs(run, 1)] == [2]


def test_a_keyboard_interrupt_cancels_the_flow_run(
    api: str, clip: Path, tiny_folder: Path, lone_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*given: Any, **named: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(decode_frames, "run", interrupted)
    session = Session(make_plan(clip, tiny_folder, lone_store))
    with pytest.raises(KeyboardInterrupt):
        run_with_prefect(session, lambda session: prepare(session).frames(), "preview-video")
    run = last_flow_run()
    assert run.name == "preview · My ball_1 · 'a blue ball'"
    assert run.state.name == "Cancelled"


@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN], ids=["terminal", "background"])
def test_cancelling_in_the_ui_stops_the_work(
    api: str, clip: Path, tiny_folder: Path, lone_store: Store, monkeypatch: pytest.MonkeyPatch, handler: Any
) -> None:
    from prefect.client.orchestration import get_client
    from prefect.runtime import flow_run
    from prefect.states import Cancelling

    monkeypatch.setattr(cancelling, "SECONDS_BETWEEN_LOOKS", 0.1)

    def asked_to_stop(session: Session) -> None:
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(flow_run.id, Cancelling())
        time.sleep(PATIENCE)
        raise AssertionError("the work went on")

    before = signal.signal(signal.SIGINT, handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_with_prefect(Session(make_plan(clip, tiny_folder, lone_store)), asked_to_stop, "edit-video")
    finally:
        signal.signal(signal.SIGINT, before)
    assert last_flow_run().state.name == "Cancelled"


class Interrupted(logging.Handler):
    """Ctrl-C is pressed once, just when its lock was taken."""

    pressed = False

    def acquire(self) -> None:
        super().acquire()
        if not self.pressed:
            self.pressed = True
            signal.raise_signal(signal.SIGINT)


def test_an_interrupt_leaves_no_lock_of_the_log_held() -> None:
    """Else other threads, and the end of the process, would wait for it forever."""
    handler, written = Interrupted(), list[str]()
    handler.emit = lambda record: written.append(record.msg)  # type: ignore[method-assign]

    def write_a_line() -> None:
        with cancelling.heard_in_background():
            handler.handle(logging.makeLogRecord({"msg": "a line"}))
            time.sleep(PATIENCE)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            write_a_line()
    finally:
        signal.signal(signal.SIGINT, before)
    assert written == ["a line"]
    other = threading.Thread(target=lambda: logging.Handler.acquire(handler), daemon=True)
    other.start()
    other.join(PATIENCE)
    assert not other.is_alive()


def test_an_interrupted_command_ends_whatever_its_threads_wait_for(tmp_path: Path) -> None:
    """A thread that never ends, as one that waits for a lock that nobody gives back."""
    program = """
        import threading
        from flows import cancelling
        cancelling.SECONDS_TO_LEAVE = 1
        threading.Thread(target=threading.Event().wait).start()
        cancelling.leave(130)
    """
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], cwd=ROOT, timeout=PATIENCE, check=False,
        env={**environment, "PREFECT_HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 130


@pytest.mark.parametrize(
    ("program", "seconds", "code"),
    [
        ("cli.dispatch = lambda: work() or sys.exit(130)\ncli.main()", PATIENCE, 130),
        ("cli.dispatch = lambda: work() or sys.exit(0)\ncli.main()", 5, 0),
        ("work()", 5, 0),
    ],
    ids=["an interrupted command", "a command", "a program that uses this package"],
)
def test_a_process_that_ends_while_a_model_loads_is_not_aborted(
    tmp_path: Path, program: str, seconds: float, code: int
) -> None:
    """Nor is what loads waited for, where the user has said that it is to end."""
    loading = f"""
        import sys, time
        import torch
        import cli
        from flows import cancelling, engine

        begun = []

        class Session:
            @property
            def backbone(self):
                end, picture = time.monotonic() + {seconds}, torch.ones(1, 4, 64, 64)
                while time.monotonic() < end:
                    torch.nn.functional.conv2d(picture, torch.ones(4, 4, 3, 3))
                    begun.append(True)

        def work():
            engine.preload(Session())
            while not begun:
                time.sleep(0.01)
    """
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    done = subprocess.run(
        [sys.executable, "-c", f"{textwrap.dedent(loading)}\n{program}"], cwd=ROOT, timeout=PATIENCE, check=False,
        capture_output=True, text=True, env={**environment, "PREFECT_HOME": str(tmp_path)},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (code, "")


def test_an_api_that_does_not_answer_is_named(
    api: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        with pytest.raises(InputError, match=r"http://127\.0\.0\.1:9/api does not answer.*--engine direct"):
            choose_engine("prefect", work_to_do=True)
        assert choose_engine("auto", work_to_do=True) == "direct"
        found, works, way_out = describe_api()
    assert found.endswith("API http://127.0.0.1:9/api does not answer")
    assert not works
    assert "--engine direct" in str(way_out)
    assert describe_api()[1:] == (True, None)
    warning = capsys.readouterr().err
    assert "http://127.0.0.1:9/api does not answer" in warning
    assert warning.count("\n") == 1


def test_a_server_on_the_usual_port_is_used(api: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.context import refresh_global_settings_context
    from prefect.settings import PREFECT_API_URL

    port = int(api.split(":")[2].split("/")[0])
    with monkeypatch.context() as patch:
        patch.delenv("PREFECT_API_URL")
        refresh_global_settings_context()
        patch.setattr("flows.engine.LOCAL_API", ("127.0.0.1", port, "/api"))
        assert choose_engine("auto", work_to_do=True) == "prefect"
        assert PREFECT_API_URL.value() == api
    refresh_global_settings_context()


def in_another_process(program: str, tmp_path: Path, *arguments: object) -> str:
    """Run a program with a Prefect home of its own and no server configured; what it printed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment |= {"PREFECT_HOME": str(tmp_path / "prefect"), "PYTHONPATH": str(ROOT)}
    environment.pop("DO_NOT_TRACK", None)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=800, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def test_without_a_server_one_is_started_for_the_run_and_tracks_nobody(
    clip: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    program = """
        import json, sys
        from pathlib import Path
        import flows.engine
        from flows.config import EditConfig, RuntimeConfig
        from flows.plan import Plan
        from flows.run import run_edit
        from store.store import Store

        flows.engine.LOCAL_API = ("127.0.0.1", 9, "/api")  # whatever else this machine serves
        clip, model = sys.argv[1:]
        config = EditConfig(video=clip, prompts=("a blue ball",), model=model, steps=2, frames="0:3")
        plan = Plan(config, RuntimeConfig(device="cpu"), Store("store"))
        assert "prefect" not in sys.modules
        run_edit(plan, Path("out.mp4"), "auto")

        from prefect.client.orchestration import get_client
        from prefect.settings import get_current_settings

        with get_client(sync_client=True) as client:
            run, = client.read_flow_runs()
            server = client._client.get("/admin/settings").json()["server"]
        print(json.dumps({
            "state": run.state.name,
            "analytics": server["analytics_enabled"],
            "promotion": server["ui"]["show_promotional_content"],
        }))
    """
    said = json.loads(in_another_process(program, tmp_path, clip, tiny_folder).splitlines()[-1])
    assert said == {"state": "Completed", "analytics": False, "promotion": False}
    assert (tmp_path / "out.mp4").is_file()


def test_direct_never_imports_prefect(clip: Path, tiny_folder: Path, tmp_path: Path) -> None:
    program = """
        import sys
        from pathlib import Path
        from flows.config import EditConfig, RuntimeConfig
        from flows.plan import Plan
        from flows.run import run_edit
        from store.store import Store

        clip, model = sys.argv[1:]
        config = EditConfig(video=clip, prompts=("a blue ball",), model=model, steps=2, frames="0:3")
        run_edit(Plan(config, RuntimeConfig(device="cpu"), Store("store")), Path("out.mp4"), "direct")
        print([name for name in sys.modules if name.partition(".")[0] == "prefect"])
    """
    assert in_another_process(program, tmp_path, clip, tiny_folder).splitlines()[-1] == "[]"
    assert (tmp_path / "out.mp4").is_file()
