"""One run over workers that share nothing but the store: same keys, same bytes, nothing computed twice."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from flows.config import EditConfig, RuntimeConfig
from flows.places import store_at
from flows.plan import Plan
from flows.run import run_edit
from flows.spread import PartSession, _given, compute, task_runner
from stages import decode_frames
from stages.diffusion.checks import NonFiniteLatents
from store.draft import Draft
from store.errors import InputError
from store.parts import adopt, folder_of
from store.store import Store
from tests.flows.server import free_port, last_flow_run, task_runs, wait_for
from tests.flows.test_prefect import broken_model
from tests.stages.clips import write_clip
from tests.store.places import new_bucket, s3_server, use_s3

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
FRAMES = 70  # five chunks of frames, two windows
SEVERAL = {"invert": 5, "extract": 2, "match": 2, "edit": 1, "propagate": 2}  # parts of each stage in six steps


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "ball.mp4", frames=FRAMES, width=32, height=32)


def plan(clip: Path, model: Path, store: Store, **runtime: Any) -> Plan:
    config = EditConfig(video=clip, prompts=("a blue ball",), model=str(model), steps=6)
    return Plan(config, RuntimeConfig(device="cpu", **runtime), store)


@pytest.fixture(scope="module")
def alone(clip: Path, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Key → digest of what one process makes."""
    folder = tmp_path_factory.mktemp("alone")
    run_edit(plan(clip, tiny_folder, Store(folder / "store")), folder / "o.mp4", "direct")
    return digests(Store(folder / "store"))


def digests(store: Store) -> dict[str, str]:
    return {record.hex: record.digest for record in store.records()}


@contextmanager
def workers(folder: Path, count: int = 2, **more: str) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """The address of a Dask scheduler, and workers each with a home, a cache and a working folder of its own."""
    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    with ExitStack() as running:

        def begin(name: str, *arguments: str) -> subprocess.Popen[bytes]:
            home = folder / name
            home.mkdir()
            own = {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "PYTHONPATH": str(ROOT), **more}
            log = running.enter_context((home / "log").open("wb"))
            process = subprocess.Popen(
                [sys.executable, "-m", "distributed.cli." + arguments[0], *arguments[1:]],
                cwd=home, env={**os.environ, **own}, stdout=log, stderr=log,
            )  # fmt: skip
            running.callback(process.wait, 30)
            running.callback(process.kill)
            return process

        begin("scheduler", "dask_scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard")
        begun = [
            begin(
                f"worker{k}",
                "dask_worker",
                address,
                "--nthreads",
                "1",
                "--no-nanny",
                "--no-dashboard",
                "--name",
                f"worker{k}",
                "--death-timeout",
                "60",
                "--host",
                "127.0.0.1",
            )
            for k in range(count)
        ]
        yield address, begun


