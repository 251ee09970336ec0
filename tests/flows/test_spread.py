"""One run over two workers that share nothing but the store: what comes out is what one process gives, to the byte."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flows import clusters, one_part
from flows.config import EditConfig, RuntimeConfig
from flows.engine import EngineError
from flows.one_part import Heeding, Stopped, compute, given
from flows.places import store_at
from flows.plan import Plan
from flows.prepare import prepare
from flows.run import run_edit
from flows.tasks import Session
from stages.diffusion.checks import NonFiniteLatents
from store.errors import InputError, StoreError, TokenflowError
from store.parts import adopt_part
from store.store import Store
from tests.flows.server import PATIENCE, free_port, last_flow_run, task_runs, wait_for
from tests.flows.test_prefect import broken_model
from tests.stages.clips import write_clip
from tests.store.places import new_bucket, s3_server, use_s3

pytest.importorskip("prefect_dask", reason="tokenflow[dask] is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]


@dataclass
class Workers:
    """A Dask scheduler and its workers, each a process with a working directory, a home and a cache of its own."""

    folder: Path
    address: str
    scheduler: subprocess.Popen[bytes]
    alive: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def add(self) -> None:
        place = self.folder / f"worker-{len(list(self.folder.glob('worker-*')))}"
        place.mkdir()
        environment = {
            **os.environ, "PYTHONPATH": str(ROOT), "HOME": str(place), "XDG_CACHE_HOME": str(place / "cache"),
            "PREFECT_HOME": str(place / "prefect"), "TOKENFLOW_TEST_LOG": str(self.folder / "log"),
            "TOKENFLOW_TEST_KILL": str(self.folder / "kill"), "TOKENFLOW_TEST_SLOW": str(self.folder / "slow"),
        }  # fmt: skip
        environment.pop("PREFECT_API_URL", None)
        command = [
            sys.executable, "-m", "distributed.cli.dask_worker", self.address, "--nthreads", "1", "--no-nanny",
            "--no-dashboard", "--memory-limit", "0", "--preload", "tests.flows.watched_worker",
        ]  # fmt: skip
        with (place / "output").open("wb") as output:
            self.alive.append(subprocess.Popen(command, cwd=place, env=environment, stdout=output, stderr=output))

    def two(self) -> Workers:
        """With two workers alive, and nothing written down yet."""
        self.alive = [worker for worker in self.alive if worker.poll() is None]
        while len(self.alive) < 2:
            self.add()
        (self.folder / "log").unlink(missing_ok=True)
        return self

    def lines(self, verb: str) -> list[tuple[str, int, int]]:
        """(stage, first of the part, process) of what was begun, or computed."""
        log = self.folder / "log"
        words = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
        return [(name, int(part), int(process)) for said, name, part, process in words if said == verb]

    def busy(self) -> bool:
        """Whether a task is under way on a worker."""
        import distributed

        with distributed.Client(self.address, timeout=30, set_as_default=False) as client:
            return any(client.processing().values())

    def computed(self) -> Counter[tuple[str, int]]:
        return Counter((name, part) for name, part, _ in self.lines("computed"))


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    """A scheduler at an address, an S3 server which those who work there know, and no worker yet."""
    folder, port = tmp_path_factory.mktemp("workers"), free_port()
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", str(port)]
    with (
        pytest.MonkeyPatch.context() as patch, s3_server() as s3, (folder / "scheduler").open("wb") as output
    ):  # fmt: skip
        use_s3(s3, patch)
        patch.setenv("SPREAD_S3", str(s3))
        started = subprocess.Popen([*command, "--no-dashboard"], cwd=folder, stdout=output, stderr=output)
        workers = Workers(folder, f"tcp://127.0.0.1:{port}", started)
        try:
            yield workers
        finally:
            for process in (*workers.alive, started):
                process.kill()
                process.wait()


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eighteen frames, which are two chunks of frames."""
    return write_clip(tmp_path_factory.mktemp("clip") / "ball.mp4", frames=18, width=32, height=32)


def make_plan(clip: Path, model: Path, store: Store, *prompts: str, **runtime: Any) -> Plan:
    """Six steps, which are two chunks of timesteps."""
    config = EditConfig(video=clip, prompts=prompts or ("a blue ball",), model=str(model), steps=6)
    return Plan(config, RuntimeConfig(device="cpu", **runtime), store)


