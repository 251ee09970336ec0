"""What it costs to hand a part to a worker, and what two workers gain: the same run in one process and over two.

    python -m benchmarks.spread -o benchmarks/results/spread.json

Every process has one thread, and has loaded what it takes before it is measured. A run's store is its own.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
os.environ.update(ONE_THREAD)

import typer  # noqa: E402 - after the threads are settled

from benchmarks.bench import machine  # noqa: E402
from benchmarks.engines import environment, serving  # noqa: E402
from benchmarks.sizes import ROOT, write_clip  # noqa: E402

TASKS = 40
PIXELS = 64


@contextmanager
def dask_workers(folder: Path, count: int, settings: dict[str, str]) -> Iterator[str]:
    """The address of a Dask scheduler with so many worker processes, each in a folder of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    with ExitStack() as stack:

        def start(*command: str) -> None:
            place = Path(tempfile.mkdtemp(dir=folder))
            settings_here = {**settings, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(place)}
            process = subprocess.Popen(
                [sys.executable, "-m", *command, "--no-dashboard"], cwd=place, env=settings_here,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            stack.callback(process.wait)
            stack.callback(process.kill)

        start("distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", address.rpartition(":")[2])
        for _ in range(count):
            start(
                "distributed.cli.dask_worker", address, "--nthreads", "1", "--no-nanny", "--memory-limit", "0",
                "--death-timeout", "600",
            )  # fmt: skip
        _await_workers(address, count)
        yield address


def _await_workers(address: str, count: int) -> None:
    import distributed

    with distributed.Client(address, timeout=120, set_as_default=False) as client:
        client.wait_for_workers(count, timeout=300)


def each_task(runner: Any) -> dict[str, float]:
    """Milliseconds of a task that does nothing, through Prefect and a task runner: alone, and among many."""
    from prefect import flow, task
    from prefect.cache_policies import NO_CACHE

    @task(cache_policy=NO_CACHE, persist_result=False)
    def nothing(said: dict[str, Any], key: str, number: int) -> None:
        pass

    @flow(task_runner=runner, persist_result=False)
    def many() -> dict[str, float]:
        said = {"config": {"prompts": ["a purple ball on grass"] * 4}, "store": "/a/store"}
        for future in [nothing.submit(said, "key", number) for number in range(4)]:  # every worker has begun once
            future.result()
        alone = fastest(lambda: nothing.submit(said, "key", 0).result(), TASKS // 2)
        began = time.perf_counter()
        futures = [nothing.submit(said, "key", number) for number in range(TASKS)]
        for future in futures:
            future.result()
        return {"alone_ms": 1000 * alone, "among_many_ms": 1000 * (time.perf_counter() - began) / TASKS}

    return {name: round(value, 1) for name, value in many().items()}


def fastest(do: Callable[[], Any], rounds: int) -> float:
    """Seconds that the middle one of so many rounds takes."""
    taken = []
    for _ in range(rounds):
        began = time.perf_counter()
        do()
        taken.append(time.perf_counter() - began)
    return sorted(taken)[rounds // 2]


class Clock:
    """Progress that knows when each stage began and ended, in wall seconds."""

    def __init__(self) -> None:
        self.stages: dict[str, float] = {}
        self._stage, self._began = "", 0.0

    def begin(self, node: Any, total: int, done: int = 0) -> None:
        self._stage, self._began = node.stage, time.perf_counter()

    def advance(self, units: int) -> None: ...

    def end(self, finished: bool = True) -> None:
        taken = time.perf_counter() - self._began
        self.stages[self._stage] = round(self.stages.get(self._stage, 0) + taken, 2)

    def note(self, sentence: str) -> None: ...


def run(clip: Path, folder: Path, frames: int, steps: int, **runtime: Any) -> dict[str, Any]:
    """Wall seconds of one edit, and of its stages."""
    from flows.config import EditConfig, RuntimeConfig
    from flows.plan import Plan
    from flows.run import run_edit
    from store.store import Store

    place = Path(tempfile.mkdtemp(dir=folder))
    config = EditConfig(video=clip, prompts=("a purple ball on grass",), steps=steps, frames=f"0:{frames}")
    plan = Plan(config, RuntimeConfig(device="cpu", **runtime), Store(place / "store"))
    clock, began = Clock(), time.perf_counter()
    result = run_edit(plan, place / "out.mp4", "prefect" if runtime else "direct", clock)
    wall = time.perf_counter() - began
    parts = {node.stage: len(plan.schema(node).divided()) for node in plan.nodes}
    digest = next(use.artifact.digest for use in result.uses if use.node.stage == "propagate_tokens")
    return {"wall": round(wall, 2), "stages": clock.stages, "parts": parts, "digest": digest}


def measure(folder: Path, frames: int, steps: int, ray: bool) -> dict[str, Any]:
    """Both tables."""
    from prefect.context import refresh_global_settings_context
    from prefect_dask import DaskTaskRunner

    clip = write_clip(folder / "clip.mp4", frames, PIXELS)
    small = {"frames": 8, "steps": 1}
    with serving(folder / "home") as url:
        settings = {**environment(folder / "home", url), **ONE_THREAD}
        os.environ.update(settings)
        refresh_global_settings_context()
        run(clip, folder, **small)  # what is imported and loaded is not measured
        said: dict[str, Any] = {"runs": {"one process": run(clip, folder, frames, steps)}, "tasks": {}}
        for count, name in ((1, "Dask, one worker"), (2, "Dask, two workers")):
            with dask_workers(folder, count, settings) as address:
                run(clip, folder, **small, runner="dask", address=address)
                if count == 2:
                    run(clip, folder, **{**small, "frames": 40}, runner="dask", address=address)  # the second has begun
                    said["tasks"]["Prefect and Dask"] = each_task(DaskTaskRunner(address=address))
                said["runs"][name] = run(clip, folder, frames, steps, runner="dask", address=address)
        if ray:
            from prefect_ray import RayTaskRunner

            os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
            own = {"num_cpus": 2, "include_dashboard": False, "logging_level": "ERROR", "log_to_driver": False}
            said["tasks"]["Prefect and Ray"] = each_task(RayTaskRunner(init_kwargs=own))
    return said


def main(
    output: Annotated[Path, typer.Option("-o", "--output")],
    frames: int = 128,
    steps: int = 10,
    ray: bool = True,
) -> None:
    """Measure, print two tables, write JSON."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "home").mkdir()
        said = measure(Path(folder), frames, steps, ray)
    said["machine"] = machine("cpu")
    said["work"] = {"frames": frames, "pixels": PIXELS, "steps": steps, "model": "pocket"}
    said["command"] = f"python -m benchmarks.spread -o {output} --frames {frames} --steps {steps}"
    output.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
    print("| a task that does nothing | alone, ms | among many, ms each |\n|---|---:|---:|")
    for name, taken in said["tasks"].items():
        print(f"| {name} | {taken['alone_ms']} | {taken['among_many_ms']} |")
    runs = said["runs"]
    print(f"\n| wall seconds | parts | {' | '.join(runs)} |\n|---|---:|{'---:|' * len(runs)}")
    parts = runs["one process"]["parts"]
    for stage, count in parts.items():
        print(f"| {stage} | {count} | {' | '.join(str(each['stages'].get(stage, '–')) for each in runs.values())} |")
    print(f"| the whole run | {sum(parts.values())} | {' | '.join(str(each['wall']) for each in runs.values())} |")
    print(f"\nthe same bytes: {len({each['digest'] for each in runs.values()}) == 1}")


if __name__ == "__main__":
    typer.run(main)
