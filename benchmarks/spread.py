"""What spreading one run costs and gains: an empty task, and two worker processes against one on the same work.

    python -m benchmarks.spread -o benchmarks/results/spread.json

All processes compute on one thread. Workers are warm (imports, model) before the clock starts; the run's own process,
its flow run, decoding, gathering and export are inside it.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.sizes import SIZES, scaled, write_clip
from flows.engine import set_defaults

EMPTY_TASKS = 50


def seconds_per_task(runner: Callable[[], Any]) -> float:
    """From submitting many empty tasks to having the last result, each."""
    from prefect import flow, task
    from prefect.cache_policies import NO_CACHE

    @task(cache_policy=NO_CACHE, persist_result=False)
    def nothing(number: int) -> int:
        return number

    @flow
    def many() -> float:
        for future in nothing.map(range(4)):  # the workers know the task
            future.result()
        began = time.perf_counter()
        for future in nothing.map(range(EMPTY_TASKS)):
            future.result()
        return (time.perf_counter() - began) / EMPTY_TASKS

    return float(many.with_options(task_runner=runner())())


def seconds_of_run(folder: Path, clip: Path, runtime: dict[str, Any]) -> float:
    """One `tf run` on a new store."""
    from flows.config import EditConfig, RuntimeConfig
    from flows.plan import Plan
    from flows.run import run_edit
    from store.store import Store

    config = EditConfig(video=clip, prompts=("a purple ball on grass",), steps=20)
    store = Store(folder / f"store-{time.time_ns()}")
    began = time.perf_counter()
    run_edit(Plan(config, RuntimeConfig(device="cpu", **runtime), store), folder / "out.mp4", "prefect")
    return time.perf_counter() - began


def measure(folder: Path, frames: int) -> dict[str, Any]:
    """Both tables."""
    from distributed import LocalCluster
    from prefect.task_runners import ThreadPoolTaskRunner
    from prefect_dask import DaskTaskRunner
    from prefect_ray import RayTaskRunner

    clip = write_clip(folder / "clip.mp4", frames, scaled(SIZES["pocket"], frames, 20).pixels)
    short = write_clip(folder / "short.mp4", 16, 64)
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        dask_task = seconds_per_task(lambda: DaskTaskRunner(address=cluster.scheduler_address))
    tasks = {
        "Prefect's threads": seconds_per_task(lambda: ThreadPoolTaskRunner(max_workers=1)),
        "Dask, two processes": dask_task,
        "Ray, two processes": seconds_per_task(lambda: RayTaskRunner(init_kwargs={"num_cpus": 2})),
    }
    runs = {"one process, no runner": seconds_of_run(folder, clip, {})}
    for count in (1, 2):
        with LocalCluster(n_workers=count, threads_per_worker=1, dashboard_address=None) as cluster:
            runtime = {"runner": "dask", "address": cluster.scheduler_address}
            seconds_of_run(folder, short, runtime)
            runs[f"Dask, {count} worker{'s' * (count > 1)}"] = seconds_of_run(folder, clip, runtime)
    return {"seconds_per_task": tasks, "seconds_of_run": runs}


def main(
    output: Annotated[Path, typer.Option("-o", "--output")],
    frames: Annotated[int, typer.Option(help="Of the clip that is edited with the embedded model.")] = 128,
) -> None:
    """Measure, print two tables, write JSON."""
    os.environ |= {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", "PREFECT_LOGGING_LEVEL": "ERROR"}
    set_defaults()
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        said = measure(Path(folder), frames)
    said |= {"frames": frames, "machine": {"cores": os.cpu_count(), "platform": platform.platform()}}
    said["command"] = f"python -m benchmarks.spread -o {output} --frames {frames}"
    output.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
    print("| an empty task, submitted and waited for | ms |\n|---|---:|")
    for name, value in said["seconds_per_task"].items():
        print(f"| {name} | {1000 * value:.0f} |")
    base = said["seconds_of_run"]["Dask, 1 worker"]
    print(f"\n| the same run, {frames} frames | s | against one worker |\n|---|---:|---:|")
    for name, value in said["seconds_of_run"].items():
        print(f"| {name} | {value:.1f} | {base / value:.2f}× |")


if __name__ == "__main__":
    typer.run(main)
