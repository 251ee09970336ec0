"""One piece of a benchmark in a process of its own: `python -m benchmarks.work WHAT SIZE FOLDER`, JSON on stdout.

In its own process, so that its peak memory is its own, and nothing that an earlier piece left behind helps it. The
model is loaded and warmed up before the clock starts; how long that took is told beside it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks import baseline, floor
from benchmarks.field_rate import field_rate
from benchmarks.sizes import PROMPTS, SIZES, Size, scaled
from flows.config import make_config, make_runtime
from flows.edit import edit_one
from flows.plan import Node, Plan
from flows.prepare import prepare
from flows.presets import with_preset
from flows.runtime import load_backbone
from flows.tasks import Direct, Session
from stages.diffusion import keyframes as schedule
from store.artifact import Artifact
from store.store import Store

Measured = dict[str, Any]


def main() -> None:
    """Do one piece of work and print what it took."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("what", choices=WORK)
    arguments.add_argument("size", choices=SIZES)
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--device", default="cpu")
    arguments.add_argument("--precision", default="auto")
    arguments.add_argument("--preset", default="balanced")
    arguments.add_argument("--frames", type=int)
    arguments.add_argument("--steps", type=int)
    arguments.add_argument("--drop-tokens", action="store_true", help="as with --token-budget 0, in a store of its own")
    arguments.add_argument("--profile", action="store_true")
    given = arguments.parse_args()
    size = SIZES[given.size]
    if given.frames or given.steps:
        size = scaled(size, given.frames or size.frames, given.steps or int(str(size.options.get("steps", 50))))
    print(json.dumps(WORK[given.what](Bench(size, given))))


class Bench:
    """A size on this machine: its plan, and its model when it is asked for."""

    def __init__(self, size: Size, given: argparse.Namespace) -> None:
        self.size, self.profile = size, bool(given.profile)
        folder: Path = given.folder
        began = time.perf_counter()
        options = with_preset(given.preset, {"model": size.model(folder), **size.options})
        config = make_config(video=size.clip(folder), prompts=PROMPTS, **options)
        budget = 0 if given.drop_tokens else size.token_budget
        runtime = make_runtime(device=given.device, precision=given.precision, token_budget=budget)
        store = Store(folder / f"store-{size.name}-{size.frames}-{len(size.options)}-{budget}")
        self.plan = Plan(config, runtime, store)
        self.backbone = load_backbone(self.plan)
        layout = self.plan.layout
        shape = (size.frames, layout.latent_channels, layout.latent_height, layout.latent_width)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        self.latents = noise.to(self.backbone.runtime.device)
        floor.prepare(self.backbone, self.latents[:2], 1)
        importlib.import_module("store.pandera_schemas")  # half a second, once in a process
        self.load_seconds = time.perf_counter() - began

    @property
    def steps(self) -> int:
        return len(self.plan.timesteps)

    @property
    def keyframes(self) -> int:
        """Keyframes at each step."""
        return len(schedule.intervals(self.size.frames, self.plan.config.keyframe_interval))

    def measured(self, do: Callable[[], None]) -> Measured:
        """What doing it took, beside what it took to get ready."""
        taken: Measured = {}
        with measuring(taken):
            do()
        return {**taken, "load_seconds": round(self.load_seconds, 2), "threads": torch.get_num_threads()}


class StageByStage(Direct):
    """Does the parts, and says what each stage took."""

    def __init__(self, profile: bool) -> None:
        self.stages: dict[str, Measured] = {}
        self.profile = profile

    def work(self, node: Node, parts: list[range], do: Callable[[range], None]) -> None:
        """Do them, measured."""
        taken: Measured = {"parts": len(parts)}
        with measuring(taken), profiled(taken, self.profile):
            super().work(node, parts, do)
        self.stages[node.stage] = taken

    def along(self, node: Node, artifact: Artifact, main: Node) -> None:
        """The two are one piece of work."""
        self.stages[f"{main.stage} + {node.stage}"] = self.stages.pop(main.stage)


def floor_prepare(bench: Bench) -> Measured:
    """(F) Inversion and source pass, bare."""
    invert, steps = bench.plan.invert.spec, bench.steps
    forwards = invert.num_inversion_steps * invert.evaluations + steps
    return bench.measured(lambda: floor.prepare(bench.backbone, bench.latents, forwards))