@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_two_workers_make_the_same_bytes_and_no_part_twice(
    api: str, clip: Path, tiny_folder: Path, alone: dict[str, str], tmp_path: Path, kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    with ExitStack() as stack:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        place = str(tmp_path / "store")
        if kind == "s3":
            port = stack.enter_context(s3_server())
            use_s3(port, monkeypatch)
            place = new_bucket(port)
        address, _ = stack.enter_context(workers(tmp_path))
        own = Path(shutil.copy(clip, tmp_path / "own.mp4"))
        made = run_edit(
            plan(own, tiny_folder, store_at(place), runner="dask", address=address), tmp_path / "o.mp4", "prefect"
        )
        assert digests(store_at(place)) == alone
        assert not any(use.hit for use in made.uses)
        runs = task_runs(last_flow_run(), 1 + sum(SEVERAL.values()))
        verbs = Counter(run.name.split(" · ")[0] for run in runs)
        assert verbs == {"decode": 1, **SEVERAL}
        by = [run.state.message for run in runs[1:]]
        assert all(said.startswith("by ") for said in by)
        assert len(set(by)) == 2  # both had their share
        assert not any("parts" in name for name in store_at(place).parts_place().list("parts"))


def test_a_worker_that_is_killed_midway_ends_no_run(
    api: str, clip: Path, tiny_folder: Path, alone: dict[str, str], tmp_path: Path
) -> None:
    with workers(tmp_path) as (address, processes):
        store = Store(tmp_path / "store")

        def kill_one() -> None:
            wait_for(lambda: store.parts_place().list("parts"), "no part is published", 200)
            processes[0].send_signal(signal.SIGKILL)

        killer = threading.Thread(target=kill_one)
        killer.start()
        run_edit(plan(clip, tiny_folder, store, runner="dask", address=address), tmp_path / "o.mp4", "prefect")
        killer.join()
        assert processes[0].wait(10) == -signal.SIGKILL
        assert digests(store) == alone


def test_what_a_killed_run_had_gathered_and_what_lies_ready_is_not_computed_again(
    clip: Path, tiny_folder: Path, alone: dict[str, str], tmp_path: Path
) -> None:
    store = Store(tmp_path / "store")
    whole = plan(clip, tiny_folder, store)
    with store.draft(whole.decode.key, whole.schema(whole.decode)) as draft:
        draft.write(range(1), decode_frames.run(whole.decode.spec, range(1), video=clip))
    given = _given(whole)
    assert compute(given, whole.invert.key.hex, 1) is not None
    assert compute(given, whole.invert.key.hex, 1) is None  # it lies ready
    session = PartSession(whole)
    assert session.part(whole.invert.key.hex, 1) is None
    with store.draft(whole.invert.key, whole.schema(whole.invert)) as draft:
        assert len(draft.missing()) == SEVERAL["invert"] - 1  # taken by whoever makes the artifact, in one process too
        for number, part in enumerate(whole.schema(whole.invert).divided()):
            if part in draft.missing():
                compute(given, whole.invert.key.hex, number)
        assert adopt(store.parts_place(), draft) == SEVERAL["invert"] - 1
    assert digests(store)[whole.invert.key.hex] == alone[whole.invert.key.hex]


def test_a_part_that_rotted_or_is_of_another_promise_is_done_again(
    clip: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    store = Store(tmp_path / "store")
    whole = plan(clip, tiny_folder, store)
    with store.draft(whole.decode.key, whole.schema(whole.decode)) as draft:
        draft.write(range(1), decode_frames.run(whole.decode.spec, range(1), video=clip))
    for number in range(3):
        compute(_given(whole), whole.invert.key.hex, number)
    place, folder = store.parts_place(), folder_of(whole.invert.key)
    chunk = next(name for name in place.list(f"{folder}/0") if "latents/c" in name)
    (store.root / chunk).write_bytes(b"\0" * (store.root / chunk).stat().st_size)
    marker = store.root / folder / "1.json"
    marker.write_text(marker.read_text().replace('"schema_hash":"', '"schema_hash":"0'))
    draft = Draft(store.layout, whole.invert.key, whole.schema(whole.invert))
    draft.open()
    assert adopt(place, draft) == 1
    assert {f"{folder}/{n}.json" for n in range(3)} & set(place.list(folder)) == {f"{folder}/2.json"}


def test_a_workers_error_comes_out_as_it_would_here(api: str, clip: Path, tiny_folder: Path, tmp_path: Path) -> None:
    model = broken_model(tiny_folder, tmp_path / "model")
    with workers(tmp_path, 1) as (address, _):
        with pytest.raises(NonFiniteLatents, match=r"frame \d+.*on the worker") as caught:
            run_edit(
                plan(clip, model, Store(tmp_path / "store"), runner="dask", address=address), tmp_path / "o.mp4",
                "prefect",
            )  # fmt: skip
        assert caught.value.frame is not None
        elsewhere = plan(clip, tiny_folder, Store(tmp_path / "store2"), runner="dask", address=address)
        moved = tiny_folder.rename(tiny_folder.with_name("moved"))  # after the plan: the worker has no such model
        try:
            with pytest.raises(InputError, match="on the worker"):
                run_edit(elsewhere, tmp_path / "o.mp4", "prefect")
        finally:
            moved.rename(tiny_folder)
    run = last_flow_run()
    assert run.state.is_failed()


def test_a_runner_without_prefect_or_without_its_package_is_refused(
    clip: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spread = plan(clip, tiny_folder, Store(tmp_path / "store"), runner="dask")
    with pytest.raises(InputError, match=r"--runner dask.*--engine direct"):
        run_edit(spread, tmp_path / "o.mp4", "direct")
    monkeypatch.setitem(sys.modules, "prefect_dask", None)
    with pytest.raises(InputError, match=r"pip install 'tokenflow\[dask\]'"):
        task_runner(spread.runtime)


def test_over_ray_the_bytes_are_the_same(
    api: str, clip: Path, tiny_folder: Path, alone: dict[str, str], tmp_path: Path
) -> None:
    pytest.importorskip("prefect_ray")
    import ray

    store = Store(tmp_path / "store")
    ray.init(
        num_cpus=2, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}}, log_to_driver=False
    )
    try:
        run_edit(plan(clip, tiny_folder, store, runner="ray"), tmp_path / "o.mp4", "prefect")
    finally:
        ray.shutdown()
    assert digests(store) == alone