@pytest.fixture(scope="module")
def alone(clip: Path, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What one process makes of it: key → digest."""
    folder = tmp_path_factory.mktemp("alone")
    store = Store(folder / "store")
    run_edit(make_plan(clip, tiny_folder, store), folder / "out.mp4", "direct")
    return digests(store)


def digests(store: Store) -> dict[str, str]:
    return {record.hex: record.digest for record in store.records()}


def spread(plan: Plan, out: Path) -> Any:
    return run_edit(plan, out, "prefect")


EVERY_PART = Counter({
    ("invert_frames", 0): 1, ("invert_frames", 16): 1, ("extract_tokens", 0): 1, ("extract_tokens", 5): 1,
    ("match_tokens", 0): 1, ("match_tokens", 5): 1, ("edit_keyframes", 0): 1, ("propagate_tokens", 0): 1,
})  # fmt: skip


def test_two_workers_give_what_one_process_gives_and_compute_every_part_once(
    api: str, workers: Workers, clip: Path, tiny_folder: Path, alone: dict[str, str], tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    store = Store(tmp_path / "store")
    plan = make_plan(clip, tiny_folder, store, runner="dask", address=workers.two().address)
    result = spread(plan, tmp_path / "out.mp4")
    assert digests(store) == alone
    assert workers.computed() == EVERY_PART
    assert len({process for _, _, process in workers.lines("computed")}) == 2
    assert not any(use.hit for use in result.uses)
    assert not list((tmp_path / "store").glob("parts/*")), "what was gathered is not kept twice"
    assert not [path for path in (tmp_path / "store" / "drafts").iterdir() if path.suffix != ".lock"]
    assert "Traceback" not in capfd.readouterr().err
    runs = task_runs(last_flow_run(), 9)
    assert sorted(each.name for each in runs) == sorted([
        "decode", "invert · frames 0–15", "invert · frames 16–17", "extract · timesteps 0–4", "extract · timestep 5",
        "match · timesteps 0–4", "match · timestep 5", "edit · 'a blue ball'",
        "propagate · 'a blue ball' · frames 0–17",
    ])  # fmt: skip
    assert {each.state.name for each in runs} == {"Completed"}
    assert {tag for each in runs for tag in each.tags} >= {"stage:invert_frames", "cpu"}
    stage_of = {each.id: each.name.split(" · ")[0] for each in runs}
    edges = {(stage_of[a.id], stage_of[each.id]) for each in runs for above in each.task_inputs.values() for a in above}
    assert {("decode", "invert"), ("invert", "extract"), ("match", "edit"), ("edit", "propagate")} <= edges


def test_tokens_that_are_not_kept_are_matched_where_they_are_extracted(
    api: str, workers: Workers, clip: Path, tiny_folder: Path, alone: dict[str, str], tmp_path: Path
) -> None:
    here, there = Store(tmp_path / "here"), Store(tmp_path / "there")
    run_edit(make_plan(clip, tiny_folder, here, token_budget=0), tmp_path / "here.mp4", "direct")
    asked = {"token_budget": 0, "runner": "dask", "address": workers.two().address}
    spread(make_plan(clip, tiny_folder, there, **asked), tmp_path / "there.mp4")
    assert digests(there) == digests(here)
    assert max(workers.computed().values()) == 1


def test_a_shared_store_by_url_is_all_that_workers_share(
    api: str, workers: Workers, clip: Path, tiny_folder: Path, alone: dict[str, str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store = store_at(new_bucket(int(os.environ["SPREAD_S3"])))
    plan = make_plan(clip, tiny_folder, store, runner="dask", address=workers.two().address)
    spread(plan, tmp_path / "out.mp4")
    assert digests(store) == alone
    assert workers.computed() == EVERY_PART
    assert not store.parts_place().list("parts")


def test_a_worker_that_is_killed_costs_its_part_and_nothing_else(
    api: str, workers: Workers, clip: Path, tiny_folder: Path, alone: dict[str, str], tmp_path: Path
) -> None:
    store = Store(tmp_path / "store")
    plan = make_plan(clip, tiny_folder, store, runner="dask", address=workers.two().address)
    (workers.folder / "kill").write_text("40")  # in the middle of a part
    spread(plan, tmp_path / "out.mp4")
    assert sum(worker.poll() == -signal.SIGKILL for worker in workers.alive) == 1
    assert digests(store) == alone
    assert workers.computed() == EVERY_PART
    begun = Counter((name, part) for name, part, _ in workers.lines("begin") if name != "source_pass")
    assert sum(begun.values()) == sum(EVERY_PART.values()) + 1


def test_a_run_that_is_interrupted_stops_its_workers_and_the_next_goes_on(
    api: str, workers: Workers, clip: Path, tiny_folder: Path, alone: dict[str, str], tmp_path: Path
) -> None:
    """What they had finished is not computed again."""
    store, slow = Store(tmp_path / "store"), workers.two().folder / "slow"
    plan = make_plan(clip, tiny_folder, store, runner="dask", address=workers.address)
    slow.touch()

    def interrupt() -> None:
        wait_for(lambda: workers.lines("begin"), "no worker begins")
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            spread(plan, tmp_path / "out.mp4")
        assert last_flow_run().state.name == "Cancelled"
        wait_for(lambda: not workers.busy(), "the workers never rest")
    finally:
        slow.unlink()
    finished = workers.computed()
    assert finished.total() < EVERY_PART.total(), "the workers went on for nobody"
    spread(make_plan(clip, tiny_folder, store, runner="dask", address=workers.address), tmp_path / "out.mp4")
    assert digests(store) == alone
    assert workers.computed() == EVERY_PART, finished


def test_what_a_worker_fails_at_is_the_same_sentence_with_its_name(
    api: str, workers: Workers, clip: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    model = broken_model(tiny_folder, tmp_path / "model")
    plan = make_plan(clip, model, Store(tmp_path / "store"), runner="dask", address=workers.two().address)
    with pytest.raises(NonFiniteLatents, match=f"on the worker {socket.gethostname()}: .*frame") as caught:
        spread(plan, tmp_path / "out.mp4")
    assert caught.value.frame is not None
    run = last_flow_run()
    assert run.state.is_failed()
    failed = [each for each in task_runs(run, 3) if each.state.is_failed()]
    assert {each.run_count for each in failed} == {1}, "bad input is not tried again"


def test_workers_that_die_with_what_they_gave_cost_no_run(
    api: str, workers: Workers, clip: Path, tiny_folder: Path, alone: dict[str, str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Killed when a part is known to be done, before it is asked how that ended; others come."""
    asked: list[Any] = []
    ask = clusters.DaskWorkers.state

    def state(there: clusters.DaskWorkers, future: Any) -> Any:
        if asked:
            return ask(there, future)
        for worker in workers.alive:
            worker.kill()
        wait_for(lambda: not there.workers(), "the scheduler does not see them go")
        asked.append(ask(there, future))
        workers.add()
        return asked[0]

    monkeypatch.setattr(clusters, "SECONDS_WITHOUT_WORKERS", float(PATIENCE))
    monkeypatch.setattr(clusters.DaskWorkers, "state", state)
    store = Store(tmp_path / "store")
    spread(make_plan(clip, tiny_folder, store, runner="dask", address=workers.two().address), tmp_path / "out.mp4")
    assert asked == [None], "it is not waited for as if it were there"
    assert digests(store) == alone


def test_workers_that_are_all_gone_are_one_sentence_and_the_next_run_goes_on(
    api: str, workers: Workers, clip: Path, tiny_folder: Path, alone: dict[str, str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(clusters, "SECONDS_WITHOUT_WORKERS", 2.0)
    store = Store(tmp_path / "store")
    plan = make_plan(clip, tiny_folder, store, runner="dask", address=workers.two().address)

    def kill() -> None:
        wait_for(lambda: workers.computed().get(("invert_frames", 16)), "nothing is inverted")
        for worker in workers.alive:
            worker.kill()

    killing = threading.Thread(target=kill, daemon=True)
    killing.start()
    with pytest.raises(EngineError, match="all workers are gone; finished parts are kept"):
        spread(plan, tmp_path / "out.mp4")
    killing.join()
    result = run_edit(make_plan(clip, tiny_folder, store), tmp_path / "out.mp4", "direct")
    assert digests(store) == alone
    assert not store.parts_place().list("parts"), result


# what needs no cluster


def told(plan: Plan, **other: Any) -> dict[str, Any]:
    """What a worker is told of a run, with something changed."""
    said = given(plan)
    return {**said, **other, "config": {**said["config"], **other.get("config", {})}}


@pytest.fixture
def plan(clip: Path, tiny_folder: Path, tmp_path: Path) -> Plan:
    """A run whose frames are in its store."""
    plan = make_plan(clip, tiny_folder, Store(tmp_path / "store"), runner="dask", address="tcp://10.0.0.1:8786")
    session = Session(plan)
    prepare(session).frames()
    return plan


def test_a_worker_is_told_little_and_no_device_to_choose(plan: Plan) -> None:
    said = given(plan)
    assert len(json.dumps(said)) < 4000
    assert (said["runtime"]["device"], said["runtime"]["runner"], said["runtime"]["address"]) == ("cpu", "here", None)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"store": "/nowhere/store"}, "there is no store in /nowhere/store: .* the same one on every machine"),
        ({"config": {"model": "/nowhere/model"}}, "/nowhere/model"),
        ({"config": {"steps": 5}}, "its version of tokenflow or its copy of the model .* another one than the run's"),
    ],
)
def test_a_worker_that_cannot_do_what_the_run_wants_says_so(plan: Plan, changed: Any, sentence: str) -> None:
    with pytest.raises(TokenflowError, match=sentence):
        compute(told(plan, **changed), plan.invert.key.hex, 0, Heeding())
    assert not Path("/nowhere").exists()