def floor_edit(bench: Bench) -> Measured:
    """(F) One prompt, bare."""
    return bench.measured(lambda: floor.edit(bench.backbone, bench.latents, bench.keyframes, bench.steps))


def baseline_edit(bench: Bench, head_by_head: bool = False) -> Measured:
    """(B) One prompt as published; latents are random, which is the same work."""
    plan = bench.plan
    editor = plan.edits[0][0].spec.editor.settings
    latents = bench.latents[None].expand(bench.steps, -1, -1, -1, -1)
    return bench.measured(
        lambda: baseline.edit(
            bench.backbone, latents, plan.timesteps, PROMPTS[1], guidance_scale=plan.guidance_scale,
            keyframe_interval=plan.config.keyframe_interval, pnp_attention=float(str(editor["attention"])),
            pnp_feature=float(str(editor["feature"])), head_by_head=head_by_head,
        )
    )  # fmt: skip


def our_prepare(bench: Bench) -> Measured:
    """(O) Decode, invert, extract and match into an empty store."""
    return _ours(bench, lambda session: prepare(session).field())


def our_edit(bench: Bench, prompt: int = 1) -> Measured:
    """(O) One prompt over what is prepared."""
    return _ours(bench, lambda session: edit_one(session, prepare(session), *bench.plan.edits[prompt])[1]())


def our_first_edit(bench: Bench) -> Measured:
    """(O) The first prompt."""
    return our_edit(bench, 0)


def _ours(bench: Bench, do: Callable[[Session], Any]) -> Measured:
    engine = StageByStage(bench.profile)
    session = Session(bench.plan, engine, backbone=lambda: bench.backbone)
    taken = bench.measured(lambda: do(session))
    made = {use.node.stage: use for use in session.uses.values() if not use.hit}
    return {
        **taken, "stages": engine.stages, "tokens_kept": bench.plan.keeps_tokens,
        "stage_seconds": {name: round(use.seconds, 3) for name, use in made.items()},
        "stored_bytes": {name: use.artifact.nbytes for name, use in made.items()},
    }  # fmt: skip


WORK: dict[str, Callable[[Bench], Measured]] = {
    "floor-prepare": floor_prepare,
    "floor-edit": floor_edit,
    "baseline": baseline_edit,
    "baseline-heads": lambda bench: baseline_edit(bench, head_by_head=True),
    "prepare": our_prepare,
    "first-edit": our_first_edit,
    "second-edit": our_edit,
    "field": lambda bench: dict(field_rate(bench.backbone.runtime.device)),
}


@contextmanager
def measuring(taken: Measured) -> Iterator[None]:
    """Write into `taken` what the block took: seconds, bytes through system calls, peak memory so far."""
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    before, wall, cpu = _io(), time.perf_counter(), time.process_time()
    yield
    if gpu:
        torch.cuda.synchronize()
        taken["gpu_peak_bytes"] = torch.cuda.max_memory_allocated()
    taken["wall_seconds"] = round(time.perf_counter() - wall, 3)
    taken["cpu_seconds"] = round(time.process_time() - cpu, 3)
    after = _io()
    taken["bytes_read"], taken["bytes_written"] = (after[name] - before[name] for name in ("rchar", "wchar"))
    taken["peak_rss_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextmanager
def profiled(taken: Measured, wanted: bool) -> Iterator[None]:
    """Write into `taken` the ten costliest operators of the block, as torch.profiler tells them."""
    if not wanted:
        yield
        return
    activities = [torch.profiler.ProfilerActivity.CPU]
    sort = "self_cpu_time_total"
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
        sort = "self_cuda_time_total"
    with torch.profiler.profile(activities=activities) as profile:
        yield
    taken["operators"] = profile.key_averages().table(sort_by=sort, row_limit=10)


def _io() -> dict[str, int]:
    """Bytes that this process read and wrote; zeros where the system does not tell."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return {"rchar": 0, "wchar": 0}
    return {name: int(value) for name, value in (line.split(": ") for line in lines)}


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    main()