def test_a_worker_without_a_gpu_says_so(plan: Plan) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    runtime = {**given(plan)["runtime"], "device": "cuda"}
    with pytest.raises(InputError, match="no CUDA device"):
        compute(told(plan, runtime=runtime), plan.invert.key.hex, 0, Heeding())


def test_a_worker_computes_nothing_but_what_it_is_asked(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_part, "SECONDS_TO_APPEAR", 0.1)
    with pytest.raises(StoreError, match=r"invert_frames .* is not in .*; every machine must see the same store"):
        compute(given(plan), plan.extract.key.hex, 0, Heeding())
    heeding = Heeding()
    heeding.over.set()
    with pytest.raises(Stopped):
        compute(given(plan), plan.invert.key.hex, 0, heeding)
    assert compute(given(plan), plan.invert.key.hex, 1, Heeding())
    assert not compute(given(plan), plan.invert.key.hex, 1, Heeding())
    assert [name for name in plan.store.parts_place().list("parts") if name.endswith(".json")] == [
        f"parts/invert_frames-{plan.invert.key.hex}/1.json"
    ]


def test_a_worker_has_neither_the_mask_nor_the_control_video(
    tiny_folder: Path, control_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An edit within a mask, held by two ControlNets: its last part is computed from the store alone."""
    clip = write_clip(tmp_path / "ball.mp4", frames=5, width=32, height=32)
    lines = write_clip(tmp_path / "lines.mp4", frames=5, width=32, height=32)
    mask = tmp_path / "mask.png"
    Image.fromarray(np.repeat(np.uint8([[0, 255]]), 16, 1).repeat(32, 0)).save(mask)
    controls = [{"kind": kind, "model": str(control_folder)} for kind in ("canny", "given")]
    controls[1]["video"] = str(lines)
    asked: dict[str, Any] = {"mask": mask, "editor": "controlnet", "controls": controls, "steps": 2}
    config = EditConfig(video=clip, prompts=("a blue ball",), model=str(tiny_folder), **asked)
    plan = Plan(config, RuntimeConfig(device="cpu"), Store(tmp_path / "store"))
    run_edit(plan, tmp_path / "out.mp4", "direct")
    edited = plan.edits[0][1]
    record = plan.find(edited)
    assert record is not None
    expected = record["rgb"][:]
    for file in (clip, lines, mask, plan.store.layout.record(edited.stage, edited.key.hex)):
        file.unlink()
    monkeypatch.setattr(one_part, "SECONDS_TO_APPEAR", 0.1)
    assert compute(json.loads(json.dumps(given(plan))), edited.key.hex, 0, Heeding())
    with plan.store.draft(edited.key, plan.schema(edited)) as draft:
        assert adopt_part(plan.store.parts_place(), draft, 0)
    assert np.array_equal(draft.artifact["rgb"][:], expected)


def test_an_address_at_which_nobody_answers_is_one_sentence(
    api: str, clip: Path, tiny_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    plan = make_plan(clip, tiny_folder, Store(tmp_path / "store"), runner="dask", address=address)
    with pytest.raises(InputError, match=f"nobody answers at {address} .*; start one with: dask scheduler"):
        spread(plan, tmp_path / "out.mp4")
    assert "Traceback" not in capfd.readouterr().err
    with pytest.raises(InputError, match="--engine direct does without it"):
        run_edit(plan, tmp_path / "out.mp4", "direct")


def test_workers_that_cannot_reach_the_runs_server_are_told_before_anything_starts() -> None:
    with pytest.raises(InputError, match=r"workers at tcp://192\.0\.2\.1:8786 cannot reach this run's Prefect API"):
        clusters.expect_api("http://127.0.0.1:4200/api", "tcp://192.0.2.1:8786")
    clusters.expect_api("http://127.0.0.1:4200/api", "tcp://127.0.0.1:8786")
    clusters.expect_api("http://prefect.example:4200/api", "tcp://192.0.2.1:8786")
    clusters.expect_api("http://127.0.0.1:4200/api", None)


def test_a_runner_that_is_not_installed_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prefect_dask", None)
    runtime = RuntimeConfig(runner="dask")
    with pytest.raises(InputError, match=r"pip install 'tokenflow\[dask\]'"), clusters.cluster(runtime):
        pass


def test_over_ray_the_bytes_are_the_same(
    api: str, clip: Path, tiny_folder: Path, alone: dict[str, str], tmp_path: Path
) -> None:
    ray = pytest.importorskip("ray", reason="tokenflow[ray] is not installed")
    pytest.importorskip("prefect_ray", reason="tokenflow[ray] is not installed")
    own = {"env_vars": {"PYTHONPATH": str(ROOT)}}
    ray.init(num_cpus=2, include_dashboard=False, runtime_env=own, log_to_driver=False)
    store = Store(tmp_path / "store")
    try:
        spread(make_plan(clip, tiny_folder, store, runner="ray"), tmp_path / "out.mp4")
    finally:
        ray.shutdown()
    assert digests(store) == alone
